"""The commands of planning as a user types them: sweep, plan, check."""

from __future__ import annotations

import json

import pandas as pd
import pytest
import yaml

from simulator.cli import main
from simulator.errors import RunInterruptedError
from simulator.planning.sweep import sweep

ONE = {
    "name": "one",
    "engine": {"profile": "vllm", "max_num_seqs": 8},
    "pools": [{"name": "only", "role": "colocated"}],
    "step_time": {"kind": "affine", "base_s": 0.01, "per_token_s": 1e-5},
    "kv_blocks": 5000,
}
SWEEP = {
    "trace": "chat",
    "limit": 30,
    "topology": "one.yaml",
    "arrivals": "poisson:4",
    "slo": {"ttft": "1s"},
    "seeds": [1, 2],
    "grid": {"step_time.base_s": [0.01, 0.02]},
}


@pytest.fixture
def spec(tmp_path):
    (tmp_path / "one.yaml").write_text(yaml.safe_dump(ONE))
    path = tmp_path / "sweep.yaml"
    path.write_text(yaml.safe_dump(SWEEP, sort_keys=False))
    return path


def test_a_sweep_prints_means_over_seeds_and_writes_one_row_a_run(spec, tmp_path, capsys):
    files = {name: str(tmp_path / f"t.{name}") for name in ("json", "csv", "parquet")}
    words = ["--json", files["json"], "--csv", files["csv"], "--out", files["parquet"]]
    assert main(["sweep", str(spec), *words]) == 0
    text = capsys.readouterr()
    assert "step_time.base_s" in text.out
    assert "means over 2 seeds, 95 % intervals" in text.out
    assert "±" in text.out
    tables = [pd.read_csv(files["csv"]), pd.read_parquet(files["parquet"])]
    for table in tables:
        assert list(table["seed"]) == [1, 2, 1, 2]
        assert list(table["step_time.base_s"]) == [0.01, 0.01, 0.02, 0.02]
    document = json.loads((tmp_path / "t.json").read_text())
    assert [run["result"]["ttft_s"]["p99"] for run in document["runs"]] == list(tables[1]["ttft_p99_s"])
    assert document["axes"] == ["seed", "step_time.base_s"]
    assert len(list((tmp_path / "sweep.runs").glob("*.parquet"))) == 4
    assert main(["sweep", str(spec), "--json", "-"]) == 0
    again = capsys.readouterr()
    assert again.err == f"note: 4 of 4 runs were in {tmp_path / 'sweep.runs'}\n"
    assert json.loads(again.out) == document


def test_a_sweep_can_do_without_a_store(spec, tmp_path, capsys):
    assert main(["sweep", str(spec), "--store", "none", "--quiet"]) == 0
    assert not (tmp_path / "sweep.runs").exists()
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--executor", "dask"], "--executor: 'dask'; allowed: local, dask:tcp://HOST:PORT"),
        (["--jobs", "-1"], "--jobs: -1; allowed"),
        (["--csv", "nowhere/t.csv"], "--csv: there is no folder nowhere"),
    ],
)
def test_options_that_cannot_be_are_refused_in_one_line(spec, capsys, words, message):
    assert main(["sweep", str(spec), *words]) == 2
    told = capsys.readouterr().err
    assert message in told
    assert told.count("\n") == 1


@pytest.mark.parametrize("command", ["sweep", "plan", "check"])
def test_a_file_that_is_not_there_is_bad_input(command, capsys, tmp_path):
    assert main([command, str(tmp_path / "none.yaml")]) == 2
    assert "none.yaml: cannot be read" in capsys.readouterr().err


def test_ctrl_c_keeps_what_is_done(spec, tmp_path):
    def stop(done, total):
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(RunInterruptedError, match="2 of 4 runs are kept; the same command goes on from there"):
        sweep(spec, store=tmp_path / "store", progress=stop)
    assert sweep(spec, store=tmp_path / "store").found == 2
