"""Nodes, NVLink ports, network cards and uplinks: from where engines sit to the links and paths of a Network."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from simulator.network.exchange import Stream
from simulator.network.fabric import Crossing, Link, Network, Path

Cell = tuple[int, int]


@dataclass(frozen=True)
class Wiring:
    """Sizes of a node and what leaves it. Bandwidths of GPUs and cards come with the seats.

    ``nics_per_node`` cards are dealt out to the GPUs in order; ``oversubscription`` > 1 narrows each node's uplink to
    the sum of its cards divided by it, and ``rack_oversubscription`` each rack's of ``nodes_per_rack`` nodes (0: one
    rack). ``rails``: cards of one place in their nodes share a switch, which traffic between them does not leave.
    ``nvlink_between_nodes``: one NVLink domain holds every GPU. ``store_bytes_per_s``: of the remote store's own link.
    """

    gpus_per_node: int = 8
    nics_per_node: int = 8
    oversubscription: float = 1.0
    nvlink_between_nodes: bool = False
    nodes_per_rack: int = 0
    rack_oversubscription: float = 1.0
    rails: bool = False
    store_bytes_per_s: float = 0.0

    def rack(self, node: int) -> int:
        """Rack of a node."""
        return node // self.nodes_per_rack if self.nodes_per_rack else 0

    @property
    def lanes(self) -> int:
        """Cards, or groups of cards, that GPUs are dealt to."""
        return min(self.nics_per_node, self.gpus_per_node)

    def lane(self, slot: int) -> int:
        """Lane of the GPU in ``slot``."""
        return slot * self.lanes // self.gpus_per_node


@dataclass(frozen=True)
class Seat:
    """Where an engine's GPUs sit, as (node, slot) by rank, and what they can move in one direction.

    ``nvlink_bytes_per_s``: one GPU's port, 0 without. ``nic_bytes_per_s``: one card. ``pcie_bytes_per_s``: one GPU's
    lanes, 0 where nothing goes that way. ``cpu_bytes_per_s``: what the cores behind one GPU's sockets copy, 0 where
    cards move bytes by themselves.
    """

    name: str
    cells: tuple[Cell, ...]
    nvlink_bytes_per_s: float
    nic_bytes_per_s: float
    pcie_bytes_per_s: float = 0.0
    cpu_bytes_per_s: float = 0.0

    @property
    def nodes(self) -> set[int]:
        """Nodes the engine's GPUs sit in."""
        return {node for node, _ in self.cells}


def seat(groups: Sequence[tuple[str, int]], gpus_per_node: int, *, apart: bool) -> list[tuple[Cell, ...]]:
    """Cells of each engine, in order; ``groups``: (pool or GPU type, GPUs) of each engine.

    An engine that fits a node is not torn over two. ``apart``: each pool starts on a node of its own.
    """
    cells: list[tuple[Cell, ...]] = []
    node, used, last = 0, 0, None
    for group, gpus in groups:
        new_group = last is not None and group != last and apart
        torn = gpus <= gpus_per_node and used + gpus > gpus_per_node
        if used and (new_group or torn):
            node, used = node + 1, 0
        last = group
        mine = []
        for _ in range(gpus):
            if used == gpus_per_node:
                node, used = node + 1, 0
            mine.append((node, used))
            used += 1
        cells.append(tuple(mine))
    return cells


@dataclass(frozen=True)
class _Lane:
    """One lane of a link that may be several lanes wide: a GPU's NVLink port or its card among its engine's own."""

    link: str
    lanes: int
    lane_bytes_per_s: float
    cell: Cell


@dataclass(frozen=True)
class _Way:
    """What a stream goes over at one end: nvlink, pcie, or a card, and of the uplinks which."""

    kind: str
    uplinks: bool = False
    racks: bool = False


