"""vLLM 0.25.1 behind its HTTP server, measured by us on two hosts: closed loops, and what front end and clients took."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from measured_rows import MEASURED, error, refusal, requests_of, row_of, rows_of, say_what_requests_say

from simulator.validation.workloads import WorkloadResult, replay

FOLDER = MEASURED / "h200_vllm_http"


def replayed(name: str, **changes: Any) -> WorkloadResult:
    return replay({**row_of(FOLDER, workload=name), **changes}, FOLDER)


@pytest.mark.parametrize(
    ("name", "most"), [("drawn_c16", 8), ("fixed_c32", 8), ("drawn_c64", 8), ("long_drawn_c4", 15)]
)
def test_closed_loops_over_http(name: str, most: float) -> None:
    # the last has 40 requests: which of them share steps decides
    found = replayed(name)
    assert abs(error(found, "ttft")) < most and abs(error(found, "ttft", "p99")) < 10
    assert abs(error(found, "tpot")) < 12


def test_the_front_end_of_an_in_process_client_is_not_that_of_a_server() -> None:
    """64 clients of equal lengths: without the server's own costs a third of the wait for the first token is missing."""
    name = "fixed_c64"
    own = replayed(name)
    other = replayed(name, engine_profile="vllm-0.25")
    assert abs(error(own, "ttft")) < 15
    assert error(other, "ttft") < error(own, "ttft") - 15


def test_rows_say_what_the_requests_say() -> None:
    say_what_requests_say(FOLDER, 1e-3, 1e-3)
    for row in rows_of(FOLDER):
        table = requests_of(FOLDER, row)
        assert len(table) == 10 * row["clients"]
        # never more than that many at once
        edges = np.concatenate([table.arrival_s + 1e-6, table.last_token_s])
        steps = np.concatenate([np.ones(len(table)), -np.ones(len(table))])
        assert np.cumsum(steps[np.argsort(edges)]).max() <= row["clients"]


@pytest.mark.parametrize(
    ("column", "value", "said"),
    [
        ("clients", "-4", "clients"),
        ("clients", "many", "clients"),
        ("engine_profile", "vllm-0.25-htp", "vllm-0.25-http"),
    ],
)
def test_bad_columns_are_refused_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], column: str, value: str, said: str
) -> None:
    assert said in refusal(FOLDER, column, value, tmp_path, capsys)
