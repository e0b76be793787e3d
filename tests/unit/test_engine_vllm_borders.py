"""vLLM's planning at its borders: budgets met to the token, blocks to the last one, who is in flight, what is found."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from engine_books import look, put
from engine_play import BASE, Play, Seen
from test_engine_corners import content_of
from test_engine_idle import idle
from test_engine_policies import batches, engine

from simulator.cost.table import affine_cost
from simulator.engine import vllm as planning
from simulator.engine.engine import Engine, EngineSpec
from simulator.engine.queues import wait_last
from simulator.engine.reads import start_read
from simulator.engine.state import (
    CHUNK,
    COLOCATED,
    COMPUTED,
    DECODE,
    DECODING,
    LEAVING,
    LOAD,
    PREFILLED,
    PREFILLING,
    READ,
    REMOTE,
    DeskColumns,
    new_slot,
)

Requests = list[tuple[int, int]]
VLLM = BASE["vllm-v1"] | {"max_num_batched_tokens": 64, "max_num_seqs": 8}


def steps(requests: Requests, blocks: int = 100, policy: str = "vllm-v1", **changes: Any) -> list[dict[int, int]]:
    """Each batch as {row: new tokens}; -1: preempted when it was planned. All requests come at 0."""
    made, _ = engine(policy, (VLLM if policy == "vllm-v1" else BASE[policy]) | changes, requests, blocks=blocks)
    made.advance(1000.0)
    return batches(made)


def test_prompts_fill_a_batch_to_the_token() -> None:
    assert steps([(30, 1), (34, 1), (1, 1)]) == [{0: 30, 1: 34}, {2: 1}]
    assert steps([(30, 1), (33, 1), (1, 1)]) == [{0: 30, 1: 33, 2: 1}]
    assert steps([(30, 1), (40, 1), (1, 1)]) == [{0: 30, 1: 34}, {1: 6, 2: 1}]
    assert steps([(64, 2), (64, 1)]) == [{0: 64}, {0: 1, 1: 63}, {1: 1}]
    assert steps([(200, 1)]) == [{0: 64}, {0: 64}, {0: 64}, {0: 8}]
    assert steps([(5, 3), (3, 1), (3, 1)], max_num_batched_tokens=5) == [{0: 5}, {0: 1, 1: 3, 2: 1}, {0: 1, 2: 2}]


def test_decodes_come_before_the_rest_of_a_prompt() -> None:
    """One token a batch: while the first decodes nothing of the second is computed."""
    assert steps([(1, 3), (2, 1)], max_num_batched_tokens=1) == [{0: 1}, {0: 1}, {0: 1}, {1: 1}, {1: 1}]
    assert steps([(1, 3), (2, 1)], max_num_batched_tokens=2) == [{0: 1, 1: 1}, {0: 1, 1: 1}, {0: 1}]


def test_seats_bound_a_batch() -> None:
    assert steps([(4, 2)] * 3, max_num_seqs=2) == [{0: 4, 1: 4}, {0: 1, 1: 1}, {2: 4}, {2: 1}]


def test_the_whole_prompt_must_fit_the_free_blocks() -> None:
    """Of five blocks one is taken; 64 tokens want four, 65 wait though the first chunk would fit."""
    assert steps([(16, 1), (64, 1)], blocks=5)[0] == {0: 16, 1: 48}
    assert steps([(16, 1), (65, 1)], blocks=5) == [{0: 16}, {1: 64}, {1: 1}]


def test_the_newest_is_preempted_for_the_oldest() -> None:
    """Three of 16 tokens in four blocks: the first takes the last block, the third is preempted for the second; its
    block and one more are not free before the first has ended."""
    assert steps([(16, 3), (16, 3), (16, 3)], blocks=4) == [
        {0: 16, 1: 16, 2: 16},
        {0: 1, 1: 1, 2: -1},
        {0: 1, 1: 1},
        {2: 17},
        {2: 1},
    ]


def test_a_request_without_a_block_is_preempted_itself() -> None:
    """Two of 16 tokens in two blocks: the second goes for the first, which has then two, and then none is left."""
    assert steps([(16, 18), (16, 2)], blocks=2)[:3] == [{0: 16, 1: 16}, {0: 1, 1: -1}, {0: 1}]
    assert steps([(15, 3), (32, 2)], blocks=3, max_num_batched_tokens=47)[:4] == [
        {0: 15, 1: 32},
        {0: 1, 1: -1},
        {0: 1},
        {1: 33},
    ]


def test_a_prompt_in_part_goes_for_decodes_and_starts_over() -> None:
    """Fourteen tokens, and 40 of which 30 are computed: 22 a batch, three blocks, all that is free."""
    found = steps([(14, 8), (40, 1)], blocks=4, max_num_batched_tokens=22)
    assert found[:3] == [{0: 14, 1: 8}, {0: 1, 1: 21}, {0: 1, 1: 11}]
    found = steps([(15, 8), (48, 1)], blocks=4, max_num_batched_tokens=22)
    assert found[:4] == [{0: 15, 1: 7}, {0: 1, 1: 21}, {0: 1, 1: -1}, {0: 1}]  # the decode took the last block
    assert found[8:] == [{1: 22}, {1: 22}, {1: 4}]


def test_who_is_in_flight() -> None:
    e = idle("vllm-v1")
    s = new_slot(e, 0, 5, 9, 0)
    cases = [
        # planned, completed, status, first and last batch, absent batch, in flight
        (4, 4, DECODING, 2, 9, -1, False),
        (5, 4, DECODING, 2, 9, -1, True),
        (5, 4, DECODING, 2, 9, 4, False),  # left out of the one that runs
        (5, 4, DECODING, 2, 9, 3, True),
        (5, 4, LEAVING, 2, 4, -1, True),
        (5, 4, LEAVING, 2, 3, -1, False),
        (5, 4, PREFILLING, 4, 9, -1, True),
        (5, 4, PREFILLING, 3, 9, -1, False),
    ]
    for planned, completed, status, first, last, absent, expected in cases:
        put(e, planned=planned, completed=completed)
        for name, value in (("status", status), ("first_batch", first), ("last_batch", last), ("absent_batch", absent)):
            look(e, name)[s] = value
        assert bool(planning.in_flight(e, s)) == expected


def test_what_is_found_counts_once() -> None:
    e = idle("vllm-v1")
    s, t = new_slot(e, 0, 5, 9, 0), new_slot(e, 1, 5, 9, 0)
    planning.count_hits(e, s, 16, 40)
    planning.count_hits(e, s, 32, 50)
    planning.count_hits(e, t, 0, 7)
    assert look(e, "hit")[[s, t]].tolist() == [16, 0]
    assert (look(e, "hit_tokens"), look(e, "lookup_tokens")) == (16, 47)


def at(
    policy: str, prompts: list[int], ids: list[list[int]], blocks: int = 100, **given: Any
) -> tuple[Engine, DeskColumns]:
    desk = DeskColumns(len(prompts))
    role, settings = given.pop("role", "colocated"), BASE[policy] | given.pop("settings", {})
    spec = EngineSpec(policy, role, settings, blocks, affine_cost(1.0), **given)
    return Engine(spec, content_of(prompts, ids), desk.record), desk


CACHES = [
    ("vllm-v1", {"prefix_caching": True}),
    ("vllm-v0", {"prefix_caching": True}),
    ("tensorrt-llm", {"enable_block_reuse": True}),
]


@pytest.mark.parametrize(("policy", "cached"), CACHES)
def test_blocks_found_in_the_cache_are_not_computed(policy: str, cached: dict[str, Any]) -> None:
    """48 tokens, then the same 48: all but the last block, as one token is left to compute; 64 that share 32: two."""
    made, desk = at(policy, [48, 48, 64], [[1, 2], [1, 2], [1, 7]], settings=cached, logging=True)
    for row, (prompt, moment) in enumerate(((48, 0.0), (48, 10.0), (64, 20.0))):
        made.submit(row, prompt, 2, moment)
        made.advance(moment + 9.0)
    assert desk.cached_tokens.tolist() == [0, 32, 32]
    assert [step for step in batches(made) if max(step.values()) > 1] == [{0: 48}, {1: 16}, {2: 32}]
    totals = made.totals()
    assert (totals.hit_tokens, totals.lookup_tokens, totals.prefill_tokens) == (64, 160, 96)
    assert made.load().free_blocks == 100


@pytest.mark.parametrize(("policy", "cached"), CACHES)
def test_blocks_that_others_hold_cost_nothing(policy: str, cached: dict[str, Any]) -> None:
    """Of five blocks the first holds four (48 tokens and what it makes); its prefix is two of the second's three."""
    settings = cached | {"capacity_scheduler_policy": "MAX_UTILIZATION"}
    made, desk = at(policy, [48, 48], [[1, 2], [1, 2]], 5, settings=settings, logging=True)
    made.submit(0, 48, 12, 0.0)
    made.advance(3.5)
    assert made.load().free_blocks == 1
    made.submit(1, 48, 1, 3.5)
    made.advance(4.5)
    free_at_once = policy == "vllm-v1"  # the others want all of a prompt's blocks free
    assert made.load().free_blocks == (0 if free_at_once else 1)
    made.advance(100.0)
    assert desk.first_token_s.tolist() == [1.0, 5.0 if free_at_once else 13.0]
    assert desk.cached_tokens.tolist() == [0, 32]


