"""Medians and quartiles of repeated runs."""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np

from simulator.calibration.measure.ops import Pattern, Timing, Trace, Work

#: Runs that are timed where a clock on the wall has to do.
FEWEST, MOST = 3, 20


def summary(samples: Sequence[float]) -> Timing:
    """Median and quartiles, seconds."""
    q25, median, q75 = np.quantile(np.asarray(samples), [0.25, 0.5, 0.75])
    return Timing(float(median), float(q25), float(q75), len(samples))


def wall_clock(work: Work, seconds: float, *, count: int | None = None) -> Timing:
    """Time the work on the host's clock: once to warm up and then a few times, or just ``count`` times."""
    if count is None:
        work.run(0)
    samples: list[float] = []
    while len(samples) < (count or FEWEST) or (count is None and len(samples) < MOST and sum(samples) < seconds):
        start = time.perf_counter()
        work.run(len(samples) % work.copies)
        samples.append(max(time.perf_counter() - start, 1e-9))
    return summary(samples)


def wall_trace(work: Work, pattern: Pattern) -> Trace:
    """Note runs on the host's clock, without the pauses: a host has no clocks to recover."""
    began: list[float] = []
    took: list[float] = []
    rounds: list[int] = []
    first = time.perf_counter()
    for turn in range(pattern.rounds):
        count = work.copies if pattern.on_s == 0 else FEWEST
        for i in range(count):
            start = time.perf_counter()
            work.run(i % work.copies)
            began.append(start - first)
            took.append(max(time.perf_counter() - start, 1e-9))
            rounds.append(turn)
    return Trace(began, took, rounds, {})
