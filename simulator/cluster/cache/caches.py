"""Loads and copies: what engines ask of the caches below them, and what routers may know of these.

An engine hears at a request's arrival how much of its prompt seems to be in reach. When it admits the request it takes
blocks and asks (LOAD); what is really there then, behind what its own prefix cache has, is loaded over the links, and
the prompt is computed from where the load ends. Pages that a load needs cannot be let go meanwhile.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from simulator.cluster.cache.plan import host_of, store_of
from simulator.cluster.cache.shelves import Level, Page, Shelves
from simulator.cluster.plan import CachePlan
from simulator.cluster.processes import Agenda, Transfers, Worker
from simulator.cluster.routers import Asked, Prompts
from simulator.kv.eviction import PageCache

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

TIERS = ("host", "ssd", "pool")


class LoadColumns:
    """What was loaded for each request: tokens by tier, and from when to when (s)."""

    def __init__(self, rows: int) -> None:
        self.tokens = {kind: np.zeros(rows, np.int64) for kind in TIERS}
        self.start_s = np.full(rows, np.nan)
        self.end_s = np.full(rows, np.nan)

    def exposed_s(self) -> Floats:
        """Seconds each request waited for its load; 0 without one."""
        return np.where(np.isnan(self.end_s), 0.0, self.end_s - self.start_s)


@dataclass
class _Load:
    """One load under way: what it waits for, and what is to be done at its end."""

    worker: int
    parts: int
    pinned: list[tuple[PageCache, int]] = field(default_factory=list)
    fetched: list[Page] = field(default_factory=list)
    forgotten: bool = False


class Caches:
    """The caches of one run, with their clock."""

    def __init__(
        self,
        plan: CachePlan,
        workers: Sequence[Worker],
        prompts: Prompts,
        lengths: tuple[list[int], list[int]],
        clocks: tuple[Agenda, Transfers],
    ) -> None:
        """``lengths``: prompt and output tokens by row."""
        self._plan, self._workers, self._prompts = plan, workers, prompts
        self._inputs, self._outputs = lengths
        self._agenda, self._transfers = clocks
        self.shelves = Shelves(plan, self._transfers)
        self.columns = LoadColumns(len(self._inputs))
        self.loaded_bytes = dict.fromkeys(TIERS, 0.0)
        self._under_way: dict[int, _Load] = {}
        self._near: set[int] = set()
        self._pages: dict[int, list[int]] = {}
        self._depth_of: dict[int, int] = {}
        for worker, levels in zip(workers, self.shelves.levels, strict=True):
            worker.outside = self.outside if levels else None
        self._pool_rate = {worker.index: self._alone_bytes_per_s(worker.index) for worker in workers}

    # What engines ask

    def stay_near(self, row: int) -> None:
        """The router has decided that the request is not to fetch anything from the pool."""
        self._near.add(row)

    def outside(self, worker: Worker, row: int) -> int:
        """Leading prompt tokens that seem to be in reach of a worker, more than it has itself; 0 for none."""
        if self._prompts.private[row]:
            return 0
        tokens = self._inputs[row] - 1
        self.shelves.look(worker.engine.seen_s)
        pages = self._page_keys(row)
        if self._plan.write == "through" and not self.shelves.run(worker.index, pages[:1], 0, reach=True):
            return 0  # with write-through the tiers have whatever the prefix cache may have
        keys = self._prompts.keys(row, tokens)
        device = worker.engine.overlap(self._prompts.content, row, tokens, keys)
        found = self._held(worker.index, row, device, row not in self._near)
        return found if found > device else 0

    def load(self, worker: Worker, row: int, slot: int, hits: int, now: float) -> None:
        """The engine has admitted the request and has ``hits`` leading blocks of it; load what lies below."""
        here = hits * self._prompts.block_size
        pages = self._page_keys(row)
        size, reach = self._plan.page_tokens, row not in self._near
        self._near.discard(row)
        first = here // size
        self.shelves.look(now)
        until = first + self.shelves.run(worker.index, pages, first, reach=reach)
        tokens = max(until * size - here, 0) if until > first else 0
        worker.engine.will_hold(slot, here + tokens)
        self.columns.start_s[row] = now
        if tokens == 0:
            self.columns.end_s[row] = now
            nothing = self._under_way[row] = _Load(worker.index, 0)
            self._agenda.add(now, lambda at: None if nothing.forgotten else worker.transfer_ended(slot, at))
            return
        parts = self._parts(worker.index, row, pages, (first, until), here, reach=reach)
        load = self._under_way[row] = _Load(worker.index, len(parts))
        for (kind, src), (level, part_tokens, part_pages) in parts.items():
            for key, depth in part_pages:
                level.cache.pin(key)
                load.pinned.append((level.cache, key))
                if kind != "host":
                    load.fetched.append((key, depth))
            moved = part_tokens * self._plan.bytes_per_token[worker.index]
            self.columns.tokens[kind][row] += part_tokens
            self.loaded_bytes[kind] += moved
            setup_s = self._plan.tiers[kind].setup_s
            self._transfers.start(src, worker.index, moved, setup_s, now, self._part_ended(load, worker, row, slot))

    def _parts(
        self, worker: int, row: int, pages: Sequence[int], span: tuple[int, int], here: int, *, reach: bool
    ) -> dict[tuple[str, int], tuple[Level, int, list[Page]]]:
        """Pages to load by (tier, end of the path they come from): level, tokens, pages."""
        size = self._plan.page_tokens
        parts: dict[tuple[str, int], tuple[Level, int, list[Page]]] = {}
        for at in range(*span):
            found = self.shelves.find(worker, pages[at], reach=reach)
            assert found is not None, "counted a moment ago"
            level, owner = found
            kind = level.kind if owner == worker else "pool"
            _, tokens, listed = parts.get((kind, level.end), (level, 0, []))
            listed.append((pages[at], at))
            parts[kind, level.end] = (level, tokens + (at + 1) * size - max(at * size, here), listed)
        return parts

    def _part_ended(self, load: _Load, worker: Worker, row: int, slot: int) -> Callable[[float], None]:
        def ended(end: float) -> None:
            load.parts -= 1
            if load.parts:
                return
            for cache, key in reversed(load.pinned):
                cache.unpin(key)
                cache.touch(key)
            if load.forgotten:
                return
            del self._under_way[row]
            self.shelves.promote(load.worker, load.fetched, end)
            self.columns.end_s[row] = end
            worker.transfer_ended(slot, end)

        return ended

    # Where something fails

    def forget(self, worker: Worker, row: int) -> None:
        """The engine that a load of this row is under way to does not wait for it any more."""
        load = self._under_way.get(row)
        if load is not None and load.worker == worker.index:
            load.forgotten = True
            del self._under_way[row]

    def begin_anew(self, row: int) -> None:
        """The request is sent again, and may be longer; what was loaded stays counted."""
        self._pages.pop(row, None)
        self._near.discard(row)
        self.columns.start_s[row] = self.columns.end_s[row] = np.nan

    def lose(self, kind: str, workers: Sequence[int], now: float) -> None:
        """A tier of these workers (the pool: of all) loses what it holds, and takes nothing."""
        self.shelves.look(now)
        self.shelves.lose(kind, workers)

    def bring_back(self, kind: str, workers: Sequence[int], now: float) -> None:
        """It is there again, empty."""
        self.shelves.look(now)
        self.shelves.bring_back(kind, workers)

    # What engines tell

    def computed(self, worker: Worker, row: int, now: float) -> None:
        """A prompt has been computed; copies go down, or its pages are noted for when they are let go."""
        self._keep(worker, row, self._inputs[row], now)

    def finished(self, worker: Worker, row: int, now: float) -> None:
        """A request is over: its decoded tokens, too, where they are kept (all but the last have KV)."""
        if self._plan.outputs:
            self._keep(worker, row, self._inputs[row] + self._outputs[row] - 1, now)

    def _keep(self, worker: Worker, row: int, tokens: int, now: float) -> None:
        if not self.shelves.levels[worker.index]:
            return
        size, known = self._plan.page_tokens, self._pages.pop(row, None)
        keys = known if known is not None and len(known) == tokens // size else self._keys(row, tokens)
        if self._plan.write == "through":
            self.shelves.computed(worker.index, [(key, depth) for depth, key in enumerate(keys)], now)
        else:
            for depth, key in enumerate(keys):
                self._depth_of[key] = depth

    def drain(self, worker: Worker, now: float) -> None:
        """Pages that a worker's own prefix cache has dropped go to the next level (write: evict).

        A page is known by its last block, which of all its blocks is dropped first.
        """
        if self._plan.write != "evict" or not self.shelves.levels[worker.index]:
            return
        keys = worker.engine.take_evicted().tolist()
        dropped = [(key, self._depth_of.pop(key)) for key in keys if key in self._depth_of]
        if dropped:
            self.shelves.evicted(worker.index, dropped, now)

    # What is left of a run

    def loaded_tokens(self) -> dict[str, Ints]:
        """Tokens loaded for each request, by tier."""
        return {kind: self.columns.tokens[kind] for kind in TIERS if kind in self._plan.tiers}

    def summary(self) -> dict[str, object]:
        """Loads of the whole run, and what each tier held, moved and let go."""
        self.shelves.look(math.inf)
        loaded = ~np.isnan(self.columns.end_s) & (sum(self.columns.tokens.values()) > 0)
        waited = self.columns.exposed_s()[loaded]
        tiers: dict[str, object] = {}
        for kind in self.loaded_tokens():
            levels = self.shelves.of_kind(kind)
            tiers[kind] = {
                "loaded_tokens": int(self.columns.tokens[kind].sum()),
                "loaded_bytes": self.loaded_bytes[kind],
                "written_bytes": math.fsum(level.written_bytes for level in levels),
                "pages": int(sum(level.cache.pages for level in levels)),
                "peak_pages": int(sum(level.cache.peak for level in levels)),
                "evicted_pages": int(sum(level.cache.evicted for level in levels)),
            }
        return {
            "loads": int(loaded.sum()),
            "load_mean_s": float(waited.mean()) if waited.size else None,
            "load_p99_s": float(np.percentile(waited, 99)) if waited.size else None,
            "tiers": tiers,
        }

    # What routers may know

    def held(self, request: Asked, worker: int, device: int, *, reach: bool) -> int:
        """Leading prompt tokens that a worker has (``device`` of them in its own prefix cache) or can load."""
        if self._prompts.private[request.row] or not self.shelves.levels[worker]:
            return device
        self.shelves.look(request.now_s)
        return self._held(worker, request.row, device, reach)

    def tiers(self, request: Asked, worker: int, device: int) -> tuple[int, int, int]:
        """Tokens beyond ``device`` in host memory, on the SSD and in the pool."""
        found = dict.fromkeys(TIERS, 0)
        if self._prompts.private[request.row] or not self.shelves.levels[worker]:
            return 0, 0, 0
        self.shelves.look(request.now_s)
        size, pages = self._plan.page_tokens, self._page_keys(request.row)
        for at in range(device // size, len(pages)):
            where = self.shelves.find(worker, pages[at], reach=True)
            if where is None:
                break
            level, owner = where
            found[level.kind if owner == worker else "pool"] += (at + 1) * size - max(at * size, device)
        return found["host"], found["ssd"], found["pool"]

    def fetch_s(self, worker: int, tokens: int) -> float:
        """Predicted seconds to fetch so many tokens from the pool, alone on the links."""
        rate = self._pool_rate[worker]
        if tokens <= 0 or rate is None:
            return 0.0
        return self._plan.tiers["pool"].setup_s + tokens * self._plan.bytes_per_token[worker] / rate

    def _alone_bytes_per_s(self, worker: int) -> float | None:
        """What a fetch from the pool to a worker moves with the links to itself."""
        count, network = len(self._plan.own), self._plan.network
        others = (host_of(other, count) for other in range(count) if other != worker)
        ends = others if self._plan.of_hosts else (store_of(count),)
        path = next((network.paths[end, worker] for end in ends if (end, worker) in network.paths), None)
        return None if path is None else path.alone_bytes_per_s(network.links)

    def _held(self, worker: int, row: int, device: int, reach: bool) -> int:
        size, pages = self._plan.page_tokens, self._page_keys(row)
        first = device // size
        run = self.shelves.run(worker, pages, first, reach=reach)
        return max((first + run) * size, device) if run else device

    def _page_keys(self, row: int) -> list[int]:
        """Keys of the whole pages that a load may bring: of the prompt, at least one token left out."""
        if row not in self._pages:
            self._pages[row] = self._keys(row, self._inputs[row])
        pages = self._pages[row]
        return pages[:-1] if self._inputs[row] % self._plan.page_tokens == 0 else pages

    def _keys(self, row: int, tokens: int) -> list[int]:
        """A page is known by the key of its last block, which is chained to all before it."""
        keys: list[int] = self._prompts.keys(row, tokens)[self._plan.page_blocks - 1 :: self._plan.page_blocks].tolist()
        return keys
