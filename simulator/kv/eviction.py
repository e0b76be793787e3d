"""Which page a full cache lets go: least recently used, least frequently used, or the one deepest in its prompt.

Pages are known by a key and hold whole KV blocks; a page's ``depth`` is its place in the prompt, 0 for the first.
Pinned pages (a load of them is under way) are passed over. Plain Python: called per request and page, never per token.
"""

from __future__ import annotations

import heapq
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from typing import Protocol


class Eviction(Protocol):
    """Pages by key, and the order in which they are let go. Each key is in at most once."""

    @property
    def held(self) -> dict[int, int]:
        """The depth of each page; to be looked at only."""

    def add(self, key: int, depth: int) -> None:
        """A page comes in; it counts as used now."""

    def touch(self, key: int) -> None:
        """A page is used."""

    def remove(self, key: int) -> int:
        """A page goes; returns its depth."""

    def victims(self) -> Iterator[int]:
        """Pages in the order in which they would be let go."""


class LeastRecent:
    """Least recently used first."""

    def __init__(self) -> None:
        self.held: OrderedDict[int, int] = OrderedDict()

    def add(self, key: int, depth: int) -> None:
        self.held[key] = depth

    def touch(self, key: int) -> None:
        self.held.move_to_end(key)

    def remove(self, key: int) -> int:
        return self.held.pop(key)

    def victims(self) -> Iterator[int]:
        return iter(self.held)


class _Ranked:
    """Pages in ranks, each in order of use; the subclass says how a page's rank changes and which rank goes first."""

    def __init__(self) -> None:
        self.held: dict[int, int] = {}
        self._rank: dict[int, int] = {}
        self._members: dict[int, OrderedDict[int, None]] = {}
        self._heap: list[int] = []

    def _put(self, key: int, rank: int) -> None:
        self._rank[key] = rank
        if rank not in self._members:
            self._members[rank] = OrderedDict()
            heapq.heappush(self._heap, rank)
        self._members[rank][key] = None

    def _move(self, key: int, rank: int) -> None:
        del self._members[self._rank[key]][key]
        self._put(key, rank)

    def remove(self, key: int) -> int:
        del self._members[self._rank.pop(key)][key]
        return self.held.pop(key)

    def victims(self) -> Iterator[int]:
        while self._heap and not self._members[self._heap[0]]:
            del self._members[heapq.heappop(self._heap)]
        if self._heap:
            yield from self._members[self._heap[0]]
            for rank in sorted(self._heap)[1:]:  # only where the whole first rank is pinned
                yield from self._members[rank]


class LeastFrequent(_Ranked):
    """Fewest uses since it came in first; among equals the least recently used."""

    def add(self, key: int, depth: int) -> None:
        self.held[key] = depth
        self._put(key, 1)

    def touch(self, key: int) -> None:
        self._move(key, self._rank[key] + 1)


class LengthAware(_Ranked):
    """The deepest in its prompt first, among equals the least recently used (Mooncake's LengthAwareCache)."""

    def add(self, key: int, depth: int) -> None:
        self.held[key] = depth
        self._put(key, -depth)

    def touch(self, key: int) -> None:
        self._move(key, self._rank[key])


EVICTION: dict[str, Callable[[], Eviction]] = {
    "lru": LeastRecent,
    "lfu": LeastFrequent,
    "length_aware": LengthAware,
}


class PageCache:
    """Pages up to a capacity; what has to go is told to ``dropped``."""

    def __init__(self, pages: float, policy: str, dropped: Callable[[int, int], None] | None = None) -> None:
        """``pages`` may be infinite; ``dropped`` is called with (key, depth) of each page that is let go."""
        self.pages = pages
        self._order = EVICTION[policy]()
        #: Pages that are kept, and their depth; to be looked at only.
        self.held = self._order.held
        self._pinned: dict[int, int] = {}
        self._dropped = dropped
        self.evicted = 0
        self.peak = 0

    def __contains__(self, key: int) -> bool:
        return key in self.held

    def __len__(self) -> int:
        return len(self.held)

    def touch(self, key: int) -> None:
        """A page is used."""
        self._order.touch(key)

    def add(self, key: int, depth: int) -> bool:
        """Keep a page, or count it as used where it is kept already; False if there is no room for it."""
        if key in self.held:
            self._order.touch(key)
            return True
        if len(self.held) >= self.pages and not self._let_go():
            return False
        self._order.add(key, depth)
        self.peak = max(self.peak, len(self.held))
        return True

    def add_all(self, pages: Iterable[tuple[int, int]]) -> None:
        """``add`` each of these pages (key, depth)."""
        held, order, most = self.held, self._order, self.pages
        for key, depth in pages:
            if key in held:
                order.touch(key)
            elif len(held) < most or self._let_go():
                order.add(key, depth)
        self.peak = max(self.peak, len(held))  # whoever lets a page go takes one in: the last count is the highest

    def touch_held(self, pages: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
        """Count those of these pages (key, depth) that are kept as used; returns the others."""
        held, touch = self.held, self._order.touch
        others: list[tuple[int, int]] = []
        for page in pages:
            if page[0] in held:
                touch(page[0])
            else:
                others.append(page)
        return others

    def pin(self, key: int) -> None:
        """Keep a page until it is let loose as often."""
        self._pinned[key] = self._pinned.get(key, 0) + 1

    def unpin(self, key: int) -> None:
        """One reason less to keep it."""
        left = self._pinned[key] - 1
        if left:
            self._pinned[key] = left
        else:
            del self._pinned[key]

    def _let_go(self) -> bool:
        pinned = self._pinned
        for victim in self._order.victims():
            if victim not in pinned:
                break
        else:
            return False
        depth = self._order.remove(victim)
        self.evicted += 1
        if self._dropped is not None:
            self._dropped(victim, depth)
        return True
