"""Which worker takes a request, and whether it is taken at all. A router sees what a real one could: queues, memory,
prompts, caches' events; never the output length.

To add one: a plain function and a line in its table. ``ROUTERS`` choose a position in one pool, ``JOINT`` choose both
workers of a request at arrival, ``ADMISSION`` may turn it away with a reason. ``OPTIONS``: the keys of a router's part
in the topology that mean something for it.
"""

from __future__ import annotations

from collections.abc import Callable

from simulator.cluster.routers.admission import Admission, early, predicted, queue
from simulator.cluster.routers.affinity import prefix_affinity, prefix_aware, session_affinity
from simulator.cluster.routers.base import Asked, Decision, Front, Pool, Prompts
from simulator.cluster.routers.dynamo import dynamo
from simulator.cluster.routers.load import (
    least_pending_tokens,
    least_predicted_tpot,
    least_requests,
    most_free_blocks,
    round_robin,
    shortest_predicted_wait,
    shortest_queue,
)
from simulator.cluster.routers.mooncake import mooncake
from simulator.cluster.routers.splitwise import splitwise

__all__ = ["ADMISSION", "JOINT", "OPTIONS", "ROUTERS", "Asked", "Decision", "Front", "Pool", "Prompts"]

Router = Callable[[Pool, Asked], int]
Joint = Callable[[Front, Asked], Decision]

ROUTERS: dict[str, Router] = {
    "round_robin": round_robin,
    "least_requests": least_requests,
    "shortest_queue": shortest_queue,
    "least_pending_tokens": least_pending_tokens,
    "most_free_blocks": most_free_blocks,
    "shortest_predicted_wait": shortest_predicted_wait,
    "least_predicted_tpot": least_predicted_tpot,
    "session_affinity": session_affinity,
    "prefix_aware": prefix_aware,
    "prefix_affinity": prefix_affinity,
    "dynamo": dynamo,
}

JOINT: dict[str, Joint] = {"mooncake": mooncake, "splitwise": splitwise}

ADMISSION: dict[str, Admission] = {"early": early, "predicted": predicted, "queue": queue}

OPTIONS: dict[str, tuple[str, ...]] = {
    "prefix_aware": ("balance",),
    "prefix_affinity": ("balance",),
    "dynamo": (
        "prefill_load_scale",
        "overlap_credit",
        "host_weight",
        "disk_weight",
        "shared_weight",
        "temperature",
    ),
    "mooncake": ("kvcache_balancing_threshold",),
    "splitwise": ("max_pending_tokens",),
}
