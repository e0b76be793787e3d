"""The highest rate at which a topology meets its targets: bisection over common random numbers, and an interval."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from simulator.metrics.confidence import LEVEL, t_quantile
from simulator.planning.replicates import Bench, Scores

#: Bisection ends when the rates that bracket the answer are this close (as a share).
CLOSE = 0.02
_STRIDE = 1.6
_LEAST = 1e-4  # of the first guess: a topology that misses its targets there misses them at any rate
_MOST_TRIES = 60
_MOST_WIDENING, _WIDEST = 8, 0.2


@dataclass(frozen=True)
class Curve:
    """Attainment by rate (rising) and replication, as far as it was evaluated."""

    rates: tuple[float, ...]
    attainment: tuple[tuple[float, ...], ...]
    target: float

    def root(self, leave_out: int | None = None) -> float:
        """The rate at which the mean over replications falls through the target; 0 where it is never met."""
        means = [_mean(values, leave_out) for values in self.attainment]
        return _crossing(self.rates, means, self.target)

    def roots(self) -> list[float]:
        """The rate at which each replication alone falls through the target."""
        columns = zip(*self.attainment, strict=True)
        return [_crossing(self.rates, column, self.target) for column in columns]

    def left_out(self) -> list[float]:
        """The root without each replication in turn."""
        return [self.root(index) for index in range(len(self.attainment[0]))]

    def interval(self, level: float = LEVEL) -> tuple[float, float]:
        """A t interval of the root, on a log scale: its error is the larger of two estimates (see ``log_error``)."""
        count = len(self.attainment[0])
        if count < 2:
            return math.nan, math.nan
        half = t_quantile(level, count - 1) * log_error(np.log(self.left_out()), np.log(self.roots()))
        return self.root() * math.exp(-half), self.root() * math.exp(half)


def log_error(left_out: np.ndarray[Any, Any], roots: np.ndarray[Any, Any]) -> float:
    """Standard error of the logarithm of a root of a mean over replications.

    The jackknife follows the mean, but is blind where no replication happened to fail early; the spread of the
    replications' own roots is not. The larger of the two covers at the stated level (benchmarks/interval_coverage.py).
    """
    count = roots.size
    jackknife = math.sqrt((count - 1) / count * float(((left_out - left_out.mean()) ** 2).sum()))
    return max(jackknife, float(roots.std(ddof=1)) / math.sqrt(count))


@dataclass(frozen=True)
class Capacity:
    """The highest rate (requests/s), its 95 % interval (sampling error alone), the evaluations it rests on, and the
    figures at the evaluated rate closest below it."""

    rate: float
    low: float
    high: float
    curve: Curve
    at_rate: Scores | None


def find_capacity(bench: Bench, topology: str, guess: float, *, close: float = CLOSE, sure: bool = True) -> Capacity:
    """Search around ``guess`` (requests/s). ``sure``: cover the interval as well. Raises MisfitError."""
    seen: dict[float, Scores] = {}

    def fails(rate: float) -> bool:
        if rate not in seen:
            seen[rate] = bench.scores(topology, rate)
        return seen[rate].mean < bench.attainment

    low, high = _bracket(fails, guess)
    if low is not None and high is not None:
        while high / low > 1 + close:
            middle = math.sqrt(low * high)
            low, high = (low, middle) if fails(middle) else (middle, high)
        if sure and len(bench.pieces) > 1:
            _widen(bench, seen, fails, low, high, close)
    rates = tuple(sorted(seen))
    curve = Curve(rates, tuple(seen[rate].attainment for rate in rates), bench.attainment)
    rate = 0.0 if low is None else curve.root()
    bounds = (0.0, 0.0) if low is None else curve.interval()
    met = [r for r in rates if r <= rate * (1 + 1e-12)]
    return Capacity(rate, *bounds, curve, seen[met[-1]] if met else None)


def _bracket(fails: object, guess: float) -> tuple[float | None, float | None]:
    """A rate that meets the target and one that does not; None where there is none."""
    assert callable(fails)
    low: float | None = None
    high: float | None = None
    rate = guess
    for _ in range(_MOST_TRIES):
        if fails(rate):
            high = rate
        else:
            low = rate
        if low is not None and high is not None:
            return low, high
        rate = rate / _STRIDE if low is None else rate * _STRIDE
        if rate < guess * _LEAST:
            return None, high
    return low, high


def _widen(bench: Bench, seen: dict[float, Scores], fails: object, low: float, high: float, close: float) -> None:
    """Evaluate beyond the bracket until every replication's own root is inside what was evaluated."""
    assert callable(fails)
    for sign, start in ((-1, low), (+1, high)):
        step, rate = close, start
        for _ in range(_MOST_WIDENING):
            shares = seen[rate].attainment
            if min(shares) >= bench.attainment if sign < 0 else max(shares) < bench.attainment:
                break
            rate, step = rate * (1 + sign * step), min(2 * step, _WIDEST)
            fails(rate)


def _mean(values: Sequence[float], leave_out: int | None) -> float:
    kept = [value for index, value in enumerate(values) if index != leave_out]
    return math.fsum(kept) / len(kept)


def _crossing(rates: Sequence[float], values: Sequence[float], target: float) -> float:
    """Where straight lines through the points first fall below ``target``; the ends where they do not."""
    if values[0] < target:
        return rates[0]
    for before in range(len(rates) - 1):
        if values[before + 1] < target:
            share = (values[before] - target) / (values[before] - values[before + 1])
            return rates[before] + share * (rates[before + 1] - rates[before])
    return rates[-1]


@dataclass(frozen=True)
class Ratio:
    """How many times as much one topology does as another, with its 95 % interval."""

    value: float
    low: float
    high: float


def ratio_of(one: Capacity, other: Capacity, scale: float = 1.0) -> Ratio:
    """``scale x other / one``, paired by replication: both met the same draws."""
    if one.rate <= 0 or other.rate <= 0:
        value = math.inf if other.rate > 0 else (0.0 if one.rate > 0 else math.nan)
        return Ratio(value, value, value)
    whole = math.log(scale * other.curve.root() / one.curve.root())
    if len(one.curve.attainment[0]) < 2:
        return Ratio(math.exp(whole), math.nan, math.nan)
    left_out = np.log(other.curve.left_out()) - np.log(one.curve.left_out())
    roots = np.log(other.curve.roots()) - np.log(one.curve.roots())
    half = t_quantile(LEVEL, roots.size - 1) * log_error(left_out, roots)
    return Ratio(math.exp(whole), math.exp(whole - half), math.exp(whole + half))
