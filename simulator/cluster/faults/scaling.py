"""Pools that grow and shrink: who is on, who is starting, who is being drained, and for how long each was paid for."""

from __future__ import annotations

import math
from collections import deque
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from simulator.cluster.faults.desk import FaultDesk
from simulator.cluster.faults.parts import AutoscalingPart, ScalePart
from simulator.cluster.faults.progress import Progress

if TYPE_CHECKING:
    from simulator.cluster.run import Cluster


class Scaler:
    """All pools that scale, under one budget where there is one.

    A worker is *on* from when it is wanted until it has nothing left to do: starting and draining are paid for.
    """

    def __init__(self, cluster: Cluster, desk: FaultDesk, part: AutoscalingPart) -> None:
        self._cluster, self._desk, self._part = cluster, desk, part
        self._progress = Progress(desk)
        self.on_since: dict[int, float] = {}
        self.on_s = np.zeros(len(cluster.workers))
        self.changes: list[tuple[float, str, int]] = []  # when, which pool, how many are wanted
        self._starting: set[int] = set()
        self._draining: set[int] = set()
        self._used: set[int] = set()
        self._wanted: dict[str, deque[tuple[float, int]]] = {}
        self._target: dict[str, int] = {}
        self._pools = {one.pool: [w.index for w in cluster.plan.workers if w.pool == one.pool] for one in part.pools}
        scaled = {index for indices in self._pools.values() for index in indices}
        self.on_since = {worker.index: 0.0 for worker in cluster.workers if worker.index not in scaled}
        for one in part.pools:
            first = one.first_workers or one.min_workers
            self._target[one.pool] = first
            self._wanted[one.pool] = deque()
            for index in self._pools[one.pool][:first]:
                self.on_since[index] = 0.0
                self._used.add(index)
            cluster.agenda.add(one.every_s, partial(self._look, one))
        desk.set_off({index for index in scaled if index not in self.on_since})

    # A look at a pool

    def _look(self, one: ScalePart, now: float) -> None:
        if self._desk.open == 0 or self._progress.is_stuck():
            return
        self._end_draining(now)
        wanted = self._wanted_now(one, now)
        seen = self._wanted[one.pool]
        seen.append((now, wanted))
        while seen[0][0] < now - one.cooldown_s:
            seen.popleft()
        have = self._target[one.pool]
        lasting = min(have, max(number for _, number in seen))  # of those within the cool-down, the most
        target = wanted if wanted > have else lasting
        if target != have:
            self._target[one.pool] = target
            self.changes.append((now, one.pool, target))
        for other in self._part.pools:  # a worker that one lets go may be what another waits for
            self._follow(other, now)
        self._cluster.agenda.add(now + one.every_s, partial(self._look, one))

    def _wanted_now(self, one: ScalePart, now: float) -> int:
        """The present number times figure / target, rounded up; as it is within the tolerance."""
        name, target = one.figure
        have = len(self._serving(one.pool))
        if have == 0:
            return max(self._target[one.pool], one.min_workers)
        ratio = self._figure(one, name, now) / target
        wanted = self._target[one.pool] if abs(ratio - 1.0) <= one.tolerance else math.ceil(have * ratio - 1e-9)
        return min(max(wanted, one.min_workers), len(self._pools[one.pool]))

    def _serving(self, pool: str) -> list[int]:
        busy = self._starting | self._draining
        return [index for index in self._pools[pool] if index in self.on_since and index not in busy]

    def _figure(self, one: ScalePart, name: str, now: float) -> float:
        """Mean over the workers that serve."""
        workers = [self._cluster.workers[index] for index in self._serving(one.pool)]
        for worker in workers:
            worker.catch_up(now)
        if name == "ttft_s":
            first = self._cluster.desk.first_token_s
            lately = (first > now - one.every_s) & (first <= now)
            return float((first - self._cluster.arrival_s)[lately].mean()) if lately.any() else 0.0
        loads = [worker.engine.load() for worker in workers]
        if name == "kv_use":
            return sum(1.0 - load.free_blocks / load.blocks for load in loads) / len(loads)
        return sum(load.waiting if name == "waiting_requests" else load.requests for load in loads) / len(loads)

    # What follows from it

    def _follow(self, one: ScalePart, now: float) -> None:
        """Start or drain until as many serve or start as are wanted, as far as the budget goes."""
        pool, target = self._pools[one.pool], self._target[one.pool]
        serving = [index for index in pool if index in self.on_since and index not in self._draining]
        for index in pool:
            if len(serving) >= target:
                break
            if index in self._draining:  # it need not go after all
                self._draining.discard(index)
                self._desk.switch_on(index, now)
                serving.append(index)
            elif index not in self.on_since and self._may_start():
                self._start(one, index, now)
                serving.append(index)
        for index in reversed(serving[target:]):
            if index not in self._starting:
                self._draining.add(index)
                self._desk.switch_off(index)
        self._end_draining(now)

    def _may_start(self) -> bool:
        total = self._part.total_workers
        on = sum(index in self.on_since for indices in self._pools.values() for index in indices)
        return total is None or on < total

    def _start(self, one: ScalePart, index: int, now: float) -> None:
        self.on_since[index] = now
        self._starting.add(index)
        delay = self._desk.plan.restart_s[index] if one.start_s is None else one.start_s
        self._cluster.agenda.add(now + delay, partial(self._started, index))

    def _started(self, index: int, now: float) -> None:
        self._starting.discard(index)
        if index in self._used and not self._cluster.workers[index].down:
            self._desk.renew_engine(index, now)
        self._used.add(index)
        self._desk.switch_on(index, now)

    def _end_draining(self, now: float) -> None:
        for index in sorted(self._draining):
            if self._desk.is_idle(index):
                self._draining.discard(index)
                self.on_s[index] += now - self.on_since.pop(index)

    # What is left of it

    def settle(self, end_s: float) -> None:
        """At the end of a run: time that workers were on until then."""
        for index, since in self.on_since.items():
            self.on_s[index] += max(end_s - since, 0.0)

    def summary(self) -> dict[str, object]:
        """Changes of the wanted numbers, and hours that each pool's workers were on."""
        hours = {pool: float(self.on_s[indices].sum()) / 3600.0 for pool, indices in self._pools.items()}
        changes = [{"at_s": at, "pool": pool, "workers": number} for at, pool, number in self.changes]
        return {"changes": changes, "worker_hours": hours}