class _Builder:
    """Links made as they are needed. Ports that only one engine uses are one link, as wide as they are many."""

    def __init__(self, seats: Sequence[Seat], wiring: Wiring) -> None:
        self._seats, self._wiring = seats, wiring
        self.links: list[Link] = []
        self._known: dict[str, int] = {}
        self._halves: dict[object, tuple[Crossing, ...]] = {}
        self._users: dict[Cell, set[int]] = defaultdict(set)
        self._pcie = all(one.pcie_bytes_per_s > 0 for one in seats)
        for worker, one in enumerate(seats):
            for cell in one.cells:
                self._users[self._card(cell)].add(worker)

    def path(self, src: int, dst: int, streams: tuple[Stream, ...]) -> Path:
        """One path for a handover: on each link the streams, and the part of the bytes, that cross it."""
        here, there = self._seats[src], self._seats[dst]
        nodes = here.nodes | there.nodes
        if len(here.nodes) == len(there.nodes) == 1 and not self._wiring.rails:  # the same for all partners alike
            (first, _), (second, _) = here.cells[0], there.cells[0]
            way = self._way(first, second, wired=self._wired(src, dst, same_node=len(nodes) == 1))
            halves = self._half(src, "out", streams, way), self._half(dst, "in", streams, way)
            return Path(halves[0] + halves[1], len(streams))
        used = [(self._lanes(src, dst, stream, way), stream) for way in ("out", "in") for stream in streams]
        return Path(self._crossings(used, streams), len(streams))

    def leg(self, kind: str, src: int, dst: int, streams: tuple[Stream, ...]) -> Path | None:
        """A path that begins or ends in host memory or the store; None where both ends are one memory."""
        nodes = self._seats[src].cells[0][0], self._seats[dst].cells[0][0]
        card = self._way(*nodes, wired=False)
        if kind == "hosts" and nodes[0] == nodes[1]:
            return None
        if kind in ("to_host", "from_host") or (kind == "gpu_to_host" and nodes[0] == nodes[1]):
            ends = [(dst, "in", _Way("pcie"))] if kind == "from_host" else [(src, "out", _Way("pcie"))]
        elif kind == "to_store":
            ends = [(src, "out", _Way("card"))]
        elif kind == "from_store":
            ends = [(dst, "in", _Way("card"))]
        else:
            ends = [(src, "out", card), (dst, "in", card)]
        crossings = [c for worker, way, over in ends for c in self._half(worker, way, streams, over)]
        if "store" in kind:
            name = "store in" if kind == "to_store" else "store out"
            crossings.append(Crossing(self._index(name, self._wiring.store_bytes_per_s), len(streams), 1.0))
        return Path(tuple(crossings), len(streams))

    def _half(self, worker: int, way: str, streams: tuple[Stream, ...], over: _Way) -> tuple[Crossing, ...]:
        key = (worker, way, id(streams), over)
        if key not in self._halves:
            used = [(self._end_lanes(worker, way, stream, over), stream) for stream in streams]
            self._halves[key] = self._crossings(used, streams)
        return self._halves[key]

    def _way(self, src_node: int, dst_node: int, *, wired: bool, same_rail: bool = False) -> _Way:
        """What joins GPUs of two nodes (or of one)."""
        if wired:
            return _Way("nvlink")
        if src_node == dst_node:
            return _Way("pcie" if self._pcie else "card")
        racks = self._wiring.rack(src_node) != self._wiring.rack(dst_node)
        return _Way("card", uplinks=not same_rail, racks=racks)

    def _crossings(
        self, used: Sequence[tuple[list[_Lane], Stream]], streams: tuple[Stream, ...]
    ) -> tuple[Crossing, ...]:
        """Adds up, link by link, what the streams load."""
        total = sum(stream.bytes_per_token for stream in streams)
        lanes: dict[str, _Lane] = {}
        parts: dict[str, dict[Cell, float]] = defaultdict(lambda: defaultdict(float))
        for stream_lanes, stream in used:
            for lane in stream_lanes:
                lanes[lane.link] = lane
                parts[lane.link][lane.cell] += stream.bytes_per_token / total
        crossings = []
        for name, lane in lanes.items():
            load = len(streams) * lane.lanes * max(parts[name].values())
            index = self._index(name, lane.lanes * lane.lane_bytes_per_s)
            crossings.append(Crossing(index, load, sum(parts[name].values())))
        return tuple(crossings)

    def _index(self, name: str, capacity_bytes_per_s: float) -> int:
        if name not in self._known:
            self._known[name] = len(self.links)
            self.links.append(Link(name, capacity_bytes_per_s))
        return self._known[name]

    def _lanes(self, src: int, dst: int, stream: Stream, way: str) -> list[_Lane]:
        """What one end of a stream uses, for engines that span nodes."""
        here, there = self._seats[src].cells[stream.src_rank], self._seats[dst].cells[stream.dst_rank]
        same_rail = self._wiring.rails and self._card(here)[1] == self._card(there)[1]
        wired = self._wired(src, dst, same_node=here[0] == there[0])
        over = self._way(here[0], there[0], wired=wired, same_rail=same_rail)
        return self._end_lanes(src if way == "out" else dst, way, stream, over)

    def _wired(self, src: int, dst: int, *, same_node: bool) -> bool:
        """Whether NVLink joins two engines' GPUs."""
        ports = min(self._seats[src].nvlink_bytes_per_s, self._seats[dst].nvlink_bytes_per_s)
        return ports > 0 and (same_node or self._wiring.nvlink_between_nodes)

    def _end_lanes(self, worker: int, way: str, stream: Stream, over: _Way) -> list[_Lane]:
        """An NVLink port, PCIe lanes, or a card with its cores and, between nodes, the uplinks of node and rack."""
        one = self._seats[worker]
        cell = one.cells[stream.src_rank if way == "out" else stream.dst_rank]
        if over.kind == "nvlink":
            return [_Lane(f"{one.name} nvlink {way}", len(one.cells), one.nvlink_bytes_per_s, cell)]
        if over.kind == "pcie":
            return [_Lane(f"{one.name} pcie {way}", len(one.cells), one.pcie_bytes_per_s, cell)]
        used = [self._card_lane(one, cell, way)]
        if one.cpu_bytes_per_s > 0:
            used.append(_Lane(f"{one.name} cpu {way}", len(one.cells), one.cpu_bytes_per_s, cell))
        if over.uplinks and self._wiring.oversubscription > 1:
            used.append(self._uplink(one, cell[0], way))
        if over.racks and self._wiring.rack_oversubscription > 1:
            used.append(self._rack_uplink(one, cell[0], way))
        return used

    def _card(self, cell: Cell) -> Cell:
        return cell[0], self._wiring.lane(cell[1])

    def _card_lane(self, one: Seat, cell: Cell, way: str) -> _Lane:
        """The card that serves a GPU: one of the engine's own, or one that engines share."""
        card = self._card(cell)
        capacity = one.nic_bytes_per_s * self._wiring.nics_per_node / self._wiring.lanes
        if len(self._users[card]) > 1:
            return _Lane(f"node {card[0]} nic {card[1]} {way}", 1, capacity, card)
        own = {self._card(other) for other in one.cells}
        return _Lane(f"{one.name} nic {way}", sum(len(self._users[c]) == 1 for c in own), capacity, card)

    def _uplink(self, one: Seat, node: int, way: str) -> _Lane:
        capacity = one.nic_bytes_per_s * self._wiring.nics_per_node / self._wiring.oversubscription
        return _Lane(f"node {node} uplink {way}", 1, capacity, (node, 0))

    def _rack_uplink(self, one: Seat, node: int, way: str) -> _Lane:
        wiring, rack = self._wiring, self._wiring.rack(node)
        cards = wiring.nics_per_node * wiring.nodes_per_rack
        capacity = one.nic_bytes_per_s * cards / wiring.rack_oversubscription
        return _Lane(f"rack {rack} uplink {way}", 1, capacity, (rack, 0))


@dataclass(frozen=True)
class Hop:
    """A leg of a handover from engine ``src`` to ``dst``, and what it goes over (``Kind`` of the cluster's places)."""

    kind: str
    src: int
    dst: int
    streams: tuple[Stream, ...]


def lay_out(
    seats: Sequence[Seat],
    exchanges: Mapping[tuple[int, int], tuple[Stream, ...]],
    wiring: Wiring,
    hops: Mapping[tuple[int, int], Hop] | None = None,
) -> Network:
    """Links and paths for every pair of engines in ``exchanges``, and for legs by way of host memory or a store."""
    builder = _Builder(seats, wiring)
    paths = {pair: builder.path(*pair, streams) for pair, streams in exchanges.items()}
    for places, hop in (hops or {}).items():
        path = builder.leg(hop.kind, hop.src, hop.dst, hop.streams)
        if path is not None:
            paths[places] = path
    return Network(tuple(builder.links), paths)
