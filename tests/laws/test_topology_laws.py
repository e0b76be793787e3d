"""Whatever a topology says, it is worked out or refused in one line: no other error leaves the room."""

from __future__ import annotations

import copy
import random
from collections.abc import Iterator
from typing import Any

import pytest

from simulator.cluster.assembly import assemble
from simulator.cluster.topology import load_topology, topology_names
from simulator.errors import TopologyError

EXPLICIT: dict[str, Any] = {
    "name": "e",
    "step_time": {"base_s": 0.005},
    "kv_blocks": 100,
    "pools": [{"name": "p", "role": "prefill"}, {"name": "d", "role": "decode"}],
    "kv_transfer": {"setup_s": 0.002, "per_block_s": 2e-5},
}
VALUES: list[Any] = [
    *(None, 0, -1, 1, 3, 1.5, 1e300, float("nan"), float("inf"), 10**30, 64, True),
    *("", "x", "h100_sxm", "sglang", "none", [], {}, [1], {"a": 1}, {"kind": "rdma"}),
]
KEYS = [
    "name",
    "model",
    "precision",
    "engine",
    "pools",
    "network",
    "kv_transfer",
    "routing",
    "frontend",
    "step_time",
    "kv_blocks",
    "max_output_tokens",
    "kind",
    "link",
    "nic_gbit_per_s",
    "nics_per_node",
    "gpus_per_node",
    "efficiency",
    "oversubscription",
    "placement",
    "setup_s",
    "per_descriptor_s",
    "mode",
    "compression",
    "per_block_s",
    "tp",
    "pp",
    "dp",
    "ep",
    "parallel",
    "gpu",
    "workers",
    "role",
    "profile",
    "max_num_seqs",
    "block_size",
    "max_model_len",
    "junk",
]


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Paths of every value inside ``value``."""
    if path:
        yield path
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in inside:
        yield from places(inner, (*path, key))


def spoil(values: dict[str, Any], rng: random.Random) -> None:
    """Delete, replace or add one value somewhere."""
    *outer, last = rng.choice(list(places(values)))
    owner: Any = values
    for key in outer:
        owner = owner[key]
    act = rng.random()
    if act < 0.25:
        del owner[last]
    elif act < 0.5 and isinstance(owner, dict):
        owner[rng.choice(KEYS)] = copy.deepcopy(rng.choice(VALUES))
    else:
        owner[last] = copy.deepcopy(rng.choice(VALUES))


@pytest.mark.parametrize("seed", range(4))
def test_a_spoilt_topology_is_refused_in_one_line_or_works(seed: int) -> None:
    rng = random.Random(seed)
    shipped = [load_topology(name).to_dict() for name in topology_names()] + [EXPLICIT]
    refused = 0
    for _ in range(200):
        values = copy.deepcopy(rng.choice(shipped))
        for _ in range(rng.choice([1, 1, 2])):
            spoil(values, rng)
        try:
            plan = assemble(load_topology(values))
            assert all(worker.kv_blocks >= 1 and worker.block_size >= 1 for worker in plan.workers)
        except TopologyError as error:
            refused += 1
            assert "\n" not in str(error) and len(str(error)) > 10
    assert refused > 100
