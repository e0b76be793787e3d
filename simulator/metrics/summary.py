"""The numbers of one run: an entry of ``topologies`` in the result JSON."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from simulator.cluster.result import (
    CANCELLED,
    COMPLETED,
    FAILED,
    REJECTED,
    TIMED_OUT,
    UNFINISHED,
    PoolStats,
    RunResult,
)
from simulator.errors import InputError
from simulator.metrics.confidence import BATCHES, Interval, batch_means, batch_percentile
from simulator.metrics.economics import cost_of, energy_of
from simulator.metrics.latency import Bools, Latencies, good, histogram_spread, latencies, meets, spread, ttft_parts
from simulator.metrics.model_error import model_error
from simulator.metrics.saturation import is_saturated
from simulator.metrics.slo import SLO

Entry = dict[str, Any]

#: Requests that a batch needs to tell a mean, and a percentile (a few beyond it).
_FEWEST_IN_BATCH = 10
_INTERVALS: tuple[tuple[str, float | None, int], ...] = (("mean", None, 10), ("p50", 0.5, 20), ("p99", 0.99, 200))

_COUNTS = {
    "completed": COMPLETED,
    "failed": FAILED,
    "rejected": REJECTED,
    "timed_out": TIMED_OUT,
    "cancelled": CANCELLED,
    "unfinished": UNFINISHED,
}


def summarise(run: RunResult, slo: SLO | None = None, warmup_s: float = 0.0) -> Entry:
    """All figures of a run as plain values, in the order of the result JSON.

    Latency spreads are over counted requests that completed; attainment is over all counted requests. Goodput and
    attainment are ``None`` without targets. Raises InputError when the warm-up leaves no request to count.
    """
    slo = slo or SLO()
    values = latencies(run.record, warmup_s)
    if not values.counted.any():
        raise InputError(f"warmup: no request arrives after the first {warmup_s:g} s; use a shorter warm-up")
    saturated = is_saturated(run)
    topology = run.topology
    entry: Entry = {"name": topology.name, "gpus": topology.gpus, "gpu_counts": dict(topology.gpu_counts)}
    entry |= {"model": topology.model, "engine": topology.engine}
    for name, value in _figures(run, values, slo, values.counted).items():
        if name == "e2e_s":
            entry["itl_s"] = _itl(run, values)
        entry[name] = value
    entry["intervals_95"] = _intervals(values, slo)
    entry["ttft_parts_s"] = ttft_parts(run.record, values.measured)
    entry["cache"] = _cache(run, values)
    entry["pools"] = [_pool(pool) for pool in run.pools]
    entry["network"] = dict(run.network)
    rates = _token_rates(entry)
    entry["cost"], entry["energy"] = cost_of(run, *rates), energy_of(run, *rates)
    if run.faults:
        entry["faults"] = dict(run.faults)
    if run.autoscaling:
        entry["gpus_on"] = sum(pool.gpus * pool.on_share for pool in run.pools)
        entry["autoscaling"] = dict(run.autoscaling)
    entry["saturated"] = saturated
    entry["model_error"] = model_error(run, entry)
    entry["reasons"] = _reasons(run, values)
    entry["warnings"] = [*run.warnings, *_warnings(entry, run, warmup_s), *_strangers(values, slo)]
    tenants = _tenants(run, values, slo)
    if tenants:
        entry["tenants"] = tenants
    return entry


def _intervals(values: Latencies, slo: SLO) -> dict[str, list[float]]:
    """95 % intervals of this one run's figures, by batches of requests in order of arrival; a figure is left out where
    batches would be too small to have it. Sampling error alone: other traffic of the same kind would fall in them."""
    found: dict[str, Interval] = {}
    for name, column in (("ttft", values.ttft_s), ("tpot", values.tpot_s), ("e2e", values.e2e_s)):
        series = column[values.measured]
        series = series[~np.isnan(series)]
        for spread_name, share, fewest in _INTERVALS:
            if series.size >= fewest * BATCHES:
                interval = batch_means(series) if share is None else batch_percentile(series, share)
                found[f"{name}_{spread_name}_s"] = interval
    passed = good(values, slo)[values.counted]
    if slo and passed.size >= _FEWEST_IN_BATCH * BATCHES:
        found["slo_attainment"] = batch_means(passed)
    return {name: [interval.low, interval.high] for name, interval in found.items()}


def _token_rates(entry: Entry) -> tuple[float | None, float | None]:
    """Tokens a second in all, and of output alone."""
    prompt, output = entry["input_tokens_per_s"], entry["output_tokens_per_s"]
    return (None if prompt is None or output is None else prompt + output), output


def _figures(run: RunResult, values: Latencies, slo: SLO, group: Bools) -> Entry:
    """Counts, latencies and rates of the requests in ``group``."""
    record, done = run.record, values.completed & group
    duration_s = _duration_s(run, done, group)
    requests, passed = int(group.sum()), int((good(values, slo) & group).sum())

    def per_second(amount: int) -> float | None:
        return amount / duration_s if duration_s else None

    figures: Entry = {"requests": requests}
    figures |= {name: int(((record.state == state) & group).sum()) for name, state in _COUNTS.items()}
    figures["duration_s"] = duration_s
    figures["ttft_s"] = spread(values.ttft_s[done])
    figures["tpot_s"] = spread(values.tpot_s[done])
    figures["e2e_s"] = spread(values.e2e_s[done])
    judged = bool(slo) or bool(values.promised)
    figures["goodput_requests_per_s"] = (per_second(passed) or 0.0) if judged else None
    figures["slo_attainment"] = passed / requests if judged else None
    figures["slo_attainment_by_target"] = {
        name: int((within & group).sum()) / requests for name, within in meets(values, slo).items()
    }
    figures["request_throughput_per_s"] = per_second(int(done.sum()))
    figures["output_tokens_per_s"] = per_second(int(record.output_tokens[done].sum()))
    figures["input_tokens_per_s"] = per_second(int(record.input_tokens[done].sum()))
    return figures


def _duration_s(run: RunResult, done: Bools, group: Bools) -> float | None:
    """Last completion less first arrival of the group; ``None`` where nothing completed."""
    if not done.any():
        return None
    return float(run.record.last_token_s[done].max() - np.nanmin(run.record.arrival_s[group]))


def _itl(run: RunResult, values: Latencies) -> dict[str, float | None]:
    """Gaps between tokens: percentiles from the histogram, the mean from the requests (all gaps over their number)."""
    if run.itl_histogram is None:
        return spread(np.empty(0))
    record, done = run.record, values.measured
    gaps = int(np.maximum(record.output_tokens[done] - 1, 0).sum())
    between_s = math.fsum((record.last_token_s - record.first_token_s)[done])
    return histogram_spread(run.itl_histogram, between_s / gaps if gaps else None)


def _cache(run: RunResult, values: Latencies) -> Entry:
    """Prompt tokens that were found in a prefix cache, of those of the requests that completed."""
    cached = run.record.cached_tokens[values.measured]
    prompt_tokens, hit_tokens = int(run.record.input_tokens[values.measured].sum()), int(np.maximum(cached, 0).sum())
    loaded = {name: int(tokens[values.measured].sum()) for name, tokens in run.record.loaded_tokens.items()}
    by_tier = {"hbm": hit_tokens - sum(loaded.values()), **loaded}
    return {
        **run.cache,
        "hit_token_ratio": hit_tokens / prompt_tokens if prompt_tokens else None,
        "hit_tokens": hit_tokens,
        "prompt_tokens": prompt_tokens,
        "requests_with_a_hit": int((cached > 0).sum()),
        "hit_tokens_by_tier": by_tier,
        "computed_tokens": prompt_tokens - hit_tokens,
    }


def _pool(pool: PoolStats) -> Entry:
    entry: Entry = {
        "name": pool.name,
        "role": pool.role,
        "gpu": pool.gpu,
        "workers": pool.workers,
        "gpus": pool.gpus,
        "utilisation": pool.utilisation,
        "kv_peak_fraction": pool.kv_peak_fraction,
        "preemptions": pool.preemptions,
    }
    for name in ("kv_blocks", "block_tokens", "steps"):
        entry[name] = None if getattr(pool, name) < 0 else getattr(pool, name)
    return entry | dict(pool.extra)


def _reasons(run: RunResult, values: Latencies) -> dict[str, int]:
    """Why counted requests did not complete: reason to number, most frequent first."""
    lost = values.counted & ~values.completed & (run.record.reason >= 0)
    numbers = np.bincount(run.record.reason[lost], minlength=len(run.record.reasons))
    found = {reason: int(number) for reason, number in zip(run.record.reasons, numbers, strict=True) if number}
    return dict(sorted(found.items(), key=lambda item: (-item[1], item[0])))


def _warnings(entry: Entry, run: RunResult, warmup_s: float) -> list[str]:
    found = []
    if entry["completed"] == 0:
        found.append("no counted request completed")
    parts, mean = entry["ttft_parts_s"], entry["ttft_s"]["mean"]
    if mean is not None and sum(parts.values()) != mean:
        found.append(f"the parts of TTFT add up to {sum(parts.values()):.9g} s, not to its mean {mean:.9g} s")
    if run.itl_histogram is not None and run.itl_histogram.from_s < warmup_s:
        found.append("itl_s also holds the gaps of the warm-up")
    return found


def _strangers(values: Latencies, slo: SLO) -> list[str]:
    """Tenants that have targets and no requests."""
    named = {name for name, _ in (*values.promised, *slo.tenants)}
    return [
        f"tenant '{name}' has targets, and no requests in the trace"
        for name in sorted(named - set(values.tenant_names))
    ]


def _tenants(run: RunResult, values: Latencies, slo: SLO) -> dict[str, Entry]:
    codes = run.trace.tenant
    if codes is None:
        return {}
    names = run.trace.tenant_names or ()
    found = {}
    for code in np.unique(codes[values.counted]):
        name = names[code] if 0 <= code < len(names) else "(none)"
        found[str(name)] = _figures(run, values, slo, values.counted & (codes == code))
    return found


def per_gpu(entry: Entry, name: str) -> float:
    """A rate of an entry divided by its GPUs, those that were on; NaN where there is no rate."""
    value, gpus = entry[name], entry.get("gpus_on", entry["gpus"])
    return math.nan if value is None or not gpus else value / gpus


def flat_entry(entry: Entry) -> dict[str, Any]:
    """An entry as one row: spreads become ``ttft_p99_s``, parts ``ttft_queue_s``; lists and texts are left out."""
    row: dict[str, Any] = {}
    for key, value in entry.items():
        if key == "ttft_parts_s":
            row |= {f"ttft_{part}_s": seconds for part, seconds in value.items()}
        elif key in ("ttft_s", "tpot_s", "itl_s", "e2e_s"):
            row |= {f"{key.removesuffix('_s')}_{spread}_s": seconds for spread, seconds in value.items()}
        elif key == "slo_attainment_by_target":
            row |= {f"slo_attainment_{target}": share for target, share in value.items()}
        elif key in ("cost", "energy"):
            row |= {name: figure for name, figure in value.items() if not isinstance(figure, dict)}
        elif key == "cache":
            row["cache_hit_token_ratio"] = value["hit_token_ratio"]
        elif not isinstance(value, dict | list):
            row[key] = value
    return row
