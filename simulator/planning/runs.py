"""One run as plain values that can be sent to another process, and what comes of it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import simulator
from simulator.cluster.assembly import assemble
from simulator.cluster.plan import ClusterPlan
from simulator.cluster.result import RunResult
from simulator.cluster.run import RunOptions
from simulator.cluster.simulation import run_plan
from simulator.cluster.topology import Topology, load_topology
from simulator.errors import InputError
from simulator.metrics.slo import SLO
from simulator.metrics.summary import Entry, summarise
from simulator.resources import shipped
from simulator.workload.arrivals import Arrivals, parse_arrivals
from simulator.workload.trace import Trace
from simulator.workload.window import Window

#: Raised when what is stored changes its form, so that older results are not taken for new ones.
FORM = 1
#: Rooms whose code decides what a run gives.
_ROOMS = ("workload", "models", "hardware", "cost", "kv", "network", "engine", "cluster", "metrics")
_PLANS_KEPT = 32


@dataclass(frozen=True)
class Run:
    """A trace, known by its digest, offered to a topology (its plain values as JSON) on stated terms."""

    trace: str
    topology: str
    arrivals: str = "trace"
    rate_scale: float = 1.0
    seed: int = 0
    warmup_s: float = 0.0
    slo: tuple[tuple[str, float], ...] = ()

    @property
    def targets(self) -> SLO:
        """The targets as such."""
        return SLO().with_targets(dict(self.slo))

    def key(self) -> str:
        """SHA-256 of everything that decides the outcome: these values, files the topology names, and the program."""
        topology = json.loads(self.topology)
        what = {**asdict(self), "topology": topology, "files": _named_files(topology), "form": FORM, "code": code()}
        return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class Outcome:
    """What a run gave: the figures, or why there are none (a model that does not fit)."""

    entry: Entry | None = None
    problem: str | None = None


def topology_text(topology: Topology) -> str:
    """A topology's plain values as text: what ``Run.topology`` holds."""
    return json.dumps(topology.to_dict(), sort_keys=True)


def perform(run: Run, trace: Trace) -> Outcome:
    """Simulate. What only shows when the engine is worked out (no room for the model, no request that fits) is told as
    the outcome's problem: one corner of a grid need not stop the others."""
    try:
        plan = plan_of(run.topology)
        result = simulate_once(
            plan, offered(trace, run.rate_scale), parse_arrivals(run.arrivals), run.seed, run.targets
        )
        return Outcome(summarise(result, run.targets, run.warmup_s))
    except InputError as problem:
        return Outcome(problem=str(problem))


def simulate_once(plan: ClusterPlan, trace: Trace, arrivals: Arrivals, seed: int, slo: SLO) -> RunResult:
    """One simulation, keeping each request's own token gaps where they are a target."""
    return run_plan(plan, trace, arrivals, seed=seed, options=RunOptions(slo_itl=slo.needs_gaps))


def offered(trace: Trace, rate_scale: float) -> Trace:
    """The trace played ``rate_scale`` times as fast."""
    return trace if rate_scale == 1.0 else Window(rate_scale=rate_scale).apply(trace)


@lru_cache(maxsize=_PLANS_KEPT)
def plan_of(topology: str) -> ClusterPlan:
    """A worked-out topology from its text; the last few are kept. Messages call it by its name."""
    return assemble(load_topology(json.loads(topology)))


def _named_files(topology: Mapping[str, Any]) -> dict[str, str]:
    """Digests of the files that a topology names: a model's config, GPU and engine profiles of one's own."""
    pools = topology.get("pools", [])
    engines = [part.get("engine") for part in (topology, *pools)]
    names = [topology.get("model"), *(pool.get("gpu") for pool in pools)]
    names += [engine.get("profile") if isinstance(engine, Mapping) else engine for engine in engines]
    found: dict[str, str] = {}
    for name in names:
        path = Path(name) / "config.json" if isinstance(name, str) and Path(name).is_dir() else Path(name or "")
        for file in [path, *path.parent.glob(f"{path.stem}.kernels.*")] if path.is_file() else []:
            found[file.name] = hashlib.sha256(file.read_bytes()).hexdigest()
    return found


@cache
def code() -> str:
    """The version of the program, with a digest of the code and the data that decide what a run gives: a checkout that
    was changed does not take over results from before."""
    digest, package = hashlib.sha256(), Path(__file__).resolve().parent.parent
    files = [path for room in _ROOMS for path in (package / room).rglob("*.py")]
    files += [path for path in shipped("hardware_profiles").rglob("*") if path.is_file()]
    for path in sorted(files, key=lambda path: path.as_posix()):
        digest.update(path.name.encode())
        digest.update(path.read_bytes())
    return f"{simulator.__version__}+{digest.hexdigest()[:16]}"
