"""How KV travels between a topology's engines: link profiles, seats, streams, and a route for each pair."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from simulator.cluster.engines import Engine
from simulator.cluster.plan import KvTransferPlan, Lease, Route, WorkerPlan
from simulator.cluster.routing_checks import is_lending
from simulator.cluster.schema import CompressionPart, NetworkPart, Topology, TransferMode
from simulator.errors import TopologyError
from simulator.hardware.gpu import Gpu
from simulator.hardware.links import Link, list_links, load_link
from simulator.models.model import Model
from simulator.network.compression import Compression, named_compression
from simulator.network.exchange import Cache, Split, Stream, descriptors_per_block, exchange
from simulator.network.fabric import Network
from simulator.network.layout import Cell, Seat, Wiring, lay_out, seat
from simulator.units import BITS_PER_BYTE, GB

_NODE_GPUS = 8
Pair = tuple[int, int]


def compression_of(topology: Topology) -> Compression:
    """The compression a topology names or describes."""
    part = topology.kv_transfer.compression
    if isinstance(part, CompressionPart):
        costs = (part.encode_s_per_token, part.decode_s_per_token, part.chunk_tokens)
        return Compression(part.kind, part.ratio, *costs, quality="not stated")
    return named_compression(part)


def handovers(workers: Sequence[WorkerPlan], *, lending: bool = False) -> list[Pair]:
    """Pairs of engines between which KV may move: from any that prefills to any other that decodes.

    ``lending``: each may do either.
    """
    if lending:
        return [(src.index, dst.index) for src in workers for dst in workers if src is not dst]
    sources = [w.index for w in workers if w.role in ("prefill", "mixed")]
    targets = [w.index for w in workers if w.role in ("decode", "mixed")]
    return [(src, dst) for src in sources for dst in targets if src != dst]


def plan_transfer(topology: Topology, workers: Sequence[WorkerPlan], engines: Sequence[Engine]) -> KvTransferPlan:
    """Routes of every handover; ``engines``: each worker's."""
    part = topology.kv_transfer
    mode: TransferMode = part.mode or engines[0].profile.transfer_mode  # type: ignore[assignment]
    compression, pairs = compression_of(topology), handovers(workers, lending=is_lending(topology))
    model = engines[0].model
    layers = 1 if model is None else model.layers
    if part.explicit:
        route = Route(part.setup_s or 0.0, part.per_block_s or 0.0)
        routes, network, nodes = dict.fromkeys(pairs, route), Network(), (-1,) * len(workers)
    else:
        routes, network, nodes = _over_network(topology, workers, engines, pairs)
    whole = part.layerwise_from_tokens
    return KvTransferPlan(
        mode,
        part.explicit,
        routes,
        network,
        compression,
        layers,
        part.max_in_flight,
        nodes,
        lease=Lease(part.lease_s, part.heartbeats, part.kv_load_failure_policy == "recompute"),
        layerwise_from_tokens=engines[0].profile.layerwise_from_tokens if whole is None else whole,
    )


@dataclass(frozen=True)
class _Wires:
    """One GPU type's ports as the topology's network has them, in effective bytes a second."""

    nvlink: Link | None
    card: Link | None
    nvlink_bytes_per_s: float
    card_bytes_per_s: float


def _over_network(
    topology: Topology,
    workers: Sequence[WorkerPlan],
    engines: Sequence[Engine],
    pairs: Sequence[Pair],
) -> tuple[dict[Pair, Route], Network, tuple[int, ...]]:
    network, model = topology.network, engines[0].model
    assert network is not None and model is not None, "checked with the topology"
    wiring = _wiring(network, [_gpu(engine) for engine in engines], topology.source)
    ports = {gpu.name: _wires(network, gpu, wiring, f"{topology.source}: network") for gpu in map(_gpu, engines)}
    wires = [ports[_gpu(engine).name] for engine in engines]
    cells = place_workers(topology, workers, wiring)
    seats = [
        Seat(worker.name, cells[i], wires[i].nvlink_bytes_per_s, wires[i].card_bytes_per_s)
        for i, worker in enumerate(workers)
    ]
    known: dict[tuple[object, object], tuple[Stream, ...]] = {}
    streams: dict[Pair, tuple[Stream, ...]] = {}
    for src, dst in pairs:
        key = (engines[src].parallel, engines[dst].parallel)
        if key not in known:
            known[key] = exchange(_cache(model, engines[dst]), _split(model, engines[src]), _split(model, engines[dst]))
        streams[src, dst] = known[key]
    laid = lay_out(seats, streams, wiring)
    routes: dict[Pair, Route] = {}
    alike: dict[object, Route] = {}
    for src, dst in pairs:
        links = [_link_used(laid, (src, dst), wires[i]) for i in (src, dst)]
        kind = (workers[src].pool, workers[dst].pool, links[0].name, links[1].name)
        if kind not in alike:
            alike[kind] = _route(topology, engines[dst], streams[src, dst], links)
        routes[src, dst] = alike[kind]
    return routes, laid, tuple(one[0][0] for one in cells)


def _gpu(engine: Engine) -> Gpu:
    assert engine.gpu is not None, "checked with the topology"
    return engine.gpu


def _wiring(network: NetworkPart, gpus: Sequence[Gpu], place: str) -> Wiring:
    domain = min(gpu.nvlink_domain_gpus for gpu in gpus)
    if network.kind == "nvlink":
        return Wiring(network.gpus_per_node or domain, 1, 1.0, nvlink_between_nodes=False)
    per_node = network.gpus_per_node or max(_NODE_GPUS, domain)
    return Wiring(per_node, network.nics_per_node or per_node, network.oversubscription)


