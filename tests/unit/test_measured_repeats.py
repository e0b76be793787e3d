"""vLLM 0.25.1, the same runs again and again on one H200: what one run differs from the next by, and whether launches
tell why."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from measured_rows import MEASURED, error, rows_of, say_what_requests_say

from simulator.validation.workloads import replay

FOLDER = MEASURED / "h200_vllm_repeats"
#: Mean launch, in milliseconds, of the first measured run of each model, times its host's speed.
LAUNCH_MS = {"deepseek-v2-lite": 77.6, "qwen3-30b-a3b": 63.1 * 1.25, "llama-3.1-8b": 24.0}


def test_rows_say_what_the_requests_say() -> None:
    say_what_requests_say(FOLDER, 1e-3, 1e-3)


def test_the_host_is_as_fast_as_its_launches() -> None:
    launches = pd.read_csv(FOLDER / "launches.csv.gz")
    means = launches.groupby(["stage", "workload"])["ms"].mean()
    for row in rows_of(FOLDER):
        mean_ms = means[row["stage"], row["workload"]]
        assert row["host_speed"] == pytest.approx(LAUNCH_MS[row["model"]] / mean_ms, rel=2e-3)


@pytest.mark.parametrize("model", LAUNCH_MS)
def test_with_its_launches_known_every_repeat_comes_back(model: str) -> None:
    found = [replay(row, FOLDER) for row in rows_of(FOLDER) if row["model"] == model]
    assert np.mean([abs(error(run, "ttft")) for run in found]) < 4
    assert max(abs(error(run, "ttft")) for run in found) < 6
    assert np.mean([abs(error(run, "tpot")) for run in found]) < 7
    assert abs(np.mean([error(run, "tpot") for run in found])) < 6


def test_one_run_of_an_engine_bound_by_launches_is_chance() -> None:
    """Seven times the same requests, one engine: by more than any error of the forecast, and launches tell which."""
    rows = [row for row in rows_of(FOLDER) if row["model"] == "deepseek-v2-lite"]
    ttft_ms = np.array([row["ttft_mean_ms"] for row in rows])
    assert ttft_ms.std() / ttft_ms.mean() > 0.1
    pace = 1.0 / np.array([row["host_speed"] for row in rows])
    assert np.corrcoef(pace, ttft_ms)[0, 1] > 0.98
