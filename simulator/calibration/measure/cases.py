"""A group of measurements: which cases a plan asks for, and how each is set up."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from simulator.calibration.measure.ops import Array, Ops, Paged, Work
from simulator.calibration.measure.plan import Plan
from simulator.calibration.measure.store import Case

#: Seconds each case is timed for.
CASE_S = 0.015
#: Copies rotate through this many times the last cache.
COLD = 3.0
MOST_COPIES = 64
#: From so many tokens on, products and attention over prompts compute enough to be held back by power.
STEADY_TOKENS = 192


@dataclass(frozen=True)
class Group:
    """``cases(plan, ops)``: what to measure, the most telling first; ``prepare(plan, ops, case)``: the work to time;
    ``measure(ops, work, case)``: what to note of it in place of medians and quartiles."""

    name: str
    cases: Callable[[Plan, Ops], list[Case]]
    prepare: Callable[[Plan, Ops, Case], Work]
    measure: Callable[[Ops, Work, Case], dict[str, object]] | None = None


def copies_of(ops: Ops, size: float) -> int:
    """Sets of ``size`` bytes that together are too large for the last cache."""
    cold = COLD * ops.l2_bytes()
    return 1 if size >= cold else min(MOST_COPIES, math.ceil(cold / max(size, 1.0)) + 1)


def numbers(case: Case, *names: str) -> list[int]:
    """Whole numbers of a case."""
    return [int(case[name]) for name in names]  # type: ignore[call-overload]


def heads_of(case: Case) -> tuple[int, int, int]:
    """Query heads, KV heads, width."""
    q, kv, width = numbers(case, "heads", "kv_heads", "width")
    return q, kv, width


def paged_caches(ops: Ops, heads: tuple[int, int], lengths: list[int], copies: int) -> list[Paged]:
    """``copies`` caches of the given lengths, pages scattered, no page in two of them."""
    kv_heads, width = heads
    longest = max(lengths)
    pages = -(-longest // ops.page)
    each = pages * len(lengths)
    shape = (each * copies, ops.page, kv_heads, width)
    k, v = kv_arrays(ops, shape)
    order = ops.permutation(each * copies).reshape(copies, len(lengths), pages)
    known = ops.integers(lengths)
    return [Paged(k, v, order[i], known, longest) for i in range(copies)]


def kv_arrays(ops: Ops, shape: tuple[int, ...]) -> tuple[Array, Array]:
    """Keys and values: random numbers from the pool, so that large caches need not be filled anew."""
    return ops.weights(shape, "kv", 0), ops.weights(shape, "kv", 1)
