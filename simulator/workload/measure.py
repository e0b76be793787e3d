"""The statistics of a trace, as the spec that would generate its like."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from simulator.workload.trace import Trace

#: Probabilities at which lengths and gaps are told; between them the generator interpolates.
PROBABILITIES = (0.0, 0.01, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 0.995, 0.999, 1.0)


def measure_spec(trace: Trace, *, gaps: bool = False) -> dict[str, Any]:
    """A spec (for ``generate_trace``) with the trace's rate, gap CV (or quantiles of gaps), quantiles of lengths and
    rank correlation. Prefixes and sessions are not measured: they need a choice of model."""
    between_s = np.diff(trace.arrival_s)
    mean_s = float(between_s.mean()) if len(between_s) else 0.0
    if mean_s == 0:
        arrivals: dict[str, Any] = {"rate_per_s": 1.0}
    elif gaps:
        arrivals = {"gaps_s": {"quantiles": {p: float(f"{np.quantile(between_s, p):.4g}") for p in PROBABILITIES}}}
    else:
        cv = max(0.01, float(between_s.std()) / mean_s)
        arrivals = {"rate_per_s": float(f"{1 / mean_s:.4g}"), "cv": float(f"{min(100.0, cv):.3g}")}
    return {
        "name": trace.name,
        "source": f"measured on {trace.name} ({len(trace):,} requests)",
        "requests": len(trace),
        "arrivals": arrivals,
        "input_tokens": {"quantiles": _quantiles(trace.input_tokens)},
        "output_tokens": {"quantiles": _quantiles(trace.output_tokens)},
        "rank_correlation": round(rank_correlation(trace.input_tokens, trace.output_tokens), 3),
    }


def _quantiles(values: NDArray[np.int64]) -> dict[float, int]:
    return {p: round(float(np.quantile(values, p))) for p in PROBABILITIES}


def rank_correlation(one: NDArray[Any], other: NDArray[Any]) -> float:
    """Spearman's correlation, equal values sharing their mean rank; 0 where a column is constant."""
    first, second = _ranks(one), _ranks(other)
    spread = float(first.std() * second.std())
    return float(((first - first.mean()) * (second - second.mean())).mean()) / spread if spread > 0 else 0.0


def _ranks(values: NDArray[Any]) -> NDArray[np.float64]:
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    middle: NDArray[np.float64] = (last - (counts - 1) / 2)[inverse]
    return middle
