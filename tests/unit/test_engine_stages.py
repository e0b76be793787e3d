"""DistServe's stages, Splitwise's machines and vLLM's V0 engine at their borders: one token over, one block short."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from engine_books import look, put
from engine_play import BASE
from test_engine_idle import idle
from test_engine_moves import at
from test_engine_policies import DISTSERVE, batches, engine

from simulator.engine import distserve, splitwise, vllm_v0
from simulator.engine.queues import wait_last
from simulator.engine.state import DECODE, DECODING, PREFILLED, new_slot

Requests = list[tuple[int, int]]


def run(
    policy: str, requests: Requests, blocks: int = 100, role: str = "colocated", **changes: Any
) -> list[dict[int, int]]:
    made, _ = engine(policy, BASE[policy] | changes, requests, blocks=blocks, role=role)
    made.advance(1000.0)
    return batches(made)


def queue(
    policy: str, waiting: list[tuple[int, int]], *, free: int = 100, role: str = "colocated", **given: Any
) -> Any:
    """An engine in whose queue (prompt, remote) wait; blocks of 16 tokens."""
    e = idle(policy, role, **given)
    put(look(e, "pool"), free=free)
    for row, (prompt, there) in enumerate(waiting):
        s = new_slot(e, row, prompt, 9, DECODE)
        look(e, "remote")[s], look(e, "received")[s] = there, 1
        wait_last(e, s)
    put(e, unread=sum(there for _, there in waiting))
    return e


# --- DistServe


def test_a_context_batch_holds_so_many_tokens_and_prompts() -> None:
    many = {"max_batch_size": 4}
    assert run("distserve", [(30, 2), (34, 2), (1, 2)], role="prefill", **many) == [{0: 30, 1: 34}, {2: 1}]
    assert run("distserve", [(30, 2), (35, 2), (1, 2)], role="prefill", **many) == [{0: 30}, {1: 35, 2: 1}]
    assert run("distserve", [(1, 2)] * 5, role="prefill", **many) == [{0: 1, 1: 1, 2: 1, 3: 1}, {4: 1}]
    assert run("distserve", [(1, 2)] * 3, role="prefill", max_batch_size=1) == [{0: 1}, {1: 1}, {2: 1}]


def test_a_context_stage_tells_its_first_tokens_at_once() -> None:
    made, desk = engine("distserve", DISTSERVE, [(32, 2), (16, 2), (17, 2)], blocks=4, role="prefill")
    news = made.advance(9.0)
    assert (news.kind.tolist(), news.row.tolist(), news.value.tolist()) == ([PREFILLED] * 2, [0, 1], [2, 1])
    assert desk.first_token_s.tolist() == pytest.approx([1.0, 1.0, np.nan], nan_ok=True)
    assert desk.cached_tokens.tolist() == [0, 0, -1]  # one block is left: the third needs two
    assert made.load().waiting == 1


@pytest.mark.parametrize(
    ("held", "prompt", "free", "fraction", "taken"),
    [
        ([], 16, 2, 0.25, True),  # the token that comes along needs a second block
        ([], 16, 1, 0.25, False),
        ([], 15, 1, 0.25, True),
        ([16, 16], 15, 50, 0.02, False),  # two of a hundred blocks wait to be used
        ([16], 15, 50, 0.02, True),
        ([17], 15, 50, 0.02, False),
        ([], 15, 50, 0.0, False),
    ],
)
def test_what_a_decoding_stage_takes_over(
    held: list[int], prompt: int, free: int, fraction: float, taken: bool
) -> None:
    e = queue("distserve", [(prompt, 1)], free=free, role="decode", accept_block_fraction=fraction, blocks=100)
    for i, tokens in enumerate(held):
        s = new_slot(e, 50 + i, tokens, 9, DECODE)
        look(e, "holding")[i] = s
    put(e, holding_count=len(held))
    assert bool(distserve.is_acceptable(e, 0)) == taken
    assert bool(distserve.must_wait_stage(e)) == (not taken)
    distserve.accept_prompts(e, 3.0)
    assert look(e, "holding_count") == len(held) + taken


def test_those_swapped_out_stand_before_those_to_be_taken_over() -> None:
    for swapped in range(4):
        e = queue("distserve", [(20, 0)] * swapped + [(20, 1)] * (3 - swapped), role="decode")
        assert distserve.first_unaccepted(e) == swapped
        put(e, running_count=8)  # all seats are taken
        assert bool(distserve.must_wait_stage(e)) == (swapped == 3)
        put(look(e, "pool"), free=1)
        assert distserve.must_wait_stage(e)
        put(e, running_count=7)
        put(look(e, "pool"), free=2)
        assert not distserve.must_wait_stage(e)
        put(look(e, "pool"), free=1)
        assert distserve.must_wait_stage(e)
    context = idle("distserve", "prefill")
    assert not distserve.must_wait_stage(context)


def test_who_is_swapped_out_waits_behind_those_that_went_before() -> None:
    e = queue("distserve", [(20, 0), (21, 0), (22, 1)], role="decode")
    put(e, waiting_head=63)  # the ring turns over
    look(e, "waiting")[[63, 0, 1]] = [0, 1, 2]
    s = new_slot(e, 9, 30, 9, DECODE)
    look(e, "status")[s], look(e, "received")[s], look(e, "running")[0] = DECODING, 4, s
    look(e, "offset")[s], look(e, "first_batch")[s] = 30, 0
    put(e, running_count=1, decodes=1, offset_sum=30, planned=4, completed=4)
    look(e, "phase_count")[30 % 16] = 1
    put(look(e, "pool"), free=97)
    distserve.swap_out_newest(e)
    order = [int(look(e, "waiting")[(look(e, "waiting_head") + i) % 64]) for i in range(4)]
    assert order == [0, 1, s, 2]
    assert (look(e, "pending_prompt_tokens"), look(e, "pool.free"), look(e, "decodes")) == (0, 100, 0)


def test_those_swapped_out_come_back_in_order_as_blocks_allow() -> None:
    """17 and 33 tokens with the one received: two blocks and three."""
    for free, seats, back in ((5, 8, 2), (4, 8, 1), (1, 8, 0), (5, 1, 1)):
        e = queue("distserve", [(16, 0), (32, 0), (5, 1)], free=free, role="decode", max_decode_batch_size=seats)
        out, work = distserve.swap_in(e, distserve.NOTHING, 3.0)
        assert (out, look(e, "running_count"), look(e, "waiting_count")) == (2 - back, back, 3 - back)
        assert work[:2] == (back, [0, 16, 16 + 32][back])
        assert look(e, "pool.free") == free - [0, 2, 5][back]
        assert look(e, "pending_prompt_tokens") == 0


def test_nobody_new_begins_while_somebody_is_out() -> None:
    """Two of 16 tokens in five blocks. At 16.5 a third takes the last one; both want another, so the second goes to
    host memory, and is back when the first has ended. The third's KV is there at 16.6; it begins with the second."""
    made, desk = at("distserve", [16, 16, 4], [20, 20, 3], 5, role="decode", settings={"accept_block_fraction": 1.0})
    desk.first_token_s[:] = 0.0
    for row in (0, 1):
        made.submit(row, 16, 20, 0.0, remote=True)
    for slot in made.advance(0.5).slot:
        made.transfer_ended(int(slot), 0.5)
    made.advance(15.7)
    made.submit(2, 4, 3, 15.7, remote=True)
    news = made.advance(16.55)
    assert (news.row.tolist(), made.load().holding, made.load().running) == ([2], 1, 1)
    made.transfer_ended(int(news.slot[0]), 16.6)
    made.advance(100.0)
    assert desk.preemptions.tolist() == [0, 1, 0]
    assert desk.decode_start_s.tolist() == [0.5, 0.5, 19.5]
    assert desk.last_token_s.tolist() == [19.5, 22.5, 21.5]


