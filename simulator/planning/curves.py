"""Latency curves for CI: which points a spec asks for, and what the simulator says of them now."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from simulator.errors import InputError, unknown
from simulator.metrics.latency import SPREAD_KEYS
from simulator.metrics.slo import SLO
from simulator.metrics.summary import flat_entry
from simulator.planning.runs import Outcome, Run, topology_text
from simulator.planning.sweep_spec import changed_topology
from simulator.planning.traces import TraceSource, seconds_of, trace_digest, trace_source
from simulator.planning.workforce import Workforce, outcomes
from simulator.schema import Schema, check, read_yaml
from simulator.workload.arrivals import parse_arrivals
from simulator.workload.trace import Trace

#: Metrics of which more is better; of all others less is.
MORE_IS_BETTER = (
    *("slo_attainment", "goodput_requests_per_s", "request_throughput_per_s"),
    *("output_tokens_per_s", "input_tokens_per_s", "cache_hit_token_ratio"),
)
LATENCIES = tuple(f"{name}_{spread}" for name in ("ttft", "tpot", "itl", "e2e") for spread in SPREAD_KEYS)
METRICS = (*LATENCIES, *MORE_IS_BETTER, "usd_per_million_tokens", "joules_per_token")

Progress = Callable[[int, int], None]


class CurveSpec(Schema):
    """One trace offered at several rates to several topologies."""

    name: Annotated[str, Field(min_length=1)]
    trace: str
    arrivals: str = "poisson"
    rates: Annotated[list[Annotated[float, Field(gt=0)]], Field(min_length=1)]
    topologies: Annotated[list[str | dict[str, Any]], Field(min_length=1)]
    seeds: Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)] = Field(default_factory=lambda: [1, 2, 3])
    metrics: Annotated[list[str], Field(min_length=1)]
    tolerance_percent: Annotated[float, Field(gt=0, le=100)] = 3.0
    slo: str | dict[str, Any] | None = None
    warmup: str | float | None = None
    limit: Annotated[int, Field(ge=1)] | None = None
    start: str | float | None = None
    duration: str | float | None = None


class CurvesSpec(Schema):
    """The file: where the baseline is, and the curves."""

    baseline: Annotated[str, Field(min_length=1)] = "baseline.json"
    curves: Annotated[list[CurveSpec], Field(min_length=1)]


@dataclass(frozen=True)
class Place:
    """One point: of which curve, topology, rate and metric."""

    curve: str
    topology: str
    rate: float
    metric: str


@dataclass(frozen=True)
class Curves:
    """A spec read: ``place`` names the file in messages, ``folder`` is what its paths are relative to."""

    spec: CurvesSpec
    place: str
    folder: Path

    @property
    def baseline(self) -> Path:
        """The stored baseline."""
        return self.folder / self.spec.baseline


@dataclass(frozen=True)
class Measured:
    """Values by seed of every point, and the digest of each curve's trace."""

    values: Mapping[Place, Mapping[int, float | None]]
    traces: Mapping[str, str]


def read_curves(file: str | Path) -> Curves:
    """Read the file. Raises InputError."""
    path = Path(file)
    spec = check(CurvesSpec, read_yaml(path), str(path))
    names = [curve.name for curve in spec.curves]
    for curve in spec.curves:
        if names.count(curve.name) > 1:
            raise InputError(f"{path}: curves: two are called '{curve.name}'; give each a name of its own")
        for metric in curve.metrics:
            if metric not in METRICS:
                raise InputError(unknown(f"{path}: {curve.name}: metrics", "metric", metric, METRICS))
            if metric in ("slo_attainment", "goodput_requests_per_s") and curve.slo is None:
                raise InputError(f"{path}: {curve.name}: metric '{metric}' needs targets; give slo")
    return Curves(spec, str(path), path.parent)


@dataclass(frozen=True)
class _Job:
    curve: CurveSpec
    topology: str
    rate: float
    seed: int
    run: Run


def measure_curves(curves: Curves, workforce: Workforce, progress: Progress | None = None) -> Measured:
    """Run every point with every seed. Raises InputError, also where a run gives no figures."""
    loaded: dict[TraceSource, tuple[str, Trace]] = {}
    jobs = [job for curve in curves.spec.curves for job in _jobs(curve, curves, loaded)]
    found: dict[int, Outcome] = {}
    traces = dict(loaded.values())
    for index, outcome in outcomes([job.run for job in jobs], traces, workforce):
        found[index] = outcome
        if progress is not None:
            progress(len(found), len(jobs))
    values: dict[Place, dict[int, float | None]] = {}
    for index, job in enumerate(jobs):
        entry = found[index].entry
        if entry is None:
            raise InputError(f"{curves.place}: {job.curve.name}: {found[index].problem}")
        row = flat_entry(entry)
        for metric in job.curve.metrics:
            key = f"{metric}_s" if metric in LATENCIES else metric
            values.setdefault(Place(job.curve.name, job.topology, job.rate, metric), {})[job.seed] = row.get(key)
    return Measured(values, {job.curve.name: job.run.trace for job in jobs})


def _jobs(curve: CurveSpec, curves: Curves, loaded: dict[TraceSource, tuple[str, Trace]]) -> Iterator[_Job]:
    place = f"{curves.place}: {curve.name}"
    window = {key: getattr(curve, key) for key in ("trace", "limit", "start", "duration")}
    source, _ = trace_source({**window, "arrivals": curve.arrivals}, curves.folder, place)
    if source not in loaded:
        try:
            trace = source.load()
        except InputError as problem:
            raise InputError(f"{place}: {problem}") from None
        loaded[source] = (trace_digest(trace), trace)
    digest, trace = loaded[source]
    warmup_s = seconds_of(curve.warmup, f"{place}: warmup") or 0.0
    slo = tuple(SLO.of(curve.slo, f"{place}: slo").targets().items())
    topologies = [changed_topology(base, {}, curves.folder, place) for base in curve.topologies]
    names = [topology.name for topology in topologies]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise InputError(f"{place}: topologies: two are called '{twice}'; give each a name of its own")
    for topology in topologies:
        for rate in curve.rates:
            run = Run(trace=digest, topology=topology_text(topology), warmup_s=warmup_s, slo=slo)
            run = dataclasses.replace(run, **_load(curve, rate, trace, place))
            for seed in curve.seeds:
                yield _Job(curve, topology.name, rate, seed, dataclasses.replace(run, seed=seed))


def _load(curve: CurveSpec, rate: float, trace: Trace, place: str) -> dict[str, Any]:
    """Arrivals at ``rate`` requests a second: drawn, the trace's own played faster, or that many clients."""
    kind, _, rest = curve.arrivals.partition(":")
    if kind in ("trace", "trace-raw") and not rest:
        if trace.span_s <= 0:
            raise InputError(f"{place}: arrivals: the trace's requests arrive all at once; use poisson")
        return {"arrivals": kind, "rate_scale": rate / ((len(trace) - 1) / trace.span_s)}
    text = {"poisson": f"poisson:{rate:g}", "gamma": f"gamma:{rate:g}:{rest}", "closed": f"closed:{rate:g}"}.get(kind)
    if text is None or (rest and kind != "gamma"):
        allowed = "allowed: poisson, gamma:CV, trace, or closed (rates are then clients)"
        raise InputError(f"{place}: arrivals: '{curve.arrivals}' takes its rates from 'rates'; {allowed}")
    return {"arrivals": str(parse_arrivals(text, f"{place}: arrivals"))}
