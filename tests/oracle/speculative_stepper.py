"""Speculative decoding, one planning step at a time, on plain objects: one colocated engine without a prefix cache.

``policy`` is "vllm" (chunked prompts, blocks as needed, the newest preempted) or "trt" (whole prompts, blocks for all
that is allowed promised at admission).
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Any, NamedTuple


class Part(NamedTuple):
    """What a batch does for one request."""

    request: Live
    new: int
    past: int
    made: int
    verifies: bool


@dataclass(eq=False)
class Live:
    index: int
    prompt: int
    target: int
    limit: int
    made: int = 0  # tokens made by batches planned so far
    computed: int = 0  # of prompt and own tokens, while these are computed in chunks
    blocks: int = 0
    decoding: bool = False
    preemptions: int = 0


class Engine:
    def __init__(self, s: dict[str, Any], keeps: Any) -> None:
        """``keeps(row, token)``: whether that token's draft of a request is right, at each position of a step."""
        self.s, self.keeps = s, keeps
        self.free = s["blocks"]
        self.running: list[Live] = []
        self.waiting: deque[Live] = deque()

    def blocks_for(self, tokens: int) -> int:
        return -(-tokens // self.s["block_size"])

    def take(self, r: Live, tokens: int) -> None:
        more = max(self.blocks_for(tokens) - r.blocks, 0)
        self.free -= more
        r.blocks += more

    def promised(self, r: Live) -> int:
        return min(self.blocks_for(r.prompt + min(r.limit, self.s["longest"] - r.prompt)), self.s["blocks"])

    def room(self, r: Live, tokens: int) -> bool:
        while self.blocks_for(tokens) - r.blocks > self.free:
            victim = next(v for v in reversed(self.running) if v.made < v.target)
            self.running.remove(victim)
            self.free += victim.blocks
            victim.blocks = victim.computed = 0
            victim.decoding = False
            victim.preemptions += 1
            self.waiting.appendleft(victim)
            self.preempted = True
            if victim is r:
                return False
        self.take(r, tokens)
        return True

    def plan(self) -> list[Part]:
        batch: list[Part] = []
        budget, self.preempted = self.s["tokens"], False
        i = 0
        while i < len(self.running) and budget > 0:
            r = self.running[i]
            i += 1
            if not r.decoding or r.made == r.target:
                continue
            past, new = r.prompt + r.made - 1, min(1 + self.s["drafts"], budget)
            most = self.s["blocks"] if self.s["policy"] == "vllm" else self.promised(r)
            if not self.room(r, max(past + 1, min(past + new, most * self.s["block_size"], self.s["longest"]))):
                break
            made = 1
            while made < new and self.keeps(r.index, r.made + made, made - 1):
                made += 1
            made = min(made, r.target - r.made)
            r.made += made
            batch.append(Part(r, new, past, made, True))
            budget -= new
        for r in [r for r in self.running if not r.decoding]:
            if budget > 0 and r in self.running:
                new = min(r.prompt + r.made - r.computed, budget)
                if not self.room(r, r.computed + new):
                    break
                budget -= self.compute(r, new, batch)
        while not self.preempted and self.waiting and budget > 0 and len(self.running) < self.s["seqs"]:
            r = self.waiting[0]
            known = r.prompt + r.made
            new = min(known, budget)
            if self.s["policy"] == "vllm":
                if self.blocks_for(known) > self.free:
                    break
            elif new < known or self.promised(r) > self.free - sum(self.promised(q) - q.blocks for q in self.running):
                break
            self.waiting.popleft()
            self.running.append(r)
            self.take(r, new if self.s["policy"] == "vllm" else known)
            budget -= self.compute(r, new, batch)
        return batch

    def compute(self, r: Live, new: int, batch: list[Part]) -> int:
        past = r.computed
        r.computed += new
        r.decoding = r.computed == r.prompt + r.made
        r.made += r.decoding
        batch.append(Part(r, new, past, int(r.decoding), False))
        return new


def run(s: dict[str, Any], requests: list[dict[str, Any]], keeps: Any) -> tuple[list[list[float]], list[int]]:
    """Token times of each request, and how often each was preempted. ``s["share"]``: a draft's share of a decode step."""
    engine = Engine(s, keeps)
    times: list[list[float]] = [[] for _ in requests]
    live = [Live(i, r["input_length"], r["output_length"], r["max_new_tokens"]) for i, r in enumerate(requests)]
    todo = deque(sorted(range(len(requests)), key=lambda i: (requests[i]["arrival_s"], i)))
    flying: deque[tuple[float, list[Part]]] = deque()
    now = gpu_free = 0.0
    while todo or flying:
        arrival = requests[todo[0]]["arrival_s"] if todo else float("inf")
        now = max(now, min(arrival, flying[0][0] if flying else float("inf")))
        ended = bool(flying) and flying[0][0] <= now + 1e-9
        if ended:
            end, batch = flying.popleft()
            for r, _, _, made, _ in batch:
                times[r.index] += [end] * made
                if len(times[r.index]) == r.target:
                    engine.running.remove(r)
                    engine.free += r.blocks
        while todo and requests[todo[0]]["arrival_s"] <= now + 1e-9:
            engine.waiting.append(live[todo.popleft()])
        planning = ended or not flying  # an engine at work plans when a batch ends, an idle one at once
        while planning and len(flying) < s["depth"]:
            batch = engine.plan()
            if not batch:
                if flying or not engine.preempted:
                    break
                continue
            gpu_free = max(now, gpu_free) + seconds(s, batch)
            flying.append((gpu_free, batch))
    return times, [r.preemptions for r in live]


def seconds(s: dict[str, Any], batch: list[Part]) -> float:
    """Affine in all tokens and the tokens before them; drafting is so many shares of a step with one token each."""

    def step(work: list[tuple[int, int]]) -> float:
        return (
            s["base_s"]
            + s["per_token_s"] * sum(n for n, _ in work)
            + s["per_context_token_s"] * sum(p for _, p in work)
        )

    total = step([(part.new, part.past) for part in batch])
    if any(part.verifies and part.new > 1 for part in batch):
        total += s["share"] * s["drafts"] * step([(1, part.past) for part in batch if part.verifies or part.new == 1])
    return total
