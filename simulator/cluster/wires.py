"""How KV travels between a topology's engines: link profiles, seats, streams, and a route for each pair."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar

from simulator.cluster.engines import Engine
from simulator.cluster.places import Pair, Places
from simulator.cluster.plan import KvTransferPlan, Lease, Route, WorkerPlan
from simulator.cluster.ports import Ports, ports_of, wiring_of
from simulator.cluster.routing_checks import is_lending
from simulator.cluster.schema import Topology, TransferMode
from simulator.errors import TopologyError, unknown
from simulator.hardware.gpu import Gpu
from simulator.hardware.links import Link
from simulator.models.model import Model
from simulator.network.bandwidth import BandwidthTrace, read_bandwidth_trace
from simulator.network.compression import Compression, Ladder, compression_names, named_compression
from simulator.network.exchange import Cache, Split, Stream, descriptors_per_block, exchange
from simulator.network.fabric import Network
from simulator.network.layout import Cell, Hop, Seat, Wiring, lay_out, seat
from simulator.units import BITS_PER_BYTE, GB

_T = TypeVar("_T")

#: Legs before which KV is compressed, and after which that is undone.
_FIRST, _LAST = ("gpus", "to_host", "gpu_to_host", "to_store"), ("gpus", "from_host", "from_store")


def compression_of(topology: Topology) -> Compression:
    """The compression a topology names or describes."""
    part = topology.kv_transfer.compression
    if isinstance(part, str):
        return named_compression(part)
    ladder = named_compression(part.kind).ladder if part.kind in compression_names() else None
    if ladder is None:
        costs = (part.encode_s_per_token, part.decode_s_per_token or 0.0, part.chunk_tokens)
        return Compression(part.kind, part.ratio or 1.0, *costs, quality="not stated")
    levels = [level for level in ladder.levels if part.level in (None, level.name)]
    if not levels:
        place = f"{topology.source}: kv_transfer.compression.level"
        raise TopologyError(unknown(place, "level", part.level, [level.name for level in ladder.levels]))
    if part.decode_s_per_token is not None:
        levels = [replace(level, decode_s_per_token=part.decode_s_per_token) for level in levels]
    text = ladder.text and part.level is None if part.text is None else part.text
    chosen = Ladder(tuple(levels), part.chunk_tokens, part.deadline_s or ladder.deadline_s, text)
    return replace(named_compression(part.kind), ladder=chosen, encode_s_per_token=part.encode_s_per_token)


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
        laid = _Laid(dict.fromkeys(pairs, route), Network(), (-1,) * len(workers))
    else:
        laid = _over_network(topology, workers, engines, pairs, mode)
    profile = engines[0].profile
    return KvTransferPlan(
        mode,
        part.explicit,
        laid.routes,
        laid.network,
        compression,
        layers,
        part.max_in_flight,
        laid.nodes,
        lease=Lease(part.lease_s, part.heartbeats, part.kv_load_failure_policy == "recompute"),
        layerwise_from_tokens=_first(part.layerwise_from_tokens, profile.layerwise_from_tokens),
        landing=part.landing,
        kv_bits=16.0 if model is None else _kv_bits(model, engines[0]),
        places=Places(len(workers)),
        changes=laid.changes,
        setup_in_turn=_first(part.setup_in_turn, profile.setup_in_turn),
    )


@dataclass(frozen=True)
class _Laid:
    """Routes of every leg, the network under them, each worker's node, and links whose capacity changes."""

    routes: dict[Pair, Route]
    network: Network
    nodes: tuple[int, ...]
    changes: dict[str, BandwidthTrace] = field(default_factory=dict)


def _over_network(
    topology: Topology, workers: Sequence[WorkerPlan], engines: Sequence[Engine], pairs: Sequence[Pair], mode: str
) -> _Laid:
    network, model, part = topology.network, engines[0].model, topology.kv_transfer
    assert network is not None and model is not None, "checked with the topology"
    store = part.store.gbit_per_s * GB / BITS_PER_BYTE if part.store else 0.0
    wiring = wiring_of(network, [_gpu(engine) for engine in engines], store)
    kinds = {gpu.name: ports_of(network, gpu, wiring, f"{topology.source}: network") for gpu in map(_gpu, engines)}
    ports = [kinds[_gpu(engine).name] for engine in engines]
    cells = place_workers(topology, workers, wiring)
    seats = [ports[i].seat(worker.name, cells[i]) for i, worker in enumerate(workers)]
    streams = _streams(model, engines, pairs)
    ways = {pair: Places(len(workers)).legs(mode, part.landing, pair) for pair in pairs}
    hops = {leg.places: Hop(leg.kind, *pair, streams[pair]) for pair, legs in ways.items() for leg in legs}
    direct = {places: hop.streams for places, hop in hops.items() if hop.kind == "gpus"}
    laid = lay_out(seats, direct, wiring, {places: hop for places, hop in hops.items() if hop.kind != "gpus"})
    routes: dict[Pair, Route] = {}
    alike: dict[object, Route] = {}
    for places, hop in hops.items():
        if places not in laid.paths:
            continue
        links = [_link_used(laid, places, ports[i]) for i in (hop.src, hop.dst)]
        kind = (workers[hop.src].pool, workers[hop.dst].pool, hop.kind, links[0].name, links[1].name)
        if kind not in alike:
            alike[kind] = _route(topology, engines[hop.dst], hop, links)
        routes[places] = alike[kind]
    changes = _changes(topology, laid, seats, ports)
    return _Laid(routes, laid, tuple(one[0][0] for one in cells), changes)


