"""Which part of a trace is wanted, and how fast it is played: limit, start, duration, rate scale."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from simulator.errors import TraceError
from simulator.workload.trace import Trace

#: Distinct times of a binned trace lie this close to whole multiples of the bin.
_BIN_TOLERANCE = 0.02
#: Finer time stamps are a clock's resolution, not bins.
_LEAST_BIN_S = 0.5
#: Bins are taken for real only when at least this many requests share one, on average.
_LEAST_PER_BIN = 1.2


@dataclass(frozen=True)
class Window:
    """``start_s`` and ``duration_s`` cut arrivals (in the trace's own time) and make the start 0; then the first
    ``limit`` requests are kept; then gaps are divided by ``rate_scale``."""

    limit: int | None = None
    start_s: float | None = None
    duration_s: float | None = None
    rate_scale: float = 1.0

    def __post_init__(self) -> None:
        if self.limit is not None and (
            isinstance(self.limit, bool) or not isinstance(self.limit, int) or self.limit < 1
        ):
            raise TraceError(f"limit: {self.limit!r} requests; allowed: whole numbers from 1")
        _check("start", self.start_s, least_excluded=False)
        _check("duration", self.duration_s, least_excluded=True)
        _check("rate scale", self.rate_scale, least_excluded=True)

    @property
    def end_s(self) -> float:
        return math.inf if self.duration_s is None else (self.start_s or 0.0) + self.duration_s

    def apply(self, trace: Trace) -> Trace:
        """The wanted part; a window that leaves nothing is a ``TraceError`` that tells the trace's span."""
        arrivals = trace.arrival_s
        start = self.start_s or 0.0
        first, last = (int(i) for i in np.searchsorted(arrivals, (start, self.end_s)))
        if first >= last:
            raise TraceError(
                f"{trace.source}: no request arrives from {start:g} s to {self.end_s:g} s; arrivals run from "
                f"{arrivals[0]:g} s to {arrivals[-1]:g} s"
            )
        last = last if self.limit is None else min(last, first + self.limit)
        orphans = _cut_sessions(trace, first)
        if first > 0 or last < len(trace):
            trace = trace.select(slice(first, last))
        if start > 0:
            trace = trace.with_(arrival_s=trace.arrival_s - start)
        if self.rate_scale != 1.0:
            trace = trace.with_(arrival_s=trace.arrival_s / self.rate_scale)
        if orphans:
            note = f"{orphans} sessions had begun before {start:g} s: their first turn inside is sent at its arrival_s"
            trace = trace.with_(notes=(*trace.notes, note))
        return trace


def _check(what: str, value: float | None, least_excluded: bool) -> None:
    if value is None:
        return
    fine = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and value >= 0
    if not fine or (least_excluded and value == 0):
        raise TraceError(f"{what}: {value!r}; allowed: finite numbers {'above' if least_excluded else 'from'} 0")


def _cut_sessions(trace: Trace, first: int) -> int:
    """Sessions with turns on both sides of row ``first``."""
    if trace.session is None or trace.turn is None or first == 0:
        return 0
    before, after = trace.session[:first], trace.session[first:]
    return len(np.intersect1d(before[before >= 0], after[after >= 0]))


def bin_width_s(times_s: NDArray[np.float64]) -> float | None:
    """Width of the coarse bins arrivals were rounded to, or ``None``.

    Bins show as few distinct times, shared by several requests, whose gaps are near whole multiples of one width.
    """
    distinct = np.unique(times_s)
    if len(distinct) < 3 or len(times_s) < _LEAST_PER_BIN * len(distinct):
        return None
    gaps = np.diff(distinct)
    width = float(np.quantile(gaps, 0.05))
    if width < _LEAST_BIN_S:
        return None
    multiples = gaps / width
    near = np.abs(multiples - np.round(multiples)) <= _BIN_TOLERANCE * np.maximum(1.0, np.round(multiples))
    return float(np.median(gaps[np.round(multiples) == 1])) if near.mean() >= 0.98 else None


def spread_bins(times_s: NDArray[np.float64], width_s: float) -> NDArray[np.float64]:
    """Requests that share a time, spread evenly over the bin that begins there; order and first arrival stay."""
    distinct, first, counts = np.unique(times_s, return_index=True, return_counts=True)
    widths = np.minimum(np.append(np.diff(distinct), width_s), width_s)
    place = np.arange(len(times_s)) - np.repeat(first, counts)
    spread: NDArray[np.float64] = times_s + np.repeat(widths / counts, counts) * place
    return spread
