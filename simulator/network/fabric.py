"""The network between engines as a state machine without a clock: start a transfer, ask when to look, look."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from simulator.errors import SimulatorError
from simulator.network import fair
from simulator.units import SAME_INSTANT_S

Floats = NDArray[np.float64]
#: Links, load and share of each, and streams.
_PathArrays = tuple[NDArray[np.int64], Floats, Floats, float]


@dataclass(frozen=True)
class Link:
    """One direction of something that carries bytes."""

    name: str
    capacity_bytes_per_s: float

    def __post_init__(self) -> None:
        if not 0 < self.capacity_bytes_per_s < np.inf:
            raise SimulatorError(
                f"link {self.name}: {self.capacity_bytes_per_s} bytes/s; a positive capacity is needed"
            )


@dataclass(frozen=True)
class Crossing:
    """A path's use of one link: ``load`` of its streams cross it, with ``share`` of its bytes."""

    link: int
    load: float = 1.0
    share: float = 1.0


@dataclass(frozen=True)
class Path:
    """The links between two engines. ``streams``: equal flows that a transfer is made of (one a pair of GPUs)."""

    crossings: tuple[Crossing, ...]
    streams: int = 1

    def __post_init__(self) -> None:
        if not self.crossings or any(crossing.load <= 0 for crossing in self.crossings):
            raise SimulatorError("a path crosses at least one link, each with a positive load")

    def alone_bytes_per_s(self, links: tuple[Link, ...]) -> float:
        """What a transfer with the network to itself moves."""
        return self.streams * min(links[c.link].capacity_bytes_per_s / c.load for c in self.crossings)


@dataclass(frozen=True)
class Pace:
    """How the bytes of a transfer come into being, as the layers of a prompt do.

    A part ``before`` (of 1) of them comes evenly between ``from_s`` and ``until_s``, the rest at the end of that.
    """

    from_s: float
    until_s: float
    before: float


@dataclass(frozen=True)
class Network:
    """Links, and the path between each pair of engines that may exchange KV."""

    links: tuple[Link, ...] = ()
    paths: dict[tuple[int, int], Path] = field(default_factory=dict)


class _Columns:
    """The arrays behind ``fair.FlowColumns``, one row a transfer under way, and the compiled record over them."""

    def __init__(self, rows: int, width: int, capacity: Floats, carried: Floats) -> None:
        self.state = np.zeros(rows, np.int8)
        self.event_s, self.remaining_bytes, self.rate_bytes_per_s, self.since_s = np.zeros((4, rows))
        self.order = np.zeros(rows, np.int64)
        self.streams = np.ones(rows)
        self.links = np.full((rows, width), fair.NO_LINK, np.int64)
        self.load, self.share = np.zeros((2, rows, width))
        self.paced_bytes, self.pace_from_s, self.sent_bytes = np.zeros((3, rows))
        self.pace_until_s = np.full(rows, -np.inf)
        self.repace = np.zeros(rows, np.bool_)
        scratch = np.zeros((2, capacity.size))
        marks = np.zeros(capacity.size, np.bool_)
        times = (self.event_s, self.order, self.remaining_bytes, self.rate_bytes_per_s, self.since_s)
        self._kept: tuple[NDArray[Any], ...] = (
            self.state,
            *times,
            self.streams,
            self.links,
            self.load,
            self.share,
        )
        self._paced = (self.paced_bytes, self.pace_from_s, self.pace_until_s, self.sent_bytes, self.repace)
        self.record: Any = fair.FlowColumns(
            *self._kept, capacity, carried, *self._paced, *scratch, marks, np.zeros(rows, np.bool_)
        )

    def copy_from(self, old: _Columns) -> None:
        """Take over the old rows."""
        for mine, theirs in zip(self._kept + self._paced, old._kept + old._paced, strict=True):
            mine[: theirs.shape[0]] = theirs


