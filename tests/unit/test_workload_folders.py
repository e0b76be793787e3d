"""Folders of measured workloads: prefixes told from cache hits, settings left out, and machines known without a sweep."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from simulator.cli import main
from simulator.cluster.assembly import assemble
from simulator.cluster.simulation import run_plan
from simulator.cluster.topology import load_topology
from simulator.errors import InputError
from simulator.validation.machines import routes_alike
from simulator.validation.prefix_hits import shared_prefixes
from simulator.validation.routing import PROFILES, profile_of
from simulator.validation.workloads import requests_trace, validate_workloads, workload_topology
from simulator.workload.arrivals import Arrivals
from simulator.workload.trace import Trace

BLOCK = 16
ROW: dict[str, Any] = {
    "stage": "s",
    "workload": "w",
    "model": "llama-3.1-8b",
    "gpu": "NVIDIA H100 80GB HBM3",
    "kv_blocks": 3000,
    "block_size": BLOCK,
    "prefix_caching": True,
    "max_num_batched_tokens": 2048,
    "max_num_seqs": 256,
    "async_scheduling": True,
    "max_model_len": 8192,
    "ttft_mean_ms": 50.0,
}


def shared_trace(count: int = 150) -> Trace:
    """Prompts of eight families, each with a beginning of its own and an end of each prompt's own."""
    rng = np.random.default_rng(3)
    family, own = rng.integers(0, 8, count), rng.integers(1, 60, count)
    rows = [
        [int(100 * f + k) for k in range(40)] + [10_000 + 100 * i + k for k in range(n)]
        for i, (f, n) in enumerate(zip(family, own, strict=True))
    ]
    return Trace.from_columns(
        np.cumsum(rng.exponential(0.1, count)),
        [BLOCK * len(row) - 3 for row in rows],
        rng.integers(2, 40, count),
        hash_ids=np.array([one for row in rows for one in row]),
        hash_offsets=np.r_[0, np.cumsum([len(row) for row in rows])],
        block_tokens=BLOCK,
    )


def replayed(trace: Trace, folder: Path, **changes: Any) -> Any:
    plan = assemble(load_topology(workload_topology({**ROW, **changes}, "here", folder)))
    return run_plan(plan, trace, Arrivals(), seed=0).record


def test_cache_hits_alone_tell_prefixes_that_give_the_same_hits_and_times(tmp_path: Path) -> None:
    truth = shared_trace()
    known = replayed(truth, tmp_path)
    columns = ("arrival_s", "input_tokens", "output_tokens", "first_token_s", "cached_tokens")
    path = tmp_path / "s.w.requests.csv.gz"
    pd.DataFrame({name: getattr(known, name) for name in columns}).to_csv(path, index=False)
    told = replayed(requests_trace(path, BLOCK), tmp_path)
    none = replayed(requests_trace(path, BLOCK), tmp_path, prefix_caching=False)
    assert known.cached_tokens.sum() > 0.3 * known.input_tokens.sum()
    assert told.cached_tokens.sum() == pytest.approx(known.cached_tokens.sum(), rel=0.02)
    ttft = [float((r.first_token_s - r.arrival_s).mean()) for r in (known, told, none)]
    assert ttft[1] == pytest.approx(ttft[0], rel=0.02) and ttft[2] > 1.3 * ttft[0]


def test_a_prompt_shares_with_the_latest_that_was_computed_and_is_long_enough() -> None:
    table = pd.DataFrame(
        {
            "arrival_s": [0.0, 1.0, 2.0, 3.0, 4.0],
            "first_token_s": [0.5, 1.5, 9.0, 3.5, 4.5],
            "input_tokens": [64, 64, 64, 20, 64],
            "cached_tokens": [16, 0, 0, 0, 32],
        }
    )
    found = shared_prefixes(table, BLOCK, "here")
    rows = np.split(found["hash_ids"], found["hash_offsets"][1:-1])
    assert list(rows[4][:2]) == list(rows[1][:2])  # not the third, which was not ready, nor the fourth, too short
    assert len(rows[0]) == 4 and len(rows[3]) == 2  # the first has nobody to share with
    assert len(np.unique(found["hash_ids"])) == len(found["hash_ids"]) - 2
    assert shared_prefixes(table.assign(cached_tokens=0), BLOCK, "here") == {}
    assert shared_prefixes(table.assign(cached_tokens=[np.nan, -1, 0, 0, 0]), BLOCK, "here") == {}


def test_more_hits_than_tokens_are_refused() -> None:
    table = pd.DataFrame({"arrival_s": [0.0, 1.0], "input_tokens": [64, 64], "cached_tokens": [0, 80]})
    with pytest.raises(InputError, match=r"cached_tokens: found 80; allowed: at most the prompt's 64"):
        shared_prefixes(table, BLOCK, "here")


def write(folder: Path, **changes: Any) -> Path:
    requests = pd.DataFrame({"arrival_s": np.arange(8) * 0.2, "input_tokens": 100, "output_tokens": 10})
    requests.to_csv(folder / "s.w.requests.csv.gz", index=False)
    pd.DataFrame([{**ROW, **changes}]).to_csv(folder / "workloads.csv", index=False)
    return folder


def test_settings_left_empty_are_the_engine_s_own(tmp_path: Path) -> None:
    empty = dict.fromkeys(("kv_blocks", "max_num_seqs", "async_scheduling"), np.nan)
    engine = workload_topology({**ROW, **empty}, "here", tmp_path)["engine"]
    assert set(ROW) & set(engine) == {"block_size", "prefix_caching", "max_num_batched_tokens", "max_model_len"}
    assert validate_workloads(write(tmp_path, **empty)).results[0].figures[0].simulated_ms > 0
    assert workload_topology({**ROW, "async_scheduling": 0.0}, "here", tmp_path)["engine"]["async_scheduling"] is False


@pytest.mark.parametrize(("column", "found"), [("kv_blocks", "many"), ("max_num_seqs", 0), ("prefix_caching", "maybe")])
def test_a_wrong_setting_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], column: str, found: object
) -> None:
    assert main(["validate", "workloads", str(write(tmp_path, **{column: found}))]) == 2
    error = capsys.readouterr().err.strip()
    assert "\n" not in error and f"{column}: found '{found}'; allowed:" in error


def test_what_is_known_of_a_machine_stands_in_for_a_sweep(tmp_path: Path) -> None:
    row = {**ROW, "model": "deepseek-v2-lite"}
    assert profile_of(row, "h100_sxm", tmp_path, "here") == PROFILES["identical"]
    assert profile_of({**row, "decode_routing": "independent"}, "h100_sxm", tmp_path, "here") == PROFILES["independent"]
    assert profile_of(row, "h200_sxm", tmp_path, "here") == PROFILES["independent"]
    assert not routes_alike("qwen3-30b-a3b", "h200_sxm")
