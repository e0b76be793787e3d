"""The compiled look-up of a step-cost table against a plain reading of it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from table_seconds import table_seconds

from simulator.cost.table import (
    StepCostTable,
    affine_cost,
    chunk_attention_seconds,
    decode_step_seconds,
    mixed_step_seconds,
    step_cost_record,
)

works = st.lists(st.tuples(st.integers(2, 3000), st.integers(0, 9000)), max_size=4)
contexts = st.lists(st.integers(0, 9000), max_size=12)


def a_table(seed: int) -> StepCostTable:
    random = np.random.default_rng(seed)

    def rising(n: int) -> np.ndarray:
        return np.cumsum(random.uniform(0.0, 1e-4, n))

    return StepCostTable(
        affine=False,
        decode_s=rising(9),
        decode_floor_s=rising(9) * 2,
        decode_add_s=rising(9),
        mixed_s=rising(2000),
        mixed_floor_s=rising(12),
        mixed_add_s=rising(12),
        per_finished_prefill_s=1e-4,
        context_knots=np.array([0.0, 1.0, 512.0, 4096.0]),
        decode_attention_s=random.uniform(0.0, 1e-3, (9, 4)),
        chunk_new_knots=np.array([1.0, 64.0, 1024.0]),
        chunk_past_knots=np.array([0.0, 1000.0, 5000.0]),
        chunk_attention_s=random.uniform(0.0, 1e-3, (3, 3)),
    )


def compiled_seconds(table: StepCostTable, past: list[int], chunks: list[tuple[int, int]], finished: int) -> float:
    cost = step_cost_record(table)
    if not chunks:
        return decode_step_seconds(cost, len(past), sum(past))
    attention = 0.0 if table.affine else sum(chunk_attention_seconds(cost, new, before) for new, before in chunks)
    new, before = (sum(column) for column in zip(*chunks, strict=True))
    return mixed_step_seconds(cost, len(past), sum(past), len(chunks), new, before, attention, finished)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.integers(0, 5), contexts, works, st.integers(0, 4))
def test_both_readings_agree(seed: int, past: list[int], chunks: list[tuple[int, int]], finished: int) -> None:
    if not past and not chunks:
        return
    for table in (a_table(seed), affine_cost(0.005, 2e-5, 4e-8)):
        plain = table_seconds(table)([(1, p) for p in past], chunks, finished)
        assert plain == pytest.approx(compiled_seconds(table, past, chunks, finished), rel=1e-12, abs=1e-15)
