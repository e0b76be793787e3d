"""TensorRT-LLM's questions one by one, at their borders: who may start, with how many tokens, and who waits for whom."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from engine_books import look, put
from test_engine_idle import idle
from test_engine_moves import at
from test_engine_policies import TRT, batches, engine, trt

from simulator.engine import tensorrt_llm as rules_of
from simulator.engine.queues import wait_last
from simulator.engine.rules import RuleSet, rules_record
from simulator.engine.state import COLOCATED, DECODING, LEAVING, LOAD, PREFILL, PREFILLING, new_slot

RESERVE = {"policy": 1, "chunking": False}


def server(
    running: Any = (), waiting: Any = (), *, blocks: int = 100, free: int | None = None, tokens: int = 64, **rules: Any
) -> Any:
    """An engine with (prompt, rank) of requests that run (they decode) and wait; blocks of 16 tokens, eight seats, and
    four tokens allowed to everybody."""
    e = idle("tensorrt-llm", blocks=blocks, max_num_tokens=tokens)
    put(e, rules=rules_record(RuleSet(**RESERVE | {"limits": np.full(200, 4)} | rules)))
    put(look(e, "pool"), free=blocks if free is None else free)
    for i, (prompt, rank) in enumerate(running):
        s = new_slot(e, i, prompt, 4, COLOCATED)
        look(e, "status")[s], look(e, "rank")[s], look(e, "running")[i] = DECODING, rank, s
    put(e, running_count=len(running), decodes=len(running))
    for i, (prompt, rank) in enumerate(waiting):
        s = new_slot(e, 100 + i, prompt, 4, COLOCATED)
        look(e, "rank")[s] = rank
        wait_last(e, s)
    return e


@pytest.mark.parametrize("chunking", [False, True])
@pytest.mark.parametrize(
    ("tokens", "budget", "cut"), [(40, 40, 40), (41, 40, 32), (40, 15, 0), (40, 16, 16), (5, 0, 0)]
)
def test_chunks_are_whole_blocks(tokens: int, budget: int, cut: int, chunking: bool) -> None:
    expected = cut if chunking or cut == tokens else 0
    assert rules_of.chunk_of(server(chunking=chunking), tokens, budget) == expected


@pytest.mark.parametrize(
    ("part", "prompt", "target", "allowed", "blocks"),
    [
        (COLOCATED, 16, 2, 16, 2),  # 32 tokens
        (COLOCATED, 16, 2, 17, 3),
        (COLOCATED, 16, 2, 0, 2),  # what was made is taken at its word: 16 and one written
        (COLOCATED, 16, 18, 5, 3),  # 33 tokens are written
        (COLOCATED, 16, 17, 5, 2),
        (COLOCATED, 990, 3, 500, 63),  # 1,000 tokens are the longest
        (COLOCATED, 16, 2, -1, 63),  # nothing is said: as long as may be
        (COLOCATED, 16, 2, None, 63),
        (PREFILL, 16, 1, 900, 2),
        (PREFILL, 15, 1, 900, 1),
    ],
)
def test_blocks_of_all_that_a_request_may_become(
    part: int, prompt: int, target: int, allowed: int | None, blocks: int
) -> None:
    limits = np.array([] if allowed is None else [allowed], np.int64)
    for there, expected in ((200, blocks), (1, 1)):
        e = server(limits=limits, blocks=there)
        assert rules_of.blocks_to_start(e, new_slot(e, 0, prompt, target, part)) == expected
    least = server(limits=limits, capacity=1)
    s = new_slot(least, 0, prompt, target, part)
    assert rules_of.blocks_to_start(least, s) == -(-prompt // 16)
    look(least, "received")[s] = 2
    assert rules_of.blocks_to_start(least, s) == -(-(prompt + 2) // 16)
    small = server(limits=limits, capacity=1, blocks=1)
    assert rules_of.blocks_to_start(small, new_slot(small, 0, 17, target, part)) == 1


@pytest.mark.parametrize(
    ("ranks", "drafts", "running", "left"),
    [
        (1, 0, [0, 0], [9]),
        (2, 0, [], [5, 5]),
        (2, 0, [0, 0, 1], [3, 4]),
        (2, 0, [1] * 5, [5, 0]),
        (2, 0, [1] * 6, [5, 0]),
        (2, 1, [0, 0, 1], [1, 3]),
        (3, 0, [2], [3, 3, 2]),
    ],
)
def test_tokens_left_to_each_rank(ranks: int, drafts: int, running: list[int], left: list[int]) -> None:
    """Of eleven tokens a step, its whole share; 9 are left in all."""
    e = server([(5, rank) for rank in running], tokens=11, ranks=ranks, drafts=drafts, acceptance=np.zeros(drafts))
    assert rules_of.rank_budgets(e, 9).tolist() == left


def test_seats_of_those_whose_last_token_is_on_its_way() -> None:
    e = server([(5, 0)] * 5)
    look(e, "status")[:3] = LEAVING
    put(e, planned=11, completed=9, holding_count=1)
    look(e, "leaving")[1, :2], look(e, "leaving")[2, :2], look(e, "leaving")[0, :1] = [0, 3], [1, 2], [2]
    look(e, "batch_leaving")[:3] = [1, 2, 2]  # batches 8, 9 and 10: the first has ended
    assert rules_of.seats_given_up(e) == 3  # the fourth has been paused meanwhile
    assert rules_of.free_seats(e) == 8 + 3 - 5 - 1
    look(e, "stale_batch")[1] = 10
    assert rules_of.seats_given_up(e) == 2
    look(e, "stale_batch")[1] = 9
    assert rules_of.seats_given_up(e) == 3
    put(e, rules=rules_record(RuleSet(**RESERVE, drafts=1, acceptance=np.zeros(1))))
    assert rules_of.seats_given_up(e) == 0


STARTS: list[tuple[dict[str, Any], int, list[tuple[int, int]], int, list[int]]] = [
    # rules, budget, waiting (prompt, rank), tokens of those that could start, how many by rank
    ({}, 60, [(20, 0), (40, 0), (1, 0)], 60, [2]),
    ({}, 60, [(20, 0), (41, 0), (1, 0)], 20, [1]),  # the second does not fit, and holds up the third
    ({}, 61, [(20, 0), (40, 0), (1, 0)], 61, [3]),
    ({"chunking": True}, 60, [(20, 0), (80, 0), (9, 0)], 100, [2]),  # 32 of it: all counts; 8 are left
    ({"chunking": True}, 60, [(20, 0), (80, 0), (8, 0)], 108, [3]),
    ({"ranks": 2}, 60, [(20, 0), (20, 1), (13, 0), (12, 0)], 52, [2, 1]),  # 32 each: 13 do not fit, 12 behind it do
    ({"ranks": 2}, 60, [(33, 0), (33, 0)], 0, [0, 0]),
]


@pytest.mark.parametrize(("given", "budget", "waiting", "tokens", "starting"), STARTS)
def test_who_could_start_in_a_step(
    given: dict[str, Any], budget: int, waiting: list[tuple[int, int]], tokens: int, starting: list[int]
) -> None:
    """As many as would start, which the counts of tokens leave alone."""
    e = server(waiting=waiting, **given)
    counts = np.zeros(len(starting), np.int64)
    assert rules_of.startable(e, budget, counts) == tokens
    assert counts.tolist() == starting


def test_blocks_and_seats_bound_who_could_start() -> None:
    """Three prompts of 16, two blocks each with what they may make (limits of 4)."""
    for free, promised, count in ((6, 0, 3), (5, 0, 2), (6, 1, 2), (6, 2, 2), (6, 3, 1), (1, 0, 0)):
        e = server(waiting=[(16, 0)] * 3, free=free)
        put(e, promised=promised)
        counts = np.zeros(1, np.int64)
        assert (rules_of.startable(e, 64, counts), counts[0]) == (16 * count, count)
    for running, count in ((5, 3), (6, 2), (7, 1), (8, 0)):
        e = server([(1, 0)] * running, [(16, 0)] * 3)
        counts = np.zeros(1, np.int64)
        assert (rules_of.startable(e, 64, counts), counts[0]) == (16 * count, count)
    remote = server(waiting=[(16, 0)] * 3)
    look(remote, "remote")[1] = 1  # its KV is elsewhere: it starts nothing, and nobody passes it
    counts = np.zeros(1, np.int64)
    assert (rules_of.startable(remote, 64, counts), counts[0]) == (16, 1)
    paused = server(waiting=[(16, 0)])
    look(paused, "received")[0] = 5
    assert rules_of.startable(paused, 64, counts) == 21
    two = server(waiting=[(40, 0), (16, 1), (16, 1)], ranks=2, free=4)
    counts = np.zeros(2, np.int64)  # the first fits no rank's step: its blocks are not kept for it
    assert (rules_of.startable(two, 64, counts), counts.tolist()) == (32, [0, 2])


COMPANY: list[tuple[int, float, int, list[int], int, bool, int]] = [
    # steps, share, steps waited, prompts that wait, generating, whether they wait, steps waited then
    (3, 0.5, 0, [20], 2, True, 1),
    (3, 0.5, 2, [20], 2, True, 3),
    (3, 0.5, 3, [20], 2, False, 0),
    (3, 0.5, 1, [30], 2, False, 0),  # 32 of 64 are half
    (3, 0.5, 1, [29], 2, True, 2),
    (3, 0.5, 1, [20], 0, False, 1),  # nobody generates: no reason to wait
    (3, 0.5, 1, [], 2, False, 1),
    (3, 0.5, 1, [70], 2, False, 1),  # nobody could start
    (0, 0.0, 1, [20], 2, False, 1),
    (0, 0.5, 0, [20], 2, False, 0),
    (3, 0.0, 1, [20], 2, False, 0),
]


@pytest.mark.parametrize(("steps", "share", "waited", "waiting", "generating", "waits", "then"), COMPANY)
def test_who_waits_for_company(
    steps: int, share: float, waited: int, waiting: list[int], generating: int, waits: bool, then: int
) -> None:
    e = server([(1, 0)] * generating, [(prompt, 0) for prompt in waiting], wait_steps=steps, wait_ratio=share)
    put(e, waited_steps=waited)
    assert bool(rules_of.company_is_missing(e, 64 - generating, generating)) == waits
    assert look(e, "waited_steps") == then


def test_drafts_count_as_company() -> None:
    """18 tokens and twice two with a draft each, of 44: half of it."""
    for tokens, waits in ((44, False), (46, True)):
        e = server(
            [(1, 0)] * 2, [(18, 0)], tokens=tokens, wait_steps=9, wait_ratio=0.5, drafts=1, acceptance=np.zeros(1)
        )
        assert bool(rules_of.company_is_missing(e, 40, 2)) == waits


BALANCE: list[tuple[list[int], list[int], int, int, int, bool, int, int]] = [
    # ranks of those that generate and wait, gathered before and at most, steps since the count began,
    # whether prompts wait, steps gathered then, where the count begins
    ([0, 1], [0, 1], 0, 0, 2, False, 0, 21),  # every rank has one
    ([0, 1], [0, 1], 0, 2, 2, True, 1, 21),
    ([0, 1], [0, 1], 1, 2, 2, True, 2, 21),
    ([0, 1], [0, 1], 2, 2, 2, False, 0, 21),
    ([0, 0], [0, 1], 0, 2, 2, False, 0, 21),  # a rank has nothing to generate
    ([0, 1], [0, 0], 1, 2, 2, True, 1, 18),
    ([0, 0], [0, 0], 1, 2, 2, False, 1, 21),
    ([0, 1], [0, 0], 1, 2, 4, False, 1, 16),  # the fifth step of the count
    ([0, 1], [0, 0], 1, 2, 5, True, 1, 15),
    ([0, 1], [0, 0], 1, 2, 9, False, 1, 11),
    ([0, 0, 0, 0, 1], [0, 1], 0, 0, 2, True, 0, 18),  # no seat on a rank: half of eight are taken
    ([0, 0, 0, 1], [0, 1], 0, 0, 2, False, 0, 21),
]


@pytest.mark.parametrize(("generating", "waiting", "gathered", "most", "since", "waits", "then", "counted"), BALANCE)
def test_ranks_wait_for_one_another(
    generating: list[int],
    waiting: list[int],
    gathered: int,
    most: int,
    since: int,
    waits: bool,
    then: int,
    counted: int,
) -> None:
    """Every five steps prompts start all the same. Batch 20 is planned."""
    e = server(
        [(1, rank) for rank in generating],
        [(4, rank) for rank in waiting],
        ranks=2,
        balance_steps=5,
        balance_gather=most,
    )
    put(e, planned=20, balance_from=20 - since, gathered_steps=gathered)
    assert bool(rules_of.company_is_missing(e, 50, len(generating))) == waits
    assert (look(e, "gathered_steps"), look(e, "balance_from")) == (then, counted)


def test_a_prompt_under_way_generates_nothing() -> None:
    e = server([(1, 0), (1, 1)], [(4, 0)], ranks=2, balance_steps=5)
    put(e, planned=20, balance_from=18)
    assert rules_of.company_is_missing(e, 50, 2)
    look(e, "status")[1] = PREFILLING
    assert not rules_of.company_is_missing(e, 50, 2)
    each = server([(1, 0), (1, 1)], [(4, 0), (4, 1)], ranks=2, balance_steps=1, balance_gather=1)
    assert rules_of.company_is_missing(each, 50, 2)  # every step ends the count, but not the wait for more
    alone = server([(1, 0), (1, 0)], [(4, 0)], balance_steps=5)
    put(alone, planned=20, balance_from=18)
    assert not rules_of.company_is_missing(alone, 50, 2)  # one rank has nobody to wait for


WAITS: list[tuple[dict[str, Any], int, int, int, int, bool]] = [
    # rules, running, holding, prompt of the head, free blocks, whether it has to wait
    ({}, 2, 0, 62, 10, False),
    ({}, 2, 0, 63, 10, True),  # whole prompts: two of 64 tokens are generated
    ({"chunking": True}, 2, 0, 63, 10, False),
    ({}, 7, 0, 16, 10, False),
    ({}, 8, 0, 16, 10, True),
    ({}, 6, 2, 16, 10, True),
    ({}, 6, 1, 16, 10, False),
    ({"capacity": 2}, 1, 0, 16, 10, True),
    ({"capacity": 2}, 0, 0, 16, 10, False),
    ({}, 2, 0, 16, 2, False),  # sixteen and four more: two blocks
    ({}, 2, 0, 16, 1, True),
    ({"capacity": 1}, 2, 0, 16, 1, False),
    ({"capacity": 1}, 2, 0, 17, 1, True),
]


@pytest.mark.parametrize(("given", "running", "holding", "prompt", "free", "waits"), WAITS)
def test_when_the_head_of_the_queue_has_to_wait(
    given: dict[str, Any], running: int, holding: int, prompt: int, free: int, waits: bool
) -> None:
    e = server([(1, 0)] * running, [(prompt, 0)], free=free, **given)
    put(e, holding_count=holding)
    assert bool(rules_of.must_wait_in_flight(e)) == waits


def test_what_is_promised_and_received_makes_the_head_wait() -> None:
    e = server([(1, 0)], [(16, 0)], free=5)
    for promised, waits in ((3, False), (4, True)):
        put(e, promised=promised)
        assert bool(rules_of.must_wait_in_flight(e)) == waits
    grown = server([(1, 0)] * 4, [(58, 0)])
    for received, waits in ((0, False), (2, False), (3, True)):
        look(grown, "received")[look(grown, "waiting")[0]] = received
        assert bool(rules_of.must_wait_in_flight(grown)) == waits
    look(grown, "remote")[look(grown, "waiting")[0]] = 1
    assert not rules_of.must_wait_in_flight(grown)
    for free, waits in ((2, False), (1, True)):
        least = server([(1, 0)], [(32, 0)], free=free, capacity=1)
        put(least, promised=9)
        assert bool(rules_of.must_wait_in_flight(least)) == waits
    put(least, caching=True)  # some of it may be cached
    assert not rules_of.must_wait_in_flight(least)


def test_a_paused_request_that_outgrew_a_step_starts_over_alone() -> None:
    """20 and 40 tokens in nine blocks: the second wants a sixth block when it holds 80 tokens, and is paused. They are
    more than a step of 64 may have: it starts over on its own, once the first has ended."""
    least = TRT | {"capacity_scheduler_policy": "MAX_UTILIZATION"}
    made, desk = engine("tensorrt-llm", least, [(20, 60), (40, 60)], blocks=9)
    made.advance(1000.0)
    steps = batches(made)
    assert desk.preemptions.tolist() == [0, 1]
    assert [step for step in steps if max(step.values()) > 1] == [{0: 20, 1: 40}, {1: 81}]
    assert steps[41] == {0: 1, 1: -1} and steps[60] == {1: 81} and len(steps) == 60 + 19


def test_a_prompt_that_no_step_holds_never_starts() -> None:
    assert trt([(65, 1), (4, 1)], blocks=100)[0] == []
    assert trt([(64, 1), (4, 1)], blocks=100)[0] == [{0: 64}, {1: 4}]


def test_prompts_take_what_generation_leaves() -> None:
    """Budgets met to the token, by whole prompts and by chunks."""
    assert trt([(4, 3), (59, 1), (1, 1)], blocks=100)[0] == [{0: 4, 1: 59, 2: 1}, {0: 1}, {0: 1}]
    assert trt([(4, 3), (60, 1), (1, 1)], blocks=100)[0] == [{0: 4, 1: 60}, {0: 1, 2: 1}, {0: 1}]
    assert trt([(4, 3), (61, 1), (1, 1)], blocks=100)[0] == [{0: 4}, {0: 1, 1: 61, 2: 1}, {0: 1}]
    cut = {"enable_chunked_prefill": True}
    assert trt([(4, 3), (61, 1), (12, 1)], blocks=100, **cut)[0] == [{0: 4, 1: 48, 2: 12}, {0: 1, 1: 13}, {0: 1}]
    assert trt([(4, 3), (100, 1), (13, 1)], blocks=100, **cut)[0] == [{0: 4, 1: 48}, {0: 1, 1: 52}, {0: 1, 2: 13}]
    assert trt([(4, 3), (99, 1), (13, 1)], blocks=100, **cut)[0] == [{0: 4, 1: 48}, {0: 1, 1: 51}, {0: 1, 2: 13}]
    assert trt([(4, 3), (98, 1), (13, 1)], blocks=100, **cut)[0] == [{0: 4, 1: 48}, {0: 1, 1: 50, 2: 13}, {0: 1}]


def test_blocks_of_a_prompt_that_lets_others_pass_are_kept_for_it() -> None:
    """Ten tokens are left of a step: nothing of 40 tokens can be cut, and its three blocks stay free; of seven blocks
    one is left for the prompt of three tokens, and none for the one of two behind it."""
    cut = {"enable_chunked_prefill": True, "capacity_scheduler_policy": "MAX_UTILIZATION"}
    steps, _ = trt([(54, 1), (40, 1), (3, 1), (2, 1)], blocks=8, **cut)
    assert steps == [{0: 54, 2: 3}, {1: 40, 3: 2}]
    assert trt([(54, 1), (40, 1), (3, 1), (2, 1)], blocks=9, **cut)[0] == [{0: 54, 2: 3, 3: 2}, {1: 40}]


def test_seats_bound_the_batch() -> None:
    assert trt([(4, 2)] * 3, blocks=100, max_batch_size=2)[0] == [{0: 4, 1: 4}, {0: 1, 1: 1}, {2: 4}, {2: 1}]


def test_a_generation_server_asks_while_seats_and_blocks_last() -> None:
    """Three seats, then six blocks for prompts of two blocks each and what they may make."""
    made, _ = engine("tensorrt-llm", TRT | {"max_batch_size": 3}, [(8, 3)] * 4, blocks=100, role="decode")
    assert made.advance(1.0).row.tolist() == [0, 1, 2]
    made, _ = engine("tensorrt-llm", TRT, [(20, 13), (20, 13), (20, 14)], blocks=6, role="decode")
    news = made.advance(1.0)
    assert (news.row.tolist(), news.value.tolist()) == ([0, 1], [2, 2])
    for slot in news.slot:
        made.transfer_ended(int(slot), 1.0)
    assert made.advance(12.5) is None
    assert look(made.state, "promised") == 2  # a block each for a token that will not be written
    assert made.advance(13.5).row.tolist() == [2]
    assert look(made.state, "promised") == 1


def test_prefixes_from_below_take_seats_too() -> None:
    """Two seats, four that may ask caches below for their beginning: two do; then blocks, of which each wants two."""
    for seats, blocks, asked in ((2, 100, [0, 1]), (3, 100, [0, 1, 2]), (8, 5, [0, 1])):
        given = {"max_batch_size": seats, "enable_block_reuse": True, "capacity_scheduler_policy": "MAX_UTILIZATION"}
        made, desk = at("tensorrt-llm", [32] * 4, [3] * 4, blocks, settings=given)
        for row in range(4):
            made.submit(row, 32, 3, 0.0, outside=16)
        news = made.advance(0.5)
        assert (news.kind.tolist(), news.row.tolist()) == ([LOAD] * len(asked), asked)
        assert made.load().pending_prompt_tokens == 4 * 32 and np.isnan(desk.prefill_start_s).all()


@pytest.mark.parametrize("moment", [0.5, 1.5, 2.5, 3.5, 4.5, 5.5, 6.5])
def test_one_whose_kv_is_there_begins_whoever_is_about_to_leave(moment: float) -> None:
    """Three seats, planned ahead: the first makes five tokens, the last of them at 4. The third's KV is heard of when
    the step planned behind its end is over, and it begins behind the one in flight, at whatever moment that is."""
    settings = {"max_batch_size": 3, "overlap_scheduler": True}
    made, desk = at("tensorrt-llm", [16] * 3, [5, 20, 4], role="decode", settings=settings)
    for row, output in enumerate((5, 20, 4)):
        made.submit(row, 16, output, 0.0, remote=True)
    slots = made.advance(1e-6).slot.tolist()
    for slot in slots[:2]:
        made.transfer_ended(slot, 0.0)
    made.advance(moment)
    made.transfer_ended(slots[2], moment)
    made.advance(100.0)
    assert desk.last_token_s[0] == 4.0
    assert desk.decode_start_s[2] == moment + 3.5
