"""SGLang 0.5.6 behind its HTTP server, measured by us: closed loops of 4 to 512 clients, prompts apart and mixed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from measured_rows import MEASURED, error, refusal, row_of, say_what_requests_say

from simulator.validation.workloads import WorkloadResult, replay

FOLDER = MEASURED / "h200_sglang_http"


def replayed(stage: str, name: str, *overrides: str, **changes: Any) -> WorkloadResult:
    return replay({**row_of(FOLDER, stage=stage, workload=name), **changes}, FOLDER, overrides)


@pytest.mark.parametrize(
    ("stage", "name"),
    [
        ("h200f_sglang", "fixed_c64"),
        ("h200f_sglang", "short_answers_c160"),
        ("h200g_mixed", "long_prompts_c40"),
        ("h200g_mixed5500", "long_prompts_c40"),
    ],
)
def test_closed_loops_below_what_the_front_end_can_send(stage: str, name: str) -> None:
    found = replayed(stage, name)
    assert abs(error(found, "ttft")) < 10
    assert abs(error(found, "tpot")) < 8


def test_prompts_mixed_in_halve_the_wait_and_stretch_the_answers() -> None:
    """Measured: 1.39 s and 23.5 ms a token with prompts first, 0.61 s and 30.2 ms mixed."""
    apart, mixed = (replayed(stage, "short_answers_c160") for stage in ("h200f_sglang", "h200g_mixed"))
    ttft, tpot = (
        [next(f for f in found.figures if (f.metric, f.statistic) == (m, "mean")) for found in (apart, mixed)]
        for m in ("ttft", "tpot")
    )
    assert mixed_share(ttft, "simulated_ms") == pytest.approx(mixed_share(ttft, "measured_ms"), rel=0.15)
    assert mixed_share(tpot, "simulated_ms") == pytest.approx(mixed_share(tpot, "measured_ms"), rel=0.1)


def mixed_share(figures: list[Any], field: str) -> float:
    return float(getattr(figures[1], field) / getattr(figures[0], field))


def test_512_clients_wait_for_the_front_end_not_for_the_engine() -> None:
    """Its steps take 16 ms, and clients get a token every 39: without a line of tokens, two thirds of that are missing."""
    row = ("h200f_sglang", "short_prompts_c512")
    queued, at_once = replayed(*row), replayed(*row, "frontend.merges=true")
    other = replayed(*row, engine_settings="max_running_requests=512 context_length=16384", engine_profile="sglang")
    assert abs(error(queued, "tpot")) < 20
    assert error(at_once, "tpot") < -40
    assert abs(error(other, "tpot")) < 30  # the profile fitted to other servers tells the same


def test_rows_say_what_the_requests_say() -> None:
    say_what_requests_say(FOLDER, 1e-3, 2e-3)


@pytest.mark.parametrize(
    ("cell", "said"), [("mixed_chunk", "key=value"), ("mixed_chnk=true", "mixed_chunk"), ("mixed_chunk=[", "YAML")]
)
def test_bad_settings_are_refused_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], cell: str, said: str
) -> None:
    assert said in refusal(FOLDER, "engine_settings", cell, tmp_path, capsys)
