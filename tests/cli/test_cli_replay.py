"""The main job through the command: what comes out where, and with which exit code."""

from __future__ import annotations

import json
import subprocess
import sys

import pandas as pd
import pytest
from cli_inputs import refused, run, write_inputs

import simulator.api


@pytest.fixture
def inputs(tmp_path):
    return write_inputs(tmp_path)


def test_two_topologies_side_by_side(inputs, capsys):
    trace, one, split = inputs
    code, out, err = run(capsys, trace, "--topology", one, "--topology", split, "--slo", "ttft=50ms,tpot=12ms")
    assert code == 0
    assert "TTFT p99" in out
    assert "targets: TTFT 50 ms, TPOT 12 ms" in out
    assert "one and split tie" in out
    assert "\x1b" not in out + err


def test_json_on_stdout_is_all_there_is(inputs, capsys):
    trace, one, split = inputs
    code, out, _ = run(capsys, trace, "--topology", one, "--topology", split, "--slo", "ttft=15ms", "--json", "-")
    result = json.loads(out)
    assert code == 0
    assert [entry["name"] for entry in result["topologies"]] == ["one", "split"]
    first, second = result["topologies"]
    # 100 prompt tokens: 0.01 + 100 * 1e-5 s; the split pair adds the transfer and a decode step
    assert first["ttft_s"]["mean"] == pytest.approx(0.011095, abs=1e-4)
    assert first["slo_attainment"] == 1.0
    assert second["slo_attainment"] == 0.0
    assert set(first["tenants"]) == {"a", "b"}
    for entry in result["topologies"]:
        assert sum(entry["ttft_parts_s"].values()) == entry["ttft_s"]["mean"]


def test_same_command_same_bytes(inputs, capsys):
    words = (inputs[0], "--topology", inputs[2], "--arrivals", "poisson:5", "--seed", 3, "--json", "-")
    assert run(capsys, *words)[1] == run(capsys, *words)[1]


def test_seed_changes_drawn_arrivals(inputs, capsys):
    words = (inputs[0], "--topology", inputs[1], "--arrivals", "poisson:5", "--json", "-")
    spans = {json.loads(run(capsys, *words, "--seed", seed)[1])["trace"]["span_s"] for seed in (1, 2)}
    assert len(spans) == 2


def test_files(inputs, tmp_path, capsys):
    trace, one, split = inputs
    folder, target = tmp_path / "new" / "out", tmp_path / "r.json"
    code, out, err = run(capsys, trace, "--topology", one, "--topology", split, "--out", folder, "--json", target)
    assert code == 0
    assert "TTFT p50" in out
    assert "wrote" in err
    assert target.read_bytes() == (folder / "result.json").read_bytes()
    assert len(pd.read_parquet(folder / "requests.parquet")) == 40
    assert {path.name for path in folder.iterdir()} == {
        "result.json", "requests.parquet", "latency.png", "ttft_parts.png", "load.png",
    }  # fmt: skip


def test_window_and_warmup(inputs, capsys):
    words = ("--start", "0.5", "--duration", "1s", "--limit", 8, "--warmup", "200ms", "--rate-scale", 2, "--json", "-")
    result = json.loads(run(capsys, inputs[0], "--topology", inputs[1], *words)[1])
    assert result["trace"]["requests"] == 8
    assert result["trace"]["span_s"] == pytest.approx(0.35)
    assert result["trace"]["warmup_s"] == 0.2
    assert result["topologies"][0]["requests"] == 4  # at 0, .05 ... .35 s, those from 0.2 s on


def test_set_changes_every_topology_and_is_written_down(inputs, capsys):
    trace, one, _ = inputs
    result = json.loads(run(capsys, trace, "--topology", one, "--set", "pools.0.workers=3", "--json", "-")[1])
    assert result["set"] == ["pools.0.workers=3"]
    assert result["topologies"][0]["pools"][0]["workers"] == 3


def test_the_same_name_twice_is_told_apart(inputs, capsys):
    trace, one, _ = inputs
    result = json.loads(run(capsys, trace, "--topology", one, "--topology", one, "--json", "-")[1])
    assert [entry["name"] for entry in result["topologies"]] == ["one", "one#2"]


def test_columns_of_an_unknown_csv(inputs, tmp_path, capsys):
    (tmp_path / "x.csv").write_text("when,in,out\n0,10,2\n1,20,3\n")
    columns = "arrival_s=when,input_tokens=in,output_tokens=out"
    result = json.loads(
        run(capsys, tmp_path / "x.csv", "--columns", columns, "--topology", inputs[1], "--json", "-")[1]
    )
    assert result["trace"]["input_tokens"]["sum"] == 30


def test_quiet_says_nothing_on_stderr(inputs, tmp_path, capsys):
    words = (inputs[0], "--topology", inputs[1], "--arrivals", "poisson:5", "--out", tmp_path / "o")
    assert "note: " in run(capsys, *words)[2]
    assert run(capsys, *words, "--quiet")[2] == ""


