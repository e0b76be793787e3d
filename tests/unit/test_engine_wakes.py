"""When an engine wants to be looked at again: where something is to be told, and in stretches of decode not before.

Steps take one second. Wakes are told in whole seconds: planning that is due two nanoseconds later counts as then.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from engine_play import BASE, Play, Seen
from test_engine_corners import content_of
from test_engine_sums import EVERY, FIRST_STAGE, OVERLAP, drawn, named

from simulator.cost.table import StepCostTable, affine_cost
from simulator.engine.engine import Engine, EngineSpec, Survey
from simulator.engine.state import DeskColumns

NEVER = 1e300
Arrivals = list[tuple[float, int, int]]


def one(policy: str, arrivals: Arrivals, blocks: int = 100, **given: Any) -> tuple[Engine, DeskColumns]:
    role, told, macro = given.pop("role", "colocated"), given.pop("told", True), given.pop("macro", True)
    desk, makes = DeskColumns(len(arrivals)), np.array([output for *_, output in arrivals])
    if role == "decode":
        desk.first_token_s[:] = 0.0
    spec = EngineSpec(
        policy,
        role,
        BASE[policy] | given.pop("settings", {}),
        blocks,
        given.pop("cost", affine_cost(1.0)),
        tell_finished=told,
        macro=macro,
        extra={"max_output_tokens": makes} | given,
    )
    return Engine(spec, content_of([prompt for _, prompt, _ in arrivals], [[] for _ in arrivals]), desk.record), desk


def wakes(policy: str, arrivals: Arrivals, blocks: int = 100, **given: Any) -> list[float]:
    """Moments at which the engine wants to be looked at after all have come, reads taking no time."""
    made, desk = one(policy, arrivals, blocks, **given)
    found: list[float] = []
    todo = [(at, row) for row, (at, *_) in enumerate(arrivals)]
    while todo or made.wake_s < NEVER:
        now = min(made.wake_s, todo[0][0] if todo else NEVER)
        if now == made.wake_s and (not found or round(now, 6) != found[-1]):
            found.append(round(now, 6))
        news = made.advance(now)
        for kind, slot in zip(news.kind, news.slot, strict=True) if news else ():
            if kind == 3:
                made.transfer_ended(int(slot), now)
        while todo and todo[0][0] <= now:
            at, row = todo.pop(0)
            made.submit(row, arrivals[row][1], arrivals[row][2], at, remote=given.get("role") == "decode")
    made.advance(1e6)
    assert np.isfinite(desk.last_token_s).all()
    return found


SIX = [(0.0, 10, 6)]


@pytest.mark.parametrize("policy", ["vllm-v1", "vllm-v0", "tensorrt-llm", "splitwise", "sglang"])
def test_one_request_is_looked_at_when_it_begins_and_ends(policy: str) -> None:
    """Prompt until 1; decodes run ahead to 5, where the last step is planned, and end at 6. SGLang counts the gap of
    a request's first decode step for itself."""
    assert wakes(policy, SIX) == ([0.0, 1.0, 2.0, 5.0, 6.0] if policy == "sglang" else [0.0, 1.0, 5.0, 6.0])
    assert wakes(policy, SIX, macro=False) == [0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0]
    assert wakes(policy, SIX, told=False) == []
    assert wakes(policy, [(0.5, 10, 6), (2.75, 10, 9)])[-2:] == [11.5, 12.5]


@pytest.mark.parametrize("policy", ["vllm-v1", "tensorrt-llm", "sglang"])
def test_planned_ahead_the_last_step_is_planned_a_step_sooner(policy: str) -> None:
    ahead = {"async_scheduling": True, "overlap_scheduler": True, "overlap": True}
    found = wakes(policy, SIX, settings=ahead)
    assert found == ([0.0, 1.0, 2.0, 4.0, 5.0, 6.0] if policy == "sglang" else [0.0, 1.0, 4.0, 5.0, 6.0])


def test_where_blocks_run_short_decodes_stop_before_it() -> None:
    """Ten and ten tokens in three blocks: at the sixteenth both want a second block, one is there; planned at 7. The
    second request goes, and two blocks for it are not there before the first has ended."""
    arrivals = [(0.0, 10, 20), (0.0, 10, 20)]
    least = {"capacity_scheduler_policy": "MAX_UTILIZATION"}
    for policy, settings in (("vllm-v1", {}), ("vllm-v0", {}), ("splitwise", {}), ("tensorrt-llm", least)):
        assert wakes(policy, arrivals, blocks=3, settings=settings)[:5] == [0.0, 1.0, 7.0, 19.0, 20.0], policy
        assert wakes(policy, arrivals, blocks=4, settings=settings) == [0.0, 1.0, 19.0, 20.0], policy
    assert wakes("tensorrt-llm", arrivals, blocks=4) == [0.0, 1.0, 19.0, 20.0]  # all is promised


