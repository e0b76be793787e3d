"""Engines that die, slow down and let requests go, in virtual time, around the yardstick of vLLM's scheduler.

Like engines, requests dealt out in turn among those that are up. A dead engine's requests are dealt out anew at once, by
row, with what their clients have as part of the prompt; with no engine up they wait for the first that comes back.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections import deque
from collections.abc import Callable
from typing import Any

from vllm_blocks import PrefixNames
from vllm_scheduler import OUTPUT_TOKEN, Request, Role, State
from vllm_stepper import HASHED_TOKENS, OWN_TOKEN, Engine, affine


class MortalEngine(Engine):
    """An engine whose steps, planned now, take ``factor`` times as long."""

    factor = 1.0

    def requests(self) -> list[Request]:
        return [*self.scheduler.running, *self.scheduler.waiting]

    def let_go(self, index: int) -> bool:
        """As on an abort: blocks are free at once, what steps in flight bring is not wanted."""
        scheduler = self.scheduler
        found = next((r for r in self.requests() if r.index == index), None)
        if found is None:
            return False
        scheduler.running = [r for r in scheduler.running if r is not found]
        scheduler.waiting = deque(r for r in scheduler.waiting if r is not found)
        scheduler._release(found)
        found.state = State.FINISHED
        return True


class FaultCase:
    """``crashes``: (engine, when, when it is up, when it gets requests again); ``slow``: (engine, from, to, factor); ``leave``: (request, when)."""

    def __init__(
        self,
        settings: dict[str, Any],
        requests: list[dict[str, Any]],
        engines: int,
        crashes: list[tuple[int, float, float, float]],
        slow: list[tuple[int, float, float, float]],
        leave: list[tuple[int, float]],
        instant_s: float = 1e-9,
    ) -> None:
        self.settings, self.rows, self.instant_s = settings, requests, instant_s
        self.names = PrefixNames()
        self.times: list[list[float]] = [[] for _ in requests]
        self.done = [False] * len(requests)
        self.gone = [False] * len(requests)
        self.factors = [dict[int, float]() for _ in range(engines)]
        self.engines: list[MortalEngine | None] = [self._engine() for _ in range(engines)]
        self.members = set(range(engines))
        self.turn = 0
        self.held: list[Request] = []
        self.noted = itertools.count()
        self.agenda: list[tuple[float, int, Callable[[float], None]]] = []
        for i, request in enumerate(requests):
            self._note(request["arrival_s"], lambda now, i=i: self._deal(self._fresh(i)))
        for engine, at, up, back in crashes:
            self._note(at, lambda now, engine=engine, up=up, back=back: self._die(engine, up, back))
        for number, (engine, start, end, factor) in enumerate(slow):
            self._note(start, lambda now, e=engine, n=number, f=factor: self._pace(e, n, f))
            self._note(end, lambda now, e=engine, n=number: self._pace(e, n, None))
        for row, at in leave:
            self._note(at, lambda now, row=row: self._leave(row))

    def _note(self, at: float, action: Callable[[float], None]) -> None:
        heapq.heappush(self.agenda, (at, next(self.noted), action))

    def _engine(self) -> MortalEngine:
        seconds = affine(self.settings["step_time"])
        engine = MortalEngine(self.settings, Role.COLOCATED, self.names, seconds, self.instant_s)
        engine.seconds = lambda *work: seconds(*work) * engine.factor  # type: ignore[method-assign]
        engine.wrote = lambda r, now: self.times[r.index].append(now)
        engine.finished = lambda r, now: self.done.__setitem__(r.index, True)
        return engine

    def _fresh(self, i: int) -> Request:
        row = self.rows[i]
        prompt, ids = row["input_length"], row.get("hash_ids")
        content: list[int] = []
        if self.settings["prefix_caching"]:
            content = [OWN_TOKEN + i] * prompt
            if ids:
                content = [int(h) for h in ids for _ in range(HASHED_TOKENS)][:prompt]
        return Request(i, prompt, row["output_length"], content)

    def _deal(self, r: Request) -> None:
        if self.gone[r.index]:
            return
        up = [engine for i, engine in enumerate(self.engines) if engine is not None and i in self.members]
        if not up:
            self.held.append(r)
            return
        up[self.turn % len(up)].scheduler.add(r)
        self.turn += len(up) > 1  # with one engine there is nothing to choose

    def _die(self, index: int, up: float, back: float) -> None:
        engine = self.engines[index]
        if engine is None:
            return
        self.engines[index] = None
        self.members.discard(index)
        self._note(up, lambda now: self._start(index, back))
        for old in sorted(engine.requests(), key=lambda r: r.index):
            r = self._fresh(old.index)
            made = len(self.times[r.index])
            if self.settings["prefix_caching"]:
                r.content += [OUTPUT_TOKEN] * made
            r.prompt, r.max_output = r.prompt + made, r.max_output - made
            self._deal(r)

    def _start(self, index: int, back: float) -> None:
        engine = self.engines[index] = self._engine()
        engine.factor = math.prod(self.factors[index].values())
        self._note(back, lambda now: self._come_back(index, engine, now))

    def _come_back(self, index: int, engine: MortalEngine, now: float) -> None:
        if self.engines[index] is not engine:
            return
        self.members.add(index)
        held, self.held = sorted(self.held, key=lambda r: r.index), []
        for r in held:  # once all are back that come back in this instant
            self._note(now, lambda _, r=r: self._deal(r))

    def _pace(self, index: int, number: int, factor: float | None) -> None:
        if factor is None:
            self.factors[index].pop(number)
        else:
            self.factors[index][number] = factor
        engine = self.engines[index]
        if engine is not None:
            engine.factor = math.prod(self.factors[index].values())

    def _leave(self, row: int) -> None:
        if self.done[row]:
            return
        self.gone[row] = True
        self.held = [r for r in self.held if r.index != row]
        for engine in self.engines:
            if engine is not None:
                engine.let_go(row)

    def run(self) -> None:
        now = 0.0
        while True:
            noted = self.agenda[0][0] if self.agenda else math.inf
            upcoming = min(noted, *(e.next_time() for e in self.engines if e is not None), math.inf)
            if upcoming == math.inf:
                return
            now = max(now, upcoming)
            booked = [e for e in self.engines if e is not None and e.complete(now)]
            while self.agenda and self.agenda[0][0] <= now + self.instant_s:
                heapq.heappop(self.agenda)[2](now)
            for e in self.engines:
                if e is not None and (e in booked or not e.in_flight):
                    e.plan(now, 0)
