"""Random cases put through engines of any policy: a cluster of one engine, or of a pair joined by reads."""

from __future__ import annotations

from typing import Any

from hypothesis import HealthCheck, Phase, settings
from long_tests import fewer

from simulator.cluster.plan import ClusterPlan, KvTransferPlan, Route, WorkerPlan
from simulator.cluster.run import Cluster, RunOptions
from simulator.cluster.schema import PoolPart, RoutingPart, Topology
from simulator.compiled import compiled
from simulator.cost.table import affine_cost
from simulator.kv.content import OUTPUT_CONTENT
from simulator.models.precision import Parallel
from simulator.network.compression import Compression
from simulator.network.fabric import Network
from simulator.validation.cases import Case
from simulator.workload.arrivals import Arrivals


def run_policy(
    case: Case, policy: str, per_role: dict[str, dict[str, Any]], *, macro: bool = True, told: bool = False
) -> Cluster:
    """The cluster after the case. ``per_role``: each engine's settings, and its ``kv_blocks`` and ``block``."""
    cluster = policy_cluster(case, policy, per_role, macro=macro, told=told)
    cluster.run()
    return cluster


def policy_cluster(
    case: Case, policy: str, per_role: dict[str, dict[str, Any]], *, macro: bool = True, told: bool = False
) -> Cluster:
    """The cluster before it runs."""
    workers = tuple(_worker(i, role, policy, own, case) for i, (role, own) in enumerate(per_role.items()))
    transfer = None
    if len(workers) == 2:
        route = Route(case.transfer["setup_s"], case.transfer["per_block_s"])
        transfer = KvTransferPlan("pull", True, {(0, 1): route}, Network(), Compression("none", 1.0), 1)
    pools = [PoolPart(name=role, role=role) for role in per_role]  # type: ignore[arg-type]
    routing = RoutingPart(prefill="round_robin", decode="round_robin", colocated="round_robin")
    plan = ClusterPlan(Topology(name=case.name, pools=pools, routing=routing), workers, transfer)
    options = RunOptions(macro=macro, one_output_content=OUTPUT_CONTENT, tell_finished=told)
    return Cluster(plan, case.trace, Arrivals(), options)


def some(examples: int) -> settings:
    """The same cases on every run; a failing one is told as drawn."""
    phases = [Phase.explicit, Phase.generate]
    checks = list(HealthCheck)
    return settings(max_examples=examples, deadline=None, derandomize=True, phases=phases, suppress_health_check=checks)


def thorough(examples: int) -> settings:
    """``some`` of a long test."""
    return some(fewer(examples))


@compiled
def promised(e: Any) -> Any:
    """Blocks promised to requests beyond those they hold."""
    return e.promised


def assert_empty(cluster: Cluster) -> None:
    """Every engine ends with nobody in it, all its blocks free, none promised, and has never had more than there are."""
    for worker in cluster.workers:
        load = worker.engine.load()
        assert (load.running, load.waiting, load.holding, load.pending_prompt_tokens) == (0, 0, 0, 0)
        assert load.free_blocks == load.blocks
        assert promised(worker.engine.state) == 0
        assert worker.engine.totals().peak_blocks <= load.blocks


def _worker(index: int, role: str, policy: str, own: dict[str, Any], case: Case) -> WorkerPlan:
    time = case.step_time
    return WorkerPlan(
        index=index,
        name=f"{role}-0",
        pool=role,
        role=role,  # type: ignore[arg-type]
        gpu=None,
        parallel=Parallel(),
        policy=policy,
        settings=own,
        max_step_tokens=8192,
        max_sequences=256,
        max_context=10**9,
        block_size=own["block"],
        kv_blocks=own["kv_blocks"],
        kv_bytes_per_block=0.0,
        step_cost=affine_cost(time["base_s"], time["per_token_s"], time["per_context_token_s"]),
        frontend_before_s=0.0,
        frontend_after_s=0.0,
    )
