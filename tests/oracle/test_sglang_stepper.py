"""The step-by-step SGLang oracle against cases run through SGLang's own scheduler."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from sglang_case import differences, read_case
from sglang_radix import RadixTree, Tokens, common_prefix
from sglang_stepper import run_case

OWN = Path(__file__).parents[1] / "data" / "sglang_scheduler"
SHARED = (
    Path(os.environ["SIMULATOR_DATA"]) / "measurements" / "sglang_scheduler" if "SIMULATOR_DATA" in os.environ else None
)
CASES = sorted(p.parent for root in (OWN, SHARED) if root is not None for p in root.glob("*/case.json"))


@pytest.mark.parametrize("folder", CASES, ids=lambda p: f"{p.parent.parent.name}-{p.name}")
def test_every_token_time_equals_the_real_scheduler(folder):
    settings, requests, expected, steps = read_case(folder)
    rows, got = run_case(settings, requests)
    assert differences(rows, got, expected, steps, tolerance_s=1e-9) == []


BASE = {
    "context_length": 4096,
    "max_total_num_tokens": 1024,
    "max_running_requests": 8,
    "chunked_prefill_size": 256,
    "max_prefill_tokens": 512,
    "schedule_policy": "fcfs",
    "schedule_conservativeness": 1.0,
    "mixed_chunk": False,
    "disable_radix_cache": False,
    "page_size": 1,
    "overlap": False,
    "ignore_eos": False,
    "step_time": {"base_s": 1.0, "per_token_s": 0.0, "per_context_token_s": 0.0},
}


def request(arrival_s, prompt, output, **more):
    return {"arrival_s": arrival_s, "input_length": prompt, "output_length": output, **more}


def test_one_request_alone_takes_a_step_a_chunk_and_a_step_a_token():
    rows, steps = run_case(BASE, [request(0.5, 600, 3)])
    assert rows[0]["times"] == [3.5, 4.5, 5.5]  # chunks of 256, 256 and 88
    assert [s["tokens"][0] for s in steps] == [256, 256, 88, 1, 1]


def test_overlap_throws_away_the_token_planned_behind_an_end_of_sequence():
    by_length = run_case({**BASE, "overlap": True}, [request(0, 10, 4)])[1]
    by_eos = run_case({**BASE, "overlap": True}, [request(0, 10, 4, max_new_tokens=9)])[1]
    assert len(by_eos) == len(by_length) + 1


def test_an_identical_prompt_is_cached_but_for_its_last_token():
    twice = [request(0, 512, 2, hash_ids=[7]), request(100, 512, 2, hash_ids=[7])]
    assert [r["cached_tokens"] for r in run_case(BASE, twice)[0]] == [0, 511]
    assert [r["cached_tokens"] for r in run_case({**BASE, "page_size": 64}, twice)[0]] == [0, 448]
    assert [r["cached_tokens"] for r in run_case({**BASE, "disable_radix_cache": True}, twice)[0]] == [0, 0]


def test_common_prefix_sees_through_different_run_boundaries():
    a = Tokens().add(1, 3).add(1, 2).add(2, 4)
    b = Tokens().add(1, 5).add(2, 2).add(3, 1)
    assert common_prefix(a, 0, b, 0, 8) == 7
    assert common_prefix(a, 1, b, 0, 8) == 4
    assert a.runs(4, 7) == ((1, 1), (2, 2))


def test_eviction_takes_least_recently_used_leaves_and_spares_locked_ones():
    tree = RadixTree(1)
    for value in (1, 2, 3):
        tree.insert(Tokens().add(value, 10), 10)
    kept = tree.match(Tokens().add(1, 10), 10)[1]
    tree.lock(tree.match(Tokens().add(2, 10), 10)[1])
    assert tree.evict(5) == 10  # a leaf goes as a whole, and 3 is the oldest
    assert tree.match(Tokens().add(3, 10), 10)[0] == 0
    assert tree.evict(100) == 10
    assert kept not in tree.leaves and tree.match(Tokens().add(2, 10), 10)[0] == 10