def test_sglang_stops_where_a_page_each_is_not_free() -> None:
    """Prompts a step apart, as room is kept for what the first may make. Both take a second page with the step planned
    at 8; with one page left behind it each step is planned for itself."""
    arrivals = [(0.0, 10, 20), (0.0, 10, 20)]
    tight = {"schedule_conservativeness": 0.01, "page_size": 16, "ignore_eos": False}
    assert wakes("sglang", arrivals, blocks=6, settings=tight) == [0.0, 1.0, 2.0, 3.0, 20.0, 21.0]
    assert wakes("sglang", arrivals, blocks=5, settings=tight) == [0.0, 1.0, 2.0, 3.0, *range(9, 22)]


FULL = {"max_num_seqs": 2, "max_batch_size": 2, "max_running_requests": 2}


@pytest.mark.parametrize("policy", ["vllm-v1", "vllm-v0", "tensorrt-llm", "splitwise", "sglang"])
def test_with_all_seats_taken_nobody_waiting_is_looked_at(policy: str) -> None:
    arrivals = [(0.0, 10, 9), (0.0, 10, 9), (0.0, 10, 3)]
    assert wakes(policy, arrivals, settings=FULL)[:4] == (
        [0.0, 1.0, 8.0, 9.0] if policy != "sglang" else [0.0, 1.0, 2.0, 8.0]
    )


WAITING: list[tuple[str, dict[str, Any], int, int, bool]] = [
    # policy, settings, blocks, prompt of the one that comes at 1.5, whether it has to wait for the other's end
    ("vllm-v1", {}, 4, 64, True),  # blocks for four are not there beside one
    ("vllm-v1", {}, 5, 64, False),
    ("vllm-v0", {}, 4, 64, True),
    ("vllm-v0", {}, 5, 64, False),
    ("vllm-v0", {}, 100, 1584, True),  # 99 blocks are there, but the hundredth part of all is left alone
    ("vllm-v0", {}, 100, 1568, False),
    ("splitwise", {}, 4, 60, True),
    ("splitwise", {}, 5, 60, False),
    ("tensorrt-llm", {}, 5, 60, True),  # two are promised to the first, four to the second
    ("tensorrt-llm", {}, 6, 60, False),
    ("tensorrt-llm", {}, 100, 64, True),  # whole prompts: beside a token of the first only 63 fit a step
    ("tensorrt-llm", {}, 100, 63, False),
    ("tensorrt-llm", {"enable_chunked_prefill": True}, 100, 64, False),
    ("tensorrt-llm", {"capacity_scheduler_policy": "MAX_UTILIZATION"}, 5, 60, False),
    ("tensorrt-llm", {"capacity_scheduler_policy": "MAX_UTILIZATION"}, 4, 60, True),
    ("tensorrt-llm", {"capacity_scheduler_policy": "STATIC_BATCH"}, 100, 8, True),
    ("tensorrt-llm", {"max_batch_size": 1}, 100, 8, True),
]


@pytest.mark.parametrize(("policy", "settings", "blocks", "prompt", "waits"), WAITING)
def test_one_that_has_to_wait_is_not_looked_at_every_step(
    policy: str, settings: dict[str, Any], blocks: int, prompt: int, waits: bool
) -> None:
    """The first makes eleven tokens until 11. The second comes at 1.5: it begins with the step planned at 2, or at 11."""
    if policy == "vllm-v0":
        settings = settings | {"max_num_batched_tokens": 1600, "max_model_len": 4000}
    arrivals = [(0.0, 8, 11), (1.5, prompt, 2)]
    made, desk = one(policy, arrivals, blocks, settings=settings)
    made.submit(0, 8, 11, 0.0)
    made.advance(1.5)
    made.submit(1, prompt, 2, 1.5)
    made.advance(2.5)
    if waits:
        assert desk.prefill_start_s.tolist() == pytest.approx([0.0, np.nan], nan_ok=True)
        assert made.wake_s == 10.0
    made.advance(100.0)
    assert desk.prefill_start_s.tolist() == [0.0, 11.0 if waits else 2.0]


def test_a_decode_engine_is_looked_at_while_kv_is_to_be_asked_for() -> None:
    """Told of nothing else, it needs no look once all is asked for."""
    made, _ = one("vllm-v1", [(0.0, 10, 30), (0.0, 60, 30)], 5, role="decode", told=False)
    made.submit(0, 10, 30, 0.0, remote=True)
    assert made.wake_s == 2e-9
    news = made.advance(made.wake_s)
    assert news is not None and made.wake_s == NEVER
    made.transfer_ended(int(news.slot[0]), 1.0)
    assert made.wake_s == NEVER
    made.advance(2.5)
    made.submit(1, 60, 30, 2.5, remote=True)  # four blocks, and the first will need one more than is left
    assert made.wake_s == 3.0
    news = made.advance(3.0 + 1e-6)
    assert news is not None and (news.row[0], news.at_s[0]) == (1, 3.0)


def test_an_engine_with_nobody_in_it_needs_no_look() -> None:
    made, _ = one("vllm-v1", [(0.0, 10, 1)], role="prefill")
    made.submit(0, 10, 1, 0.0)
    news = made.advance(5.0)
    assert news is not None and made.wake_s == NEVER
    made.transfer_ended(int(news.slot[0]), 6.0)  # of an ended transfer it hears whenever it is looked at
    assert made.wake_s == NEVER
    assert made.load().free_blocks == 99
    made.advance(7.0)
    assert made.load().free_blocks == 100


