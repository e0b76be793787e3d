"""vLLM's ``scheduling_policy: priority`` on the plain stepper: a smaller priority, then the earlier arrival, is first.

Follows ``schedule`` of vllm/v1/core/sched/scheduler.py line by line where it differs from first come, first served:
a heap of waiting requests, and a victim from anywhere in the running list.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator

from vllm_scheduler import Request, Role, Scheduler, State, Step
from vllm_stepper import Case, Engine


class Heap:
    """The waiting requests, the most urgent first; in the place of the deque of first come, first served."""

    def __init__(self, keys: dict[Request, tuple[int, int]]) -> None:
        self.keys = keys
        self.entries: list[tuple[tuple[int, int], Request]] = []

    def push(self, key: tuple[int, int], r: Request) -> None:
        heapq.heappush(self.entries, (key, r))

    def popleft(self) -> Request:
        return heapq.heappop(self.entries)[1]

    def extendleft(self, requests: Iterator[Request]) -> None:
        for r in requests:
            self.push(self.keys[r], r)

    def __getitem__(self, i: int) -> Request:
        assert i == 0
        return self.entries[0][1]

    def __iter__(self) -> Iterator[Request]:
        return iter([r for _, r in sorted(self.entries, key=lambda entry: entry[0])])

    def __len__(self) -> int:
        return len(self.entries)


class PriorityScheduler(Scheduler):
    """``priorities`` (by request index) is set by the case before anybody comes."""

    priorities: list[int]

    def __init__(self, *args) -> None:
        super().__init__(*args)
        self.keys: dict[Request, tuple[int, int]] = {}
        self.waiting, self.reading = Heap(self.keys), Heap(self.keys)  # type: ignore[assignment]

    def add(self, r: Request) -> None:
        self.keys[r] = (self.priorities[r.index], len(self.keys))
        self.waiting.push(self.keys[r], r)  # type: ignore[attr-defined]

    def _preempt(self, r: Request) -> None:
        self._release(r)
        r.state = State.PREEMPTED
        r.computed = 0
        r.stale = r.in_flight
        r.unwritten = 0
        r.loaded = False
        self.waiting.push(self.keys[r], r)  # type: ignore[attr-defined]

    def _plan_running(self, step: Step) -> int:
        budget = self.max_tokens
        i = 0
        while i < len(self.running) and budget > 0:
            r = self.running[i]
            if r.unwritten > 0 and r.computed + 2 - r.unwritten >= r.prompt + r.max_output:
                i += 1
                continue
            new = min(r.tokens + r.unwritten - r.computed, budget, self.max_model_len - r.computed - 1)
            if new == 0:
                i += 1
                continue
            fits = True
            while not self._allocate(r, new):
                victim = max(self.running, key=lambda q: self.keys[q])
                if self.spares_in_flight and victim.in_flight > 0:
                    fits = False
                    break
                i -= self.running.index(victim) < i
                self.running.remove(victim)
                if victim in step.tokens:
                    budget += step.tokens.pop(victim)
                    step.decoding.discard(victim)
                self._preempt(victim)
                step.preempted.append(victim)
                if victim is r:
                    fits = False
                    break
            if not fits:
                break
            step.tokens[r] = new
            budget -= new
            if not r.prefilling:
                step.decoding.add(r)
            i += 1
        return budget

    def take_output(self, step, finished, wrote) -> None:
        heap = self.waiting
        super().take_output(step, finished, wrote)
        kept = Heap(self.keys)
        kept.entries = [entry for entry in heap.entries if entry[1].state is not State.FINISHED]  # type: ignore[attr-defined]
        heapq.heapify(kept.entries)
        self.waiting = kept  # type: ignore[assignment]


class PriorityEngine(Engine):
    scheduler_class = PriorityScheduler

    def plan(self, now: float, keep_steps: int) -> None:
        """An idle engine that has only preempted plans again at once, as the real loop does."""
        while True:
            before = sum(self.preemptions.values())
            super().plan(now, keep_steps)
            if self.in_flight or sum(self.preemptions.values()) == before:
                return


class PriorityCase(Case):
    """Those of ``roles`` go by priority, the others first come, first served."""

    def __init__(self, settings: dict, requests: list[dict], roles: tuple[Role, ...], instant_s: float) -> None:
        self.roles = roles
        super().__init__(settings, requests, None, instant_s)
        for engine in self.engines:
            engine.scheduler.priorities = [r.get("priority", 0) for r in requests]  # type: ignore[attr-defined]

    def engine_class(self, settings: dict, role: Role, *rest) -> Engine:  # type: ignore[override]
        return (PriorityEngine if role in self.roles else Engine)(settings, role, *rest)


def run_by_priority(
    settings: dict, requests: list[dict], roles: tuple[Role, ...] = tuple(Role), instant_s: float = 1e-9
) -> list[dict]:
    """The rows of a case; requests may have a ``priority``."""
    case = PriorityCase(settings, requests, roles, instant_s)
    case.run(0)
    return case.rows()
