"""The stepper against vLLM's own scheduler: cases made with the real thing, every token time and every step."""

from __future__ import annotations

import csv
import gzip
import json
import os
from pathlib import Path
from typing import Any

import pytest
from vllm_stepper import run_case

STORED = Path(__file__).parents[1] / "data" / "vllm_scheduler"
TOLERANCE_S = 1e-9

# Steps of each engine that a case keeps.
KEPT_STEPS = 400


def public_cases() -> list[Path]:
    """Cases built from public traces, where these are at hand."""
    root = os.environ.get("SIMULATOR_DATA")
    folder = Path(root) / "measurements" / "vllm_scheduler" if root else STORED
    return sorted(p.parent for p in folder.glob("*/case.json") if not (STORED / p.parent.name).exists())


def read(case: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    with gzip.open(case / "trace.jsonl.gz", "rt") as lines:
        return json.loads((case / "case.json").read_text()), [json.loads(line) for line in lines]


def check(case: Path, **options: Any) -> None:
    rows, steps = run_case(*read(case), keep_steps=KEPT_STEPS, **options)
    with gzip.open(case / "expected.csv.gz", "rt") as lines:
        expected = list(csv.DictReader(lines))
    assert len(rows) == len(expected)
    for row, want in zip(rows, expected, strict=True):
        assert list(row) == list(want)
        for column, value in row.items():
            slack = TOLERANCE_S * (row["output_length"] if column == "token_sum_s" else 1)
            assert abs(value - float(want[column])) <= slack, (row["i"], column, value, want[column])
    with gzip.open(case / "steps.jsonl.gz", "rt") as lines:
        kept = [json.loads(line) for line in lines]
    assert len(steps) == len(kept)
    for step, want in zip(steps, kept, strict=True):
        assert step["engine"] == want["engine"]
        assert list(step["tokens"].items()) == [(int(i), n) for i, n in want["tokens"].items()], want
        assert step["preempted"] == want["preempted"]
        assert abs(step["start_s"] - want["start_s"]) <= TOLERANCE_S
        assert abs(step["end_s"] - want["end_s"]) <= TOLERANCE_S


@pytest.mark.parametrize("case", sorted(p.parent for p in STORED.glob("*/case.json")), ids=lambda p: p.name)
def test_exact(case: Path) -> None:
    check(case)


@pytest.mark.parametrize("case", public_cases(), ids=lambda p: p.name)
def test_exact_on_public_traces(case: Path) -> None:
    check(case)


def test_one_instant_may_be_a_nanosecond() -> None:
    check(STORED / "pd_long", instant_s=1e-9)


def small_case(**changes: Any) -> dict[str, Any]:
    settings = {
        "max_model_len": 4096,
        "max_num_seqs": 8,
        "max_num_batched_tokens": 256,
        "block_size": 16,
        "num_blocks": 100,
        "prefix_caching": False,
        "async_scheduling": False,
        "step_time": {"base_s": 1.0, "per_token_s": 0.0, "per_context_token_s": 0.0},
    }
    return {**settings, **changes}


def test_own_step_time_sees_decodes_and_chunks() -> None:
    seen = []

    def seconds(decodes: Any, chunks: Any, finished: int) -> float:
        seen.append((list(decodes), list(chunks), finished))
        return 2.0

    requests = [{"arrival_s": 0.0, "input_length": 300, "output_length": 3}]
    rows, _ = run_case(small_case(), requests, step_seconds=seconds)
    assert seen == [([], [(256, 0)], 0), ([], [(44, 256)], 1), ([(1, 300)], [], 0), ([(1, 301)], [], 0)]
    assert (rows[0]["first_token_s"], rows[0]["last_token_s"], rows[0]["token_sum_s"]) == (4.0, 8.0, 18.0)


def test_same_prompt_in_one_step_hits_what_is_only_planned() -> None:
    requests = [{"arrival_s": 0.0, "input_length": 64, "output_length": 1, "hash_ids": [3]}] * 2
    rows, steps = run_case(small_case(prefix_caching=True), requests, keep_steps=5)
    assert [row["cached_tokens"] for row in rows] == [0, 48]
    assert [step["tokens"] for step in steps] == [{0: 64, 1: 16}]


def test_request_that_never_fits_is_told() -> None:
    requests = [{"arrival_s": 0.0, "input_length": 1600, "output_length": 1}]
    with pytest.raises(ValueError, match="can never fit"):
        run_case(small_case(), requests)


@pytest.mark.parametrize("guard", [False, True])
def test_decode_engine_with_guarded_frees_preempts_later(guard: bool) -> None:
    settings = small_case(
        async_scheduling=True,
        disaggregated=True,
        transfer={"setup_s": 0.0, "per_block_s": 0.0},
        decode={"num_blocks": 6},
        defer_block_frees=guard,
    )
    requests = [{"arrival_s": 0.0, "input_length": 32, "output_length": 20}] * 2
    rows, steps = run_case(settings, requests, keep_steps=100)
    decode = [step for step in steps if step["engine"] == "decode"]
    first = next(k for k, step in enumerate(decode) if step["preempted"])
    assert [row["preemptions"] for row in rows] == [0, 1]
    # Unguarded, the victim was in the step before the one that preempts it; guarded, it no longer was.
    assert (1 in decode[first - 1]["tokens"]) is not guard
