"""What happens once in thousands of steps, set up by hand: blocks that may not be freed yet, requests passed over."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from engine_books import look, put
from test_engine_costs import LINEAR
from test_engine_idle import idle
from test_engine_settings import made

from simulator.cost.table import affine_cost, step_cost_record
from simulator.engine import (
    completion,
    handed_over,
    priorities,
    speculative_plans,
    splitwise,
    tensorrt_llm,
    tracking,
    vllm,
    withdrawing,
)
from simulator.engine import state as shared
from simulator.engine.rules import RuleSet, rules_record
from simulator.engine.sglang import memory
from simulator.engine.sglang import state as sglang_state
from simulator.engine.state import (
    COLOCATED,
    DECODE,
    DECODING,
    LEAVING,
    PREFILLING,
    REMOTE,
    SPECULATING,
    WAITING,
    new_slot,
)

NOTHING = (0, 0, 0, 0, 0, 0.0, 0)


def running(states: list[int], *, prompt: int = 40, free: int = 0, **given: Any) -> Any:
    """An engine in which requests of these states run, in order; batch 20 is planned, 19 in flight."""
    e = made("vllm-v1", **given) if "role" in given else idle("vllm-v1", **given)
    for row, status in enumerate(states):
        s = new_slot(e, row, prompt, 9, COLOCATED)
        look(e, "status")[s], look(e, "running")[row], look(e, "order")[s] = status, s, row
        if status == DECODING:
            look(e, "offset")[s] = prompt - 20
            look(e, "phase_count")[(prompt - 20) % 16] += 1
    put(e, running_count=len(states), planned=20, completed=19, admissions=len(states))
    put(e, decodes=states.count(DECODING), offset_sum=states.count(DECODING) * (prompt - 20))
    put(e, partials=states.count(PREFILLING))
    put(look(e, "pool"), free=free)
    return e


@pytest.mark.parametrize("flying", [True, False])
def test_a_prompt_waits_for_blocks_that_a_batch_in_flight_holds(flying: bool) -> None:
    """The newest is computed in part, sixteen of 40 tokens: it lacks two blocks. In flight it may not be freed."""
    e = running([DECODING, PREFILLING], prompt=40)
    put(e, deferred_frees=True, pending_prompt_tokens=24)
    look(e, "computed")[1], look(e, "held_blocks")[1] = 16, 1
    look(e, "first_batch")[1] = 19 if flying else 18
    budget, work, done = vllm.continue_prompt(e, 1, 30, NOTHING)
    assert (budget, tuple(work), bool(done)) == (30, NOTHING, False)
    assert look(e, "status")[1] == (PREFILLING if flying else WAITING)
    assert (look(e, "pool.free"), look(e, "preempted"), look(e, "running_count")) == (
        (0, 0, 2) if flying else (1, 1, 1)
    )
    assert look(e, "pending_prompt_tokens") == (24 if flying else 40)


def test_a_walk_along_the_running_list_ends_where_nothing_may_be_freed() -> None:
    """The first decodes without a block of its own to take (its offset is 20: 40 tokens, in the third); the second's
    prompt lacks blocks and is in flight; the third, behind it, is left out of the batch."""
    e = running([DECODING, PREFILLING, DECODING])
    put(e, deferred_frees=True, token_budget=30)
    look(e, "computed")[1], look(e, "held_blocks")[1], look(e, "first_batch")[:3] = 16, 1, [10, 19, 10]
    budget, work, decodes = vllm.run_in_order(e)
    assert (budget, tuple(work[:2]), decodes) == (29, (1, 40), 1)
    assert look(e, "batch_absent")[4] == 1 and look(e, "absent")[4, 0] == 2


@pytest.mark.parametrize("depth", [1, 2])
def test_a_block_filled_while_blocks_are_short_is_cached_once_it_is_known(depth: int) -> None:
    """47 tokens are computed: the 48th fills a third block. Planned ahead it is cached when its step has ended."""
    e = made("vllm-v1", prefix_caching=True, shared=True)
    put(e, depth=depth, planned=20, completed=20)
    s = new_slot(e, 0, 30, 40, COLOCATED)
    look(e, "status")[s], look(e, "offset")[s] = DECODING, 27
    tracking.open_table(e, s)
    vllm.take_blocks(e, s, 47)
    assert vllm.take_decode_block(e, s)
    assert (look(e, "held_blocks")[s], look(e, "registered")[s]) == (3, 3 if depth == 1 else 0)


def test_with_drafts_too_blocks_in_flight_are_not_freed() -> None:
    e = running([SPECULATING, SPECULATING, LEAVING], free=1)
    put(e, deferred_frees=True)
    look(e, "held_blocks")[:3] = 3
    look(e, "first_batch")[1] = 19
    assert not speculative_plans.make_room(e, 0, 80)  # two blocks more, one is there
    assert look(e, "running")[:3].tolist() == [0, 1, 2] and look(e, "held_blocks")[0] == 3
    assert speculative_plans.make_room(e, 0, 64)
    assert (look(e, "held_blocks")[0], look(e, "pool.free")) == (4, 0)
    look(e, "first_batch")[1] = 18
    assert speculative_plans.make_room(e, 0, 80)
    # the newest that may go is the second: the third's last token is on its way
    assert look(e, "running")[:2].tolist() == [0, 2] and look(e, "status")[1] == WAITING
    assert look(e, "pool.free") == 2
    alone = running([SPECULATING, LEAVING], free=0)
    look(alone, "held_blocks")[:2] = 3
    assert not speculative_plans.make_room(alone, 0, 49)
    assert look(alone, "status")[0] == WAITING and look(alone, "pool.free") == 3


def test_late_gaps_of_those_that_are_gone_are_not_counted() -> None:
    """Left out of batches until 4 s: one is paused meanwhile, one left out of this batch too, one is in no batch yet,
    and one has its token at 7 s, three seconds after the others' and six after its own."""
    e = running([DECODING] * 4)
    look(e, "status")[0] = WAITING
    look(e, "late")[:4] = [0, 1, 2, 3]
    look(e, "last_token")[:4] = 1.0
    look(e, "absent_batch")[:4] = [-1, 19, 18, 18]
    look(e, "first_batch")[:4] = [5, 5, 20, 5]
    put(e, late_count=4)
    completion.count_late(e, 19, 7.0, 4.0)
    assert look(e, "late")[: look(e, "late_count")].tolist() == [1, 2]
    assert (look(e, "gap_sum_s"), look(e, "gap_max_s"), look(e, "gap_counts").sum()) == (6.0 - 3.0, 6.0, 0)
    completion.note_late(e, 1, 5.0)
    completion.note_late(e, 3, 5.0)
    assert look(e, "late")[: look(e, "late_count")].tolist() == [1, 2, 3]
    assert look(e, "last_token")[[1, 3]].tolist() == [1.0, 5.0]