def _streams(model: Model, engines: Sequence[Engine], pairs: Sequence[Pair]) -> dict[Pair, tuple[Stream, ...]]:
    """What each GPU sends to each, for every pair of engines; pairs that are split alike share theirs."""
    known: dict[tuple[object, object], tuple[Stream, ...]] = {}
    for src, dst in pairs:
        key = (engines[src].parallel, engines[dst].parallel)
        if key not in known:
            known[key] = exchange(_cache(model, engines[dst]), _split(model, engines[src]), _split(model, engines[dst]))
    return {(src, dst): known[engines[src].parallel, engines[dst].parallel] for src, dst in pairs}


def _changes(
    topology: Topology, laid: Network, seats: Sequence[Seat], ports: Sequence[Ports]
) -> dict[str, BandwidthTrace]:
    """Cards whose line rate follows the network's trace; what is lost on the way stays the same share."""
    network = topology.network
    if network is None or network.bandwidth_trace is None:
        return {}
    path = Path(network.bandwidth_trace)
    beside = Path(topology.source).parent / path
    trace = read_bandwidth_trace(beside if beside.is_file() else path)
    line = next(port.card_line_bytes_per_s for port in ports)
    return {link.name: trace.scaled(link.capacity_bytes_per_s / line) for link in laid.links if " nic " in link.name}


def _gpu(engine: Engine) -> Gpu:
    assert engine.gpu is not None, "checked with the topology"
    return engine.gpu


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


def _link_used(network: Network, places: Pair, ports: Ports) -> Link:
    """The profile whose costs a leg pays: its cards', unless all goes over NVLink or PCIe."""
    names = [network.links[crossing.link].name for crossing in network.paths[places].crossings]
    if any(" nic " in name for name in names):
        link = ports.card
    else:
        link = ports.pcie if any(" pcie " in name for name in names) else ports.nvlink
    assert link is not None
    return link


def _cache(model: Model, engine: Engine) -> Cache:
    """The model's KV as it is stored: heads of K and V, or one latent."""
    one_layer = model.kv_layer_bytes_per_token(engine.precision.kv_cache, 1)
    if model.mla is not None:
        return Cache(model.layers, 0, one_layer, 1)
    return Cache(model.layers, model.kv_heads, one_layer / model.kv_heads, 2)


def _kv_bits(model: Model, engine: Engine) -> float:
    """Bits of a number of KV in memory, scales and padding shared out."""
    one, plain = (model.kv_layer_bytes_per_token(kind, 1) for kind in (engine.precision.kv_cache, "bf16"))
    return 16.0 * one / plain


def _split(model: Model, engine: Engine) -> Split:
    stages = tuple((stage.start, stage.stop) for stage in model.stage_layers(engine.parallel.pp))
    return Split(engine.parallel.tp, stages, engine.parallel.dp)


def _route(topology: Topology, engine: Engine, hop: Hop, links: Sequence[Link]) -> Route:
    """Costs of one leg. The engine's transfer settings go before the network's, these before the link profile's.

    Over PCIe a kernel gathers a layer's blocks; between hosts a block is one piece, gathered on the way there.
    """
    network, part, profile = topology.network, topology.kv_transfer, engine.profile.transfer_link
    assert network is not None and engine.model is not None
    compression = compression_of(topology)
    own = {key: max(getattr(link, key) for link in links) for key in ("setup_s", "per_descriptor_s")}
    if hop.kind == "gpus" or all(link.kind != "pcie" for link in links):
        for key, value in own.items():
            own[key] = _first(getattr(part, key), getattr(network, key), profile.get(key), value)
    setup = own["setup_s"] + (part.store.setup_s if part.store and "store" in hop.kind else 0.0)
    windows = engine.windows
    full = sum(window == 0 for window in windows) / len(windows)
    per_token = sum(stream.bytes_per_token for stream in hop.streams) / compression.ratio
    tokens = engine.block_tokens
    pieces = 1.0 if compression.ratio > 1 else descriptors_per_block(hop.streams) * full
    if compression.ladder is not None:  # a stream has no pieces; a store keeps every level
        pieces = 0.0
        bits = sum(level.bits for level in compression.ladder.levels)
        per_token *= bits / _kv_bits(engine.model, engine) if hop.kind == "to_store" else 1.0
    per_piece, gathered = own["per_descriptor_s"], hop.kind != "gpus" and all(link.kind == "pcie" for link in links)
    if gathered:  # one copy kernel a layer, however many blocks
        setup += per_piece * pieces
    first, last = hop.kind in _FIRST, hop.kind in _LAST
    per_block = 0.0 if gathered else per_piece * (1.0 if hop.kind == "hosts" else pieces) / part.coalesced_blocks
    per_run = 0.0
    if hop.kind == "gpus" and _first(part.merges_blocks, engine.profile.merges_blocks):
        per_block, per_run = 0.0, per_block
    return Route(
        setup_s=setup,
        per_block_s=per_block + (compression.encode_s_per_token * tokens if first else 0.0),
        bytes_per_block=per_token * full * tokens,
        window_bytes=per_token / len(windows) * sum(windows),
        decode_s_per_block=compression.decode_s_per_token * tokens if last else 0.0,
        chunk_blocks=max(1, compression.chunk_tokens // tokens),
        post_s_per_block=per_block * max(link.posting for link in links) if hop.kind == "gpus" else 0.0,
        per_run_s=per_run,
    )


def _first(*values: _T | None) -> _T:
    """The first that is stated."""
    return next(value for value in values if value is not None)