# --- Splitwise


def test_prompts_of_a_machine_fill_a_batch_to_the_token() -> None:
    assert run("splitwise", [(30, 1), (34, 1), (1, 1)]) == [{0: 30, 1: 34}, {2: 1}]
    assert run("splitwise", [(30, 1), (35, 1), (1, 1)]) == [{0: 30}, {1: 35, 2: 1}]
    assert run("splitwise", [(70, 1), (1, 1)]) == [{0: 70}, {1: 1}]  # one over the limit goes alone
    assert run("splitwise", [(1, 1), (70, 1)]) == [{0: 1}, {1: 70}]
    assert run("splitwise", [(4, 1)] * 3, max_batch_size=2) == [{0: 4, 1: 4}, {2: 4}]
    assert run("splitwise", [(16, 1), (32, 1), (16, 1)], blocks=3) == [{0: 16, 1: 32}, {2: 16}]
    assert run("splitwise", [(16, 1), (33, 1), (16, 1)], blocks=3) == [{0: 16}, {1: 33}, {2: 16}]


def test_blocks_that_decodes_need_are_left_alone() -> None:
    """At its sixteenth token the first wants a second block: of the two that are free one is for a prompt."""
    for prompt, second in ((16, {1: 16}), (17, {0: 1})):
        assert run("splitwise", [(16, 3), (prompt, 1)], blocks=3, max_prompt_tokens=16)[1] == second
    e = queue("splitwise", [(16, 0), (16, 0)], free=3)
    assert splitwise.choose_prompts(e, 0)[0] == 1  # seventeen tokens each: two blocks
    put(look(e, "pool"), free=4)
    assert splitwise.choose_prompts(e, 0) == (2, 64 - 34)
    assert splitwise.choose_prompts(e, 1)[0] == 1
    look(e, "remote")[1] = 1
    assert splitwise.choose_prompts(e, 0) == (1, 64 - 17)