def test_idle_blocks_of_the_cache_are_no_free_ones_twice() -> None:
    """Five blocks, three of them cached and free: a prompt of six blocks that finds two of them does not fit; of five
    it does."""
    for prompt, first in ((80, 11.0), (81, None)):
        made, desk = at(
            "vllm-v1",
            [48, prompt],
            [[1, 2], [1, 9, 9]],
            5,
            settings={"prefix_caching": True, "max_num_batched_tokens": 64},
        )
        made.submit(0, 48, 1, 0.0)
        made.advance(5.0)
        made.submit(1, prompt, 1, 10.0)
        made.advance(50.0)
        assert desk.cached_tokens[1] == (32 if first else -1)
        assert np.array_equal(desk.first_token_s[1], first or np.nan, equal_nan=True)


def test_the_host_asks_for_blocks_one_by_one() -> None:
    """0.1 s a block: three of the first, two of the second; of the third two are here."""
    made, desk = at(
        "vllm-v1",
        [40, 32, 48],
        [[1, 2], [3], [1, 2]],
        role="decode",
        settings={"prefix_caching": True},
        extra={"read_post_s": 0.1},
    )
    made.submit(0, 40, 2, 0.0, remote=True)
    made.submit(1, 32, 2, 0.0, remote=True)
    news = made.advance(1.0)
    assert (news.kind.tolist(), news.value.tolist(), news.at_s.tolist()) == ([READ, READ], [3, 2], [0.0, 0.0])
    assert look(made.state, "host_free_s") == pytest.approx(0.5)
    for slot in news.slot:
        made.transfer_ended(int(slot), 0.2)
    made.advance(5.0)
    assert desk.first_token_s[:2].tolist() == pytest.approx([1.5, 1.5])  # the host is busy until 0.5
    made.submit(2, 48, 2, 5.0, remote=True)
    news = made.advance(6.0)
    assert news.value.tolist() == [1]
    assert look(made.state, "host_free_s") == pytest.approx(5.1)