def test_who_is_left_out_and_who_stands_where() -> None:
    e = running([DECODING, DECODING, PREFILLING, LEAVING, DECODING], free=5)
    look(e, "absent")[4, :2], look(e, "batch_absent")[4] = [1, 4], 2
    assert [bool(priorities.is_left_out(e, s)) for s in range(5)] == [False, True, False, False, True]
    put(e, planned=21)
    assert not any(priorities.is_left_out(e, s) for s in range(5))
    look(e, "running")[:5] = [3, 1, 4, 0, 2]
    assert [priorities.place_of(e, s) for s in range(5)] == [3, 1, 4, 0, 2]


@pytest.mark.parametrize(("undone", "blocks"), [(False, 3), (True, 4)])
def test_who_is_taken_off_gives_all_its_blocks_back(undone: bool, blocks: int) -> None:
    """48 tokens are computed, in three blocks; with a token of the batch being planned it has a fourth."""
    e = running([DECODING] * 3, prompt=48, scheduling_policy="priority")
    put(e, completed=20)
    look(e, "first_batch")[:3] = 20
    priorities.take_off(e, 1, undone)
    assert look(e, "running")[: look(e, "running_count")].tolist() == [0, 2]
    assert (look(e, "pool.free"), look(e, "status")[1], look(e, "waiting_count")) == (blocks, WAITING, 1)


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize(("tokens", "status"), [(1, DECODING), (20, DECODING), (20, LEAVING), (20, PREFILLING)])
def test_tokens_of_a_prompt_taken_back_cost_nothing(tokens: int, status: int, affine: bool) -> None:
    """With them 40 tokens are computed: the prompt is under way again, and the batch is what it was without them."""
    e = running([status if status != DECODING else PREFILLING, PREFILLING], prompt=40 if status != PREFILLING else 90)
    put(e, cost=step_cost_record(affine_cost(1.0) if affine else LINEAR))
    if status == DECODING:
        look(e, "status")[0], look(e, "offset")[0] = DECODING, 20
        look(e, "phase_count")[4] = 1
        put(e, decodes=1, offset_sum=20, partials=1)
    look(e, "computed")[0] = 40
    look(e, "firsts")[4, :3], look(e, "batch_firsts")[4] = [7, 0, 8], 3
    look(e, "leaving")[4, :3], look(e, "batch_leaving")[4] = [7, 0, 8], 3
    put(e, prefill_tokens=100)
    attention = 0.0 if affine else 0.0031 * 20 / 1000 + 0.0007 * 20 * 20 / 1000
    with_it = (6, 50 + 39, 2, 30, 9, 0.5, 3) if tokens == 1 else (5, 50, 3, 50, 9 + 20, 0.5 + attention, 3)
    work = priorities.take_back_chunk(e, 0, tokens, with_it)
    assert tuple(work) == pytest.approx((5, 50, 2, 30, 9, 0.5, 3 if status == PREFILLING else 2))
    assert look(e, "prefill_tokens") == 100 - tokens
    assert look(e, "status")[0] == PREFILLING and look(e, "partials") == 2
    ended = status != PREFILLING
    assert look(e, "firsts")[4, : look(e, "batch_firsts")[4]].tolist() == ([7, 8] if ended else [7, 0, 8])
    assert look(e, "leaving")[4, : look(e, "batch_leaving")[4]].tolist() == ([7, 8] if status == LEAVING else [7, 0, 8])
    assert (look(e, "decodes"), look(e, "offset_sum")) == (0, 0)


