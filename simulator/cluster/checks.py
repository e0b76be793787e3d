"""What a topology must satisfy before anything is computed from it. Each failure is one line naming the key."""

from __future__ import annotations

from collections import Counter

from simulator.cluster.profiles import load_profile
from simulator.cluster.routing_checks import check_routing
from simulator.cluster.schema import MODES, NetworkPart, PoolPart, Topology
from simulator.errors import TopologyError, unknown
from simulator.network.compression import compression_names

_RACKS = ("nodes_per_rack", "bandwidth_trace")
#: Network numbers that mean something for each kind.
_NUMBERS = {
    "nvlink": ("nvlink_gbyte_per_s", "gpus_per_node"),
    "rdma": ("nic_gbit_per_s", "nics_per_node", "gpus_per_node", "nvlink_gbyte_per_s", "placement", *_RACKS),
    "ethernet": ("nic_gbit_per_s", "nics_per_node", "gpus_per_node", "placement", "cores_per_gpu", *_RACKS),
    "none": (),
}


def check(topology: Topology) -> None:
    """Raise TopologyError for the first thing that cannot be used."""
    place = topology.source
    _check_names(topology, place)
    _check_roles(topology, place)
    for pool in topology.pools:
        _check_pool(topology, pool, f"{place}: pools.{pool.name}")
    check_routing(topology, place)
    if topology.network is not None:
        _check_network(topology.network, f"{place}: network")
    _check_transfer(topology, place)


def _check_names(topology: Topology, place: str) -> None:
    for name, times in Counter(pool.name for pool in topology.pools).items():
        if times > 1:
            raise TopologyError(f"{place}: pools: name '{name}' is there {times} times; each pool needs its own")


def _check_roles(topology: Topology, place: str) -> None:
    roles = {pool.role for pool in topology.pools}
    for role, partner in (("prefill", "decode"), ("decode", "prefill")):
        if role in roles and partner not in roles and "mixed" not in roles:
            found = ", ".join(sorted(roles))
            raise TopologyError(f"{place}: pools: role {role} needs a {partner} or mixed pool beside it; found {found}")
    if "colocated" in roles and len(roles) > 1:
        others = ", ".join(sorted(roles - {"colocated"}))
        raise TopologyError(f"{place}: pools: colocated pools stand alone; found {others} beside them (use role mixed)")


def _check_pool(topology: Topology, pool: PoolPart, place: str) -> None:
    """Either model and GPU tell how fast and how big an engine is, or explicit numbers do."""
    for name, given in (
        ("step_time", pool_part(topology, pool, "step_time")),
        ("kv_blocks", kv_blocks(topology, pool)),
    ):
        missing = [key for key, value in (("model", topology.model), ("gpu", pool.gpu)) if value is None]
        if given is None and missing:
            raise TopologyError(f"{place}: key '{missing[0]}' is missing (or give {name})")
    profile = load_profile(topology.profile, f"{topology.source}: engine")
    profile.family.resolve(*settings_layers(topology, pool))
    try:
        (pool.precision or topology.precision).value()
        pool.parallel.value()
    except TopologyError as error:
        raise TopologyError(f"{place}: {error}") from None


def pool_part(topology: Topology, pool: PoolPart, name: str) -> object:
    """A part a pool may set for itself: the pool's own, or the topology's."""
    own = getattr(pool, name)
    return getattr(topology, name) if own is None else own


def kv_blocks(topology: Topology, pool: PoolPart) -> int | None:
    """Usable KV blocks where the user fixes them: ``kv_blocks``, or the engine's own setting for it."""
    given = pool_part(topology, pool, "kv_blocks")
    if given is not None:
        return int(given)  # type: ignore[call-overload, no-any-return]
    family = load_profile(topology.profile, f"{topology.source}: engine").family
    settings = family.resolve(*settings_layers(topology, pool))
    fixed = int(settings[family.blocks]) if family.blocks else 0
    if not fixed:
        return None
    if family.name == "vllm":
        return fixed - 1  # vLLM keeps one block for itself
    return fixed // int(settings[family.block])


def settings_layers(topology: Topology, pool: PoolPart) -> list[tuple[str, dict[str, object]]]:
    """The topology's engine settings, then the pool's."""
    return [
        (f"{topology.source}: engine", topology.engine_settings),
        (f"{topology.source}: pools.{pool.name}.engine", pool.engine),
    ]