def test_a_prefix_from_below_is_asked_for_where_it_is_longer_than_what_is_here() -> None:
    """32 of 64 tokens are cached here; below seem to be 48, then 32: only the first is asked for."""
    made, desk = at(
        "vllm-v1",
        [64, 64, 64],
        [[1, 2], [1, 3], [1, 4]],
        settings={"prefix_caching": True, "max_num_batched_tokens": 64},
    )
    made.submit(0, 64, 1, 0.0)
    made.advance(5.0)
    made.submit(1, 64, 1, 5.0, outside=48)
    news = made.advance(6.0)
    assert (news.kind.tolist(), news.value.tolist()) == ([LOAD], [2])
    assert look(made.state, "unread") == 0 and made.load().pending_prompt_tokens == 64
    made.will_hold(int(news.slot[0]), 48)
    assert made.load().pending_prompt_tokens == 16
    made.transfer_ended(int(news.slot[0]), 7.0)
    made.advance(9.0)
    assert (desk.cached_tokens[1], desk.first_token_s[1]) == (48, 8.0)
    made.submit(2, 64, 1, 9.0, outside=32)
    assert look(made.state, "unread") == 1
    assert made.advance(20.0) is None
    assert (look(made.state, "unread"), desk.cached_tokens[2], desk.first_token_s[2]) == (0, 32, 10.0)
    assert made.totals().hit_tokens == 80