class Woken(Seen):
    """Keeps every moment at which the engine wanted to be looked at, and when it was asked."""

    def hear(self, now: float) -> None:
        super().hear(now)
        if not hasattr(self, "wanted"):
            self.wanted: list[tuple[float, float]] = []
        self.wanted.append((now, self.engine.wake_s))


LAUNCHED = StepCostTable(
    affine=False,
    decode_s=0.011 + 0.0003 * np.arange(80.0),
    mixed_s=0.017 + 0.0005 * np.arange(80.0),
    decode_launch_s=0.004 + 0.001 * np.arange(80.0),
    context_knots=np.array([0.0, 1000.0]),
    decode_attention_s=np.outer(np.arange(80.0), [0.0, 0.013]),
)


#: At more than its power limit after some steps in a row.
LIMITED = replace(
    LAUNCHED,
    power_window_s=0.03,
    power_idle=0.1,
    power_exponent=0.6,
    decode_energy_s=0.018 + 0.0005 * np.arange(80.0),
    mixed_energy_s=0.03 + 0.0008 * np.arange(80.0),
    context_energy_s=1e-5,
)


@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("cost", [None, LAUNCHED, LIMITED], ids=["affine", "launched", "limited"])
@pytest.mark.parametrize("play", EVERY + FIRST_STAGE, ids=named)
def test_wakes_are_ends_of_steps(play: Play, cost: StepCostTable | None, seed: int) -> None:
    """Or two nanoseconds after a moment at which something came or ended; and nothing is told late."""
    case = replace(drawn(play, seed), told=True, probes=())
    case = case if cost is None else replace(case, cost=cost)
    stepped = Seen(replace(case, macro=False, logging=True))
    moments = {end for _, end, _ in stepped.batches()}
    seen = Woken(case)
    came = np.array([*moments, *(at for at, *_ in case.arrivals), *(at for at, _ in seen.wanted)])
    for (_, wake), (now, _) in pairwise(seen.wanted):
        if now == wake:
            assert wake in moments or np.abs(came + 2e-9 - wake).min() < 1e-15
    np.testing.assert_array_equal(seen.desk.last_token_s, stepped.desk.last_token_s)
    for _, _, _, at in seen.news:
        assert any(at <= now <= at + 2.1e-9 for now, _ in seen.wanted)


def test_a_stretch_of_decode_is_one_wake() -> None:
    """Ahead or not, with launches or without: from the second token of the youngest to the last of the first to end."""
    for cost in (affine_cost(1.0), replace(LAUNCHED, decode_launch_s=np.full(80, 2.0), decode_s=np.ones(80))):
        for settings in ({}, OVERLAP):
            found = wakes("vllm-v1", [(0.0, 10, 40), (0.0, 10, 30)], cost=cost, settings=settings)
            assert len(found) <= 9


@pytest.mark.parametrize("policy", ["vllm-v1", "vllm-v0", "tensorrt-llm", "splitwise", "sglang"])
def test_what_comes_within_a_nanosecond_is_one_instant(policy: str) -> None:
    """A step of a nanosecond from 0 on has ended where somebody looks at 0. What is due at 0 is planned only where
    somebody looks later than a nanosecond."""
    for looked_at, made_then in ((-1e-10, {0: 0}), (0.0, {0: 1})):
        made, _ = one(policy, [(-1.0, 10, 3)], cost=affine_cost(1e-9))
        made.submit(0, 10, 3, -1.0)
        made.advance(-0.5)
        made.advance(looked_at)
        assert made.progress() == made_then
    for looked_at, started in ((1e-9, False), (1.1e-9, True)):
        made, desk = one(policy, [(0.0, 10, 3)])
        made.submit(0, 10, 3, 0.0)
        made.advance(looked_at)
        assert np.isfinite(desk.prefill_start_s[0]) == started


def test_a_survey_brings_all_engines_to_a_moment() -> None:
    """What a router reads of each is what the engine itself says; and when it wants to be looked at."""
    engines = [
        one("vllm-v1", [(0.0, 30, 3)] * 4, 10 + i, settings={"max_num_seqs": 1}, role="mixed")[0] for i in range(3)
    ]
    for i, engine in enumerate(engines):
        for row in range(i + 1):
            engine.submit(row, 30, 3, 0.0)
        engine.submit(3, 20 + i, 3, 0.0, remote=True)
    survey = Survey(engines)
    for moment, found in ((0.5, []), (3.5, [0, 1, 2]), (7.5, [1, 2]), (90.0, [2])):
        assert survey.look(moment) == found
        assert survey.gauges.tolist() == [[float(value) for value in engine.load()] for engine in engines]
        assert [engine.seen_s for engine in engines] == [moment] * 3
        wanted = [engine.wake_s for engine in engines]
        for engine in engines:
            engine.advance(moment)
        assert wanted == [engine.wake_s for engine in engines]
    assert {tuple(gauge[:5]) for gauge in survey.gauges.tolist()} == {
        (0.0, 0.0, 1.0, 8.0 + i, 10.0 + i) for i in range(3)
    }
