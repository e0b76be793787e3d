"""SGLang's prefills at their borders: the budgets, who is taken in, and the order of those that wait."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from engine_books import look, put
from engine_play import BASE
from test_engine_corners import content_of

from simulator.cost.table import affine_cost
from simulator.engine.engine import Engine, EngineSpec
from simulator.engine.sglang import admission, state
from simulator.engine.state import DeskColumns

WAITING, RUNNING, RETRACTED = state.WAITING, state.RUNNING, state.RETRACTED
Request = tuple[int, int]  # prompt, limit
CACHE = {"disable_radix_cache": False}


def sglang(
    running: list[Request] = (), waiting: list[Request] = (), *, pool: int = 1000, free: int | None = None, **given: Any
) -> Any:
    """An engine of one-token pages: requests that run (as long computed as their prompts) and wait."""
    role = given.pop("role", "colocated")
    settings = {"page_size": 1, "disable_radix_cache": True, "ignore_eos": False, "chunked_prefill_size": -1}
    settings = BASE["sglang"] | settings | {"max_prefill_tokens": 500, "max_running_requests": 10} | given
    requests = [*running, *waiting]
    spec = EngineSpec(
        "sglang",
        role,
        settings,
        pool // settings["page_size"],
        affine_cost(1.0),
        extra={"max_output_tokens": np.array([limit for _, limit in requests], np.int64)},
    )
    rows = len(requests)
    e = Engine(spec, content_of([prompt for prompt, _ in requests], [[]] * rows), DeskColumns(rows).record).state
    for row, (prompt, limit) in enumerate(requests):
        s = state.new_slot(e, row, prompt, limit)
        look(e, "limit")[s] = limit
        if row < len(running):
            look(e, "status")[s], look(e, "running")[row], look(e, "started")[s] = RUNNING, s, 1
            look(e, "base")[s], look(e, "outputs")[s], look(e, "holds")[s] = prompt, 1, 1
        else:
            state.wait_last(e, s)
    put(e, running_count=len(running), base_sum=sum(prompt for prompt, _ in running))
    put(e, free=pool - sum(p for p, _ in running) if free is None else free, free_rows=10 - len(running))
    look(e, "phase_count")[0] = len(running)
    return e


def numbers(e: Any, *names: str) -> list[float]:
    return [look(e, name) for name in names]


BUDGET = ("input_left", "chunk_left", "current_offset", "total_offset", "admitted_count", "new_chunked", "lives_count")


def test_budgets_of_a_planning() -> None:
    """Room for what two running requests may yet make: a share of it, or all where lengths are known."""
    two = [(10, 21), (10, 6000)]
    e = sglang(two, chunked_prefill_size=64)
    put(e, ratio=0.5)
    admission.open_budget(e)
    assert numbers(e, *BUDGET) == [500, 64, 0, (20 + 4096) / 2, 0, -1, -1]
    assert admission.total_left(e) == 980 - 2058
    put(e, mixed=True)
    admission.open_budget(e)
    assert numbers(e, *BUDGET) == [498, 62, 2, 2 + 2058, 0, -1, -1]
    put(e, reserve_known=True)
    admission.open_budget(e)
    assert look(e, "total_offset") == 2 + 20 + 4096
    put(e, decode_done=3)  # three steps more: as many tokens fewer
    look(e, "join")[:2] = [0, 2]
    admission.open_budget(e)
    assert look(e, "total_offset") == 2 + 17 + 4096


@pytest.mark.parametrize(
    ("free", "current", "total", "input_left", "chunk", "chunk_left", "verdict"),
    [
        (10, 9, 9, 1, 5, 1, admission.CONTINUE),
        (10, 9, 10, 1, 5, 1, admission.NO_TOKEN),
        (10, 10, 9, 1, 5, 1, admission.NO_TOKEN),
        (10, 9, 9, 0, 5, 1, admission.OTHER),
        (10, 9, 9, 1, 5, 0, admission.OTHER),
        (10, 9, 9, 1, 0, 0, admission.CONTINUE),  # whole prompts
        (10, 10, 10, 0, 5, 0, admission.NO_TOKEN),
    ],
)
def test_whether_one_more_may_be_tried(
    free: int, current: int, total: int, input_left: int, chunk: int, chunk_left: int, verdict: int
) -> None:
    e = sglang(free=free)
    put(
        e,
        current_offset=current,
        total_offset=float(total),
        input_left=input_left,
        chunk_left=chunk_left,
        chunk_size=chunk,
    )
    assert admission.budget_state(e) == verdict


@pytest.mark.parametrize(("page", "paged"), [(1, 5), (4, 8)])
def test_what_an_admitted_prompt_takes_of_the_budgets(page: int, paged: int) -> None:
    e = sglang(waiting=[(9, 30), (9, 9000)], page_size=page)
    admission.open_budget(e)
    put(e, chunk_left=100)
    look(e, "prefix")[:2] = [4, 4]
    admission.admit(e, 0, 5, True)
    assert numbers(e, *BUDGET[:5]) == [500 - paged, 100 - paged, paged + page, paged + page + 30, 1]
    admission.admit(e, 1, 5, False)  # of a prompt cut in two no output is looked at yet
    assert numbers(e, *BUDGET[:5]) == [500 - 2 * paged, 100 - 2 * paged, 2 * (paged + page), 2 * (paged + page) + 30, 2]
    admission.admit(e, 1, 5, True)
    assert look(e, "total_offset") == 3 * (paged + page) + 30 + 4096
    assert look(e, "extend_end")[:2].tolist() == [9, 9] and look(e, "admitted")[:3].tolist() == [0, 1, 1]


@pytest.mark.parametrize(
    ("chunk_left", "free", "computed", "goes_on"),
    [
        (30, 1000, 30, True),
        (50, 1000, 50, False),
        (60, 1000, 50, False),
        (60, 20, 20, True),
        (49, 0, 49, True),
        (60, -5, 50, False),
    ],
)
def test_a_prompt_under_way_comes_first(chunk_left: int, free: int, computed: int, goes_on: bool) -> None:
    """50 of 80 tokens are left: as the step and the memory allow, and if that has nothing left as the step alone."""
    e = sglang(waiting=[(80, 5)], free=free)
    put(e, chunked=0, chunk_left=chunk_left, total_offset=0.0, input_left=500)
    look(e, "prefix")[0] = 30
    admission.continue_chunked(e)
    assert (look(e, "extend_end")[0], look(e, "chunked")) == (30 + computed, 0 if goes_on else -1)
    assert look(e, "total_offset") == computed + 1 + (0 if goes_on else 5)


TRIES: list[tuple[dict[str, Any], int, int, int, int, int]] = [
    # settings, KV tokens left, tokens of the step left, admitted before, verdict for those behind it, tokens taken
    ({}, 100 + 20 + 3, 500, 0, admission.CONTINUE, 100),
    ({}, 100 + 20 + 2, 500, 0, admission.CONTINUE, 100),
    ({}, 100 + 20 + 1, 500, 0, admission.NO_TOKEN, 0),
    ({}, 1000, 100, 1, admission.OTHER, 0),  # whole prompts: a second only where some of the step is left
    ({}, 1000, 101, 1, admission.CONTINUE, 100),
    ({}, 1000, 100, 0, admission.OTHER, 100),  # taken, and with it the step is full
    ({"chunked_prefill_size": 64}, 1000, 500, 0, admission.OTHER, 64),
    ({"chunked_prefill_size": 100}, 1000, 500, 0, admission.OTHER, 100),
    ({"chunked_prefill_size": 101}, 1000, 500, 0, admission.CONTINUE, 100),
    ({"chunked_prefill_size": 64, "page_size": 16}, 1000, 500, 0, admission.OTHER, 64),
    ({"chunked_prefill_size": 15, "page_size": 16}, 1000, 500, 0, admission.OTHER, 0),
    ({"page_size": 16}, 100 + 20 + 17, 500, 0, admission.NO_TOKEN, 100),
    ({"page_size": 16}, 100 + 20 + 16, 500, 0, admission.NO_TOKEN, 0),
]


@pytest.mark.parametrize(("given", "free", "input_left", "before", "verdict", "taken"), TRIES)
def test_whether_a_waiting_prompt_is_taken_in(
    given: dict[str, Any], free: int, input_left: int, before: int, verdict: int, taken: int
) -> None:
    """100 tokens, 20 more allowed."""
    e = sglang(waiting=[(100, 20)], pool=4096, **given)
    put(e, free=free)
    admission.open_budget(e)
    put(e, input_left=input_left, admitted_count=before)
    assert admission.try_admit(e, 0) == verdict
    assert look(e, "admitted_count") - before == (taken > 0)
    assert look(e, "extend_end")[0] == taken
    assert look(e, "new_chunked") == (0 if 0 < taken < 100 else -1)


KNOWN: list[tuple[int, int, list[Request], int, int, int]] = [
    # KV tokens free, tokens of the step (0: whole prompts), running (prompt, tokens still to make), prompt, limit, taken
    (29, 0, [], 10, 16, 10),  # 29 - 11 = 18 are left; 16 come, and of two one must stay free
    (28, 0, [], 10, 16, 0),
    (11, 0, [], 10, 0, 10),  # it makes nothing more: it need only fit
    (10, 0, [], 10, 0, 0),
    # both make a token a step: after three steps the first gives its 5 + 3 back
    (11 + 2 * 3 + 3, 0, [(5, 3)], 10, 3, 10),
    (11 + 2 * 3 + 2, 0, [(5, 3)], 10, 3, 0),
    # at 3 steps 8 come back; the other goes on for ten more
    (11 + 2 * 3 + 3 + 10, 0, [(5, 3)], 10, 13, 10),
    (11 + 7 + 2, 0, [(5, 3)], 10, 13, 10),
    (11 + 7 - 1, 0, [(5, 3)], 10, 13, 0),
    (100, 6, [], 10, 16, 6),
    (100, 10, [], 10, 16, 10),
]


@pytest.mark.parametrize(("free", "chunk", "running", "prompt", "limit", "taken"), KNOWN)
def test_with_known_lengths_memory_must_hold_at_each_end(
    free: int, chunk: int, running: list[Request], prompt: int, limit: int, taken: int
) -> None:
    e = sglang([(p, left + 1) for p, left in running], [(prompt, limit)], chunked_prefill_size=chunk or -1)
    put(e, free=free, ignore_eos=True)
    admission.open_budget(e)
    put(e, total_offset=0.0)
    admission.try_admit(e, len(running))
    assert look(e, "extend_end")[len(running)] == taken
    assert look(e, "new_chunked") == (len(running) if 0 < taken < prompt else -1)


def test_lives_stand_shortest_first() -> None:
    """The first candidate before running and admitted ones of its length; later ones before those of theirs, and if
    all are shorter before the last."""
    e = sglang([(5, 8), (6, 4)], [(10, 7), (11, 3), (12, 9), (13, 7), (14, 0)])
    put(e, lives_count=-1, admitted_count=1)
    look(e, "admitted")[0] = 3
    admission.note_life(e, 2)
    lives = [look(e, "life_left"), look(e, "life_held")]
    assert lives[0][:4].tolist() == [3.0, 3.0, 7.0, 7.0]
    assert lives[1][:4].tolist() == [7.0, 11.0, 10.0, 6.0]  # a running one has made a token
    admission.note_life(e, 4)  # nine, longer than all: before the last
    assert lives[0][:5].tolist() == [3.0, 3.0, 7.0, 9.0, 7.0]
    admission.note_life(e, 5)
    assert (lives[0][:6].tolist(), lives[1][2]) == ([3.0, 3.0, 7.0, 7.0, 9.0, 7.0], 13.0)
    admission.note_life(e, 6)  # nothing more to make: no life
    assert look(e, "lives_count") == 6
    put(e, lives_count=64)
    admission.note_life(e, 5)
    assert look(e, "lives_count") == 64


def test_the_longest_cached_prefix_goes_first() -> None:
    """Row 0 is cached; 1 shares 64 tokens of it, 2 none, 3 all. Of 4 and 5, which share 64 tokens of nothing cached,
    one is waited for: it goes last."""
    ids = [[1, 2, 3], [1, 2, 9], [7, 8], [1, 2, 3], [5, 6], [5, 6]]
    prompts = [96, 96, 64, 96, 64, 64]
    settings = BASE["sglang"] | {"disable_radix_cache": False, "page_size": 1, "max_running_requests": 9}
    for policy, order in (("lpm", [3, 1, 2, 4, 5]), ("fcfs", [5, 2, 4, 1, 3])):
        spec = EngineSpec("sglang", "colocated", settings | {"schedule_policy": policy}, 5000, affine_cost(1.0))
        engine = Engine(spec, content_of(prompts, ids), DeskColumns(6).record)
        engine.submit(0, 96, 2, 0.0)
        engine.advance(50.0)
        e = engine.state
        came = [2, 4, 1, 3, 5] if policy == "lpm" else order
        for row in came:
            state.wait_last(e, state.new_slot(e, row, prompts[row], 2))
        head = look(e, "waiting_head")
        admission.order_waiting(e)
        assert look(e, "row")[look(e, "waiting")[head : head + 5]].tolist() == order
        found = {int(look(e, "row")[s]): int(look(e, "matched")[s]) for s in look(e, "waiting")[head : head + 5]}
        if policy == "lpm":
            assert found == {3: 95, 1: 64, 2: 0, 4: 0, 5: -(1 << 60)}


def test_a_prefix_of_32_tokens_is_short_enough_to_wait_for_a_longer_one() -> None:
    """Two that share 64 tokens, of which 32 are cached, and two that share 96, of which 64 are: of the first two one
    is waited for, as they are computed in the step. So it is of two that share 32, but not of two that share 31."""
    ids = [[1, 2, 3], [1, 8], [1, 8], [1, 2, 9], [1, 2, 9], [4, 5], [4, 6], [7], [7]]
    prompts = [96, 64, 64, 96, 96, 64, 64, 31, 31]
    settings = BASE["sglang"] | CACHE | {"page_size": 1, "max_running_requests": 9, "schedule_policy": "lpm"}
    spec = EngineSpec("sglang", "colocated", settings, 5000, affine_cost(1.0))
    engine = Engine(spec, content_of(prompts, ids), DeskColumns(9).record)
    engine.submit(0, 96, 2, 0.0)
    engine.advance(50.0)
    e = engine.state
    slots = [state.new_slot(e, row, prompts[row], 2) for row in range(1, 9)]
    for s in slots:
        state.wait_last(e, s)
    admission.order_waiting(e)
    assert look(e, "matched")[slots].tolist() == [32, -(1 << 60), 64, 64, 0, -(1 << 60), 0, 0]


def test_the_queue_is_looked_through_every_32_plannings() -> None:
    """A look makes what the queue wants the latest of the tree: it is evicted last."""
    e = sglang(waiting=[(5, 5)] * 2, **CACHE)
    ticks = []
    for _ in range(66):
        admission.touch_waiting(e)
        ticks.append(int(look(e, "tree.ticks")))
    assert look(e, "touches") == 66
    assert [i for i in range(66) if ticks[i] != (ticks[i - 1] if i else 0)] == [0, 32, 64]
    nobody = sglang(**CACHE)
    admission.touch_waiting(nobody)
    assert look(nobody, "touches") == 0


def test_prompts_under_lpm_are_not_ordered_behind_128() -> None:
    for count, ordered in ((128, True), (129, False)):
        e = sglang(waiting=[(5, 5)] * count, schedule_policy="lpm", **CACHE)
        admission.order_waiting(e)
        assert look(e, "touches") == (0 if ordered else 1)
