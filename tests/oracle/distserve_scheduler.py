"""DistServe's context and decoding stages, one planning step at a time, on plain objects."""

from __future__ import annotations

from collections import deque
from typing import Any

from trt_scheduler import TrtCase
from vllm_scheduler import Request, Role, Scheduler, State, Step
from vllm_stepper import Engine


class StageScheduler(Scheduler):
    """Settings: those of the policy, under its names, and the oracle's ``num_blocks`` and ``block_size``."""

    def __init__(self, settings: dict[str, Any], role: Role, *others: Any) -> None:
        super().__init__(settings, role, *others)
        self.limits = settings
        self.swapped: deque[Request] = deque()

    def add(self, r: Request) -> None:
        if self.role is Role.DECODE:
            r.output = 1
        super().add(r)

    def has_work(self) -> bool:
        return super().has_work() or bool(self.swapped)

    def plan(self) -> Step:
        step = Step()
        if self.role is Role.PREFILL:
            self._plan_prompts(step)
        else:
            self._accept()
            self._decode(step)
        self.finished_since_plan = False
        for r, new in step.tokens.items():
            step.past[r] = r.computed
            r.computed += new
            r.in_flight += new
            step.sampling.add(r)
        return step

    def _plan_prompts(self, step: Step) -> None:
        while self.waiting and len(step.tokens) < self.limits["max_batch_size"]:
            r = self.waiting[0]
            tokens = sum(step.tokens.values()) + r.prompt
            in_use = self.pool.num_blocks - 1 - len(self.pool.free)
            if tokens > self.limits["max_tokens_per_batch"]:
                break
            if in_use + self.pool.blocks_for(r.prompt) > self.pool.num_blocks - 1:
                break
            self.waiting.popleft()
            self.first_cached[r.index] = 0
            self._extend(r, r.prompt)
            r.state = State.RUNNING
            self.running.append(r)
            step.tokens[r] = r.prompt

    def _accept(self) -> None:
        blocks = self.pool.num_blocks - 1
        while self.waiting:
            r = self.waiting[0]
            waiting = sum(self.pool.blocks_for(q.prompt) for q in self.reading)
            if waiting >= blocks * self.limits["accept_block_fraction"]:
                break
            if self.pool.blocks_for(r.prompt + 1) > len(self.pool.free):
                break
            self.waiting.popleft()
            self._extend(r, r.prompt + 1)
            r.state, r.to_read = State.READING, False
            self.reading.append(r)
            self.on_read(r, self.pool.blocks_for(r.prompt))

    def _decode(self, step: Step) -> None:
        def missing(r: Request) -> int:
            return self.pool.blocks_for(r.tokens) - len(r.blocks)

        while sum(missing(r) for r in self.running) > len(self.pool.free):
            r = self.running.pop()
            self._release(r)
            self.swapped.append(r)
            step.preempted.append(r)
        for r in self.running:
            self._extend(r, r.tokens)
            step.tokens[r] = 1
            step.decoding.add(r)
        seats = min(self.limits["max_decode_batch_size"], self.limits["max_decode_tokens"])
        while self.swapped and len(self.running) < seats and missing(self.swapped[0]) <= len(self.pool.free):
            r = self.swapped.popleft()
            self._extend(r, r.tokens)
            self.running.append(r)
            step.tokens[r] = 1
        if self.swapped and self.running:
            return
        for r in [r for r in self.reading if r in self.read_done]:
            if len(self.running) == seats:
                break
            self.reading.remove(r)
            self.read_done.remove(r)
            r.state, r.computed = State.RUNNING, r.prompt
            self.running.append(r)
            step.tokens[r] = 1


class StageEngine(Engine):
    scheduler_class = StageScheduler


class StageCase(TrtCase):
    """The first token reaches the client when the prefill ends."""

    engine_class = StageEngine

    def _prefilled(self, r: Request, now: float) -> None:
        if self.requests[r.index]["output_length"] > 1:
            self.token_times[r.index].append(now)
        super()._prefilled(r, now)
