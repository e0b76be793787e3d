"""Splitwise's machines, one planning step at a time, on plain objects."""

from __future__ import annotations

from typing import Any

from distserve_scheduler import StageCase
from vllm_scheduler import Request, Role, Scheduler, State, Step
from vllm_stepper import Engine


class MachineScheduler(Scheduler):
    """Settings: ``max_prompt_tokens``, ``max_batch_size``, ``max_preemptions``."""

    def __init__(self, settings: dict[str, Any], role: Role, *others: Any) -> None:
        super().__init__(settings, role, *others)
        self.limits = settings
        self.passed: dict[Request, int] = {}
        self.left_out: set[Request] = set()

    def add(self, r: Request) -> None:
        if self.role is Role.DECODE:
            r.output = 1
        super().add(r)

    def plan(self) -> Step:
        step = self._plan()
        if step.preempted and not step.tokens:  # all that ran was preempted: at once again
            again = self._plan()
            again.preempted += step.preempted
            return again
        return step

    def _plan(self) -> Step:
        step = Step()
        seats = min(self.limits["max_batch_size"], self.limits["max_prompt_tokens"])
        needed = sum(self.pool.blocks_for(r.tokens) - len(r.blocks) for r in self.running)
        prompts: list[Request] = []
        left_out, self.left_out = self.left_out, set()
        if needed > len(self.pool.free):
            for r in list(self.running):
                if r in self.running and self._make_room(r, 1, step):
                    step.tokens[r] = 1
                    step.decoding.add(r)
        else:
            prompts = self._decode_beside_prompts(step, seats, len(self.pool.free) - needed, left_out)
        if not step.preempted:
            for r in prompts:
                self.waiting.remove(r)
                self.first_cached.setdefault(r.index, 0)
                self._start(r, step, r.tokens, 0)
            self._begin_loaded(step, seats)
            while self.waiting and self.waiting[0].to_read:
                r = self.waiting[0]
                if self.pool.blocks_for(r.tokens) > len(self.pool.free):
                    break
                self.waiting.popleft()
                self._extend(r, r.tokens)
                r.state, r.to_read = State.READING, False
                self.reading.append(r)
                self.on_read(r, self.pool.blocks_for(r.prompt))
        self.finished_since_plan = False
        for r, new in step.tokens.items():
            step.past[r] = r.computed
            r.computed += new
            r.in_flight += new
            step.sampling.add(r)
        return step

    def _decode_beside_prompts(self, step: Step, seats: int, room: int, left_out: set[Request]) -> list[Request]:
        most = self.limits["max_preemptions"]
        aged = [r for r in self.running if most == 0 or (self.passed[r] >= most and r in left_out)]
        tokens = self.limits["max_prompt_tokens"] - len(aged)
        prompts: list[Request] = []
        for r in self.waiting:
            blocks = self.pool.blocks_for(r.tokens)
            alone = not aged and not prompts
            if (
                r.to_read
                or len(self.running) + len(prompts) == seats
                or blocks > room
                or (r.tokens > tokens and not alone)
            ):
                break
            prompts.append(r)
            room -= blocks
            tokens = max(tokens - r.tokens, 0)
        for r in self.running:
            if r not in aged and tokens == 0:
                self.passed[r] += 1
                self.left_out.add(r)
                continue
            tokens -= r not in aged
            self._extend(r, r.tokens)
            step.tokens[r] = 1
            step.decoding.add(r)
        return prompts

    def _begin_loaded(self, step: Step, seats: int) -> None:
        for r in [r for r in self.reading if r in self.read_done]:
            if len(self.running) == seats:
                break
            self.reading.remove(r)
            self.read_done.remove(r)
            self._start(r, step, 1, r.prompt)

    def _start(self, r: Request, step: Step, new: int, past: int) -> None:
        r.state, r.computed = State.RUNNING, past
        self.passed.setdefault(r, 0)
        self._extend(r, past + new)
        self.running.append(r)
        step.tokens[r] = new


class MachineEngine(Engine):
    scheduler_class = MachineScheduler


class MachineCase(StageCase):
    engine_class = MachineEngine
