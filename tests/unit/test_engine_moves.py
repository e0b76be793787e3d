"""Requests that come, go, start over or are handed on, one move at a time, with what each move leaves in the books."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from engine_audit import audit
from engine_books import look, put
from engine_play import BASE
from test_engine_corners import content_of
from test_engine_idle import idle

from simulator.cost.table import affine_cost
from simulator.engine import tracking
from simulator.engine.engine import Engine, EngineSpec
from simulator.engine.priorities import lacks_block, runs_short
from simulator.engine.state import (
    COLOCATED,
    DECODING,
    FINISHED,
    LEAVING,
    PREFILLED,
    PREFILLING,
    READ,
    WAITING,
    DeskColumns,
    new_slot,
)

TWO_AHEAD = {"async_scheduling": True, "overlap_scheduler": True}


def at(
    policy: str, prompts: list[int], makes: list[int], blocks: int = 100, **given: Any
) -> tuple[Engine, DeskColumns]:
    """An engine of one-second steps, and its desk."""
    desk = DeskColumns(len(prompts))
    role, settings = given.pop("role", "colocated"), BASE[policy] | given.pop("settings", {})
    extra = {"max_output_tokens": np.array(makes)} | given.pop("extra", {})
    spec = EngineSpec(policy, role, settings, blocks, affine_cost(1.0), tell_finished=True, extra=extra, **given)
    return Engine(spec, content_of(prompts, [[] for _ in prompts]), desk.record), desk


@pytest.mark.parametrize("policy", ["vllm-v1", "tensorrt-llm", "splitwise"])
def test_a_mixed_engine_does_of_each_request_what_it_is_asked_to(policy: str) -> None:
    """One is computed and decoded here, one computed for another engine, one decoded only."""
    made, desk = at(policy, [20, 20, 20], [3, 1, 3], role="mixed")
    if policy == "splitwise":
        desk.first_token_s[2] = 0.0
    made.submit(0, 20, 3, 0.0)
    made.submit(1, 20, 1, 0.0, hand_over=True)
    made.submit(2, 20, 3, 0.0, remote=True)
    assert made.load().pending_prompt_tokens == 40
    news = made.advance(1.5)
    told = sorted(zip(news.kind.tolist(), news.row.tolist(), news.value.tolist(), news.at_s.tolist(), strict=True))
    assert told == [(PREFILLED, 1, 2, 1.0), (READ, 2, 2, 0.0)]
    slots = dict(zip(news.row.tolist(), news.slot.tolist(), strict=True))
    made.transfer_ended(slots[1], 1.5)
    made.transfer_ended(slots[2], 1.5)
    news = made.advance(100.0)
    assert made.load().free_blocks == 100 and made.load().requests == 0
    ended = {int(row): float(moment) for row, moment in zip(news.row, news.at_s, strict=True)}
    # told with the step planned at 2, it begins at 3; where its first token came along two steps are enough
    assert ended == {0: 3.0, 2: 6.0 if policy == "vllm-v1" else 5.0}
    assert desk.cached_tokens.tolist() == [0, 0, -1]
    assert desk.prefill_start_s.tolist() == pytest.approx([0.0, 0.0, np.nan], nan_ok=True)
    assert desk.prefill_end_s.tolist() == pytest.approx([1.0, 1.0, np.nan], nan_ok=True)
    assert desk.decode_start_s.tolist() == pytest.approx([np.nan, np.nan, 3.0], nan_ok=True)
    first = {"vllm-v1": [1.0, np.nan, 4.0], "tensorrt-llm": [1.0, np.nan, 3.0], "splitwise": [1.0, 1.0, 0.0]}
    assert desk.first_token_s.tolist() == pytest.approx(first[policy], nan_ok=True)
    assert np.isnan(desk.last_token_s[1]) and desk.token_sum_s[0] == 6.0


@pytest.mark.parametrize(
    ("policy", "received", "first"), [("vllm-v1", 0, 4.0), ("tensorrt-llm", 0, 4.0), ("splitwise", 1, 0.5)]
)
@pytest.mark.parametrize("recompute", [True, False])
def test_kv_that_does_not_come_is_computed_here_or_given_up(
    policy: str, received: int, first: float, recompute: bool
) -> None:
    """Two ask at 0 for two blocks each, and one more; at 3 it is known that the first's KV will not come."""
    made, desk = at(
        policy, [20, 30, 12], [5, 5, 5], role="decode", settings={"prefix_caching": True} if policy == "vllm-v1" else {}
    )
    if policy == "splitwise":
        desk.first_token_s[:] = 0.5
    for row, prompt in enumerate((20, 30, 12)):
        made.submit(row, prompt, 5, 0.0, remote=True)
    news = made.advance(0.5)
    assert news.row.tolist() == [0, 1, 2] and made.load().free_blocks == 100 - 5
    made.abandon(int(news.slot[0]), recompute, 3.0)
    s, load = int(news.slot[0]), made.load()
    assert load.free_blocks == 100 - 3
    assert (load.holding, load.waiting, load.pending_prompt_tokens) == (2, int(recompute), (20 + received) * recompute)
    assert (look(made.state, "remote")[s], look(made.state, "computed")[s]) == (0, 0)
    assert made.wake_s == pytest.approx(3.0)
    if recompute:
        assert (look(made.state, "status")[s], look(made.state, "received")[s]) == (WAITING, received)
        assert look(made.state, "waiting")[look(made.state, "waiting_head")] == s
    audit(made.state)
    made.advance(3.5)
    for slot in news.slot[1:]:
        made.transfer_ended(int(slot), 3.6)
    news = made.advance(100.0)
    assert (desk.first_token_s[0] == first) if recompute else (policy == "splitwise" or np.isnan(desk.first_token_s[0]))
    assert sorted(news.row[news.kind == FINISHED].tolist()) == [0, 1, 2][not recompute :]
    assert made.load().free_blocks == 100 and made.load().requests == 0


