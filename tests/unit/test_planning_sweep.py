"""Sweeps: what a spec expands to, one result whoever does the work, and a store that survives."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pandas as pd
import pytest

from simulator.errors import InputError
from simulator.planning.runs import Run, perform, topology_text
from simulator.planning.store import Store
from simulator.planning.sweep import sweep
from simulator.planning.sweep_spec import plan_runs, read_sweep
from simulator.planning.traces import trace_digest
from simulator.workload.trace import Trace

ONE = {
    "name": "one",
    "engine": {"profile": "vllm", "max_num_seqs": 8},
    "pools": [{"name": "only", "role": "colocated"}],
    "step_time": {"kind": "affine", "base_s": 0.01, "per_token_s": 1e-5},
    "kv_blocks": 5000,
}
SMALL = {
    "trace": "chat",
    "limit": 40,
    "topology": ONE,
    "arrivals": "poisson:4",
    "slo": "ttft=1s,tpot=50ms",
    "grid": {"step_time.base_s": [0.01, 0.02], "seed": [1, 2, 3]},
}


def test_points_are_the_grid_times_the_zip_times_the_runs_in_the_order_of_the_file():
    spec = {
        "trace": "chat",
        "topologies": ["1p1d", "2p2d"],
        "grid": {"network.nic_gbit_per_s": [100, 400]},
        "zip": {"pools.prefill.workers": [1, 2], "pools.decode.workers": [2, 1]},
        "runs": [{"arrivals": "poisson:3"}, {"arrivals": "poisson:5", "slo.ttft": "1s"}],
        "seeds": [7, 8],
    }
    planned = plan_runs(read_sweep(spec))
    assert len(planned) == 2 * 2 * 2 * 2 * 2
    assert [p.run.seed for p in planned[:2]] == [7, 8]
    assert [p.run.arrivals for p in planned[:4]] == ["poisson:3", "poisson:3", "poisson:5", "poisson:5"]
    assert planned[2].run.slo == (("ttft", 1.0),)
    assert [(p.topology.pool("prefill").workers, p.topology.pool("decode").workers) for p in planned[2:6:2]] == [
        (1, 2),
        (2, 1),
    ]
    assert planned[-1].topology.name == "2p2d"
    assert planned[-1].topology.network.nic_gbit_per_s == 400


def test_the_table_has_a_row_a_run_and_says_what_one_would_get_alone():
    found = sweep(SMALL)
    assert list(found.table.columns[:4]) == ["topology", "seed", "step_time.base_s", "gpus"]
    assert len(found.table) == 6
    assert found.table["problem"].isna().all()
    trace = plan_runs(read_sweep(SMALL))[0].source.load()
    planned = plan_runs(read_sweep(SMALL))[4]
    alone = perform(planned.run, trace).entry
    assert found.runs[4].outcome.entry == alone
    assert found.table["ttft_p99_s"][4] == alone["ttft_s"]["p99"]
    group = found.groups[1]
    values = found.table["ttft_mean_s"][3:]
    assert group["ttft_mean_s"]["mean"] == pytest.approx(values.mean())
    assert group["ttft_mean_s"]["low"] < values.mean() < group["ttft_mean_s"]["high"]


def test_a_trace_that_is_generated_can_be_varied_as_well(tmp_path):
    (tmp_path / "made.yaml").write_text(
        "name: made\nrequests: 30\narrivals: {rate_per_s: 5}\ninput_tokens: {constant: 100}\noutput_tokens: {constant: 5}\n"
    )
    (tmp_path / "sweep.yaml").write_text(
        f"trace: made.yaml\ntopology: {json.dumps(ONE)}\ngrid: {{trace.input_tokens.constant: [100, 4000]}}\n"
    )
    table = sweep(tmp_path / "sweep.yaml").table
    assert table["ttft_mean_s"][1] > 1.5 * table["ttft_mean_s"][0]


def test_a_corner_that_does_not_fit_is_told_and_the_rest_is_done():
    found = sweep(
        {"trace": "chat", "limit": 10, "topology": "llama-3.1-70b/h100_sxm/1c", "grid": {"pools.*.parallel.tp": [1, 4]}}
    )
    assert "does not fit" in found.table["problem"][0]
    assert found.runs[1].outcome.entry["completed"] == 10
    with pytest.raises(InputError, match=r"no run could be done: .*does not fit"):
        sweep({"trace": "chat", "limit": 10, "topology": "llama-3.1-70b/h100_sxm/1c"})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"grid": {"pols.only.workers": [1]}}, "unknown axis|unknown key 'pols'"),
        ({"grid": {"pools.olny.workers": [1]}}, "unknown pool 'olny'.*did you mean 'only'"),
        ({"grid": {"pools.only.wokers": [1]}}, "unknown key 'pools.only.wokers'|did you mean 'workers'"),
        ({"grid": {"arival": ["at-once"]}}, "unknown axis 'arival'.*did you mean 'arrivals'"),
        ({"grid": {"seed": [-1]}}, "seed: found -1"),
        ({"grid": {"rate_scale": [2]}}, "rate_scale has no effect with arrivals poisson:4"),
        ({"zip": {"seed": [1, 2], "limit": [3]}}, "differ in length"),
        ({"grid": {"seeds": [[1]]}}, "'seeds' cannot be varied"),
        ({"trase": "x"}, "unknown key 'trase'.*did you mean 'trace'"),
        ({"trace": "chta"}, "chta"),
        ({"topologies": ["1p1d"]}, "topology or topologies"),
        ({"slo": "ttft=1"}, "slo: ttft: '1' is not a duration"),
    ],
)
def test_bad_specs_are_refused_in_one_line(change, message):
    with pytest.raises(InputError, match=message) as caught:
        sweep({**SMALL, **change})
    assert "\n" not in str(caught.value)


def test_the_same_axis_twice_is_refused():
    with pytest.raises(InputError, match="'seed' stands in grid and in zip or runs"):
        sweep({**SMALL, "runs": [{"seed": 3}]})


def test_a_repeated_sweep_is_free_and_gives_the_same_bytes(tmp_path):
    first = sweep(SMALL, store=tmp_path / "store")
    counted = []
    again = sweep(SMALL, store=tmp_path / "store", progress=lambda done, total: counted.append(done))
    assert (first.found, again.found, counted) == (0, 6, [])
    assert again.to_json() == first.to_json()
    more = {**SMALL, "grid": {"step_time.base_s": [0.01, 0.02, 0.03], "seed": [1, 2, 3]}}
    assert sweep(more, store=tmp_path / "store").found == 6


def test_the_key_tells_runs_apart_by_content_and_nothing_else(tmp_path):
    trace = Trace.from_columns([0.0, 1.0], [10, 20], [3, 4])
    planned = plan_runs(read_sweep(SMALL))
    keys = {p.run.key() for p in planned}
    assert len(keys) == 6
    assert trace_digest(trace) == trace_digest(trace.with_(name="other", source="elsewhere", notes=("x",)))
    assert trace_digest(trace) != trace_digest(trace.with_(output_tokens=np.array([3, 5])))
    gpu = tmp_path / "mine.yaml"
    run = Run("t", json.dumps({"name": "n", "pools": [{"name": "p", "role": "colocated", "gpu": str(gpu)}]}))
    gpu.write_text("a: 1\n")
    before = run.key()
    gpu.write_text("a: 2\n")
    assert run.key() != before


def test_a_damaged_file_in_the_store_is_done_again(tmp_path):
    sweep(SMALL, store=tmp_path / "store")
    victim = sorted((tmp_path / "store").iterdir())[0]
    whole = victim.read_bytes()
    victim.write_bytes(whole[: len(whole) // 2])
    assert sweep(SMALL, store=tmp_path / "store").found == 5
    assert victim.read_bytes() == whole


def test_a_store_in_the_place_of_a_file_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"--store: .* is a file"):
        Store(tmp_path / "file")


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    found = sweep(SMALL, store=folder / "store")
    found.to_parquet(folder / "table.parquet")
    found.to_csv(folder / "table.csv")
    return folder


def same_bytes(one, other):
    files = sorted(p.relative_to(one) for p in one.rglob("*") if p.is_file())
    assert files == sorted(p.relative_to(other) for p in other.rglob("*") if p.is_file())
    assert [f for f in files if (one / f).read_bytes() != (other / f).read_bytes()] == []


@pytest.mark.slow
def test_two_processes_give_the_bytes_of_one(undisturbed, tmp_path):
    found = sweep(SMALL, jobs=2, store=tmp_path / "store")
    found.to_parquet(tmp_path / "table.parquet")
    found.to_csv(tmp_path / "table.csv")
    same_bytes(undisturbed, tmp_path)
    assert len(pd.read_parquet(tmp_path / "table.parquet")) == 6


KILLED = """
import json, os, signal, sys
from simulator.planning.sweep import sweep
def progress(done, total):
    if done == 2:
        os.kill(os.getpid(), signal.SIGKILL)
