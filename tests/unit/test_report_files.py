"""Files are there whole or not at all; pictures and tables can be read back."""

from __future__ import annotations

import os
import stat

import pandas as pd
import pytest
from report_runs import busy_run, run_of

from simulator.api import Comparison, Result, Terms
from simulator.errors import InputError
from simulator.files import output_file, output_folder, replacing, write_text
from simulator.metrics.slo import SLO

TERMS = Terms(SLO(ttft_s=2.0, tpot_s=0.05), warmup_s=5.0)
PNG = b"\x89PNG\r\n\x1a\n"


def test_a_failed_write_leaves_the_old_file_and_no_scraps(tmp_path):
    target = tmp_path / "result.json"
    target.write_text("old")
    with pytest.raises(RuntimeError), replacing(target) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert target.read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["result.json"]


def test_written_files_have_ordinary_permissions(tmp_path):
    write_text(tmp_path / "a.json", "{}")
    mask = os.umask(0)
    os.umask(mask)
    assert stat.S_IMODE((tmp_path / "a.json").stat().st_mode) == 0o666 & ~mask


def test_folder_is_made_and_a_file_in_its_place_is_refused(tmp_path):
    assert output_folder(tmp_path / "a" / "b").is_dir()
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"--out: .*file is a file"):
        output_folder(tmp_path / "file")
    with pytest.raises(InputError, match=r"--out: .*cannot be made"):
        output_folder(tmp_path / "file" / "below")


def test_json_target_must_be_a_file_in_a_folder_that_exists(tmp_path):
    with pytest.raises(InputError, match="is a folder; name a file"):
        output_file(tmp_path, "--json")
    with pytest.raises(InputError, match="there is no folder"):
        output_file(tmp_path / "no" / "x.json", "--json")


def compared(count=2):
    return Comparison(
        tuple(Result(busy_run(f"t{i}", n=60, split=bool(i % 2), saturated=i == 2), TERMS) for i in range(count))
    )


def test_save_writes_everything_and_twice_the_same(tmp_path):
    once, twice = (compared().save(tmp_path / name) for name in ("a", "b"))
    assert [path.name for path in once] == [
        "result.json",
        "requests.parquet",
        "latency.png",
        "ttft_parts.png",
        "load.png",
    ]
    for one, other in zip(once, twice, strict=True):
        assert one.read_bytes() == other.read_bytes(), one.name
    assert all(path.read_bytes().startswith(PNG) for path in once[2:])
    assert sorted(p.name for p in (tmp_path / "a").iterdir()) == sorted(p.name for p in once)


def test_requests_parquet_has_a_row_a_request_and_topology(tmp_path):
    compared().save(tmp_path)
    table = pd.read_parquet(tmp_path / "requests.parquet")
    assert table["topology"].value_counts().to_dict() == {"t0": 60, "t1": 60}
    assert (table["state"] == "completed").all()
    parts = ["queue_s", "cache_load_s", "prefill_s", "kv_wait_s", "kv_transfer_s", "decode_admission_s", "host_s"]
    assert (table[parts].sum(axis=1) - table["ttft_s"]).abs().max() < 1e-9
    assert set(table.loc[table["topology"] == "t1", "decode_worker"]) == {"decode/1"}
    assert not table.loc[table["arrival_s"] < 5.0, "counted"].any()
    assert table["good"].dtype == bool


def test_five_topologies_get_a_second_page_of_load(tmp_path):
    names = [path.name for path in compared(5).save(tmp_path)]
    assert names[-2:] == ["load.png", "load_2.png"]


def test_pictures_of_runs_without_completions_or_series(tmp_path):
    paths = Result(run_of([{"state": 2}], name="lost"), Terms(SLO(ttft_s=1.0))).save(tmp_path)
    assert [path.name for path in paths] == ["result.json", "requests.parquet", "latency.png"]
    single = Result(run_of([{"first": 1.0, "last": 1.0, "output": 1}])).save(tmp_path / "one")
    assert (tmp_path / "one" / "ttft_parts.png") in single


def test_plot_by_ending_and_no_global_figures(tmp_path):
    import matplotlib.pyplot as plt

    figure = compared().plot(tmp_path / "x.svg")
    assert (tmp_path / "x.svg").read_text().startswith("<?xml")
    assert [axis.get_title("left") for axis in figure.axes] == [
        "Time to first token (TTFT)",
        "Time per output token (TPOT)",
    ]
    assert plt.get_fignums() == []
