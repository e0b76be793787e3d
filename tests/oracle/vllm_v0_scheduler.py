"""vLLM's V0 scheduler, one planning step at a time, on plain objects."""

from __future__ import annotations

from typing import Any

from vllm_scheduler import Scheduler, State, Step
from vllm_stepper import Case, Engine

WATERMARK = 0.01


class PromptsFirstScheduler(Scheduler):
    """Batches are whole prompts, or a token of everybody who runs."""

    def __init__(self, settings: dict[str, Any], *others: Any) -> None:
        super().__init__(settings, *others)
        self.watermark = int(WATERMARK * (settings["num_blocks"] - 1))

    def plan(self) -> Step:
        step = self._plan()
        if step.preempted and not step.tokens:  # all that ran was preempted: at once again
            again = self._plan()
            again.preempted += step.preempted
            return again
        return step

    def _plan(self) -> Step:
        step = Step()
        self._admit_prompts(step)
        if not step.tokens:
            for r in list(self.running):
                if r in self.running and self._make_room(r, 1, step):
                    step.tokens[r] = 1
                    step.decoding.add(r)
        self.finished_since_plan = False
        for r, new in step.tokens.items():
            step.past[r] = r.computed
            r.computed += new
            r.in_flight += new
            step.sampling.add(r)
        return step

    def _admit_prompts(self, step: Step) -> None:
        budget = self.max_tokens
        while self.waiting and len(self.running) < self.max_seqs:
            r = self.waiting[0]
            kept_free = self.watermark if self.running else 0
            if self.pool.blocks_for(r.tokens) > len(self.pool.free) - kept_free:
                return
            if r.tokens > budget and step.tokens:
                return
            self.waiting.popleft()
            hits, cached, _ = self._find_computed(r)
            assert self._admit(r, hits, 0, r.tokens)
            self.first_cached.setdefault(r.index, cached)
            r.state, r.computed = State.RUNNING, cached
            self.running.append(r)
            step.tokens[r] = r.tokens - cached
            budget -= r.tokens


class PromptsFirstEngine(Engine):
    scheduler_class = PromptsFirstScheduler


class PromptsFirstCase(Case):
    engine_class = PromptsFirstEngine
