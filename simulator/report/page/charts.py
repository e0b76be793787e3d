"""The charts' figures, as plain values for the page's script. Seconds, shares and bytes a second throughout."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from simulator.cluster.result import TTFT_PARTS, Floats, ItlHistogram, RunResult
from simulator.metrics.latency import latencies
from simulator.planning.crossover import Cell
from simulator.report.page.material import Material
from simulator.report.pictures import bin_means, bin_width_s, end_of

#: Shares of requests at which a distribution is drawn: even, and finer in the tail.
_SHARES = np.concatenate([np.linspace(0.0, 0.98, 197), np.linspace(0.98, 1.0, 41)[1:]])
#: Workers drawn one by one; beyond, the busiest of each pool.
MOST_WORKERS = 12
#: The share of requests that is called the slowest.
TAIL = 0.01


def chart_data(material: Material) -> dict[str, Any]:
    """Everything the script draws."""
    return {
        "names": material.names,
        "saturated": [entry["saturated"] for entry in material.entries],
        "targets": {name: value for name, value in material.slo.targets().items() if name != "itl_p99"},
        "distributions": distributions(material),
        "errors": [model_errors(entry) for entry in material.entries],
        "rates": rates(material),
        "load": [load(run, bin_width_s(material.runs)) for run in material.runs],
        "map": crossover_cells(material),
    }


def model_errors(entry: Mapping[str, Any]) -> dict[str, float]:
    """The factor by which medians of each kind of latency may be off, 1.14 for 14 %; empty where it is not known."""
    error = entry.get("model_error")
    if not error:
        return {}
    return {key: round(1 + error[f"{key}_percent"]["p50"] / 100, 4) for key in ("ttft", "tpot", "e2e")}


def short(values: Any, digits: int = 4) -> list[float | None]:
    """Figures with a few digits, so that the page stays small; ``None`` where there is none."""
    return [float(f"{value:.{digits}g}") if math.isfinite(value) else None for value in np.asarray(values, float)]


def distributions(material: Material) -> dict[str, list[dict[str, Any]]]:
    """Latency (s) at shares of requests, for each kind a list of topologies; empty lists where nothing completed."""
    found: dict[str, list[dict[str, Any]]] = {"ttft": [], "tpot": [], "e2e": [], "itl": []}
    for run in material.runs:
        values = latencies(run.record, material.warmup_s)
        for name, column in (("ttft", values.ttft_s), ("tpot", values.tpot_s), ("e2e", values.e2e_s)):
            found[name].append(_distribution(column[values.measured]))
        found["itl"].append(_gaps(run.itl_histogram))
    return found


def _distribution(values: Floats) -> dict[str, Any]:
    ordered = np.sort(values[~np.isnan(values)])
    if not ordered.size:
        return {"x": [], "share": []}
    return {"x": short(np.quantile(ordered, _SHARES)), "share": short(_SHARES)}


def _gaps(histogram: ItlHistogram | None) -> dict[str, Any]:
    if histogram is None or not histogram.counts.any():
        return {"x": [], "share": []}
    used = np.flatnonzero(histogram.counts)
    shares = np.cumsum(histogram.counts[used]) / histogram.counts.sum()
    picked = np.unique(np.searchsorted(shares, np.minimum(_SHARES, shares[-1])))
    return {"x": short(histogram.edges_s[used + 1][picked]), "share": short(shares[picked], 5)}


_RATE_FIGURES: dict[str, tuple[str, ...]] = {
    "attainment": ("slo_attainment",),
    "ttft": ("ttft_s", "p90"),
    "tpot": ("tpot_s", "p90"),
    "e2e": ("e2e_s", "p90"),
}


def rates(material: Material) -> dict[str, Any] | None:
    """Latencies' p90 and attainment at each level; the knee of each topology."""
    curve = material.curve
    if curve is None:
        return None
    series = []
    for name in material.names:
        points = curve.of(name)
        one: dict[str, Any] = {"level": short([point.level for point in points])}
        for key, path in _RATE_FIGURES.items():
            one[key] = short([figure(point.figures, path) for point in points])
        one["saturated"] = [bool(point.figures and point.figures["saturated"]) for point in points]
        knee = curve.knee(name)
        one["knee"] = None if knee is None else short([knee])[0]
        series.append(one)
    return {"closed": curve.closed, "given": short([curve.given])[0], "targets": curve.has_targets, "series": series}


