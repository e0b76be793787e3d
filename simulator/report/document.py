"""The result JSON (schema 1): plain, strict, in a stable order, and byte for byte the same for the same run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

import simulator
from simulator.errors import InputError
from simulator.metrics.compare import compare_entries
from simulator.metrics.slo import SLO
from simulator.metrics.summary import Entry
from simulator.workload.trace import Trace

SCHEMA = 1

Document = dict[str, Any]


def trace_entry(trace: Trace, load: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """What was offered: the trace, its size, and how it was offered (``load``: arrivals, rate_scale, warm-up, ...)."""
    span_s = float(trace.arrival_s[-1] - trace.arrival_s[0])
    requests = len(trace)
    return {
        "name": trace.name,
        "source": trace.source,
        "requests": requests,
        "span_s": span_s,
        "rate_requests_per_s": (requests - 1) / span_s if span_s > 0 else None,
        "input_tokens": _tokens(trace.input_tokens),
        "output_tokens": _tokens(trace.output_tokens),
        **(load or {}),
    }


def _tokens(values: np.ndarray[Any, np.dtype[np.int64]]) -> dict[str, float]:
    cuts = np.quantile(values, [0.5, 0.99])
    return {
        "mean": float(values.mean()),
        "p50": float(cuts[0]),
        "p99": float(cuts[1]),
        "max": int(values.max()),
        "sum": int(values.sum()),
    }


def document(
    trace: Mapping[str, Any], entries: Sequence[Entry], slo: SLO, seed: int, overrides: Sequence[str] = ()
) -> Document:
    """The whole result: ``trace`` from ``trace_entry``, ``entries`` from ``summarise``, one a topology.

    ``overrides`` are what was changed in the topologies (``--set``).
    """
    return {
        "schema": SCHEMA,
        "simulator": simulator.__version__,
        "trace": dict(trace),
        "slo": slo.as_dict(),
        "seed": seed,
        "set": list(overrides),
        "topologies": list(entries),
        "comparison": compare_entries(entries, slo) if entries else {},
    }


def distinct_names(names: Sequence[str]) -> list[str]:
    """The names with ``#2``, ``#3`` behind those that were there before, so that each says which run is meant."""
    if any(not name for name in names):
        raise InputError("a topology has no name; write name: ... in its file")
    given: list[str] = []
    for name in names:
        number, label = 2, name
        while label in given:
            number, label = number + 1, f"{name}#{number}"
        given.append(label)
    return given
