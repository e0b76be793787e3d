"""The V1 scheduler of vLLM 0.32.0, one planning step at a time, on plain objects: who gets how many tokens.

It knows no clock. ``plan`` decides a step, ``take_output`` books what the step gave, ``report_transfers`` what reads
and sends of KV have ended. Full attention, one group of KV blocks, first come first served, no speculative decoding.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from enum import Enum, auto

from vllm_blocks import Block, BlockPool, PrefixNames

OUTPUT_TOKEN = 7  # every generated token has this value, so equal prompts have equal continuations


class State(Enum):
    WAITING = auto()
    RUNNING = auto()
    PREEMPTED = auto()
    READING = auto()  # owns blocks for its prompt, which another engine's KV is being read into
    FINISHED = auto()


class Role(Enum):
    COLOCATED = auto()
    PREFILL = auto()
    DECODE = auto()


@dataclass(eq=False)
class Request:
    """One request on one engine."""

    index: int
    prompt: int  # tokens
    max_output: int  # tokens; all of them are generated
    content: list[int]  # token values; empty where prefix caching is off
    to_read: bool = False  # the prompt's KV is read from the prefill engine
    outside: int = 0  # leading prompt tokens that caches below the engine seem to hold
    loaded: bool = False  # what they held is there
    state: State = State.WAITING
    output: int = 0  # tokens written down
    computed: int = 0  # tokens whose KV is there, or will be once the planned steps have run
    unwritten: int = 0  # asynchronous scheduling: tokens that planned steps will sample
    in_flight: int = 0  # tokens in planned steps whose output is not booked yet
    stale: int = 0  # of these, tokens planned before the last preemption
    prefilling: bool = False  # the last step planned for it left some of its prompt to compute
    prefixes: list[int] = field(default_factory=list)  # names of its full blocks' prefixes
    blocks: list[Block] = field(default_factory=list)
    registered: int = 0  # how many of its leading blocks the prefix cache knows

    @property
    def tokens(self) -> int:
        return self.prompt + self.output


@dataclass
class Step:
    """What one planning step decided, in scheduling order."""

    tokens: dict[Request, int] = field(default_factory=dict)
    past: dict[Request, int] = field(default_factory=dict)  # tokens computed before the step
    sampling: set[Request] = field(default_factory=set)  # those who get a token from it
    decoding: set[Request] = field(default_factory=set)  # of these, those who got one from their step before, too
    preempted: list[Request] = field(default_factory=list)


class Scheduler:
    def __init__(self, settings: dict, role: Role, names: PrefixNames, on_read: Callable[[Request, int], None]) -> None:
        self.max_model_len = settings["max_model_len"]
        self.max_seqs = settings["max_num_seqs"]
        self.max_tokens = settings["max_num_batched_tokens"]
        self.is_async = settings["async_scheduling"]
        self.role = role
        self.names = names
        self.on_read = on_read  # called with a request and the blocks it reads, when the read starts
        self.on_load: Callable[[Request, int], int] = lambda r, hits: (
            0
        )  # with the blocks found: tokens there in the end
        self.pool = BlockPool(settings["num_blocks"], settings["block_size"], settings["prefix_caching"])
        self.running: list[Request] = []
        self.waiting: deque[Request] = deque()
        self.reading: deque[Request] = deque()  # waiting, but own blocks; always looked at before the others
        self.read_done: set[Request] = set()
        self.held: set[Request] = set()  # finished, but the decode engine has not read their blocks yet
        self.finished_since_plan = False
        self.first_cached: dict[int, int] = {}  # request index -> tokens found in the cache at first admission
        # A read writes into blocks behind the running step's back: on a GPU, a decode engine with two steps in flight
        # preempts nobody whom a step in flight still writes for. The CPU build, which the cases come from, never has
        # this guard on (its platform sets the configured scheduling to synchronous).
        guarded = settings.get("defer_block_frees", False)
        self.spares_in_flight = guarded and role is Role.DECODE and self.is_async

    # ---- requests come and go

    def add(self, r: Request) -> None:
        self.waiting.append(r)

    def has_work(self) -> bool:
        return bool(self.running or self.waiting or self.reading or self.held or self.finished_since_plan)

    def _release(self, r: Request) -> None:
        self.pool.give_back(r.blocks)
        r.blocks, r.registered = [], 0

    def _preempt(self, r: Request) -> None:
        self._release(r)
        r.state = State.PREEMPTED
        r.computed = 0
        r.stale = r.in_flight
        r.unwritten = 0
        r.loaded = False
        self.waiting.appendleft(r)

    # ---- planning

    def plan(self) -> Step:
        step = Step()
        budget = self._plan_running(step)
        if not step.preempted:
            self._plan_waiting(step, budget)
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

    def _plan_running(self, step: Step) -> int:
        budget = self.max_tokens
        i = 0
        while i < len(self.running) and budget > 0:
            r = self.running[i]
            i += 1
            if r.unwritten > 0 and r.computed + 2 - r.unwritten >= r.prompt + r.max_output:
                continue  # its last token is on the way
            new = min(r.tokens + r.unwritten - r.computed, budget, self.max_model_len - r.computed - 1)
            if new == 0:
                continue
            if not self._make_room(r, new, step):
                break
            step.tokens[r] = new
            budget -= new
            if not r.prefilling:
                step.decoding.add(r)
        return budget

    def _make_room(self, r: Request, new: int, step: Step) -> bool:
        """Blocks for ``new`` tokens of a running request, if need be from those admitted last."""
        while not self._allocate(r, new):
            victim = self.running[-1]
            if self.spares_in_flight and victim.in_flight > 0:
                return False
            self.running.pop()
            self._preempt(victim)
            step.preempted.append(victim)
            if victim is r:
                return False
        return True

    def _plan_waiting(self, step: Step, budget: int) -> None:
        aside: list[Request] = []
        while budget > 0 and len(self.running) < self.max_seqs:
            queue = self.reading or self.waiting
            if not queue:
                break
            r = queue[0]
            if not self._ready(r):
                aside.append(queue.popleft())
                continue
            hits, cached, external = self._find_computed(r)
            past = r.computed if r.loaded or r.computed > 0 else cached + external
            new = 0 if external else min(r.tokens - past, budget)
            # a prefix to be loaded takes the whole prompt's blocks: no two wait for what the other holds
            if not self._admit(r, hits, external, r.prompt if external else past + new):
                break
            queue.popleft()
            if external:
                self._start_read(r, len(hits))
                aside.append(r)
                continue
            if r.state is State.WAITING:
                self.first_cached.setdefault(r.index, past)
            r.state = State.RUNNING
            r.outside = 0  # asked for once; what is computed again after a preemption is not looked for below
            r.computed = past
            self.running.append(r)
            step.tokens[r] = new
            budget -= new
        self.reading.extendleft(reversed([r for r in aside if r.state is State.READING]))
        self.waiting.extendleft(reversed([r for r in aside if r.state is not State.READING]))

    def _ready(self, r: Request) -> bool:
        if r.state is State.READING:
            if r not in self.read_done:
                return False
            self.read_done.remove(r)
            self._register(r, r.computed)
            r.state = State.WAITING
            if not r.loaded:
                r.computed = r.prompt - 1  # the last prompt token is computed again, for its logits
        # Tokens sampled before a preemption must be written down before the request may go on.
        return r.stale == 0

    def _find_computed(self, r: Request) -> tuple[list[Block], int, int]:
        """Blocks found in the prefix cache, their tokens, and the tokens to read from the prefill engine."""
        if r.computed > 0 or r.loaded:
            return [], 0, 0
        hits = []
        if self.pool.prefix_caching:
            whole_blocks = (r.tokens - 1) // self.pool.block_size  # one token at least is left to compute
            hits = self.pool.longest_hit(self._prefixes(r)[:whole_blocks])
        cached = len(hits) * self.pool.block_size
        return hits, cached, (r.prompt - cached if r.to_read else max(r.outside - cached, 0))

    def _start_read(self, r: Request, hits: int) -> None:
        if r.outside > 0:
            r.outside, r.loaded = 0, True
            r.state = State.READING
            r.computed = self.on_load(r, hits)
            return
        r.to_read = False
        r.state = State.READING
        r.computed = r.prompt
        self.on_read(r, len(r.blocks) - hits)

    # ---- blocks

    def _admit(self, r: Request, hits: list[Block], external: int, slots: int) -> bool:
        """Blocks for a waiting request's first ``slots`` tokens, if its whole sequence would fit now."""
        pool = self.pool
        unused_hits = sum(block.users == 0 for block in hits)  # these count as free until they are taken

        def need(tokens: int) -> int:
            return max(0, pool.blocks_for(min(tokens, self.max_model_len)) - len(r.blocks) - len(hits)) + unused_hits

        # A read holds its blocks without getting anywhere: it must leave what a partly prefilled request still needs.
        # (This can only bite where that request could get nothing and nobody was preempted for it.)
        partly = [q for q in self.running if q.prefilling] if external else []
        reserved = sum(max(0, pool.blocks_for(min(q.tokens, self.max_model_len)) - len(q.blocks)) for q in partly)
        if need(r.tokens) > len(pool.free) or need(slots) > len(pool.free) - reserved:
            return False
        if hits:
            pool.share(hits)
            r.blocks.extend(hits)
            r.registered = len(hits)
        self._extend(r, slots)
        if not external:
            self._register(r, min(slots, r.tokens))
        return True

    def _allocate(self, r: Request, new: int) -> bool:
        """Blocks for ``new`` more tokens of a running request."""
        slots = r.computed + new
        if self.pool.blocks_for(min(slots, self.max_model_len)) - len(r.blocks) > len(self.pool.free):
            return False
        self._extend(r, slots)
        self._register(r, min(slots, r.tokens))
        return True

    def _extend(self, r: Request, slots: int) -> None:
        missing = self.pool.blocks_for(min(slots, self.max_model_len)) - len(r.blocks)
        r.blocks.extend(self.pool.take(max(0, missing)))

    def _prefixes(self, r: Request) -> list[int]:
        size = self.pool.block_size
        while (len(r.prefixes) + 1) * size <= r.tokens:
            start = len(r.prefixes) * size
            parent = r.prefixes[-1] if r.prefixes else -1
            r.prefixes.append(self.names.name(parent, tuple(r.content[start : start + size])))
        return r.prefixes

    def _register(self, r: Request, tokens: int) -> None:
        """Let the prefix cache know the request's full blocks up to ``tokens``."""
        if not self.pool.prefix_caching:
            return
        full = tokens // self.pool.block_size
        for i in range(r.registered, full):
            self.pool.register(r.blocks[i], self._prefixes(r)[i])
        r.registered = max(r.registered, full)

    # ---- a step has run

    def take_output(self, step: Step, finished: Callable[[Request], None], wrote: Callable[[Request], None]) -> None:
        """Book a step's output: ``wrote`` is called for every token written down, ``finished`` after the last one."""
        gone: list[Request] = []
        for r, new in step.tokens.items():
            r.in_flight -= new
            stale = r.stale > 0
            if stale:
                r.stale -= new
            if r not in step.sampling or r.state is State.FINISHED:
                continue
            r.output += 1
            if self.pool.prefix_caching:
                r.content.append(OUTPUT_TOKEN)
            wrote(r)
            ends = r.output >= r.max_output or r.tokens >= self.max_model_len
            if self.is_async:
                if not stale:
                    r.unwritten -= 1
                if r.state is State.RUNNING:
                    self._register(r, r.computed - r.unwritten)
            if ends:
                self._finish(r)
                gone.append(r)
                finished(r)
        if gone:
            self.running = [r for r in self.running if r.state is not State.FINISHED]
            self.waiting = deque(r for r in self.waiting if r.state is not State.FINISHED)

    def _finish(self, r: Request) -> None:
        r.state = State.FINISHED
        self.finished_since_plan = True
        if self.role is Role.PREFILL:
            self.held.add(r)
        else:
            self._release(r)

    def report_transfers(self, read: Iterable[Request], sent: Iterable[Request]) -> None:
        self.read_done.update(read)
        for r in sent:
            self.held.remove(r)
            self._release(r)
