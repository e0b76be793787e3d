"""Scheduling by priority at decode engines: what a request loses that had prompt tokens of the step, and who goes first."""

from __future__ import annotations

import numpy as np
import pytest
from test_engine_corners import VLLM, content_of

from simulator.compiled import compiled
from simulator.cost.table import affine_cost
from simulator.engine.engine import Engine, EngineSpec
from simulator.engine.priorities import take_back_chunk
from simulator.engine.state import PREFILLING, READ, DeskColumns
from simulator.engine.vllm import admit_waiting
from simulator.errors import InputError

URGENT = VLLM | {"prefix_caching": False, "scheduling_policy": "priority"}


def engine(prompts, priorities, role="decode", blocks=100, **settings):
    desk = DeskColumns(len(prompts))
    extra = {"priority": np.array(priorities)}
    spec = EngineSpec("vllm-v1", role, URGENT | settings, blocks, affine_cost(1.0), extra=extra)
    return Engine(spec, content_of(prompts, [[] for _ in prompts]), desk.record), desk


@compiled
def give_and_take_back(e, budget):  # type: ignore[no-untyped-def]
    """A waiting request gets ``budget`` tokens of its prompt and loses them. What is left of that."""
    nothing = (0, 0, 0, 0, 0, 0.0, 0)
    left, work = admit_waiting(e, budget, nothing, 0.0)
    s = e.running[0]
    work = take_back_chunk(e, s, budget - left, work)
    status = e.status[s]
    sums = (e.partials, e.decodes, e.offset_sum, e.prefill_tokens, e.batch_firsts[0], e.batch_leaving[0])
    return work, status, sums


@pytest.mark.parametrize(("prompt", "outputs", "budget"), [(40, 5, 16), (40, 5, 40), (40, 1, 40), (1, 5, 1), (1, 1, 1)])
def test_a_chunk_that_is_taken_back_leaves_a_prompt_under_way(prompt, outputs, budget):
    one, _ = engine([prompt], [0], role="colocated")
    one.submit(0, prompt, outputs, 0.0)
    work, status, sums = give_and_take_back(one.state, budget)
    assert tuple(work) == (0, 0, 0, 0, 0, 0.0, 0)
    assert (status, tuple(sums)) == (PREFILLING, (1, 0, 0, 0, 0, 0))


def begun(priorities, ends):
    """First tokens of requests that come together, whose KV is there at ``ends``; one at a time runs."""
    many, desk = engine([16] * len(priorities), priorities, max_num_seqs=1)
    for row in range(len(priorities)):
        many.submit(row, 16, 3, 0.0, remote=True)
    news = many.advance(0.5)
    assert news.kind.tolist() == [READ] * len(priorities)
    slots = dict(zip(news.row.tolist(), news.slot.tolist(), strict=True))
    for at, row in sorted((at, row) for row, at in enumerate(ends)):
        many.advance(at)
        many.transfer_ended(slots[row], at)
    many.advance(100.0)
    return news.row.tolist(), desk.first_token_s.tolist()


def test_kv_is_asked_for_by_urgency_and_so_do_requests_begin():
    assert begun([2, 0, 1], [1.0, 1.0, 1.0]) == ([1, 2, 0], [8.0, 2.0, 5.0])
    assert begun([0, 0, 0], [1.0, 1.0, 1.0]) == ([0, 1, 2], [2.0, 5.0, 8.0])
    # one whose KV is late does not hold up the others, and goes before who still waits
    assert begun([2, 0, 1], [1.0, 2.5, 1.0]) == ([1, 2, 0], [8.0, 5.0, 2.0])


def test_of_those_that_wait_for_kv_the_more_urgent_goes_first_whoever_asked_first():
    pair, desk = engine([16] * 3, [5, 5, 1], max_num_seqs=1)
    slots = {}
    for row, at in enumerate((0.0, 0.0, 1.0)):
        pair.advance(at)
        pair.submit(row, 16, 3, at, remote=True)
        news = pair.advance(at + 0.5)
        slots.update(zip(news.row.tolist(), news.slot.tolist(), strict=True))
    for row in range(3):
        pair.transfer_ended(slots[row], 2.0)
    pair.advance(100.0)
    assert desk.first_token_s.tolist() == [6.0, 9.0, 3.0]


def test_one_that_computes_its_prompt_itself_waits_in_its_place():
    """KV does not come, of the least urgent last: it is not put at the head of the queue."""
    three, desk = engine([16] * 3, [3, 2, 1], max_num_seqs=1, blocks=40)
    for row in range(3):
        three.submit(row, 16, 3, 0.0, remote=True)
    news = three.advance(0.5)
    slots = dict(zip(news.row.tolist(), news.slot.tolist(), strict=True))
    for row in (1, 2, 0):
        three.abandon(slots[row], True, 1.0)
    three.advance(100.0)
    assert desk.first_token_s.tolist() == [8.0, 5.0, 2.0]


def test_lending_pools_have_no_priorities():
    with pytest.raises(InputError, match="in a pool of role 'mixed'; allowed: colocated, prefill, decode"):
        engine([1], [0], role="mixed")