@pytest.mark.parametrize(
    ("most", "passed", "absent", "aged"),
    [(0, 0, -1, True), (2, 1, 19, False), (2, 2, 19, True), (2, 2, 18, False), (2, 3, 19, True), (2, 3, -1, False)],
)
def test_one_passed_over_often_enough_goes_before_prompts(most: int, passed: int, absent: int, aged: bool) -> None:
    """Batch 20 is planned."""
    e = idle("splitwise", max_preemptions=most)
    for row in range(2):
        s = new_slot(e, row, 16, 9, 0)
        look(e, "passed")[s], look(e, "absent_batch")[s], look(e, "status")[s] = passed, absent, DECODING
        look(e, "running")[row] = s
    put(e, planned=20, running_count=2)
    assert bool(splitwise.is_aged(e, 0)) == aged
    assert splitwise.count_aged(e) == 2 * aged
    look(e, "status")[1] = 4
    assert splitwise.count_aged(e) == aged


def test_decodes_take_blocks_while_others_are_passed_over() -> None:
    """Three decode, two have a token; the first is at the end of its block."""
    e = idle("splitwise", blocks=10)
    for row, offset in enumerate((12, 5, 12)):
        s = new_slot(e, row, 16, 9, 0)
        look(e, "status")[s], look(e, "offset")[s], look(e, "running")[row] = DECODING, offset, s
    put(e, planned=20, running_count=3)
    work = splitwise.decode_some(e, 2)
    assert work[:2] == (2, 32 + 25)
    assert look(e, "pool.free") == 9
    r = 20 % 8
    assert look(e, "batch_absent")[r] == 1 and look(e, "absent")[r, 0] == 2
    assert look(e, "passed")[:3].tolist() == [0, 0, 1] and look(e, "absent_batch")[:3].tolist() == [-1, -1, 20]


def test_kv_is_asked_for_while_memory_lasts() -> None:
    """Seventeen tokens each, two blocks."""
    for free, asked in ((6, 3), (5, 2), (1, 0)):
        e = queue("splitwise", [(16, 1)] * 3, free=free, role="decode")
        splitwise.ask_while_memory_lasts(e, 3.0)
        assert (look(e, "holding_count"), look(e, "waiting_count"), look(e, "unread")) == (asked, 3 - asked, 3 - asked)
    mixed = queue("splitwise", [(16, 0), (16, 1)])
    splitwise.ask_while_memory_lasts(mixed, 3.0)
    assert look(mixed, "holding_count") == 0


def test_when_the_head_of_a_machines_queue_has_to_wait() -> None:
    for there in (0, 1):
        e = queue("splitwise", [(16, there)], free=2)
        assert not splitwise.must_wait_machine(e, False)
        assert bool(splitwise.must_wait_machine(e, True)) == (there == 0)
        put(look(e, "pool"), free=1)
        assert splitwise.must_wait_machine(e, False)


# --- vLLM's V0 engine


def test_prompts_of_v0_fill_a_batch_to_the_token() -> None:
    assert run("vllm-v0", [(30, 1), (34, 1), (1, 1)]) == [{0: 30, 1: 34}, {2: 1}]
    assert run("vllm-v0", [(30, 1), (35, 1), (1, 1)]) == [{0: 30}, {1: 35, 2: 1}]
    assert run("vllm-v0", [(70, 2), (1, 1)]) == [{0: 70}, {1: 1}, {0: 1}]
    assert run("vllm-v0", [(4, 1)] * 3, max_num_seqs=2) == [{0: 4, 1: 4}, {2: 4}]


@pytest.mark.parametrize(
    ("blocks", "free", "running", "prompt", "fits"),
    [
        (199, 3, 1, 32, True),
        (199, 2, 1, 32, False),
        (199, 2, 0, 32, True),
        (99, 2, 1, 32, True),
        (99, 1, 0, 32, False),
        (250, 4, 1, 32, True),
        (250, 3, 1, 32, False),
    ],
)
def test_a_watermark_is_left_alone_while_others_run(
    blocks: int, free: int, running: int, prompt: int, fits: bool
) -> None:
    e = queue("vllm-v0", [(prompt - 1, 0)], free=free, blocks=blocks)
    put(e, running_count=running)
    assert bool(vllm_v0.fits(e, 0)) == fits
    assert bool(vllm_v0.must_wait_behind(e)) == (not fits)


def test_decodes_of_v0_stand_still_while_a_prompt_fits() -> None:
    """Two of 16 tokens want a second block each, and 40 that wait want the three that are free: they go first."""
    made, desk = engine("vllm-v0", BASE["vllm-v0"], [(16, 3), (16, 3), (16, 1), (40, 1)], blocks=5)
    made.advance(100.0)
    assert batches(made) == [{0: 16, 1: 16, 2: 16}, {3: 40}, {0: 1, 1: 1}, {0: 1, 1: 1}]
    assert desk.first_token_s.tolist() == [1.0, 1.0, 1.0, 2.0]
    assert (made.totals().gap_max_s, made.totals().gap_sum_s) == (2.0, 6.0)
    short = run("vllm-v0", [(16, 3), (16, 3)], blocks=3)
    assert short == [{0: 16, 1: 16}, {0: 1, 1: -1}, {0: 1}, {1: 17}, {1: 1}]
