"""When faults happen: those of the plan at their moments, and those that are drawn, worker by worker."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from simulator.cluster.faults.desk import FaultDesk
from simulator.cluster.faults.plan import Event, Rate
from simulator.cluster.faults.progress import Progress

if TYPE_CHECKING:
    from simulator.cluster.run import Cluster

#: Sets the draws of faults apart from others under the same seed.
_STREAM = 0xFA17

STUCK = "nothing moves any more: no more faults are drawn"


class Faults:
    """Everything that fails in one run."""

    def __init__(self, cluster: Cluster, desk: FaultDesk, seed: int) -> None:
        self._cluster, self._desk, self._seed = cluster, desk, seed
        self._shares: dict[str, dict[int, float]] = {}
        self._begun = 0
        self._stopped = False
        self._progress = Progress(desk)
        self.happened = {"crash": 0, "slow": 0, "link": 0, "tier": 0}
        for event in desk.plan.events:
            cluster.agenda.add(event.at_s, partial(self._begin, event))
        for k, rate in enumerate(desk.plan.rates):
            for worker in rate.workers:
                random = np.random.default_rng([seed, _STREAM, k, worker])
                self._draw(rate, worker, random, 0.0)

    # Drawn faults

    def _draw(self, rate: Rate, worker: int, random: np.random.Generator, now: float) -> None:
        at = now + float(random.exponential(rate.mtbf_s))
        repair_s = float(random.exponential(rate.mttr_s)) if rate.mttr_s > 0 else 0.0
        self._cluster.agenda.add(at, partial(self._strike, rate, worker, random, repair_s))

    def _strike(self, rate: Rate, worker: int, random: np.random.Generator, repair_s: float, now: float) -> None:
        if self._desk.open == 0 or self._stopped:
            return
        if self._progress.is_stuck():
            self._stopped = True
            self._cluster.warnings += (STUCK,)
            return
        event = Event(rate.kind, now, repair_s, (worker,), factor=rate.factor, silent=rate.silent)
        self._begin(event, now)
        restart_s = self._desk.plan.restart_s[worker] if rate.kind == "crash" else 0.0
        self._draw(rate, worker, random, now + repair_s + restart_s)

    # What happens

    def _begin(self, event: Event, now: float) -> None:
        if self._desk.open == 0:
            return
        self._begun += 1
        getattr(self, f"_{event.kind}")(event, self._begun, now)
        self.happened[event.kind] += 1

    def _until(self, event: Event, now: float) -> float | None:
        return None if event.duration_s is None else now + event.duration_s

    def _crash(self, event: Event, _number: int, now: float) -> None:
        until = self._until(event, now)
        for worker in event.workers:
            if self._desk.die(worker, event.silent, now) and until is not None:
                up_s = until + self._desk.plan.restart_s[worker]
                self._cluster.agenda.add(up_s, partial(self._desk.come_up, worker))

    def _slow(self, event: Event, number: int, now: float) -> None:
        self._set_pace(event.workers, number, event.factor, now)
        until = self._until(event, now)
        if until is not None:
            self._cluster.agenda.add(until, partial(self._set_pace, event.workers, number, None))

    def _set_pace(self, workers: Sequence[int], number: int, factor: float | None, now: float) -> None:
        for index in workers:
            if factor is None:
                self._desk.slowdowns[index].pop(number, None)
            else:
                self._desk.slowdowns[index][number] = factor
            worker = self._cluster.workers[index]
            if not worker.down:
                worker.set_pace(self._desk.pace(index), now)

    def _link(self, event: Event, number: int, now: float) -> None:
        self._set_share(event.links, number, event.factor, now)
        until = self._until(event, now)
        if until is not None:
            self._cluster.agenda.add(until, partial(self._set_share, event.links, number, None))

    def _set_share(self, links: Sequence[str], number: int, share: float | None, now: float) -> None:
        for link in links:
            mine = self._shares.setdefault(link, {})
            if share is None:
                mine.pop(number, None)
            else:
                mine[number] = share
            if self._cluster.transfers is not None:
                self._cluster.transfers.scale(link, math.prod(mine.values()), now)

    def _tier(self, event: Event, _number: int, now: float) -> None:
        if self._cluster.caches is None:
            return
        self._cluster.caches.lose(event.tier, event.workers, now)
        until = self._until(event, now)
        if until is not None:
            self._cluster.agenda.add(until, partial(self._cluster.caches.bring_back, event.tier, event.workers))