class Fabric:
    """Transfers under way over a Network, sharing its links max-min fairly.

    A transfer first waits ``delay_s`` (setting up, posting descriptors), then its bytes flow. Times are seconds, and
    must not run backwards. Transfers are called by any whole number; two at once need two numbers.
    """

    def __init__(self, network: Network, rows: int = 32) -> None:
        self._network = network
        self._width = max((len(path.crossings) for path in network.paths.values()), default=0) or 1
        self._capacity = np.array([link.capacity_bytes_per_s for link in network.links], dtype=np.float64)
        self._carried = np.zeros(len(network.links))
        self._link_of = {link.name: i for i, link in enumerate(network.links)}
        self._paths: dict[tuple[int, int], _PathArrays] = {}
        self._path_of: list[_PathArrays | None] = [None] * rows  # the one that was last laid in each row
        self._event_s = self._end_s = float("inf")  # the next event, and before when no transfer ends
        self._row_of: dict[int, int] = {}
        self._id_of = [-1] * rows
        self._free = list(range(rows - 1, -1, -1))
        self._started = 0
        self._columns = _Columns(rows, self._width, self._capacity, self._carried)
        self._rows, self._finish_s = np.zeros(rows, np.int64), np.zeros(rows)

    def start(
        self,
        transfer_id: int,
        src: int,
        dst: int,
        size_bytes: float,
        now_s: float,
        *,
        delay_s: float = 0.0,
        pace: Pace | None = None,
    ) -> None:
        """Begin moving ``size_bytes`` from ``src`` to ``dst``; with none to move it ends after ``delay_s``.

        With a ``pace`` bytes flow no faster than they come into being, and not before ``pace.from_s``.
        """
        if transfer_id in self._row_of:
            raise SimulatorError(f"transfer {transfer_id} is already under way")
        row = self._new_row(transfer_id)
        columns = self._columns
        if size_bytes > 0:
            path = self._paths.get((src, dst))
            if path is None:
                path = self._paths[src, dst] = self._path_arrays(self._network.paths[src, dst])
            if self._path_of[row] is not path:
                fair.lay(columns.record, row, *path)
                self._path_of[row] = path
        event_s = now_s + delay_s
        if pace is not None:
            event_s = max(event_s, pace.from_s if size_bytes > 0 else pace.until_s)
        end_s = fair.start(columns.record, row, float(size_bytes), float(event_s), self._started)
        if pace is not None and size_bytes > 0 and pace.until_s > pace.from_s:
            columns.paced_bytes[row] = pace.before * size_bytes
            columns.pace_from_s[row], columns.pace_until_s[row] = pace.from_s, pace.until_s
        self._started += 1
        self._event_s, self._end_s = min(self._event_s, event_s), min(self._end_s, end_s)

    def next_completion(self) -> float:
        """When to call ``advance`` next: no transfer ends before. Infinity when nothing is under way.

        Transfers that begin to flow need no call at that moment: it is told from the rates which are possible at best.
        """
        return self._end_s

    def advance(self, now_s: float) -> list[tuple[int, float]]:
        """Every transfer that has ended by ``now_s`` and its end, in order."""
        ended: list[tuple[int, float]] = []
        if self._event_s > now_s + SAME_INSTANT_S:
            return ended
        found = fair.advance(self._columns.record, now_s, self._rows, self._finish_s)
        count, self._event_s, self._end_s = found
        for row, finish_s in zip(self._rows[:count].tolist(), self._finish_s[:count].tolist(), strict=True):
            ended.append((self._id_of[row], finish_s))
            self._forget(row)
        return ended

    def cancel(self, transfer_id: int, now_s: float) -> None:
        """Give a transfer up: the others share what it held. Call ``advance(now_s)`` first."""
        row = self._row_of[transfer_id]
        fair.release(self._columns.record, row, now_s)
        self._event_s, self._end_s = fair.next_event(self._columns.record)
        self._forget(row)

    def set_capacity(self, link: str, capacity_bytes_per_s: float, now_s: float) -> None:
        """A link gets faster or slower, or is cut (0). Call ``advance(now_s)`` first."""
        if capacity_bytes_per_s < 0 or not capacity_bytes_per_s < np.inf:
            raise SimulatorError(f"link {link}: {capacity_bytes_per_s} bytes/s; 0 or a positive capacity is needed")
        fair.set_capacity(self._columns.record, self._link_of[link], capacity_bytes_per_s, now_s)
        self._event_s, self._end_s = fair.next_event(self._columns.record)

    def capacity(self, link: str) -> float:
        """Bytes a second of a link as it is now."""
        return float(self._capacity[self._link_of[link]])

    def rate(self, transfer_id: int) -> float:
        """Bytes a second that a transfer moves now (0 while it waits)."""
        row = self._row_of[transfer_id]
        flowing = self._columns.state[row] == fair.FLOWING
        return float(self._columns.rate_bytes_per_s[row]) if flowing else 0.0

    def __len__(self) -> int:
        return len(self._row_of)

    @property
    def carried_bytes(self) -> dict[str, float]:
        """Bytes each link has carried, up to the last change among its flows."""
        return {link.name: float(b) for link, b in zip(self._network.links, self._carried, strict=True)}

    def _path_arrays(self, path: Path) -> _PathArrays:
        links = np.full(self._width, fair.NO_LINK, np.int64)
        load, share = np.zeros((2, self._width))
        for k, crossing in enumerate(path.crossings):
            links[k], load[k], share[k] = crossing.link, crossing.load, crossing.share
        return links, load, share, float(path.streams)

    def _new_row(self, transfer_id: int) -> int:
        if not self._free:
            self._grow(2 * len(self._id_of))
        row = self._free.pop()
        self._row_of[transfer_id] = row
        self._id_of[row] = transfer_id
        return row

    def _forget(self, row: int) -> None:
        del self._row_of[self._id_of[row]]
        self._free.append(row)

    def _grow(self, rows: int) -> None:
        kept = len(self._id_of)
        self._id_of += [-1] * (rows - kept)
        self._path_of += [None] * (rows - kept)
        self._free = list(range(rows - 1, kept - 1, -1))
        columns = _Columns(rows, self._width, self._capacity, self._carried)
        columns.copy_from(self._columns)
        self._columns = columns
        self._rows, self._finish_s = np.zeros(rows, np.int64), np.zeros(rows)
