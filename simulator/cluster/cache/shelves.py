"""The tiers of one run: which pages lie where, and how they move down when written or let go.

Copies to host memory and to drives are made one after another by each worker, over lanes that nothing else uses in this
direction; when one ends is known when it is noted, so that no event is needed: pages whose copy has ended are put in
their place when somebody looks. Copies to the pool go over network cards, and share them.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from simulator.cluster.cache.plan import host_of, ssd_of, store_of
from simulator.cluster.plan import CachePlan
from simulator.kv.eviction import PageCache

#: Key of a page, and its place in the prompt.
Page = tuple[int, int]


class Mover(Protocol):
    """What carries bytes between two ends of a path; calls back at the end."""

    def start(
        self, src: int, dst: int, size_bytes: float, delay_s: float, now: float, done: Callable[[float], None]
    ) -> int:
        """Begin moving; returns the transfer's number."""


@dataclass
class Level:
    """One cache: a worker's host memory or drives, or the pool's store. ``end``: its place in the network."""

    kind: str
    cache: PageCache
    end: int
    setup_s: float
    write_bytes_per_s: float = 0.0  # of copies made one after another; 0 where they share links with others
    incoming: set[int] = field(default_factory=set)
    written_bytes: float = 0.0
    free_s: float = 0.0
    lost: int = 0  # reasons for which it is not there
    pages: float = 0.0  # that it has when it is