def test_a_token_taken_back_leaves_no_entry() -> None:
    """Entries of earlier steps, and those of pauses, stay."""
    e = running([DECODING] * 3, logging=True)
    look(e, "log_row")[:6], look(e, "log_tokens")[:6] = [1, 0, 1, 2, 1, 0], [1, 1, 1, 1, -1, 1]
    put(e, log_rows=6)
    priorities.strike_out(e, 1, 1)
    n = look(e, "log_rows")
    assert (look(e, "log_row")[:n].tolist(), look(e, "log_tokens")[:n].tolist()) == ([1, 0, 2, 1, 0], [1, 1, 1, -1, 1])


@pytest.mark.parametrize("caching", [False, True])
def test_a_token_given_takes_a_block_at_the_end_of_another(caching: bool) -> None:
    """47 tokens are computed: the 48th fills the third block, which is cached at once where the 47th is known. The 49th
    begins a fourth."""
    e = made("vllm-v1", prefix_caching=caching, shared=True, scheduling_policy="priority", logging=True)
    s = new_slot(e, 0, 47, 9, COLOCATED)
    look(e, "status")[s], look(e, "offset")[s], look(e, "first_batch")[s] = DECODING, 27, 5
    if caching:
        tracking.open_table(e, s)
        vllm.take_blocks(e, s, 47)
    for planned, completed, taken, known in ((20, 19, 0, 2), (20, 20, 0, 3), (21, 21, 1, 3)):
        put(e, planned=planned, completed=completed)
        work = priorities.give_token(e, s, (2, 30, 0, 0, 0, 0.0, 0))
        assert tuple(work) == (3, 30 + planned + 27, 0, 0, 0, 0.0, 0)
        assert look(e, "pool.free") == 1000 - taken - (3 if caching else 0)
        assert look(e, "registered")[s] == (known if caching else 0)
    assert look(e, "log_rows") == 3


