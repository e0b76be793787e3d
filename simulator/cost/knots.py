"""Counts and contexts at which a step's cost is worked out, between which it is a straight line."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from simulator.cost.operators import Step
from simulator.cost.roofline import Floats

#: Ratio of neighbouring knots. Prefill attention grows with the square of a chunk, and a straight line between knots a
#: ratio r apart is (r - 1)^2 / (4 r) off at most: 0.3 % at 1.12.
CHUNK_RATIO, PAST_RATIO, CONTEXT_RATIO = 1.12, 1.12, 1.2
#: Counts past this are read from every ``STRIDE``-th one and joined by straight lines.
DENSE_COUNTS, STRIDE = 8192, 8


def spaced(first: float, last: float, ratio: float) -> NDArray[np.float64]:
    """Whole numbers from 0, 1 and ``first`` to at least ``last``, about ``ratio`` apart."""
    count = int(np.ceil(np.log(max(last, first * 2) / first) / np.log(ratio))) + 1
    return np.unique(np.r_[0.0, 1.0, np.round(first * ratio ** np.arange(count))])


def at_all_counts(evaluate: object, top: int) -> Floats:
    """``evaluate`` at every count up to ``top``; beyond ``DENSE_COUNTS`` at strides, and straight lines between."""
    assert callable(evaluate)
    dense = np.arange(min(top, DENSE_COUNTS) + 1, dtype=np.float64)
    if top <= DENSE_COUNTS:
        return np.asarray(evaluate(dense), dtype=np.float64)
    sparse = np.arange(DENSE_COUNTS, top + STRIDE, STRIDE, dtype=np.float64)
    knots = np.r_[dense, sparse[1:]]
    return np.interp(np.arange(top + 1, dtype=np.float64), knots, np.asarray(evaluate(knots), dtype=np.float64))


def context_knots(step: Step, max_context: int) -> Floats:
    edges = [w - 1.0 for w, _ in step.attention.layers if w]
    measured = step.attention.decode_kernel.counts() - 1.0
    edges += measured[measured < max_context].tolist()
    return np.unique(np.r_[spaced(32.0, max_context, CONTEXT_RATIO), edges, max_context])


def past_knots(step: Step, max_context: int) -> Floats:
    edges = [float(w) for w, _ in step.attention.layers if w]
    return np.unique(np.r_[spaced(64.0, max_context, PAST_RATIO), edges])
