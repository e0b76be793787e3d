"""``simulate validate run``: a run that a user's own client has measured, replayed and compared."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from simulator.cluster.assembly import assemble
from simulator.cluster.result import COMPLETED, RunRecord
from simulator.cluster.simulation import run_plan
from simulator.cluster.topology import Topology, load_topology
from simulator.cost.kernels import kernels_of
from simulator.errors import InputError
from simulator.hardware.profiles import load_gpu
from simulator.validation.clients.measured import METRICS, Floats, Measured
from simulator.validation.clients.openers import read_measured
from simulator.workload.arrivals import Arrivals
from simulator.workload.load import load_trace
from simulator.workload.trace import Trace

STATISTICS = ("mean", "p50", "p90", "p95", "p99")
#: Streams that are pooled where only the rate is known, so that chance arrivals do not decide.
POOLED_STREAMS = 5
#: What a log of the engine's own does not contain.
_WITHOUT_FRONT_END = ("frontend.before_s=0", "frontend.after_s=0")

TopologyLike = Topology | str | os.PathLike[str] | Mapping[str, Any]


@dataclass(frozen=True)
class Figure:
    """One statistic of one metric, in seconds."""

    metric: str
    statistic: str
    measured_s: float
    simulated_s: float

    @property
    def error_percent(self) -> float:
        """Simulated over measured, less one."""
        return 100.0 * (self.simulated_s / self.measured_s - 1.0) if self.measured_s > 0 else float("nan")


@dataclass(frozen=True)
class RunComparison:
    """One run as it was measured and as it was simulated: ``simulated`` maps metric to seconds of each request."""

    measured: Measured
    topology: Topology
    simulated: Mapping[str, Floats]
    notes: tuple[str, ...]

    @property
    def figures(self) -> tuple[Figure, ...]:
        """All metrics and statistics; a metric that no request has is left out."""
        found = []
        for metric in METRICS:
            real, made = self.measured.latencies(metric), self.simulated[metric]
            if real.size and made.size:
                found += [Figure(metric, name, statistic(real, name), statistic(made, name)) for name in STATISTICS]
        return tuple(found)

    def figure(self, metric: str, name: str) -> Figure | None:
        """One of them, or None where there is none."""
        return next((f for f in self.figures if (f.metric, f.statistic) == (metric, name)), None)

    def frame(self) -> pd.DataFrame:
        """One row a figure: metric, statistic, measured_s, simulated_s, error_percent."""
        rows = [(f.metric, f.statistic, f.measured_s, f.simulated_s, f.error_percent) for f in self.figures]
        return pd.DataFrame(rows, columns=["metric", "statistic", "measured_s", "simulated_s", "error_percent"])

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        run = self.measured
        return {
            "name": run.name,
            "source": run.source,
            "client": run.client,
            "requests": len(run),
            "load": run.load,
            "clients": run.clients or None,
            "rate_requests_per_s": run.rate or None,
            "input_tokens_mean": float(run.input_tokens.mean()),
            "output_tokens_mean": float(run.output_tokens.mean()),
            "figures": self.frame().to_dict("records"),
            "notes": list(self.notes),
        }


def statistic(values: Floats, name: str) -> float:
    """``mean`` or a percentile (``p90``), interpolated linearly."""
    return float(values.mean()) if name == "mean" else float(np.percentile(values, float(name[1:])))


def validate_run(
    measured: Measured | str | os.PathLike[str],
    topology: TopologyLike,
    *,
    overrides: Iterable[str] = (),
    prefixes: Trace | str | os.PathLike[str] | None = None,
    seed: int = 0,
) -> RunComparison:
    """Replay the requests of ``measured`` (a client's result file) on ``topology`` and compare what clients saw.

    Reads detailed results of ``vllm bench serve``, AIPerf, GuideLLM and SGLang's bench_serving. Open loops are replayed
    at the moments they were sent, closed loops by as many clients. ``prefixes``: the trace whose prompts were sent, if
    they begin alike and the server caches prefixes. Raises InputError for what cannot be read or run.
    """
    run = measured if isinstance(measured, Measured) else read_measured(os.fspath(measured))
    if prefixes is not None:
        run = run.with_prefixes(prefixes if isinstance(prefixes, Trace) else load_trace(os.fspath(prefixes)))
    own = (*overrides, *_WITHOUT_FRONT_END) if run.at_engine else tuple(overrides)
    place = os.fspath(topology) if isinstance(topology, os.PathLike) else topology
    loaded = load_topology(place, own)
    latencies, lost = simulated_latencies(run, loaded, seed)
    notes = list(run.notes) + stand_ins(loaded)
    if lost:
        notes.append(f"{lost} of {len(run)} requests did not complete in the simulation and are left out of it")
    return RunComparison(run, loaded, latencies, tuple(notes))


def simulated_latencies(run: Measured, topology: Topology, seed: int = 0) -> tuple[dict[str, Floats], int]:
    """Seconds by metric of the replayed requests, and how many did not complete."""
    plan, trace = assemble(topology), run.trace()
    records = [run_plan(plan, trace, how, seed=seed + i).record for i, how in enumerate(_arrivals(run))]
    found = [_latencies(record) for record in records]
    lost = sum(int((record.state != COMPLETED).sum()) for record in records)
    merged = {metric: np.concatenate([one[metric] for one in found]) for metric in METRICS}
    if not merged["ttft"].size:
        raise InputError(f"{run.source}: no request completes on topology {topology.name}")
    return merged, lost


def _arrivals(run: Measured) -> list[Arrivals]:
    if run.load == "closed":
        return [Arrivals("closed", clients=run.clients)]
    if run.load == "rate":
        return [Arrivals("poisson", rate_per_s=run.rate, cv=1.0)] * POOLED_STREAMS
    return [Arrivals()]


def _latencies(record: RunRecord) -> dict[str, Floats]:
    done = record.state == COMPLETED
    several = done & (record.output_tokens > 1)
    spread = (record.last_token_s - record.first_token_s)[several]
    return {
        "ttft": (record.first_token_s - record.arrival_s)[done],
        "tpot": spread / (record.output_tokens[several] - 1),
        "e2e": (record.last_token_s - record.arrival_s)[done],
    }


def stand_ins(topology: Topology) -> list[str]:
    """What of the topology's hardware was not measured, in words."""
    found = []
    for gpu in sorted({pool.gpu for pool in topology.pools if pool.gpu and topology.step_time is None}):
        donor = kernels_of(load_gpu(gpu)).derived_from
        if donor is not None:
            found.append(f"{gpu}: peaks from its data sheet, efficiencies of its kernels carried over from {donor}")
    return found


def mean_errors(comparisons: Sequence[RunComparison]) -> dict[str, dict[str, float]]:
    """Mean absolute error in per cent by metric and statistic over several runs."""
    found: dict[str, dict[str, float]] = {}
    for metric in METRICS:
        for name in STATISTICS:
            figures = [c.figure(metric, name) for c in comparisons]
            errors = [abs(f.error_percent) for f in figures if f is not None]
            if errors:
                found.setdefault(metric, {})[name] = float(np.mean(errors))
    return found


def read_all(paths: Sequence[str]) -> list[Measured]:
    """The runs in several files, in the order given; two of one name are told apart by their folders."""
    runs = [read_measured(path) for path in paths]
    names = [run.name for run in runs]
    if len(set(names)) == len(names):
        return runs
    parents = [Path(run.source).parent.name for run in runs]
    return [
        Measured(**{**vars(run), "name": f"{parent}.{run.name}"}) if names.count(run.name) > 1 else run
        for run, parent in zip(runs, parents, strict=True)
    ]