class Shelves:
    """All levels of all workers. Pages on their way are not there yet."""

    def __init__(self, plan: CachePlan, mover: Mover) -> None:
        self._plan, self._mover = plan, mover
        self._now = 0.0
        self._copies: list[tuple[float, int, int, Level, list[Page]]] = []  # a heap: end, number, worker, into, what
        self._noted = 0
        count = len(plan.own)
        self.holders: dict[int, list[int]] = {}  # page -> workers whose host memory holds it
        store = plan.tiers.get("pool")
        self.store: Level | None = None
        if store is not None and not plan.of_hosts:
            self.store = Level("pool", PageCache(store.pages[0], store.policy), store_of(count), store.setup_s)
        self.levels: list[list[Level]] = [self._own_levels(worker, count) for worker in range(count)]

    def _own_levels(self, worker: int, count: int) -> list[Level]:
        """A worker's levels in the order in which they are asked, the shared store last."""
        if not self._plan.own[worker]:
            return []
        found: list[Level] = []
        for kind, end in (("host", host_of(worker, count)), ("ssd", ssd_of(worker, count))):
            tier = self._plan.tiers.get(kind)
            if tier is not None:
                cache = PageCache(tier.pages[worker], tier.policy, self._dropper(worker, len(found), kind))
                found.append(Level(kind, cache, end, tier.setup_s, tier.write_bytes_per_s[worker]))
        return [*found, self.store] if self.store is not None else found

    def _dropper(self, worker: int, place: int, kind: str) -> Callable[[int, int], None]:
        """What happens to a page that a level lets go."""

        def dropped(key: int, depth: int) -> None:
            if kind == "host" and self._plan.of_hosts:
                self._forget_holder(key, worker)
            below = self.levels[worker][place + 1 :]
            if self._plan.write == "evict" and below:
                self._write(worker, self.levels[worker][place].end, below[0], [(key, depth)])

        return dropped

    # Where something fails

    def lose(self, kind: str, workers: Sequence[int]) -> None:
        """Levels of a kind lose what they hold, and take nothing until they are brought back as often."""
        for worker, level in self._lowest(kind, workers):
            level.lost += 1
            if level.lost > 1:
                continue
            if kind == "host" and self._plan.of_hosts:
                for key in level.cache.held:
                    self._forget_holder(key, worker)
            level.pages = level.cache.pages
            self._empty(level, worker, 0)

    def bring_back(self, kind: str, workers: Sequence[int]) -> None:
        """They are there again, empty."""
        for worker, level in self._lowest(kind, workers):
            level.lost -= 1
            if level.lost == 0:
                self._empty(level, worker, level.pages)

    def _lowest(self, kind: str, workers: Sequence[int]) -> list[tuple[int, Level]]:
        """Levels of a kind that these workers have, each once."""
        found = {
            id(level): (worker, level) for worker in workers for level in self.levels[worker] if level.kind == kind
        }
        return list(found.values())

    def _empty(self, level: Level, worker: int, pages: float) -> None:
        old = level.cache
        place = self.levels[worker].index(level)
        dropped = None if level is self.store else self._dropper(worker, place, level.kind)
        level.cache = PageCache(pages, self._plan.tiers[level.kind].policy, dropped)
        level.cache.evicted, level.cache.peak = old.evicted, old.peak

    # Writing

    def look(self, now: float) -> None:
        """Put in their place the pages whose copies have ended by now."""
        self._now = max(self._now, now)
        copies = self._copies
        while copies and copies[0][0] <= now:
            _, _, worker, level, pages = heapq.heappop(copies)
            self._arrive(worker, level, pages)

    def _arrive(self, worker: int, level: Level, pages: Sequence[Page]) -> None:
        level.incoming.difference_update([key for key, _ in pages])
        if self._plan.of_hosts and level.kind == "host":
            for key, depth in pages:
                self._add(worker, level, key, depth)
        else:
            level.cache.add_all(pages)

    def computed(self, worker: int, pages: Sequence[Page], now: float) -> None:
        """A worker has computed these pages: with write-through every level gets a copy."""
        self.look(now)
        if self._plan.write == "through":
            for level in self.levels[worker]:
                self._write(worker, worker, level, pages)

    def evicted(self, worker: int, pages: Sequence[Page], now: float) -> None:
        """A worker's own prefix cache has let these pages go: the next level gets them."""
        self.look(now)
        if self.levels[worker]:
            self._write(worker, worker, self.levels[worker][0], pages)

    def _write(self, worker: int, src: int, level: Level, pages: Sequence[Page]) -> None:
        """Copy what a level does not have; what it has counts as used, the beginning of the prompt as last used."""
        if level.cache.pages < 1:
            return
        incoming = level.incoming
        fresh = [page for page in level.cache.touch_held(reversed(pages)) if page[0] not in incoming]
        if not fresh:
            return
        incoming.update([key for key, _ in fresh])
        size = len(fresh) * self._plan.page_tokens * self._plan.bytes_per_token[worker]
        level.written_bytes += size

        if level.write_bytes_per_s > 0:
            level.free_s = max(level.free_s, self._now) + level.setup_s + size / level.write_bytes_per_s
            self._noted += 1
            heapq.heappush(self._copies, (level.free_s, self._noted, worker, level, fresh))
            return

        def arrived(end: float) -> None:
            self._now = max(self._now, end)
            self._arrive(worker, level, fresh)

        self._mover.start(src, level.end, size, level.setup_s, self._now, arrived)

    def promote(self, worker: int, pages: Sequence[Page], now: float) -> None:
        """Pages that came through host memory from further away stay there."""
        self.look(now)
        levels = self.levels[worker]
        if levels and levels[0].kind == "host":
            for key, depth in reversed(pages):
                self._add(worker, levels[0], key, depth)

    def _add(self, worker: int, level: Level, key: int, depth: int) -> None:
        known = not self._plan.of_hosts or level.kind != "host" or key in level.cache.held
        if level.cache.add(key, depth) and not known:
            self.holders.setdefault(key, []).append(worker)

    def _forget_holder(self, key: int, worker: int) -> None:
        left = self.holders[key]
        left.remove(worker)
        if not left:
            del self.holders[key]

    # Finding

    def find(self, worker: int, key: int, *, reach: bool) -> tuple[Level, int] | None:
        """The nearest level that holds a page and the worker whose it is; ``reach``: the pool may be asked, too."""
        for level in self.levels[worker]:
            if key in level.cache.held and (reach or level is not self.store):
                return level, worker
        if reach and self._plan.of_hosts:
            holders = self.holders.get(key)
            if holders:
                return self.levels[holders[0]][0], holders[0]
        return None

    def run(self, worker: int, pages: Sequence[int], first: int, *, reach: bool) -> int:
        """How many pages in a row, from ``first`` on, a worker can load."""
        at = first
        while at < len(pages) and self.find(worker, pages[at], reach=reach) is not None:
            at += 1
        return at - first

    def of_kind(self, kind: str) -> list[Level]:
        """All levels of a kind, each once."""
        return list({id(level): level for own in self.levels for level in own if level.kind == kind}.values())
