"""Topologies side by side: which is best at what, and a verdict made from the numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from simulator.metrics.slo import SLO
from simulator.metrics.summary import Entry, per_gpu
from simulator.metrics.verdict import verdict

#: Values closer than this (relative) are a tie.
TIE = 0.005

#: What is compared: name in the result -> (where it is in an entry, is more better).
METRICS: dict[str, tuple[tuple[str, ...], bool]] = {
    "goodput_requests_per_s": (("goodput_requests_per_s",), True),
    "slo_attainment": (("slo_attainment",), True),
    "request_throughput_per_s": (("request_throughput_per_s",), True),
    "output_tokens_per_s": (("output_tokens_per_s",), True),
    **{
        f"{latency}_{spread}": ((f"{latency}_s", spread), False)
        for latency in ("ttft", "tpot", "itl", "e2e")
        for spread in ("mean", "p50", "p99")
    },
    "usd_per_million_tokens": (("cost", "usd_per_million_tokens"), False),
    "joules_per_token": (("energy", "joules_per_token"), False),
}

#: Rates that are also compared per GPU.
PER_GPU = ("goodput_requests_per_s", "request_throughput_per_s", "output_tokens_per_s")


def metric(entry: Entry, name: str) -> float:
    """One compared figure of an entry (``ttft_p99``, ``goodput_requests_per_s_per_gpu``); NaN where absent."""
    if name.endswith("_per_gpu"):
        return per_gpu(entry, name.removesuffix("_per_gpu"))
    value: Any = entry
    for key in METRICS[name][0]:
        value = value[key]
    return math.nan if value is None else float(value)


def best(entries: Sequence[Entry], name: str) -> list[str]:
    """Names of the topologies with the best value, more than one when they tie; empty where nobody has a value."""
    more = METRICS[name.removesuffix("_per_gpu")][1]
    values = {entry["name"]: metric(entry, name) for entry in entries}
    known = [value for value in values.values() if not math.isnan(value)]
    if not known:
        return []
    top = max(known) if more else min(known)
    return [label for label, value in values.items() if same(value, top)]


def same(a: float, b: float) -> bool:
    """Whether two figures are a tie (NaN ties with nothing)."""
    return a == b or abs(a - b) <= TIE * max(abs(a), abs(b))


def compare_entries(entries: Sequence[Entry], slo: SLO | None = None) -> dict[str, Any]:
    """The ``comparison`` of the result JSON.

    ``best`` maps a metric to the names that are best (several: a tie within 0.5 %); ``goodput_per_gpu`` and its
    ``ratio`` to the first topology; ``gpus_differ``; ``saturated`` names; ``verdict`` a sentence or a few.
    """
    slo = slo or SLO()
    names = [*METRICS, *(f"{name}_per_gpu" for name in PER_GPU)]
    goodputs = {entry["name"]: metric(entry, "goodput_requests_per_s_per_gpu") for entry in entries}
    return {
        "best": {name: best(entries, name) for name in names},
        "goodput_per_gpu": {name: None if math.isnan(value) else value for name, value in goodputs.items()},
        "goodput_per_gpu_ratio": _ratios(goodputs),
        "gpus_differ": len({entry["gpus"] for entry in entries}) > 1,
        "saturated": [entry["name"] for entry in entries if entry["saturated"]],
        "verdict": verdict(entries, slo, same),
    }


def _ratios(values: dict[str, float]) -> dict[str, float | None]:
    """Each value over the first; ``None`` where that says nothing."""
    first = next(iter(values.values()))
    usable = first > 0  # False for NaN as well
    return {name: value / first if usable and not math.isnan(value) else None for name, value in values.items()}
