"""Blocks of requests that share nothing: counting them gives what telling them apart would."""

from __future__ import annotations

from collections import Counter, deque

import pytest
from engine_case import as_case, run_engine
from hypothesis import given, settings
from hypothesis import strategies as st

from simulator.compiled import compiled
from simulator.kv.unshared import leave_unshared, make_unshared, take_unshared


@compiled
def contents(left):  # type: ignore[no-untyped-def]
    """Blocks that cache nothing, and the (row, blocks) behind them."""
    kept = [(-1, left.blank)]
    for i in range(left.count):
        at = (left.head + i) % left.row.size
        kept.append((left.row[at], left.kept[at]))
    return kept


moves = st.lists(st.tuples(st.booleans(), st.integers(0, 12), st.integers(0, 12)), max_size=300)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.integers(1, 400), moves)
def test_counts_are_those_of_a_queue_of_blocks(blocks, moves):
    """The reference hands out blocks one by one: those that cache nothing first, then the oldest request's last."""
    left, free, held = make_unshared(blocks), deque([None] * blocks), 0
    for row, (taking, some, filled) in enumerate(moves):
        if taking:
            count = min(some, len(free))
            take_unshared(left, count)
            for _ in range(count):
                free.popleft()
            held += count
        else:
            count = min(some, held)
            leave_unshared(left, row, count, min(filled, count))
            free.extendleft([None] * (count - min(filled, count)))
            free.extend((row, j) for j in reversed(range(min(filled, count))))
            held -= count
        assert sum(n for _, n in contents(left)) == len(free)
    counted = Counter(owner[0] if owner else -1 for owner in free)
    assert {row: n for row, n in contents(left) if n} == dict(counted)


@pytest.mark.parametrize(("blocks", "preempted"), [(200, False), (40, True)])
def test_blocks_are_told_apart_once_they_run_short(blocks, preempted):
    options = {
        "max_model_len": 10_000,
        "max_num_seqs": 8,
        "max_num_batched_tokens": 512,
        "block_size": 16,
        "num_blocks": blocks + 1,
        "prefix_caching": True,
        "async_scheduling": True,
        "step_time": {"base_s": 0.003, "per_token_s": 1e-5, "per_context_token_s": 1e-8},
    }
    requests = [{"arrival_s": 0.01 * i, "input_length": 200, "output_length": 150} for i in range(6)]
    cluster = run_engine(as_case(options, requests))
    assert bool(cluster.desk.preemptions.any()) is preempted
    assert bool(counting(cluster.workers[0].engine.state)) is not preempted
    if preempted:  # some of what was computed before is found again
        plain = run_engine(as_case(options | {"prefix_caching": False}, requests))
        computed = [c.workers[0].engine.totals().prefill_tokens for c in (cluster, plain)]
        assert computed[0] < computed[1]


@compiled
def counting(e):  # type: ignore[no-untyped-def]
    """Whether the engine still only counts its blocks."""
    return e.counting