def place_workers(topology: Topology, workers: Sequence[WorkerPlan], wiring: Wiring) -> list[tuple[Cell, ...]]:
    """Cells of each worker's GPUs. An NVLink network is one domain, and everything must fit in it."""
    network = topology.network
    assert network is not None
    packed = network.placement == "packed" or network.kind == "nvlink"
    groups = [(str(w.gpu) if packed else w.pool, w.parallel.gpus) for w in workers]
    if network.kind == "nvlink":
        gpus = sum(count for _, count in groups)
        if gpus > wiring.gpus_per_node:
            raise TopologyError(
                f"{topology.source}: network.kind: {gpus} GPUs do not fit one NVLink domain of {wiring.gpus_per_node}; "
                "use rdma, or set network.gpus_per_node"
            )
    return seat(groups, wiring.gpus_per_node, apart=network.kind != "nvlink")


def _wires(network: NetworkPart, gpu: Gpu, wiring: Wiring, place: str) -> _Wires:
    """Line rates from the topology, the named link or the GPU; efficiencies from the nearest link profile."""
    named = _named_link(network.link, place) if network.link else None
    nvlink_rate = (network.nvlink_gbyte_per_s or 0.0) * GB or gpu.nvlink_bandwidth_bytes_per_s
    card_rate = (network.nic_gbit_per_s or 0.0) * GB / BITS_PER_BYTE
    if network.kind == "nvlink":
        if named and not network.nvlink_gbyte_per_s:
            nvlink_rate = named.bandwidth_bytes_per_s
        if nvlink_rate <= 0:
            raise TopologyError(f"{place}.kind: {gpu.name} has no NVLink; use rdma or ethernet")
        link = named or _nearest("nvlink", nvlink_rate)
        return _Wires(link, None, nvlink_rate * (network.efficiency or link.efficiency), 0.0)
    if not card_rate:
        share = gpu.nic_bandwidth_bytes_per_s * wiring.gpus_per_node / wiring.nics_per_node
        card_rate = named.bandwidth_bytes_per_s if named else share
    if card_rate <= 0:
        raise TopologyError(f"{place}.nic_gbit_per_s: {gpu.name} has no network card of its own; give a number")
    card = named or _nearest(network.kind, card_rate)
    nvlink = _nearest("nvlink", nvlink_rate) if nvlink_rate > 0 else None
    nvlink_effective = nvlink_rate * nvlink.efficiency if nvlink else 0.0
    return _Wires(nvlink, card, nvlink_effective, card_rate * (network.efficiency or card.efficiency))


def _named_link(name: str, place: str) -> Link:
    try:
        return load_link(name)
    except TopologyError as error:
        raise TopologyError(f"{place}.{error}") from None


def _nearest(kind: str, bandwidth_bytes_per_s: float) -> Link:
    """The shipped link of this kind whose line rate is nearest, as a ratio."""
    links = [link for link in map(load_link, list_links()) if link.kind == kind]
    ratio = [max(link.bandwidth_bytes_per_s, bandwidth_bytes_per_s) for link in links]
    low = [min(link.bandwidth_bytes_per_s, bandwidth_bytes_per_s) for link in links]
    return min(zip(ratio, low, links, strict=True), key=lambda entry: entry[0] / entry[1])[2]


def _link_used(network: Network, pair: Pair, wires: _Wires) -> Link:
    """The profile whose costs a pair pays: its cards', unless all goes over NVLink."""
    names = [network.links[crossing.link].name for crossing in network.paths[pair].crossings]
    link = wires.card if any(" nic " in name for name in names) else wires.nvlink
    assert link is not None
    return link


def _cache(model: Model, engine: Engine) -> Cache:
    """The model's KV as it is stored: heads of K and V, or one latent."""
    one_layer = model.kv_layer_bytes_per_token(engine.precision.kv_cache, 1)
    if model.mla is not None:
        return Cache(model.layers, 0, one_layer, 1)
    return Cache(model.layers, model.kv_heads, one_layer / model.kv_heads, 2)


def _split(model: Model, engine: Engine) -> Split:
    stages = tuple((stage.start, stage.stop) for stage in model.stage_layers(engine.parallel.pp))
    return Split(engine.parallel.tp, stages, engine.parallel.dp)


def _route(
    topology: Topology,
    engine: Engine,
    streams: tuple[Stream, ...],
    links: Sequence[Link],
) -> Route:
    """Costs of one pair. The engine's transfer settings go before the network's, these before the link profile's."""
    network, part, profile = topology.network, topology.kv_transfer, engine.profile.transfer_link
    assert network is not None and engine.model is not None
    compression = compression_of(topology)
    setup, per_descriptor = (
        _first(getattr(part, key), getattr(network, key), profile.get(key), max(getattr(link, key) for link in links))
        for key in ("setup_s", "per_descriptor_s")
    )
    windows = engine.windows
    full = sum(window == 0 for window in windows) / len(windows)
    per_token = sum(stream.bytes_per_token for stream in streams) / compression.ratio
    tokens = engine.block_tokens
    pieces = 1 if compression.ratio > 1 else descriptors_per_block(streams) * full
    return Route(
        setup_s=setup,
        per_block_s=per_descriptor * pieces + compression.encode_s_per_token * tokens,
        bytes_per_block=per_token * full * tokens,
        window_bytes=per_token / len(windows) * sum(windows),
        decode_s_per_block=compression.decode_s_per_token * tokens,
        chunk_blocks=max(1, compression.chunk_tokens // tokens),
    )


def _first(*values: float | None) -> float:
    return next(value for value in values if value is not None)
