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
    the sum of its cards divided by it. ``nvlink_between_nodes``: one NVLink domain holds every GPU.
    """

    gpus_per_node: int = 8
    nics_per_node: int = 8
    oversubscription: float = 1.0
    nvlink_between_nodes: bool = False

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

    ``nvlink_bytes_per_s``: one GPU's port, 0 without. ``nic_bytes_per_s``: one card.
    """

    name: str
    cells: tuple[Cell, ...]
    nvlink_bytes_per_s: float
    nic_bytes_per_s: float


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


class _Builder:
    """Links made as they are needed. Ports that only one engine uses are one link, as wide as they are many."""

    def __init__(self, seats: Sequence[Seat], wiring: Wiring) -> None:
        self._seats, self._wiring = seats, wiring
        self.links: list[Link] = []
        self._known: dict[str, int] = {}
        self._users: dict[Cell, set[int]] = defaultdict(set)
        for worker, one in enumerate(seats):
            for cell in one.cells:
                self._users[self._card(cell)].add(worker)

    def path(self, src: int, dst: int, streams: Sequence[Stream]) -> Path:
        """One path for a handover: on each link the streams, and the part of the bytes, that cross it."""
        total = sum(stream.bytes_per_token for stream in streams)
        lanes: dict[str, _Lane] = {}
        parts: dict[str, dict[Cell, float]] = defaultdict(lambda: defaultdict(float))
        for stream in streams:
            for lane in self._lanes(src, dst, stream):
                lanes[lane.link] = lane
                parts[lane.link][lane.cell] += stream.bytes_per_token / total
        crossings = []
        for name, lane in lanes.items():
            load = len(streams) * lane.lanes * max(parts[name].values())
            index = self._index(name, lane.lanes * lane.lane_bytes_per_s)
            crossings.append(Crossing(index, load, sum(parts[name].values())))
        return Path(tuple(crossings), len(streams))

    def _index(self, name: str, capacity_bytes_per_s: float) -> int:
        if name not in self._known:
            self._known[name] = len(self.links)
            self.links.append(Link(name, capacity_bytes_per_s))
        return self._known[name]

    def _lanes(self, src: int, dst: int, stream: Stream) -> list[_Lane]:
        """What a stream uses: two NVLink ports, or two cards and, between nodes, their uplinks."""
        ends = ((self._seats[src], stream.src_rank, "out"), (self._seats[dst], stream.dst_rank, "in"))
        same_node = len({one.cells[rank][0] for one, rank, _ in ends}) == 1
        wired = all(one.nvlink_bytes_per_s > 0 for one, _, _ in ends)
        if wired and (same_node or self._wiring.nvlink_between_nodes):
            return [
                _Lane(f"{one.name} nvlink {way}", len(one.cells), one.nvlink_bytes_per_s, one.cells[rank])
                for one, rank, way in ends
            ]
        used = [self._card_lane(one, one.cells[rank], way) for one, rank, way in ends]
        if not same_node and self._wiring.oversubscription > 1:
            used += [self._uplink(one, one.cells[rank][0], way) for one, rank, way in ends]
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


def lay_out(seats: Sequence[Seat], exchanges: Mapping[tuple[int, int], Sequence[Stream]], wiring: Wiring) -> Network:
    """Links and paths for every pair of engines in ``exchanges``."""
    builder = _Builder(seats, wiring)
    paths = {pair: builder.path(*pair, streams) for pair, streams in exchanges.items()}
    return Network(tuple(builder.links), paths)