def test_ctrl_c_keeps_what_was_finished(inputs, tmp_path, capsys, monkeypatch):
    trace, one, split = inputs
    real, calls = simulator.api.run_cluster, []

    def interrupted(*args):
        calls.append(args)
        if len(calls) > 1:
            raise KeyboardInterrupt
        return real(*args)

    monkeypatch.setattr(simulator.api, "run_cluster", interrupted)
    target = tmp_path / "r.json"
    code, out, err = run(capsys, trace, "--topology", one, "--topology", split, "--json", target)
    assert code == 130
    assert err.splitlines()[-1] == "simulate: interrupted; 1 of 2 topologies finished and kept"
    assert "TTFT p50" in out
    kept = json.loads(target.read_text())
    assert kept["interrupted"] is True
    assert [entry["name"] for entry in kept["topologies"]] == ["one"]


def test_ctrl_c_before_anything_is_finished(inputs, capsys, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(simulator.api, "run_cluster", interrupted)
    code, out, err = run(capsys, inputs[0], "--topology", inputs[1])
    assert (code, out, err) == (130, "", "simulate: interrupted; nothing was finished\n")


def test_ctrl_c_while_the_trace_is_read(inputs, capsys, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("simulator.commands.replay.load_trace", interrupted)
    code, out, err = run(capsys, inputs[0], "--topology", inputs[1])
    assert (code, out, err) == (130, "", "simulate: interrupted; nothing was finished\n")


def test_a_bug_shows_its_traceback(inputs, capsys, monkeypatch):
    def broken(*_):
        raise ZeroDivisionError

    monkeypatch.setattr(simulator.api, "run_cluster", broken)
    with pytest.raises(ZeroDivisionError):
        run(capsys, inputs[0], "--topology", inputs[1])


def test_a_reader_that_stops_early_is_no_error(inputs):
    words = [sys.executable, "-m", "simulator.cli", inputs[0], "--topology", inputs[1], "--json", "-", "--quiet"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        process.stdout.close()
        said = process.stderr.read()
        assert process.wait(timeout=120) == 0
    assert said == ""


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ([], "--topology is missing"),
        (["--topology", "nope"], "unknown topology 'nope'"),
        (["--topolgy", "one"], "Unknown option: --topolgy. Did you mean --topology?"),
        (["--topology", "ONE", "--slo", "ttft=2"], "--slo: ttft: '2' is not a duration"),
        (["--topology", "ONE", "--slo", "tpto=2s"], "--slo: unknown target 'tpto' (did you mean 'tpot'?)"),
        (["--topology", "ONE", "--arrivals", "poison:3"], "--arrivals: unknown arrivals 'poison' (did you mean 'poisson:RATE'?)"),
        (["--topology", "ONE", "--limit", "x"], "Invalid value for --limit"),
        (["--topology", "ONE", "--limit", "0"], "limit: 0 requests"),
        (["--topology", "ONE", "--start", "soon"], "--start: 'soon' is not a duration"),
        (["--topology", "ONE", "--start", "99"], "no request arrives from 99 s"),
        (["--topology", "ONE", "--warmup", "99"], "warmup: 99 s leaves no request"),
        (["--topology", "ONE", "--seed", "-1"], ""),
        (["--topology", "ONE", "--columns", "a"], "--columns: 'a' is not FIELD=COLUMN"),
        (["--topology", "ONE", "--json", "--quiet"], "--json: '--quiet' is an option"),
        (["--topology", "ONE", "--json", "no/x.json"], "--json: there is no folder no"),
        (["--topology", "ONE", "--set", "pools.0.wokers=2"], ""),
        (["--topology", "ONE", "--arrivals", "poisson:3", "--rate-scale", "2"], "--rate-scale has no effect"),
        (["--topology", "ONE", "extra"], "Unused Tokens: ['extra']"),
    ],
)  # fmt: skip
def test_bad_input_is_one_line_and_2(inputs, capsys, words, says):
    said = refused(capsys, inputs[0], *[inputs[1] if word == "ONE" else word for word in words])
    assert said.startswith(says) or (says in said and says.startswith("no request"))


def test_out_that_is_a_file_is_refused_before_the_run(inputs, capsys, monkeypatch):
    monkeypatch.setattr(simulator.api, "run_cluster", lambda *_: pytest.fail("ran"))
    assert "is a file; name a folder" in refused(capsys, inputs[0], "--topology", inputs[1], "--out", inputs[0])


def test_second_topology_that_cannot_be_is_refused_before_the_first_runs(inputs, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(simulator.api, "run_cluster", lambda *_: pytest.fail("ran"))
    too_big = "llama-3.1-405b/h100_sxm/1c"
    assert "does not fit" in refused(capsys, inputs[0], "--topology", inputs[1], "--topology", too_big)


def test_trace_that_is_not_there_names_the_nearest(inputs, capsys):
    assert "no such file" in refused(capsys, inputs[0] + "x", "--topology", inputs[1])


def test_request_that_never_fits_is_rejected_and_if_none_fits_that_is_bad_input(inputs, tmp_path, capsys):
    big = tmp_path / "big.jsonl"
    big.write_text('{"arrival_s": 0, "input_tokens": 90000, "output_tokens": 5}\n')
    assert "90,000" in refused(capsys, big, "--topology", inputs[1])
    with big.open("a") as file:
        file.write('{"arrival_s": 1, "input_tokens": 10, "output_tokens": 5}\n')
    entry = json.loads(run(capsys, big, "--topology", inputs[1], "--json", "-")[1])["topologies"][0]
    assert (entry["requests"], entry["completed"], entry["rejected"]) == (2, 1, 1)
    assert list(entry["reasons"].values()) == [1]
