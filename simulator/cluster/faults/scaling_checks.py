"""What a topology's autoscaling must satisfy. Each failure is one line naming the key."""

from __future__ import annotations

from typing import TYPE_CHECKING

from simulator.errors import TopologyError, unknown

if TYPE_CHECKING:
    from simulator.cluster.schema import Topology


def check_autoscaling(topology: Topology) -> None:
    """Raise TopologyError for the first thing that cannot be used."""
    part = topology.autoscaling
    if part is None:
        return
    sizes = {pool.name: pool.workers for pool in topology.pools}
    first = 0
    for i, scale in enumerate(part.pools):
        place = f"{topology.source}: autoscaling.pools.{i}"
        if scale.pool not in sizes:
            raise TopologyError(unknown(place, "pool", scale.pool, sizes))
        if [other.pool for other in part.pools].count(scale.pool) > 1:
            raise TopologyError(f"{place}.pool: {scale.pool} is there twice; each pool needs its own")
        if len(scale.figures) != 1:
            found = " and ".join(scale.figures) or "none"
            raise TopologyError(f"{place}: found {found}; give one of waiting_requests, requests, kv_use, ttft_s")
        first_workers = scale.first_workers or scale.min_workers
        if not scale.min_workers <= first_workers <= sizes[scale.pool]:
            allowed = f"{scale.min_workers} to {sizes[scale.pool]} (pools.{scale.pool}.workers)"
            raise TopologyError(f"{place}.first_workers: found {first_workers}; allowed: {allowed}")
        first += first_workers
    if part.total_workers is not None and part.total_workers < first:
        place = f"{topology.source}: autoscaling.total_workers"
        raise TopologyError(f"{place}: found {part.total_workers}; allowed: from {first}, the pools' first workers")