def test_decodes_that_prompts_pass_by_are_those_that_decode() -> None:
    """Two tokens are left for three that run, one of which is on its way out."""
    e = idle("splitwise", blocks=10)
    for row, status in enumerate((LEAVING, DECODING, DECODING, DECODING)):
        s = new_slot(e, row, 16, 9, 0)
        look(e, "status")[s], look(e, "offset")[s], look(e, "running")[row] = status, 3, s
    look(e, "passed")[3], look(e, "absent_batch")[3] = 2, 19  # has been passed over often enough
    put(e, planned=20, running_count=4)
    work = splitwise.decode_some(e, 1)
    assert work[:2] == (2, 46)
    assert look(e, "absent")[4, : look(e, "batch_absent")[4]].tolist() == [2]
    assert look(e, "passed")[:4].tolist() == [0, 0, 1, 2]


def test_a_prompt_in_part_takes_nothing_where_no_block_is_left_of_a_step() -> None:
    e = idle("tensorrt-llm")
    put(e, rules=rules_record(RuleSet(policy=1)))
    for row in range(2):
        s = new_slot(e, row, 40, 4, COLOCATED)
        look(e, "status")[s], look(e, "computed")[s], look(e, "running")[row] = PREFILLING, 16 * row, s
    put(e, running_count=2, partials=2, pending_prompt_tokens=64)
    budget, work = tensorrt_llm.continue_prompts(e, 39, NOTHING)
    assert (budget, tuple(work[2:5])) == (7, (1, 32, 0))  # of the second, 24 tokens are left, and nothing fits
    assert look(e, "computed")[:2].tolist() == [32, 16]


def test_a_table_grows_with_the_longest_request() -> None:
    """300 blocks told apart: the table has room for 256."""
    e = made("vllm-v1", prefix_caching=True, shared=False, kv_blocks=400)
    s = new_slot(e, 0, 4800, 9, COLOCATED)
    put(e, caching=True)
    look(e, "held_blocks")[s], look(e, "registered")[s] = 300, 2
    put(e, pool=tracking.make_pool(400, True, False))
    put(e, block_table=np.zeros((64, 256), np.int64), block_keys=np.zeros((64, 256), np.int64))
    tracking.number_blocks(e, s)
    assert look(e, "block_table").shape == (64, 512) and look(e, "pool.free") == 100
    own = look(e, "block_table")[look(e, "table")[s], :300]
    assert len(set(own.tolist())) == 300


@pytest.mark.parametrize(("most", "budget", "begun"), [(3, 50, 1), (2, 50, 0), (3, 0, 0), (4, 50, 2), (4, 1, 1)])
def test_those_whose_kv_is_there_begin_while_seats_and_tokens_last(most: int, budget: int, begun: int) -> None:
    """Two run, two of 20 tokens have come whole; and two of which 16 tokens have come, so that four are left."""
    for prefix in (False, True):
        e = idle("tensorrt-llm")
        for row in range(4):
            s = new_slot(e, row, 20, 4, COLOCATED if prefix else DECODE)
            look(e, "outside")[s], look(e, "remote")[s] = 16 * prefix, 2
            look(e, "computed")[s], look(e, "received")[s] = (16, 0) if prefix else (20, 1)
            look(e, "held_blocks")[s] = 2
            if row < 2:
                look(e, "status")[s], look(e, "running")[row], look(e, "remote")[s] = PREFILLING, s, 0
            else:
                look(e, "status")[s], look(e, "holding")[row - 2] = REMOTE, s
        put(e, running_count=2, holding_count=2, planned=5, completed=5)
        if prefix:
            left, work = tensorrt_llm.begin_prefixed(e, budget * 4, NOTHING, 3.0, most)
            assert (left, work[2], work[3]) == (4 * (budget - begun), begun, 4 * begun)
        else:
            left, work = handed_over.begin_loaded(e, budget, NOTHING, 3.0, most)
            assert (left, work[0], work[1]) == (budget - begun, begun, 20 * begun)
            assert look(e, "token_sum")[2 : 2 + begun].tolist() == [3.0] * begun
        assert (look(e, "running_count"), look(e, "holding_count")) == (2 + begun, 2 - begun)