sweep(json.loads(sys.argv[1]), store=sys.argv[2], progress=progress)
"""


def test_a_sweep_killed_in_the_middle_goes_on_and_ends_as_an_undisturbed_one(undisturbed, tmp_path):
    store = tmp_path / "store"
    killed = subprocess.run([sys.executable, "-c", KILLED, json.dumps(SMALL), str(store)], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert len(list(store.glob("*.parquet"))) == 2
    found = sweep(SMALL, store=store)
    assert found.found == 2
    found.to_parquet(tmp_path / "table.parquet")
    found.to_csv(tmp_path / "table.csv")
    same_bytes(undisturbed, tmp_path)


@pytest.mark.slow
def test_two_sweeps_in_one_store_at_once_and_one_killed_by_surprise(undisturbed, tmp_path):
    spec, store = tmp_path / "spec.yaml", tmp_path / "store"
    spec.write_text(json.dumps(SMALL))
    command = [sys.executable, "-m", "simulator.cli", "sweep", str(spec), "--store", str(store), "--quiet"]
    runs = [subprocess.Popen(command, stdout=subprocess.DEVNULL) for _ in range(3)]
    deadline = time.monotonic() + 60
    while not list(store.glob("*.parquet")) and time.monotonic() < deadline:
        time.sleep(0.001)
    os.kill(runs[0].pid, signal.SIGKILL)
    assert [run.wait(120) for run in runs][1:] == [0, 0]
    for scrap in store.glob(".*"):  # what the killed one was about to write
        scrap.unlink()
    found = sweep(SMALL, store=store)
    assert found.found == 6
    found.to_parquet(tmp_path / "table.parquet")
    found.to_csv(tmp_path / "table.csv")
    spec.unlink()
    same_bytes(undisturbed, tmp_path)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_dask_cluster_of_processes_gives_the_bytes_of_one(undisturbed, tmp_path):
    distributed = pytest.importorskip("distributed")
    options = {"n_workers": 2, "threads_per_worker": 1, "processes": True, "dashboard_address": None}
    with distributed.LocalCluster(**options) as cluster:
        found = sweep(SMALL, executor=f"dask:{cluster.scheduler_address}", store=tmp_path / "store")
    found.to_parquet(tmp_path / "table.parquet")
    found.to_csv(tmp_path / "table.csv")
    same_bytes(undisturbed, tmp_path)


def test_no_cluster_where_one_is_said_to_be_is_bad_input():
    pytest.importorskip("distributed")
    with pytest.raises(InputError, match="--executor: 'dsk:x'; allowed: local, dask:tcp://HOST:PORT"):
        sweep(SMALL, executor="dsk:x")


def test_topologies_as_text_come_back_as_they_were():
    planned = plan_runs(read_sweep(SMALL))[0]
    assert json.loads(topology_text(planned.topology))["step_time"]["base_s"] == 0.01
