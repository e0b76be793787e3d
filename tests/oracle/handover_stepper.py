"""Pushes in virtual time, one iteration at a time, around the yardstick of vLLM's scheduler: chunk by chunk into memory
taken first, or layer by layer behind the step. Transfers take explicit times, one piece of a request after another.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections import deque
from collections.abc import Callable
from typing import Any

from vllm_scheduler import Request
from vllm_stepper import Case, Engine


class TellingEngine(Engine):
    """An engine that tells of each chunk of a prompt when its step is planned: request, tokens at its end, span."""

    chunk: Callable[[Request, int, float, float], None]

    def _launch(self, step: Any, keep_steps: int) -> None:
        before = self.free_s
        super()._launch(step, keep_steps)
        if hasattr(self, "chunk"):
            for r, new in step.tokens.items():
                self.chunk(r, step.past[r] + new, max(self.now, before), self.free_s)


class PushCase(Case):
    """``settings["mode"]``: push, or layerwise with ``settings["layers"]``."""

    engine_class = TellingEngine

    def __init__(self, settings: dict[str, Any], requests: list[dict[str, Any]], instant_s: float) -> None:
        super().__init__(settings, requests, None, instant_s)
        self.layerwise = settings["mode"] == "layerwise"
        self.first.chunk = self._chunk  # type: ignore[attr-defined]
        self.agenda: list[tuple[float, int, Callable[[float], None]]] = []
        self.begins: list[tuple[float, int, Callable[[float], None]]] = []  # heard of after an instant's planning
        self.noted = itertools.count()
        count = len(requests)
        self.pieces: list[deque[tuple[int, float, float, bool]]] = [deque() for _ in range(count)]
        self.sent, self.moving, self.asked = [-1] * count, [False] * count, [False] * count
        self.all_sent = [False] * count
        self.decode_of: dict[int, Request] = {}
        self.released: list[int] = []

    def note(self, at: float, action: Callable[[float], None]) -> None:
        heapq.heappush(self.agenda, (at, next(self.noted), action))

    # What engines tell

    def _chunk(self, r: Request, tokens: int, start: float, end: float) -> None:
        i, last = r.index, tokens == self._prompt(r.index)
        if self.layerwise:
            begin = (start, next(self.noted), lambda now: self._begin(i, (tokens, start, end, last), now))
            heapq.heappush(self.begins, begin)
        elif not last:
            self.note(end, lambda now: self._offer(i, (tokens, end, end, False), now))

    def _prefilled(self, r: Request, now: float) -> None:
        self.prefill_of[r.index] = r
        if not self.layerwise:
            self._offer(r.index, (self._prompt(r.index), now, now, True), now)
        elif self.all_sent[r.index]:
            self._ended(r.index, now)

    def _read_starts(self, r: Request, now: float, blocks: int) -> None:
        self.decode_of[r.index] = r
        self.sent[r.index] = self._blocks(self._prompt(r.index), True) - blocks
        if self.layerwise:
            self._send(r.index, now)
        else:
            self.released.append(r.index)

    # What becomes of it

    def _begin(self, i: int, piece: tuple[int, float, float, bool], now: float) -> None:
        if not self.asked[i]:
            self._ask(i)
        self._offer(i, piece, now)

    def _ask(self, i: int) -> None:
        self.asked[i] = True
        self.last.scheduler.add(self._request(i, self.requests[i]["output_length"], self.last, True))

    def _offer(self, i: int, piece: tuple[int, float, float, bool], now: float) -> None:
        if not self.all_sent[i]:
            self.pieces[i].append(piece)
            self._send(i, now)

    def _send(self, i: int, now: float) -> None:
        if self.moving[i] or not self.pieces[i] or i not in self.decode_of:
            return
        tokens, start, end, last = self.pieces[i].popleft()
        blocks = max(self._blocks(tokens, last) - self.sent[i], 0)
        if blocks == 0 and not last:
            self._send(i, now)
            return
        self.sent[i] += blocks
        self.moving[i] = True
        setup, each = self.settings["transfer"]["setup_s"], self.settings["transfer"]["per_block_s"]
        over = now + setup + each * blocks
        if self.layerwise:
            layers = self.settings["layers"]
            each = each * blocks / layers
            first = max(now, start + (end - start) / layers)
            over = max(end + setup + each, first + setup + layers * each)
        self.note(over, lambda at: self._over(i, last, at))

    def _over(self, i: int, last: bool, now: float) -> None:
        self.moving[i] = False
        if not last:
            self._send(i, now)
            return
        self.all_sent[i] = True
        if i in self.prefill_of:  # else the prompt was preempted at its end, and is computed again
            self._ended(i, now)

    def _ended(self, i: int, now: float) -> None:
        self.last.reads.append((now, self.decode_of[i]))
        self.first.sends.append((now, self.prefill_of[i]))

    def _prompt(self, i: int) -> int:
        return int(self.requests[i]["input_length"])

    def _blocks(self, tokens: int, last: bool) -> int:
        size = self.settings["block_size"]
        return -(-tokens // size) if last else tokens // size

    # The clock

    def run(self, keep_steps: int) -> None:
        todo = deque(sorted(range(len(self.requests)), key=lambda i: (self.requests[i]["arrival_s"], i)))
        now = 0.0
        while True:
            arrival = self.requests[todo[0]]["arrival_s"] if todo else math.inf
            noted = min((queue[0][0] for queue in (self.agenda, self.begins) if queue), default=math.inf)
            upcoming = min(arrival, noted, *(e.next_time() for e in self.engines))
            if upcoming == math.inf:
                return
            now = max(now, upcoming)
            self._instant(now, todo, keep_steps)

    def _instant(self, now: float, todo: deque[int], keep_steps: int) -> None:
        """Steps end, transfers end, requests come, engines plan; a decode engine's planning may let prompts begin."""
        booked, asked = self.engines, False
        while booked or self.released or asked:
            booked = [e for e in self.engines if e.complete(now)]
            self._due(self.agenda, now)
            while todo and self.requests[todo[0]]["arrival_s"] <= now + self.instant_s:
                i = todo.popleft()
                if self.layerwise:
                    self.first.scheduler.add(self._request(i, 1, self.first))
                else:
                    self._ask(i)
            for i in self.released:
                self.first.scheduler.add(self._request(i, 1, self.first))
            self.released.clear()
            for e in self.engines:
                if e in booked or not e.in_flight:
                    e.plan(now, keep_steps)
            asked = self._due(self.begins, now)

    def _due(self, queue: list[tuple[float, int, Callable[[float], None]]], now: float) -> bool:
        """Do what is due; whether there was anything."""
        found = bool(queue) and queue[0][0] <= now + self.instant_s
        while queue and queue[0][0] <= now + self.instant_s:
            at, _, action = heapq.heappop(queue)
            action(at)
        return found


def run_push(
    settings: dict[str, Any], requests: list[dict[str, Any]], *, instant_s: float = 1e-9
) -> list[dict[str, Any]]:
    """Rows of a case whose prompts are pushed."""
    case = PushCase(settings, requests, instant_s)
    case.run(0)
    return case.rows()
