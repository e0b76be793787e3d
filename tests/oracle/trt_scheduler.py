"""TensorRT-LLM's scheduler, one planning step at a time, on plain objects; blocks and booking are the vLLM oracle's.

Unlike the engine it keeps no count of promised blocks: what running requests may still need is summed up afresh in
every step, as the real capacity scheduler does.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from vllm_scheduler import OUTPUT_TOKEN, Request, Role, Scheduler, State, Step
from vllm_stepper import Case, Engine


class TrtScheduler(Scheduler):
    """Settings beyond the vLLM oracle's: ``capacity``, ``chunking``, ``limits`` (tokens allowed, by request)."""

    def __init__(self, settings: dict[str, Any], role: Role, *others: Any) -> None:
        super().__init__(settings, role, *others)
        self.capacity, self.chunking = settings["capacity"], settings["chunking"]
        self.limits: list[int] = settings["limits"]
        self.on_first: Callable[[Request], None] = lambda r: None

    def add(self, r: Request) -> None:
        if self.role is Role.DECODE:  # its first token was made at the context server
            r.output = 1
            if r.content:
                r.content.append(OUTPUT_TOKEN)
        super().add(r)

    def plan(self) -> Step:
        step = Step()
        may_start = self.capacity != "STATIC_BATCH" or not self.running
        self._generate(step)
        budget = self._continue(step, self.max_tokens - len(step.tokens))
        if not step.preempted:
            budget = self._begin_loaded(step, budget)
            if may_start:
                self._start(step, budget)
        self.finished_since_plan = False
        for r, new in step.tokens.items():
            step.past[r] = r.computed
            r.computed += new
            r.in_flight += new
            r.prefilling = r.computed < r.tokens + r.unwritten
            if not r.prefilling:
                step.sampling.add(r)
                r.unwritten += self.is_async
        return step

    def _generate(self, step: Step) -> None:
        i = 0
        while i < len(self.running):
            r = self.running[i]
            i += 1
            if r.prefilling or self._is_leaving(r):
                continue
            if not self._make_room(r, 1, step):
                assert self.capacity == "MAX_UTILIZATION"
                break
            step.tokens[r] = 1
            step.decoding.add(r)

    @staticmethod
    def _is_leaving(r: Request) -> bool:
        """Whether its last token is on its way."""
        return r.unwritten > 0 and r.computed + 2 - r.unwritten >= r.prompt + r.max_output

    def _taken(self, step: Step) -> int:
        """Places taken: a request whose last token came into an earlier batch needs none."""
        return sum(r in step.tokens or r.prefilling or not self._is_leaving(r) for r in self.running)

    def _chunk(self, tokens: int, budget: int) -> int:
        if tokens <= budget:
            return tokens
        return budget - budget % self.pool.block_size if self.chunking else 0

    def _continue(self, step: Step, budget: int) -> int:
        for r in self.running:
            new = self._chunk(r.tokens - r.computed, budget) if r.prefilling else 0
            if new:
                step.tokens[r] = new
                self._register(r, r.computed + new)
                budget -= new
        return budget

    def _begin_loaded(self, step: Step, budget: int) -> int:
        for r in [r for r in self.reading if r in self.read_done]:
            if budget == 0 or self._taken(step) == self.max_seqs:
                break
            if r.loaded:
                continue
            self.reading.remove(r)
            self.read_done.remove(r)
            self._register(r, r.prompt)
            r.state, r.computed = State.RUNNING, r.prompt
            self.running.append(r)
            self.on_first(r)
            step.tokens[r] = 1
            budget -= 1
        return self._begin_prefixed(step, budget)

    def _begin_prefixed(self, step: Step, budget: int) -> int:
        """Prompts whose beginning caches below have brought."""
        for r in [r for r in self.reading if r in self.read_done and r.loaded]:
            new = self._chunk(r.tokens - r.computed, budget)
            if len(self.running) == self.max_seqs:
                break
            if new == 0:
                continue
            self.reading.remove(r)
            self.read_done.remove(r)
            self._register(r, r.computed)
            self.first_cached.setdefault(r.index, r.computed)
            r.state, r.loaded = State.RUNNING, False
            self.running.append(r)
            step.tokens[r] = new
            self._register(r, r.computed + new)
            budget -= new
        return budget

    def _whole(self, r: Request) -> int:
        """Blocks of all that the request may become."""
        limit = 1 if self.role is Role.PREFILL else min(self.limits[r.index], self.max_model_len - r.prompt)
        return min(self.pool.blocks_for(r.prompt + limit), self.pool.num_blocks - 1)

    def _start(self, step: Step, budget: int) -> None:
        room = len(self.pool.free)
        if self.capacity != "MAX_UTILIZATION":
            room -= sum(self._whole(r) - len(r.blocks) for r in [*self.running, *self.reading])
        for r in list(self.waiting):
            if budget == 0 or self._taken(step) + len(self.reading) >= self.max_seqs:
                break
            needed = self.pool.blocks_for(r.tokens) if self.capacity == "MAX_UTILIZATION" else self._whole(r)
            if needed > room:
                break
            if r.outside > 0:
                found = self.pool.longest_hit(self._prefixes(r)[: (r.prompt - 1) // self.pool.block_size])
                if r.outside > len(found) * self.pool.block_size:
                    free = len(self.pool.free)
                    hits = self._take(r)
                    whole = self.capacity != "MAX_UTILIZATION"
                    room -= free - len(self.pool.free) + (needed - len(r.blocks) if whole else 0)
                    self.waiting.remove(r)
                    self.reading.append(r)
                    r.outside, r.loaded, r.state = 0, True, State.READING
                    r.computed = self.on_load(r, hits)
                    continue
                r.outside = 0
            alone = not self.chunking and r.output > 0 and not step.tokens and not r.to_read
            new = r.tokens if alone else self._chunk(r.tokens, budget)
            if r.to_read or new:
                free = len(self.pool.free)
                hits = self._take(r)
                # blocks found in the cache and in use by others cost nothing
                room -= (
                    free - len(self.pool.free) + (needed - len(r.blocks) if self.capacity != "MAX_UTILIZATION" else 0)
                )
                self.waiting.remove(r)
                if r.to_read:
                    self.reading.append(r)
                    self._start_read(r, hits)
                    continue
                past = hits * self.pool.block_size
                if r.state is State.WAITING:
                    self.first_cached.setdefault(r.index, past)
                r.state, r.computed = State.RUNNING, past
                self.running.append(r)
                step.tokens[r] = min(new, r.tokens - past)
                self._register(r, past + step.tokens[r])
                budget = max(budget - new, 0)
            elif not self.chunking:
                break
            else:
                room -= needed

    def _take(self, r: Request) -> int:
        """Blocks for all of the request as it is now; returns how many were found in the cache."""
        known = r.prompt if r.to_read else r.tokens
        hits = []
        if self.pool.prefix_caching:
            hits = self.pool.longest_hit(self._prefixes(r)[: (known - 1) // self.pool.block_size])
            self.pool.share(hits)
            r.blocks.extend(hits)
            r.registered = len(hits)
        self._extend(r, r.tokens)
        return len(hits)

    def _start_read(self, r: Request, hits: int) -> None:
        r.to_read, r.state, r.computed = False, State.READING, r.prompt
        self.on_read(r, self.pool.blocks_for(r.prompt) - hits)


class TrtEngine(Engine):
    scheduler_class = TrtScheduler

    def __init__(self, settings: dict[str, Any], role: Role, *others: Any) -> None:
        overlap = settings["async_scheduling"] and role is not Role.PREFILL
        super().__init__({**settings, "async_scheduling": overlap}, role, *others)


class TrtCase(Case):
    """A context server's first token reaches the client when the generation server begins, or ends the request."""

    engine_class = TrtEngine

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        if self.first is not self.last:
            self.last.scheduler.on_first = lambda r: self.token_times[r.index].append(self.last.now)

    def _prefilled(self, r: Request, now: float) -> None:
        if self.requests[r.index]["output_length"] > 1:
            super()._prefilled(r, now)
            return
        self.token_times[r.index].append(now)
        self.first.sends.append((now, r))
