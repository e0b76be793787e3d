"""The cluster room's front: run a trace on a topology that has been worked out."""

from __future__ import annotations

from dataclasses import replace

from simulator.cluster.collect import collect
from simulator.cluster.plan import ClusterPlan
from simulator.cluster.result import RunResult
from simulator.cluster.run import Cluster, RunOptions
from simulator.compiled import is_compiled
from simulator.engine.engine import POLICIES
from simulator.workload.arrivals import Arrivals, apply_arrivals
from simulator.workload.trace import Trace

#: What to tell people before a run that is not ``ready``.
COMPILING = "compiling the engine, once: about a minute"


def ready(plan: ClusterPlan) -> bool:
    """Whether the plan's engines are compiled already; the first run after an installation is not."""
    return all(is_compiled(POLICIES[w.policy].pulse) for w in plan.workers if w.policy in POLICIES)


def run_plan(
    plan: ClusterPlan, trace: Trace, arrivals: Arrivals, *, seed: int = 0, options: RunOptions | None = None
) -> RunResult:
    """Offer ``trace`` (with ``arrivals`` applied under ``seed``) to the cluster and live until the last token."""
    offered = apply_arrivals(trace, arrivals, seed)
    cluster = Cluster(plan, offered, arrivals, replace(options or RunOptions(), seed=seed))
    cluster.run()
    return collect(cluster, seed, str(arrivals))
