"""Distributions of lengths and gaps: drawn from uniform numbers, so that two of them can be made to move together."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, model_validator

from simulator.errors import InputError

FloatArray = NDArray[np.float64]

#: Gaps of zero stand here in log space.
_SMALLEST = 1e-9
#: No length and no gap is larger.
_LARGEST = 1e9


class Strict(BaseModel):
    """A part of a spec: unknown keys are errors, and nothing changes after it is checked."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=False, allow_inf_nan=False)


class Component(Strict):
    """One lognormal of a mixture: its share, median, and standard deviation of the logarithm."""

    weight: Annotated[float, Field(gt=0, le=_LARGEST)] = 1.0
    median: Annotated[float, Field(gt=0, le=_LARGEST)]
    sigma: Annotated[float, Field(ge=0, le=10)]


class Distribution(Strict):
    """Positive numbers, given in one of three ways.

    ``constant``: one value. ``quantiles``: probability -> value from 0 to 1, between which the logarithm of the value
    is linear in the probability (monotone, so the stated quantiles are met). ``lognormal``: a mixture, cut to
    ``min``..``max``.
    """

    constant: Annotated[float, Field(ge=0, le=_LARGEST)] | None = None
    quantiles: dict[float, float] | None = None
    lognormal: tuple[Component, ...] | None = None
    min: Annotated[float, Field(ge=0, le=_LARGEST)] = 0.0
    max: Annotated[float, Field(gt=0, le=_LARGEST)] = _LARGEST

    @model_validator(mode="after")
    def _one_way(self) -> Distribution:
        given = [n for n in ("constant", "quantiles", "lognormal") if getattr(self, n) is not None]
        if len(given) != 1:
            raise ValueError(f"give one of constant, quantiles, lognormal; found {', '.join(given) or 'none'}")
        if self.min > self.max:
            raise ValueError(f"min {self.min:g} is above max {self.max:g}")
        if self.lognormal == ():
            raise ValueError("lognormal needs at least one component")
        if self.quantiles is not None:
            _check_quantiles(self.quantiles)
        return self

    def at(self, u: FloatArray) -> FloatArray:
        """Values at probabilities ``u`` in [0, 1]."""
        if self.constant is not None:
            values = np.full(len(u), self.constant)
        elif self.quantiles is not None:
            chances = sorted(self.quantiles)
            logs = np.log(np.maximum([self.quantiles[p] for p in chances], _SMALLEST))
            values = np.exp(np.interp(u, chances, logs))
            values[values <= _SMALLEST * 1.01] = 0.0
        else:
            values = np.exp(np.interp(u, *self._mixture()))
        kept: FloatArray = np.clip(values, self.min, self.max)
        return kept

    def _mixture(self) -> tuple[FloatArray, FloatArray]:
        """Cumulative probability of a mixture on a fine grid of logarithms."""
        assert self.lognormal is not None
        logs = [(c.weight, math.log(c.median), max(c.sigma, 1e-6)) for c in self.lognormal]
        low = min(mu - 6 * s for _, mu, s in logs)
        high = max(mu + 6 * s for _, mu, s in logs)
        grid = np.linspace(low, high, 4001)
        total = sum(w for w, _, _ in logs)
        chance = sum(w / total * normal_cdf((grid - mu) / s) for w, mu, s in logs)
        return np.asarray(chance), grid

    def tokens(self, u: FloatArray) -> NDArray[np.int64]:
        """Values at ``u`` as token counts: rounded, at least 1."""
        return np.maximum(1, np.rint(self.at(u))).astype(np.int64)

    def mean(self) -> float:
        """Mean, by the midpoint rule over 20,000 probabilities."""
        return float(self.at((np.arange(20_000) + 0.5) / 20_000).mean())


def _check_quantiles(quantiles: dict[float, float]) -> None:
    chances = sorted(quantiles)
    if len(chances) < 2 or chances[0] != 0 or chances[-1] != 1:
        raise ValueError("quantiles must run from 0 to 1, as {0: 3, 0.5: 120, 1: 4000}")
    values = [quantiles[p] for p in chances]
    if values[0] < 0 or any(b < a for a, b in pairwise(values)):
        raise ValueError("quantiles must not fall, and must not be negative")
    if values[-1] > _LARGEST:
        raise ValueError(f"quantiles must not be above {_LARGEST:g}")


def stream(seed: int, *purpose: int) -> np.random.Generator:
    """Random numbers of one purpose: the same seed and purpose give the same numbers, other purposes others."""
    if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
        raise InputError(f"seed: {seed!r}; allowed: whole numbers from 0")
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, *purpose])))


def normal_cdf(x: FloatArray) -> FloatArray:
    """Standard normal distribution function (by ``math.erf``)."""
    return np.array([0.5 * (1 + math.erf(v / math.sqrt(2))) for v in np.ravel(x)]).reshape(np.shape(x))


def linked_uniforms(rng: np.random.Generator, count: int, rank_correlation: float) -> tuple[FloatArray, FloatArray]:
    """Two columns of uniform numbers whose Spearman correlation is ``rank_correlation`` (Gaussian copula).

    For a normal pair Spearman's rho is 6/pi asin(r/2), so r = 2 sin(pi rho / 6) (Pearson 1907).
    """
    r = 2 * math.sin(math.pi * rank_correlation / 6)
    one, other = rng.standard_normal((2, count))
    return normal_cdf(one), normal_cdf(r * one + math.sqrt(max(0.0, 1 - r * r)) * other)


def gaps_gamma(rng: np.random.Generator, count: int, cv: float) -> FloatArray:
    """Gaps of mean 1 from a gamma distribution of this coefficient of variation: shape 1/CV^2."""
    return rng.gamma(1 / cv**2, cv**2, count)


def gaps_weibull(rng: np.random.Generator, count: int, cv: float) -> FloatArray:
    """Gaps of mean 1 from a Weibull distribution of this coefficient of variation."""
    shape = weibull_shape(cv)
    return rng.weibull(shape, count) / math.gamma(1 + 1 / shape)


def weibull_shape(cv: float) -> float:
    """Shape k with CV^2 = Gamma(1+2/k) / Gamma(1+1/k)^2 - 1, by bisection; CV falls as k rises. k is 0.05 to 50."""

    def log_ratio(k: float) -> float:
        return math.lgamma(1 + 2 / k) - 2 * math.lgamma(1 + 1 / k)

    low, high, wanted = 0.05, 50.0, math.log1p(cv * cv)
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if log_ratio(middle) > wanted else (low, middle)
    return (low + high) / 2