@pytest.mark.parametrize(
    ("received", "unused", "free", "fits"),
    [(0, 0, 8, True), (0, 0, 7, False), (13, 0, 9, True), (13, 0, 8, False), (0, 1, 9, True), (0, 1, 8, False)],
)
@pytest.mark.parametrize("under_way", [True, False])
def test_reads_leave_a_prompt_under_way_its_blocks(
    received: int, unused: int, free: int, fits: bool, under_way: bool
) -> None:
    """A prompt of 100 tokens (and what it had made before) wants seven blocks or eight, and has two; a read of 40
    tokens wants three, and one more where one that it would find is free."""
    e = idle("vllm-v1", role="decode")
    other, s = new_slot(e, 0, 100, 30, COLOCATED), new_slot(e, 1, 40, 9, DECODE)
    look(e, "status")[other], look(e, "held_blocks")[other], look(e, "received")[other] = PREFILLING, 2, received
    look(e, "running")[0] = other
    put(e, running_count=1, partials=int(under_way), unread=1, planned=6)
    wait_last(e, s)
    spare = 0 if under_way else 5 + (received > 0)
    put(look(e, "pool"), free=free - spare)
    assert bool(start_read(e, s, 0, unused, 3.0)) == fits
    assert (look(e, "unread"), look(e, "waiting_count"), look(e, "holding_count")) == ((0, 0, 1) if fits else (1, 1, 0))
    if fits:
        assert (look(e, "computed")[s], look(e, "first_batch")[s], look(e, "last_token")[s]) == (40, 6, 3.0)
        assert (look(e, "status")[s], look(e, "held_blocks")[s], look(e, "news_value")[0]) == (REMOTE, 3, 3)


def test_chunks_are_told_with_their_steps() -> None:
    """Of a prompt to be handed over: tokens computed at its end, and when the step begins and ends."""
    made, _ = at(
        "vllm-v1", [100, 20], [[], []], role="prefill", tell_chunks=True, settings={"max_num_batched_tokens": 64}
    )
    made.submit(0, 100, 1, 0.0)
    made.submit(1, 20, 1, 0.0)
    news = made.advance(1.5)
    assert list(zip(*news[:2], *news[3:], strict=True)) == [
        (CHUNK, 0, 64, 1.0, 0.0),
        (CHUNK, 0, 100, 2.0, 1.0),
        (CHUNK, 1, 20, 2.0, 1.0),
    ]
    news = made.advance(3.0)
    assert list(zip(*news[:2], *news[3:5], strict=True)) == [(PREFILLED, 0, 7, 2.0), (PREFILLED, 1, 2, 2.0)]
    for told in (False, True):  # not of one decoded here
        both, _ = at("vllm-v1", [100], [[]], role="mixed", tell_chunks=True, tell_prompts=told)
        both.submit(0, 100, 1, 0.0)
        news = both.advance(50.0)
        assert (
            (news is None)
            if not told
            else (news.kind.tolist(), news.value.tolist(), news.at_s.tolist()) == ([COMPUTED], [0], [3.0])
        )


def test_tokens_in_groups_after_a_preemption() -> None:
    """Three of 16 tokens in four blocks, sent by two: the third's first token comes at once, its second with its last."""
    play = Play(
        "vllm-v1", tuple((0.0, 16, 3) for _ in range(3)), {"stream_interval": 2}, blocks=4, cost=affine_cost(1.0)
    )
    seen = Seen(play)
    assert seen.desk.preemptions.tolist() == [0, 0, 1]
    assert seen.desk.first_token_s.tolist() == [1.0, 1.0, 1.0]
    assert seen.desk.last_token_s.tolist() == [3.0, 3.0, 5.0]
    assert seen.desk.token_sum_s.tolist() == [6.0, 6.0, 1.0 + 4.0 + 5.0]