@pytest.mark.parametrize("policy", ["vllm-v1", "tensorrt-llm"])
@pytest.mark.parametrize("ahead", [False, True])
@pytest.mark.parametrize(
    ("moment", "tokens"),
    [(0.5, 0), (1.5, 1), (2.5, 2), (3.5, 3), (4.5, 4)],
)
def test_a_client_that_leaves_has_the_tokens_made_by_then(policy: str, ahead: bool, moment: float, tokens: int) -> None:
    """Five tokens at 1, 2, ... 5; another request makes ten meanwhile, and has all of them."""
    budget = {"max_num_batched_tokens": 64}
    made, desk = at(policy, [20, 33], [5, 10], settings=budget | (TWO_AHEAD if ahead else {}))
    made.submit(0, 20, 5, 0.0)
    made.submit(1, 33, 10, 0.0)
    made.advance(moment)
    assert made.progress() == {0: tokens, 1: tokens}
    assert made.withdraw(0, moment)
    audit(made.state)
    assert made.progress() == {1: tokens}
    assert not made.withdraw(0, moment)
    load = made.load()
    assert (load.requests, load.pending_prompt_tokens) == (1, 0)
    assert load.free_blocks == 100 - -(-(33 + look(made.state, "planned") - 1) // 16)
    made.advance(100.0)
    assert np.isnan(desk.last_token_s[0]) and desk.last_token_s[1] == 10.0
    totals = made.totals()
    assert totals.gap_sum_s == 9.0 + max(tokens - 1, 0)
    assert made.series()[4].sum() == 9 + max(tokens - 1, 0)
    assert not made.withdraw(1, 100.0)


@pytest.mark.parametrize("policy", ["vllm-v1", "tensorrt-llm"])
@pytest.mark.parametrize("makes", [1, 2, 3])
def test_one_that_leaves_while_all_it_makes_is_in_flight(policy: str, makes: int) -> None:
    """Planned ahead, its prompt and the step behind it are in flight: no token of either is its own any more."""
    made, desk = at(policy, [20, 33], [makes, 4], settings={"max_num_batched_tokens": 64} | TWO_AHEAD)
    made.submit(0, 20, makes, 0.0)
    made.submit(1, 33, 4, 0.0)
    made.advance(0.5)
    assert look(made.state, "planned") == 2 and look(made.state, "batch_decodes")[:2].tolist() == [0, 1 + (makes > 1)]
    assert made.withdraw(0, 0.5)
    assert look(made.state, "batch_decodes")[:2].tolist() == [0, 1]
    audit(made.state)
    made.advance(50.0)
    assert desk.last_token_s[1] == 4.0 and made.totals().gap_sum_s == 3.0


def test_one_that_waits_leaves_the_queue_and_one_in_part_its_blocks() -> None:
    """70 tokens of which 48 are computed, and one of 20 behind it."""
    made, _ = at("vllm-v1", [70, 20, 30], [2, 2, 2], settings={"max_num_batched_tokens": 48})
    for row, prompt in enumerate((70, 20, 30)):
        made.submit(row, prompt, 2, 0.0)
    made.advance(0.5)
    assert (made.load().pending_prompt_tokens, made.load().free_blocks) == (22 + 20 + 30, 97)
    assert made.withdraw(1, 0.5)
    assert (made.load().pending_prompt_tokens, made.load().waiting) == (22 + 30, 1)
    assert made.withdraw(0, 0.5)
    assert (made.load().pending_prompt_tokens, made.load().free_blocks, made.load().running) == (30, 100, 0)
    audit(made.state)
    made.advance(100.0)
    assert made.load().requests == 0 and made.totals().prefill_tokens == 48 + 30


def test_one_whose_kv_is_read_or_loaded_leaves_what_it_held() -> None:
    made, _ = at("vllm-v1", [40, 20], [3, 3], role="decode")
    made.submit(0, 40, 3, 0.0, remote=True)
    made.submit(1, 20, 3, 0.0, remote=True)
    made.advance(0.5)
    made.submit(0, 40, 3, 0.5, remote=True)  # the same row once more, this time not yet asked for
    assert (look(made.state, "unread"), made.load().free_blocks) == (1, 95)
    assert made.withdraw(0, 0.6)
    assert (made.load().holding, made.load().free_blocks, look(made.state, "unread")) == (1, 98, 1)
    assert made.withdraw(0, 0.6)
    assert (made.load().waiting, look(made.state, "unread"), made.load().pending_prompt_tokens) == (0, 0, 0)
    cached, _ = at("vllm-v1", [40], [3], settings={"prefix_caching": True}, tell_prompts=True)
    cached.submit(0, 40, 3, 0.0, outside=32)
    assert cached.withdraw(0, 0.0)
    assert (cached.load().pending_prompt_tokens, look(cached.state, "unread"), cached.load().waiting) == (0, 0, 0)
    cached.submit(0, 40, 3, 0.0, outside=32)
    news = cached.advance(0.5)
    cached.will_hold(int(news.slot[0]), 32)
    assert cached.load().pending_prompt_tokens == 8
    assert cached.withdraw(0, 0.7)
    assert (cached.load().pending_prompt_tokens, cached.load().free_blocks, cached.load().holding) == (0, 100, 0)


def test_an_idle_engine_plans_when_somebody_has_left() -> None:
    """Two blocks: the second waits for the first's KV to go."""
    made, _ = at("vllm-v1", [20, 20], [2, 2], 3, role="decode")
    made.submit(0, 20, 2, 0.0, remote=True)
    made.submit(1, 20, 2, 0.0, remote=True)
    assert made.advance(5.0).row.tolist() == [0]
    assert made.withdraw(0, 6.0)
    assert made.wake_s == pytest.approx(6.0)
    assert made.advance(7.0).row.tolist() == [1]


@pytest.mark.parametrize(
    ("partials", "need", "free", "short"),
    [
        (0, 3, 3, False),
        (0, 4, 3, True),
        (1, 0, 4, False),
        (1, 0, 3, True),
        (1, 2, 6, False),
        (1, 2, 5, True),
        (2, 0, 99, True),
    ],
)
def test_when_blocks_may_run_short(partials: int, need: int, free: int, short: bool) -> None:
    """A prompt under way may want the blocks of a batch of 48 tokens, and one more."""
    e = idle("vllm-v1")
    put(e, partials=partials)
    look(e, "phase_count")[5] = need
    put(look(e, "pool"), free=free)
    assert bool(tracking.may_preempt(e, 5)) == short


@pytest.mark.parametrize(
    ("depth", "status", "held", "cached"),
    [
        # batch 40 is planned next; tokens 8 + 40 are computed, or 20 + 45 - 1 in the end
        (1, DECODING, 3, 3),
        (2, DECODING, 3, 2),  # the token of batch 39 is on its way: 47 are cached, two blocks
        (1, LEAVING, 4, 4),
        (2, LEAVING, 4, 3),  # its last batch, 39, is in flight: 63 less that of 38's end
    ],
)
def test_what_a_decoding_request_holds_when_blocks_are_told_apart(
    depth: int, status: int, held: int, cached: int
) -> None:
    e = idle("vllm-v1")
    s = new_slot(e, 0, 20, 45, COLOCATED)
    put(e, depth=depth, planned=40, completed=39)
    look(e, "status")[s], look(e, "offset")[s], look(e, "last_batch")[s] = status, 8, 39
    tracking.settle(e, s)
    assert (look(e, "held_blocks")[s], look(e, "registered")[s]) == (held, cached)
    if status == LEAVING and depth == 2:
        put(e, completed=37)  # two more batches behind: two tokens fewer are known
        look(e, "registered")[s] = 0
        look(e, "target")[s] = 46
        tracking.settle(e, s)
        assert (look(e, "held_blocks")[s], look(e, "registered")[s]) == (5, 3)
        put(e, completed=45)
        tracking.settle(e, s)
        assert look(e, "registered")[s] == 4
    look(e, "registered")[s] = 9
    tracking.settle(e, s)
    assert look(e, "registered")[s] == 9


def test_requests_of_a_phase_are_chained_in_running_order() -> None:
    e = idle("vllm-v1")
    for row in range(6):
        new_slot(e, row, 20, 45, COLOCATED)
    look(e, "offset")[:6] = [3, 19, 4, 3, 35, 3]
    look(e, "status")[:6] = [DECODING, DECODING, DECODING, PREFILLING, DECODING, DECODING]
    look(e, "running")[:6] = [4, 0, 2, 3, 5, 1]
    put(e, running_count=6)
    tracking.chain_phases(e)
    chains = {}
    for phase in range(16):
        s, chains[phase] = int(look(e, "bucket_head")[phase]), []
        while s >= 0:
            chains[phase].append(s)
            s = int(look(e, "bucket_next")[s])
    assert {phase: chain for phase, chain in chains.items() if chain} == {3: [4, 0, 5, 1], 4: [2]}


def urgent(
    priorities: list[int], requests: list[tuple[int, int]], blocks: int, **given: Any
) -> tuple[Engine, DeskColumns]:
    settings = {"scheduling_policy": "priority", "max_num_batched_tokens": 64} | given
    prompts, makes = [p for p, _ in requests], [m for _, m in requests]
    made, desk = at(
        "vllm-v1", prompts, makes, blocks, settings=settings, extra={"priority": np.array(priorities)}, logging=True
    )
    for row, (prompt, output) in enumerate(requests):
        made.submit(row, prompt, output, 0.0)
    made.advance(1000.0)
    return made, desk


def logged(made: Engine) -> list[list[tuple[int, int]]]:
    _, _, first, rows, tokens = made.step_log()
    bounds = [*first.tolist(), len(rows)]
    pairs = list(zip(rows.tolist(), tokens.tolist(), strict=True))
    return [pairs[a:b] for a, b in pairwise(bounds)]


@pytest.mark.parametrize(
    ("priorities", "second"),
    [
        ([0, 0, 0], [(0, 1), (2, -1), (1, 1)]),  # of equals the last to come
        ([0, 0, 1], [(0, 1), (2, -1), (1, 1)]),
        ([0, 2, 1], [(0, 1), (1, -1), (2, 1)]),
        ([2, 0, 1], [(1, 1), (2, 1), (0, -1)]),  # it has had its token of the step, and loses it
    ],
)
def test_the_least_urgent_gives_its_block(priorities: list[int], second: list[tuple[int, int]]) -> None:
    """Three of 16 tokens, each in need of a second block, and five blocks in all: two are free."""
    made, desk = urgent(priorities, [(16, 3)] * 3, 5)
    order = sorted(range(3), key=lambda row: (priorities[row], row))
    steps = logged(made)
    assert steps[0] == [(row, 16) for row in order]
    assert sorted(steps[1]) == sorted(second)
    assert desk.preemptions.sum() == 1 and sum(n < 0 for step in steps for _, n in step) == 1
    assert desk.last_token_s[order].tolist() == [3.0, 3.0, 5.0]
    assert made.totals().decode_tokens == 5 and made.totals().prefill_tokens == 48 + 17


def test_a_decode_goes_for_a_prompt_that_is_more_urgent() -> None:
    """15 tokens decode when 48 come that are more urgent, 21 a batch: with the third chunk a block is missing. The other
    has had its token of that batch, and a second block for it; it loses both."""
    settings = {"scheduling_policy": "priority", "max_num_batched_tokens": 22}
    extra = {"priority": np.array([1, 0])}
    made, desk = at("vllm-v1", [15, 48], [9, 2], 4, settings=settings, extra=extra, logging=True)
    made.submit(0, 15, 9, 0.0)
    made.advance(0.5)
    made.submit(1, 48, 2, 0.5)
    made.advance(2.5)
    assert logged(made) == [[(0, 15)], [(0, 1), (1, 21)], [(0, -1), (1, 21)]]
    audit(made.state)
    assert (made.load().waiting, made.load().pending_prompt_tokens, made.load().free_blocks) == (1, 17 + 6, 1)
    made.advance(100.0)
    assert desk.last_token_s.tolist() == [12.0, 5.0]
    assert logged(made)[3:6] == [[(1, 6)], [(1, 1)], [(0, 17)]]


@pytest.mark.parametrize(
    ("tokens", "held", "free", "lacks"),
    [(16, 1, 0, False), (17, 1, 1, False), (17, 1, 0, True), (33, 1, 1, True), (33, 1, 2, False)],
)
def test_a_chunk_lacks_blocks_beyond_those_held(tokens: int, held: int, free: int, lacks: bool) -> None:
    e = idle("vllm-v1", scheduling_policy="priority")
    s = new_slot(e, 0, 60, 4, COLOCATED)
    look(e, "status")[s], look(e, "held_blocks")[s], look(e, "computed")[s] = PREFILLING, held, 10
    put(look(e, "pool"), free=free)
    assert bool(lacks_block(e, s, tokens - 10)) == lacks
    look(e, "status")[s] = DECODING
    for offset, planned, none_free, expected in ((3, 13, True, True), (3, 13, False, False), (3, 12, True, False)):
        look(e, "offset")[s] = offset
        put(e, planned=planned)
        put(look(e, "pool"), free=0 if none_free else 1)
        assert bool(lacks_block(e, s, 1)) == expected


@pytest.mark.parametrize(
    ("computed", "budget", "decodes", "need", "free", "short"),
    [
        (40, 48, 8, 0, 2, False),
        (40, 48, 8, 0, 1, True),
        (40, 48, 8, 1, 3, False),
        (40, 48, 8, 1, 2, True),
        (40, 20, 8, 0, 1, False),
        (40, 8, 9, 1, 1, False),
    ],
)
def test_when_running_requests_run_short(
    computed: int, budget: int, decodes: int, need: int, free: int, short: bool
) -> None:
    """75 tokens of which 40 are computed, in three blocks: 35 are left, as far as the batch has room beside decodes."""
    e = idle("vllm-v1", scheduling_policy="priority", max_num_batched_tokens=budget)
    s = new_slot(e, 0, 75, 4, COLOCATED)
    look(e, "status")[s], look(e, "held_blocks")[s], look(e, "computed")[s] = PREFILLING, 3, computed
    look(e, "running")[2] = s
    put(e, running_count=3, partials=1, decodes=decodes, planned=5)
    look(e, "phase_count")[11] = need
    put(look(e, "pool"), free=free)
    assert bool(runs_short(e)) == short
    put(e, partials=0)
    assert bool(runs_short(e)) == (need > free)