def test_a_full_time_series_keeps_every_second_point() -> None:
    """1,024 points half a second apart: 512 stay, and new ones come a second apart."""
    e = idle("vllm-v1")
    points = look(e, "sample_s").size
    for i, name in enumerate(("sample_s", "sample_running", "sample_waiting", "sample_blocks")):
        look(e, name)[:] = np.arange(points) * (0.5 if i == 0 else i)
    put(e, samples=points)
    shared.thin(e)
    assert (look(e, "samples"), look(e, "sample_every_s")) == (512, 1.0)
    for i, name in enumerate(("sample_s", "sample_running", "sample_waiting", "sample_blocks")):
        assert look(e, name)[:512].tolist() == [(1.0 if i == 0 else 2 * i) * n for n in range(512)]
    put(e, samples=points, sample_every_s=7.0)
    shared.thin(e)
    assert look(e, "sample_every_s") == 14.0
    put(e, running_count=3, waiting_count=4)
    put(look(e, "pool"), free=390)
    shared.sample(e, 99.0)
    written = [look(e, name)[512] for name in ("sample_s", "sample_running", "sample_waiting", "sample_blocks")]
    assert (written, look(e, "samples"), look(e, "sample_next_s")) == ([99.0, 3, 4, 10], 513, 99.0 + 14.0)


def test_what_is_only_counted_is_cached_when_somebody_leaves() -> None:
    """40 tokens of one that decodes: two blocks are full, the third is not."""
    e = made("vllm-v1", prefix_caching=True, shared=False)
    s = new_slot(e, 0, 30, 40, COLOCATED)
    look(e, "status")[s], look(e, "offset")[s], look(e, "running")[0] = DECODING, 20, s
    look(e, "phase_count")[20 % 16] = 1
    put(e, running_count=1, decodes=1, offset_sum=20, planned=20, completed=20)
    put(look(e, "pool"), free=997)
    put(look(e, "left"), blank=997)
    assert withdrawing.withdraw(e, 0, 5.0)[0]
    assert (look(e, "left.blank"), look(e, "left.count"), look(e, "left.kept")[0], look(e, "pool.free")) == (
        998,
        1,
        2,
        1000,
    )


def test_a_leaf_of_prompt_and_output_is_cut_between_them() -> None:
    """One token of prompt and three of output, in one-token pages: two nodes beside the root; of a prompt of none one."""
    for prompt, nodes in ((1, 3), (4, 2)):
        e = idle("sglang", page_size=1)
        s = sglang_state.new_slot(e, 0, prompt, 9)
        look(e, "committed")[s], look(e, "holds")[s] = 4, 1
        put(e, free=6396)
        memory.checkpoint(e, s, 4)
        assert (look(e, "tree.used"), look(e, "protected")[s], look(e, "free")) == (nodes, 4, 6396)
        assert look(e, "tree.evictable") == 0
    nothing = idle("sglang", page_size=1)
    s = sglang_state.new_slot(nothing, 0, 5, 9)
    memory.checkpoint(nothing, s, 0)
    assert look(nothing, "tree.used") == 1 and look(nothing, "node")[s] == -1
