"""Latencies of each request and their spread.

Definitions. TTFT = first token's time - arrival. TPOT = (last - first) / (output tokens - 1), NaN for one token.
E2E = last token's time - arrival. A token's time is when the client sees it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from simulator.cluster.result import COMPLETED, TTFT_PARTS, Floats, ItlHistogram, RunRecord
from simulator.metrics.slo import SLO, TARGETS

Bools = NDArray[np.bool_]
Spread = dict[str, float | None]

#: What a spread tells, in this order.
QUANTILES = {"p50": 0.50, "p90": 0.90, "p95": 0.95, "p99": 0.99}
#: A run's clock may have rounded this much away from a part (days of simulated time in float64).
_ROUNDING_S = 1e-9

SPREAD_KEYS = ("mean", *QUANTILES, "max")


@dataclass(frozen=True)
class Latencies:
    """One row a request of the trace; NaN where a request did not get so far."""

    ttft_s: Floats
    tpot_s: Floats
    e2e_s: Floats
    itl_p99_s: Floats | None
    completed: Bools
    counted: Bools
    promised: tuple[tuple[str, SLO], ...] = ()  # what the topology promises tenants
    tenant: NDArray[np.int64] | None = None
    tenant_names: tuple[str, ...] = ()

    @property
    def measured(self) -> Bools:
        """Requests whose latencies enter the spreads: counted and completed."""
        return self.counted & self.completed


def latencies(record: RunRecord, warmup_s: float = 0.0) -> Latencies:
    """Latencies of every request; those that arrive before ``warmup_s`` on the run's clock are not counted."""
    gaps = np.maximum(record.output_tokens - 1, 0).astype(np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        tpot_s = np.where(gaps > 0, (record.last_token_s - record.first_token_s) / gaps, np.nan)
    return Latencies(
        ttft_s=record.first_token_s - record.arrival_s,
        tpot_s=tpot_s,
        e2e_s=record.last_token_s - record.arrival_s,
        itl_p99_s=record.itl_p99_s,
        completed=record.state == COMPLETED,
        counted=~(record.arrival_s < warmup_s),  # a turn that was never sent (NaN) counts: it was asked for
        promised=tuple((name, SLO.from_mapping(targets)) for name, targets in record.tenant_targets.items()),
        tenant=record.tenant,
        tenant_names=record.tenant_names,
    )


def meets(values: Latencies, slo: SLO) -> dict[str, Bools]:
    """For each target, which requests meet it. A completed request of one token meets TPOT and ITL targets."""
    columns = {"ttft": values.ttft_s, "tpot": values.tpot_s, "e2e": values.e2e_s, "itl_p99": values.itl_p99_s}
    met: dict[str, Bools] = {}
    for name, target_s in targets_by_request(values, slo).items():
        column = columns[name]
        if column is None:
            raise ValueError("itl_p99 is a target, but the run was not asked to keep each request's gaps")
        within = (column <= target_s) | np.isnan(target_s)
        if name in ("tpot", "itl_p99"):
            within |= np.isnan(column)
        met[name] = within & values.completed
    return met


def targets_by_request(values: Latencies, slo: SLO) -> dict[str, Floats]:
    """For each target that anybody has, every request's own (s), NaN where it has none: its tenant's, or the common
    one. Tenants' targets that come with the question go before those of the topology."""
    by_tenant = dict(values.promised) | dict(slo.tenants)
    names = [name for name in TARGETS if name in {n for s in (slo, *by_tenant.values()) for n in s.targets()}]
    found = {name: np.full(values.ttft_s.size, slo.targets().get(name, math.nan)) for name in names}
    if values.tenant is None:
        return found
    for code, tenant in enumerate(values.tenant_names):
        if tenant in by_tenant:
            for name in names:
                found[name][values.tenant == code] = by_tenant[tenant].targets().get(name, math.nan)
    return found


def good(values: Latencies, slo: SLO) -> Bools:
    """Which requests meet every target; failed, rejected and unfinished ones never do."""
    passed = values.completed.copy()
    for within in meets(values, slo).values():
        passed &= within
    return passed


def spread(values: Floats) -> Spread:
    """Mean, percentiles (linear interpolation between order statistics) and maximum; ``None`` each when empty."""
    values = values[~np.isnan(values)]
    if values.size == 0:
        return dict.fromkeys(SPREAD_KEYS)
    cuts = np.quantile(values, list(QUANTILES.values()))
    found: Spread = {"mean": math.fsum(values) / values.size}
    found |= {name: float(cut) for name, cut in zip(QUANTILES, cuts, strict=True)}
    return found | {"max": float(values.max())}


def histogram_spread(histogram: ItlHistogram, mean_s: float | None = None) -> Spread:
    """The same for a histogram; ``mean_s`` is the mean where it is known better.

    A bin's gaps lie at the bin's mean where that was kept (exact if they are all alike), else spread evenly over the
    bin: a percentile is off by the width of a bin at most.
    """
    used = np.flatnonzero(histogram.counts)
    if used.size == 0:
        return dict.fromkeys(SPREAD_KEYS)
    counts = histogram.counts[used]
    ends = np.cumsum(counts)  # ends[i]: how many gaps lie in bins up to i
    low_s, width_s = histogram.edges_s[used], np.diff(histogram.edges_s)[used]
    if histogram.sums_s is not None:
        low_s, width_s = histogram.sums_s[used] / counts, np.zeros(used.size)

    def gap_s(place: int) -> float:
        """The gap at this place, counted from 0, of all gaps in order."""
        i = int(np.searchsorted(ends, place, side="right"))
        return float(low_s[i] + width_s[i] * (place - (ends[i] - counts[i]) + 0.5) / counts[i])

    last = int(ends[-1]) - 1
    largest = gap_s(last) if math.isnan(histogram.max_s) else histogram.max_s
    middle = math.fsum((low_s + width_s / 2) * counts) / (last + 1)
    found: Spread = {"mean": middle if mean_s is None else mean_s}
    for name, share in QUANTILES.items():
        below, above = gap_s(math.floor(share * last)), gap_s(math.ceil(share * last))
        found[name] = min(below + (above - below) * (share * last - math.floor(share * last)), largest)
    return found | {"max": largest}


def ttft_parts(record: RunRecord, measured: Bools) -> dict[str, float | None]:
    """Mean seconds of each part of TTFT over the measured requests; they add up to the mean TTFT exactly.

    Each part is rounded to a multiple of the last bit of the mean, and the bits left over go to the largest part: sums
    of such numbers are exact in any order. A difference beyond rounding is left as it is, to be reported.
    """
    count = int(measured.sum())
    if count == 0:
        return dict.fromkeys(TTFT_PARTS)
    parts = {name: math.fsum(getattr(record, f"part_{name}_s")[measured]) / count for name in TTFT_PARTS}
    whole = math.fsum((record.first_token_s - record.arrival_s)[measured]) / count
    last_bit = math.ulp(whole)
    bits = {name: round(value / last_bit) for name, value in parts.items()}
    left_over = round(whole / last_bit) - sum(bits.values())
    if abs(left_over * last_bit) > _ROUNDING_S + 1e-12 * abs(whole):
        return dict(parts)
    bits[max(bits, key=lambda name: bits[name])] += left_over
    return {name: value * last_bit for name, value in bits.items()}
