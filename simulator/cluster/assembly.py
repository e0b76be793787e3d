"""Works a topology out: engines, memory, step costs, placement and KV routes. All input is checked here or before."""

from __future__ import annotations

from dataclasses import replace

from simulator.cluster.cache.plan import plan_cache
from simulator.cluster.engines import Engine, engine_of
from simulator.cluster.faults.plan import plan_faults
from simulator.cluster.plan import ClusterPlan, WorkerPlan
from simulator.cluster.schema import PoolPart, Topology
from simulator.cluster.wires import plan_transfer
from simulator.errors import TopologyError
from simulator.network.fabric import Network


def assemble(topology: Topology) -> ClusterPlan:
    """Plan every engine and handover of ``topology``. Raises TopologyError, one line, where something cannot be."""
    engines = {pool.name: engine_of(topology, pool) for pool in topology.pools}
    _check_blocks(topology, engines)
    workers: list[WorkerPlan] = []
    for pool in topology.pools:
        workers += [_worker(pool, engines[pool.name], len(workers) + i, i) for i in range(pool.workers)]
    warnings = [warning for engine in engines.values() for warning in engine.warnings]
    transfer = None
    if topology.disaggregated:
        transfer = plan_transfer(topology, workers, [engines[worker.pool] for worker in workers])
        if topology.network is not None and transfer.explicit:
            warnings.append(f"{topology.source}: network is not used: kv_transfer gives explicit times")
        workers = [replace(worker, node=transfer.nodes[worker.index]) for worker in workers]
    first = next(iter(engines.values()))
    network = Network() if transfer is None else transfer.network
    cache = plan_cache(topology, workers, [engines[worker.pool] for worker in workers], network)
    faults = plan_faults(topology, workers, network if cache is None else cache.network, cache)
    return ClusterPlan(topology, tuple(workers), transfer, first.model, first.precision, cache, tuple(warnings), faults)


def _check_blocks(topology: Topology, engines: dict[str, Engine]) -> None:
    """Engines that hand KV over have blocks of one size."""
    sizes = {name: engine.block_tokens for name, engine in engines.items()}
    if topology.disaggregated and len(set(sizes.values())) > 1:
        found = ", ".join(f"{name} {size}" for name, size in sizes.items())
        key = next(iter(engines.values())).profile.family.block
        raise TopologyError(f"{topology.source}: pools: {key} must be the same where KV is handed over; found {found}")


def _worker(pool: PoolPart, engine: Engine, index: int, number: int) -> WorkerPlan:
    family = engine.profile.family
    return WorkerPlan(
        index=index,
        name=f"{pool.name}-{number}",
        pool=pool.name,
        role=pool.role,
        gpu=None if engine.gpu is None else engine.gpu.name,
        parallel=engine.parallel,
        policy=engine.profile.policy,
        settings=engine.settings,
        max_step_tokens=int(engine.settings[family.step_tokens]),
        max_sequences=engine.sequences,
        max_context=engine.longest,
        block_size=engine.block_tokens,
        kv_blocks=engine.blocks,
        kv_bytes_per_block=_block_bytes(engine),
        step_cost=engine.step_cost,
        frontend_before_s=engine.before_s,
        frontend_after_s=engine.after_s,
        front=engine.front,
        deliver_token_s=engine.deliver_token_s,
        memory=engine.memory,
    )


def _block_bytes(engine: Engine) -> float:
    """Bytes of one block over all GPUs that hold a part or a copy of it."""
    if engine.model is None:
        return 0.0
    layer = engine.model.kv_layer_bytes_per_token(engine.precision.kv_cache, engine.parallel.tp)
    full_layers = sum(window == 0 for window in engine.windows)
    return layer * engine.parallel.tp * full_layers * engine.block_tokens