def figure(entry: Mapping[str, Any] | None, path: Sequence[str]) -> float:
    """A value of an entry; NaN where there is none."""
    value: Any = entry
    for key in path:
        value = None if value is None else value[key]
    return math.nan if value is None else float(value)


def load(run: RunResult, step_s: float) -> dict[str, Any]:
    """Running and waiting requests, KV use and link traffic of each worker, averaged over steps of ``step_s``."""
    edges = np.arange(0.0, end_of([run]) + step_s, step_s)
    workers = []
    for number in _shown(run):
        series = run.series[number]
        columns = {
            name: short(bin_means(series.time_s, getattr(series, name), edges))
            for name in ("running", "waiting", "kv_fraction")
        }
        moments, traffic = traffic_of(run, number)
        workers.append(
            {"name": series.name, "pool": series.pool, "role": series.role, **columns}
            | {"bytes_per_s": short(bin_means(moments, traffic, edges)) if moments.size else []}
        )
    return {"time": short(edges[:-1] + step_s / 2, 6), "step_s": step_s, "workers": workers, "all": len(run.series)}


def _shown(run: RunResult) -> list[int]:
    """Numbers of the workers to draw: all, or those of each pool with the highest mean use of memory."""
    if len(run.series) <= MOST_WORKERS:
        return list(range(len(run.series)))
    pools = list(dict.fromkeys(series.pool for series in run.series))
    each = max(1, MOST_WORKERS // len(pools))
    found: list[int] = []
    for pool in pools:
        members = [i for i, series in enumerate(run.series) if series.pool == pool]
        members.sort(key=lambda i: -float(run.series[i].kv_fraction.mean()) if run.series[i].kv_fraction.size else 0.0)
        found += sorted(members[:each])
    return found


def traffic_of(run: RunResult, worker: int) -> tuple[Floats, Floats]:
    """Moments (s) and bytes/s from each on, in and out of a worker; a transfer's bytes spread over its time."""
    moments = run.moments
    if moments is None:
        return np.empty(0), np.empty(0)
    own = (run.record.prefill_worker == worker) | (run.record.decode_worker == worker)
    rows = np.flatnonzero(own & (moments.kv_bytes > 0) & (moments.kv_end_s > moments.kv_start_s))
    speed = moments.kv_bytes[rows] / (moments.kv_end_s - moments.kv_start_s)[rows]
    at = np.concatenate([moments.kv_start_s[rows], moments.kv_end_s[rows]])
    order = np.argsort(at, kind="stable")
    return at[order], np.maximum(np.cumsum(np.concatenate([speed, -speed])[order]), 0.0)


def crossover_cells(material: Material) -> dict[str, Any] | None:
    """The map: rates, prompt lengths, and for each cell who wins and with what attainment."""
    found = material.map
    if found is None:
        return None
    lengths = list(dict.fromkeys(cell.prompt_tokens for cell in found.cells))
    columns = len(found.cells) // len(lengths)
    table = [found.cells[i * columns : (i + 1) * columns] for i in range(len(lengths))]
    return {
        "colocated": found.colocated,
        "disaggregated": found.disaggregated,
        "rates": short([cell.rate_requests_per_s for cell in table[0]], 3),
        "prompts": [round(length) for length in lengths],
        "winner": [[cell.winner for cell in row] for row in table],
        "ratio": [[_ratio(cell) for cell in row] for row in table],
        "gain": [short([cell.gain for cell in row], 3) for row in table],
        "attainment": [
            [short([figure(cell.colocated, ("slo_attainment",)), figure(cell.disaggregated, ("slo_attainment",))], 3)
             for cell in row]
            for row in table
        ],
    }  # fmt: skip


def _ratio(cell: Cell) -> float | None:
    """Good requests per GPU, the winner's over the other's; None where that says nothing."""
    ratio = cell.ratio
    if ratio is None or not 0 < ratio < math.inf:
        return None
    return short([max(ratio, 1 / ratio)], 3)[0]


def tail_parts(run: RunResult, warmup_s: float) -> dict[str, float] | None:
    """Mean parts of TTFT (s) over the slowest hundredth of requests by TTFT; None where nothing completed."""
    values = latencies(run.record, warmup_s)
    rows: NDArray[np.int64] = np.flatnonzero(values.measured)
    if not rows.size:
        return None
    slow = rows[np.argsort(-values.ttft_s[rows], kind="stable")][: max(1, round(TAIL * rows.size))]
    return {name: float(getattr(run.record, f"part_{name}_s")[slow].mean()) for name in TTFT_PARTS}