def _check_network(network: NetworkPart, place: str) -> None:
    numbers = {number for allowed in _NUMBERS.values() for number in allowed}
    for number in sorted(numbers - set(_NUMBERS[network.kind])):
        if getattr(network, number) is not None:
            allowed = ", ".join(_NUMBERS[network.kind]) or "nothing else"
            raise TopologyError(f"{place}.{number}: means nothing for kind {network.kind}; allowed: {allowed}")
    if network.rack_oversubscription > 1 and network.nodes_per_rack is None:
        raise TopologyError(
            f"{place}: key 'nodes_per_rack' is missing: rack_oversubscription narrows ways out of racks"
        )


def _check_transfer(topology: Topology, place: str) -> None:
    transfer = topology.kv_transfer
    if isinstance(transfer.compression, str) and transfer.compression not in compression_names():
        where = f"{place}: kv_transfer.compression"
        raise TopologyError(unknown(where, "compression", transfer.compression, compression_names()))
    if not topology.disaggregated:
        return
    _check_mode(topology, f"{place}: kv_transfer")
    _check_compression(topology, f"{place}: kv_transfer.compression")
    if transfer.explicit:
        return
    for pool in topology.pools:
        if pool.gpu is None:
            where = f"{place}: pools.{pool.name}"
            raise TopologyError(
                f"{where}: key 'gpu' is missing: it has the ports KV leaves by (or give kv_transfer.per_block_s)"
            )
    if topology.network is None:
        raise TopologyError(f"{place}: key 'network' is missing: prefill and decode engines are joined by something")
    if topology.network.kind == "none":
        raise TopologyError(
            f"{place}: network.kind: none cannot carry KV from prefill to decode; allowed: nvlink, rdma, ethernet"
        )
    if topology.model is None:
        raise TopologyError(
            f"{place}: key 'model' is missing: it tells the bytes of KV (or give kv_transfer.per_block_s)"
        )


def _check_mode(topology: Topology, place: str) -> None:
    """What a way of handing over needs, and what means nothing for it."""
    transfer, profile = topology.kv_transfer, load_profile(topology.profile, f"{topology.source}: engine")
    mode = transfer.mode or profile.transfer_mode
    if mode not in MODES:
        raise TopologyError(unknown(f"{profile.source}: kv_transfer.mode", "mode", mode, MODES))
    if (mode == "store") != (transfer.store is not None):
        what = "is missing: mode store needs one" if mode == "store" else f"means nothing for mode {mode}"
        raise TopologyError(f"{place}: key 'store' {what}")
    if transfer.landing == "host" and mode != "layerwise":
        raise TopologyError(f"{place}.landing: host means nothing for mode {mode}; allowed: gpu (or mode layerwise)")
    if transfer.explicit and (mode in ("staged", "store") or transfer.landing == "host"):
        raise TopologyError(f"{place}.per_block_s: explicit times are for modes that go from GPU to GPU; found {mode}")
    if mode == "store" and topology.network is not None and topology.network.kind == "nvlink":
        raise TopologyError(f"{place}.mode: a store is reached over network cards; use network.kind rdma or ethernet")
    if transfer.kv_load_failure_policy == "recompute" and profile.policy == "sglang":
        raise TopologyError(f"{place}.kv_load_failure_policy: sglang engines drop such requests; allowed: fail")


def _check_compression(topology: Topology, place: str) -> None:
    """A ratio of one's own, or CacheGen's levels, which whole prompts are sent at."""
    part, profile = topology.kv_transfer.compression, load_profile(topology.profile, f"{topology.source}: engine")
    kind = part if isinstance(part, str) else part.kind
    if not isinstance(part, str):
        if kind not in ("custom", "cachegen"):
            raise TopologyError(unknown(f"{place}.kind", "compression", kind, ("custom", "cachegen")))
        if (kind == "custom") != (part.ratio is not None):
            what = "is missing" if kind == "custom" else "means nothing for cachegen: its levels have their own"
            raise TopologyError(f"{place}: key 'ratio' {what}")
        for name in ("deadline_s", "level", "text"):
            if kind == "custom" and getattr(part, name) is not None:
                raise TopologyError(f"{place}.{name}: means nothing for kind custom; allowed: kind cachegen")
    mode = topology.kv_transfer.mode or profile.transfer_mode
    if kind == "cachegen" and mode not in ("pull", "store"):
        raise TopologyError(f"{place}: cachegen sends whole prompts; found mode {mode}, allowed: pull, store")
    if kind != "none" and topology.kv_transfer.explicit:
        raise TopologyError(f"{place}: means nothing beside kv_transfer.per_block_s, which gives times outright")
