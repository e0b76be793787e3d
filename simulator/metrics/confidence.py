"""How sure a mean is: t intervals over replications, paired differences, batch means of one long run."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

LEVEL = 0.95
#: Batches of one long run: enough for the t quantile to be small, few enough for batches to be nearly independent.
BATCHES = 20


@dataclass(frozen=True)
class Interval:
    """A mean of ``count`` values and its confidence interval; without a second value the interval is unknown (NaN)."""

    mean: float
    low: float
    high: float
    count: int

    @property
    def half_width(self) -> float:
        """Half of the interval's length."""
        return (self.high - self.low) / 2

    def holds(self, value: float) -> bool:
        """Whether ``value`` lies in the interval."""
        return self.low <= value <= self.high

    def to_dict(self) -> dict[str, float | int]:
        """Plain values for JSON."""
        return {"mean": self.mean, "low": self.low, "high": self.high, "count": self.count}


def t_quantile(level: float, freedom: float) -> float:
    """Two-sided quantile of Student's t: ``P(|t| < q) = level``."""
    from scipy.special import stdtrit

    return float(stdtrit(freedom, 0.5 + level / 2))


def t_interval(values: ArrayLike, level: float = LEVEL) -> Interval:
    """Mean of independent values and its interval by Student's t; values that are NaN are left out."""
    found = np.asarray(values, dtype=np.float64)
    found = found[~np.isnan(found)]
    if found.size == 0:
        return Interval(math.nan, math.nan, math.nan, 0)
    mean = float(found.mean())
    if found.size == 1:
        return Interval(mean, math.nan, math.nan, 1)
    half = t_quantile(level, found.size - 1) * float(found.std(ddof=1)) / math.sqrt(found.size)
    return Interval(mean, mean - half, mean + half, int(found.size))


def paired(ones: Sequence[float], others: Sequence[float], level: float = LEVEL) -> Interval:
    """Mean difference ``other - one`` of values that belong together in pairs: common random numbers make the
    difference far surer than each value."""
    return t_interval(np.asarray(others, dtype=np.float64) - np.asarray(ones, dtype=np.float64), level)


def batch_means(values: ArrayLike, batches: int = BATCHES, level: float = LEVEL) -> Interval:
    """Mean of one long, correlated series and its interval: consecutive batches are taken for independent (the method
    of batch means). What does not fill a batch is left out of the interval, at the front."""
    found = np.asarray(values, dtype=np.float64)
    return _around(float(found.mean()) if found.size else math.nan, _batches(found, batches).mean(axis=1), level)


def batch_percentile(values: ArrayLike, share: float, batches: int = BATCHES, level: float = LEVEL) -> Interval:
    """A percentile of one long, correlated series: the percentile of all values, the interval by those of batches."""
    found = np.asarray(values, dtype=np.float64)
    whole = float(np.quantile(found, share)) if found.size else math.nan
    parts = _batches(found, batches)
    return _around(whole, np.quantile(parts, share, axis=1) if parts.size else parts[:, :1].ravel(), level)


def _around(whole: float, parts: ArrayLike, level: float) -> Interval:
    """An interval around the figure of the whole series, as wide as the batches' figures say."""
    interval = t_interval(parts, level)
    return Interval(whole, whole - interval.half_width, whole + interval.half_width, interval.count)


def _batches(values: NDArray[np.float64], batches: int) -> NDArray[np.float64]:
    """One row a batch; no row where there are fewer values than batches."""
    size = values.size // batches
    return values[values.size - size * batches :].reshape(batches if size else 0, max(size, 1))
