"""A prefill engine whose prompts are bound to data-parallel ranks, against a stepper in plain Python."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from simulator.cost.table import affine_cost
from simulator.engine.engine import Engine, EngineSpec
from simulator.engine.sglang.ranks import BY_ROOM, IN_TURN, bound_rank
from simulator.engine.state import PREFILLED, DeskColumns
from simulator.kv.content import make_content

BASE_S, TOKEN_S, PAGE = 0.5, 0.01, 4
SETTINGS = {
    "schedule_policy": "fcfs",
    "schedule_conservativeness": 1.0,
    "mixed_chunk": False,
    "ignore_eos": True,
    "disable_radix_cache": True,
    "page_size": PAGE,
    "overlap": False,
    "context_length": 4000,
}
ENDLESS = 1e6


class Ranks:
    """One step at a time. A request is (arrival, prompt tokens); its row is its place."""

    def __init__(self, case, requests, ranks):
        self.requests, self.ranks = requests, ranks
        self.chunk, self.inputs = case["chunked_prefill_size"] // ranks, case["max_prefill_tokens"] // ranks
        self.places = max(case["max_running_requests"] // ranks, 1)
        self.binding = IN_TURN if case["load_balance_method"] == "round_robin" else BY_ROOM
        self.post_s = case["post_s"]
        self.left = [tokens for _, tokens in requests]
        self.end_s = [0.0] * len(requests)

    def rank(self, row):
        return int(bound_rank(row, self.ranks, self.binding))

    def plan(self, queues):
        """(row, tokens) of the step: each rank fills its own part, a prompt that it has begun first."""
        step = []
        for queue in queues:
            chunk, inputs = self.chunk, self.inputs
            for row in queue[: self.places]:
                if chunk <= 0 or inputs <= 0:
                    break
                tokens = min(self.left[row], chunk)
                step.append((row, tokens))
                chunk -= -(-tokens // PAGE) * PAGE
                inputs -= -(-tokens // PAGE) * PAGE
        return step

    def run(self):
        now, coming = 0.0, list(range(len(self.requests)))
        queues = [[] for _ in range(self.ranks)]
        while coming or any(queues):
            while coming and self.requests[coming[0]][0] <= now + 1e-9:
                row = coming.pop(0)
                queues[self.rank(row)].append(row)
            step = self.plan(queues)
            if not step:
                now = self.requests[coming[0]][0]
                continue
            now += BASE_S + TOKEN_S * sum(tokens for _, tokens in step)
            posted = [0.0] * self.ranks
            for row, tokens in step:
                self.left[row] -= tokens
                if self.left[row] == 0:
                    self.end_s[row] = now
                    queues[self.rank(row)].remove(row)
                    posted[self.rank(row)] += (
                        self.post_s[0] + self.post_s[1] * -(-self.requests[row][1] // PAGE) + self.post_s[2]
                    )
            now += max(posted)
        return self.end_s


def run_engine(case, requests, ranks, leave=()):
    """``leave``: (moment, row) of clients who go, in order, after all requests have come."""
    prompts = np.array([tokens for _, tokens in requests])
    rows, empty = np.arange(len(requests)), np.zeros(0, np.int64)
    content = make_content(prompts, empty, np.zeros(len(requests) + 1, np.int64), 16, rows, rows + 1000)
    desk = DeskColumns(len(requests))
    cost = replace(affine_cost(BASE_S, TOKEN_S), ranks=ranks)
    given = {name: value for name, value in case.items() if name != "post_s"}
    extra = {"send_post_s": case["post_s"]}
    engine = Engine(EngineSpec("sglang", "prefill", SETTINGS | given, 4000, cost, extra=extra), content, desk.record)

    def live(until):
        while engine.wake_s <= until:
            now = engine.wake_s
            news = engine.advance(now)
            for kind, slot, at in zip(*(news.kind, news.slot, news.at_s), strict=True) if news is not None else ():
                assert kind == PREFILLED
                engine.transfer_ended(int(slot), max(now, float(at)))

    for row, (at, tokens) in enumerate(requests):
        live(at)
        engine.advance(at)
        engine.submit(row, tokens, 1, at, hand_over=True)
    for at, row in leave:
        live(at)
        engine.advance(at)
        assert engine.withdraw(row, at)
    live(ENDLESS)
    return desk.prefill_end_s, engine


@st.composite
def cases(draw):
    case = {
        "chunked_prefill_size": draw(st.sampled_from([32, 80, 400, 1600])),
        "max_prefill_tokens": draw(st.sampled_from([40, 400, 4000])),
        "max_running_requests": draw(st.sampled_from([1, 8, 64])),
        "load_balance_method": draw(st.sampled_from(["auto", "round_robin"])),
        "post_s": draw(st.sampled_from([(0.0, 0.0, 0.0), (0.3, 0.0, 0.0), (0.1, 0.01, 0.04)])),
    }
    requests, now = [], 0.0
    for _ in range(draw(st.integers(1, 30))):
        now += draw(st.sampled_from([0.0, 0.0, 0.37, 1.71]))
        requests.append((now, draw(st.integers(2, 120))))
    return case, requests, draw(st.sampled_from([2, 4]))


@settings(max_examples=150, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(cases())
def test_ranks_plan_as_the_stepper_does(drawn):
    case, requests, ranks = drawn
    found, engine = run_engine(case, requests, ranks)
    assert found == pytest.approx(Ranks(case, requests, ranks).run(), abs=1e-9)
    assert engine.load().free_blocks == 4000 and engine.load().running == 0


def test_rooms_are_spread_evenly_and_turns_exactly():
    rooms = np.bincount([bound_rank(row, 8, BY_ROOM) for row in range(8000)], minlength=8)
    assert rooms.min() > 900 and rooms.max() < 1100
    first = np.bincount([bound_rank(row, 8, BY_ROOM) for row in range(8)], minlength=8)
    assert first.max() > 1  # unlike turns, chance leaves ranks without a prompt
    assert [bound_rank(row, 8, IN_TURN) for row in range(9)] == [*range(8), 0]


def test_a_client_who_goes_while_its_prompt_is_cut_leaves_its_rank_to_the_others():
    case = {
        "chunked_prefill_size": 80,
        "max_prefill_tokens": 400,
        "max_running_requests": 8,
        "load_balance_method": "round_robin",
        "post_s": (0.0, 0.0, 0.0),
    }
    requests = [(0.0, 120), (0.0, 120), (0.0, 40), (0.0, 40)]  # on two ranks, 40 tokens of each a step
    stay, _ = run_engine(case, requests, 2)
    assert stay == pytest.approx([3.9, 3.9, 5.2, 5.2])
    gone, engine = run_engine(case, requests, 2, leave=[(0.1, 0)])
    assert np.isnan(gone[0]) and gone[2] < stay[2]
    assert engine.load().free_blocks == 4000 and engine.load().running == 0
