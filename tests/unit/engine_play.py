"""Plays arrivals through one engine, reads included, and keeps what can be seen of it on the way."""

from __future__ import annotations

import dataclasses
from itertools import pairwise
from typing import Any

import numpy as np
from test_engine_corners import SGLANG, VLLM, content_of
from test_engine_policies import DISTSERVE, SPLITWISE, TRT

from simulator.cost.table import affine_cost
from simulator.engine.engine import Engine, EngineSpec
from simulator.engine.state import LOAD, PREFILLED, READ, DeskColumns

HASHED = 32
UNEVEN = affine_cost(0.013, 0.0007, 0.000003, 0.0011, 0.0039)
V0 = {"max_num_seqs": 8, "max_num_batched_tokens": 64, "block_size": 16, "max_model_len": 1000, "prefix_caching": False}
BASE = {
    "vllm-v1": VLLM | {"prefix_caching": False, "max_num_batched_tokens": 48, "max_num_seqs": 6},
    "vllm-v0": V0,
    "tensorrt-llm": TRT,
    "splitwise": SPLITWISE,
    "distserve": DISTSERVE,
    "sglang": SGLANG | {"chunked_prefill_size": 48, "max_prefill_tokens": 64, "max_running_requests": 6},
}
Arrival = tuple[float, int, int]


@dataclasses.dataclass(frozen=True)
class Play:
    """One engine and what comes to it: (moment, prompt tokens, output tokens); reads take ``read_s``."""

    policy: str
    arrivals: tuple[Arrival, ...]
    settings: dict[str, Any] = dataclasses.field(default_factory=dict)
    role: str = "colocated"
    blocks: int = 400
    read_s: float = 0.07
    macro: bool = True
    logging: bool = False
    told: bool = False
    shared: bool = False
    probes: tuple[float, ...] = ()
    withdrawn: tuple[tuple[float, int], ...] = ()
    abandoned: dict[int, bool] = dataclasses.field(default_factory=dict)  # row: whether its prompt is computed instead
    outside: bool = False  # two blocks of each prompt seem to be in a cache below, and every second time one is
    extra: dict[str, Any] = dataclasses.field(default_factory=dict)
    cost: Any = UNEVEN


class Seen:
    """The engine after all is done, its desk, and at each probe: (moment, load, progress, rows withdrawn so far)."""

    def __init__(self, play: Play) -> None:
        self.play = play
        prompts = [prompt for _, prompt, _ in play.arrivals]
        ids = [
            [(row % 2 if play.shared else row) * 1000 + i for i in range(-(-p // HASHED))]
            for row, p in enumerate(prompts)
        ]
        self.desk = DeskColumns(len(prompts))
        makes = [1 if play.role == "prefill" else output for *_, output in play.arrivals]
        self.makes = np.array(makes)
        if play.role == "decode":
            self.desk.first_token_s[:] = [at for at, *_ in play.arrivals]
            if play.policy in ("vllm-v1", "tensorrt-llm", "sglang"):
                self.desk.first_token_s[:] = np.nan
        spec = EngineSpec(
            play.policy,
            play.role,
            BASE[play.policy] | play.settings,
            play.blocks,
            play.cost,
            tell_finished=play.told,
            logging=play.logging,
            macro=play.macro,
            extra={"max_output_tokens": self.makes} | play.extra,
        )
        self.content = content_of(prompts, ids)
        self.engine = Engine(spec, self.content, self.desk.record)
        self.news: list[tuple[int, int, int, float]] = []
        self.probed: list[tuple[float, Any, dict[int, int], set[int]]] = []
        self.gone: set[int] = set()
        self.ends: list[tuple[float, int, int]] = []
        self.live()

    def hear(self, now: float) -> None:
        news = self.engine.advance(now)
        if news is None:
            return
        for kind, row, slot, value, at in zip(news.kind, news.row, news.slot, news.value, news.at_s, strict=True):
            self.news.append((int(kind), int(row), int(value), float(at)))
            if kind == LOAD:
                self.engine.will_hold(int(slot), 16 * max(int(value), int(row) % 2 + 1))
            if kind == READ and row in self.play.abandoned:
                self.engine.abandon(int(slot), self.play.abandoned[int(row)], now)
            elif kind in (READ, LOAD, PREFILLED):
                self.ends.append((max(float(at) + self.play.read_s, now), int(slot), int(row)))

    def live(self) -> None:
        """Go from one thing that happens to the next."""
        play = self.play
        agenda = [(at, 1, row) for row, (at, *_) in enumerate(play.arrivals)]
        agenda += [(at, 2, 0) for at in play.probes] + [(at, 3, row) for at, row in play.withdrawn]
        agenda.sort()
        for _ in range(100_000):
            now = min([self.engine.wake_s, *(at for at, *_ in agenda[:1]), *(at for at, *_ in self.ends)])
            if now >= 1e300:
                now = 1e5
            self.hear(now)
            for at, slot, row in [one for one in self.ends if one[0] <= now]:
                self.ends.remove((at, slot, row))
                self.engine.transfer_ended(slot, now)
            while agenda and agenda[0][0] <= now:
                self.happen(now, *agenda.pop(0)[1:])
            if now == 1e5 and not self.ends:
                return
        raise AssertionError("no end")

    def happen(self, now: float, what: int, row: int) -> None:
        if what == 1:
            remote, prompt = self.play.role == "decode", self.play.arrivals[row][1]
            below = 32 if self.play.outside and prompt > 32 else 0
            self.engine.submit(row, prompt, int(self.makes[row]), now, remote=remote, outside=below)
        elif what == 2:
            self.probed.append((now, self.engine.load(), self.engine.progress(), set(self.gone)))
        elif self.engine.withdraw(row, now):
            self.gone.add(row)
            self.ends = [one for one in self.ends if one[2] != row]  # nobody waits for its read any more

    def batches(self) -> list[tuple[float, float, list[tuple[int, int]]]]:
        """Start, end and entries (row, tokens) of every step."""
        starts, ends, first, rows, tokens = self.engine.step_log()
        entries = list(zip(rows.tolist(), tokens.tolist(), strict=True))
        parts = [entries[a:b] for a, b in pairwise([*first.tolist(), len(entries)])]
        return list(zip(starts.tolist(), ends.tolist(), parts, strict=True))

    def token_times(self) -> list[list[float]]:
        """When each request's tokens were made, told from the steps alone: nothing is cached, and what is preempted
        is computed again."""
        count = len(self.makes)
        times: list[list[float]] = [[] for _ in range(count)]
        left = [prompt for _, prompt, _ in self.play.arrivals]
        for _, end, entries in self.batches():
            for row, tokens in entries:
                if tokens < 0:
                    left[row] = self.play.arrivals[row][1] + len(times[row])
                    continue
                left[row] -= tokens if left[row] > 0 else 0
                if left[row] == 0 and len(times[row]) < self.makes[row]:
                    times[row].append(end)
        return times
