"""A decode engine of SGLang: the turn that those who begin take, ranks that sit out, and how KV lies in memory."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_engine_sglang_steps import at, told

from simulator.cost.table import StepCostTable, affine_cost
from simulator.engine.engine import Engine
from simulator.engine.sglang import remote
from simulator.engine.state import READ, DeskColumns

N = np.arange(64.0)
#: Steps of decode take a second on the GPU, and a quarter on the host.
HOSTED = StepCostTable(affine=False, decode_s=np.ones(64), decode_floor_s=np.where(N > 0, 0.25, 0.0))


def remotely(made: Engine, row: int, prompt: int, output: int, asked: float, there: float) -> None:
    """A request whose KV is asked for and comes."""
    made.advance(asked)
    made.submit(row, prompt, output, asked, remote=True)
    news = made.advance(there + 1e-6)
    asked_for = zip(news.kind, news.row, news.slot, strict=True)
    made.transfer_ended(next(int(slot) for kind, of, slot in asked_for if (kind, of) == (READ, row)), there)


def two(there: float, **given: Any) -> DeskColumns:
    """One decodes from 0 on; the second comes at 1.2, and its KV is there at ``there``."""
    made, desk = at([(30, 20), (20, 4)], role="decode", overlap=True, **given)
    remotely(made, 0, 30, 20, 0.0, 0.0)
    remotely(made, 1, 20, 4, 1.2, there)
    made.advance(100.0)
    return desk


def test_those_who_begin_take_a_turn_and_the_step_behind_is_launched_in_the_open() -> None:
    """From idle the first token is there when its step has been launched: 0.25, steps end at 1.25, 2.25, ... The
    second's KV is there at 2.5: seen at 3.25, while the step until 4.25 runs; that ends, the next one is launched."""
    desk = two(2.5, cost=HOSTED)
    assert desk.first_token_s.tolist() == [0.25, 4.5]
    assert desk.decode_start_s[1] == 4.5
    assert desk.last_token_s.tolist() == [0.25 + 19 + 0.25, 4.5 + 3]
    assert desk.token_sum_s[1] == 4.5 + 5.5 + 6.5 + 7.5


def test_a_step_behind_one_that_runs_hides_its_host_work() -> None:
    """Without a second one, steps follow one another at once."""
    made, desk = at([(30, 20)], role="decode", overlap=True, cost=HOSTED)
    remotely(made, 0, 30, 20, 0.0, 0.0)
    made.advance(100.0)
    assert (desk.first_token_s[0], desk.last_token_s[0]) == (0.25, 19.25)


def test_an_answer_of_one_token_ends_with_the_turn_that_it_takes() -> None:
    """From idle, after the host's quarter of a second, as the first token of what comes at 5."""
    made, desk = at([(30, 1), (20, 3)], role="decode", overlap=True, cost=HOSTED)
    remotely(made, 0, 30, 1, 0.0, 0.0)
    remotely(made, 1, 20, 3, 5.0, 5.0)
    made.advance(100.0)
    assert desk.first_token_s.tolist() == [0.25, 5.25]
    assert desk.last_token_s.tolist() == [0.25, 7.25]


def test_ranks_that_begin_others_sit_out_a_step() -> None:
    """Data-parallel attention: nobody's step is late. KV there at 2.5 is seen at 3; the rank does nothing in the step
    planned then, which ends at 5, and then it sends the first token and takes part."""
    cost = replace(affine_cost(1.0), ranks=2)
    desk = two(2.5, cost=cost)
    assert desk.first_token_s.tolist() == [0.0, 5.0]
    assert desk.last_token_s.tolist() == [19.0, 5.0 + 3]


@pytest.mark.parametrize("macro", [True, False])
def test_whoever_is_there_in_time_begins_with_the_others(macro: bool) -> None:
    """KV at 2.1 and at 3.9: the turn begins at 3 with one; when the step in flight ends, at 4, both begin."""
    made, desk = at([(30, 20), (20, 4), (10, 4)], role="decode", overlap=True, macro=macro)
    remotely(made, 0, 30, 20, 0.0, 0.0)
    made.advance(0.5)
    for row, prompt in ((1, 20), (2, 10)):
        made.submit(row, prompt, 4, 0.5, remote=True)
    news = made.advance(2.0)
    slots = {int(row): int(slot) for row, slot in zip(news.row, news.slot, strict=True)}
    for moment, row in ((2.1, 1), (3.9, 2)):
        made.advance(moment)
        made.transfer_ended(slots[row], moment)
    made.advance(100.0)
    assert desk.first_token_s.tolist() == [0.0, 4.0, 4.0]
    assert desk.last_token_s.tolist() == [19.0, 7.0, 7.0]


def test_one_token_answers_make_room_for_who_waits() -> None:
    """Memory for one at a time: each begins, ends, and the next one's KV is asked for in the same instant."""
    made, desk = at([(30, 1)] * 3, 40, role="decode", overlap=True)
    for row in range(3):
        made.submit(row, 30, 1, 0.0, remote=True)
    for row in range(3):
        news = made.advance(row + 0.5)
        asked = [(r, int(slot)) for (kind, r, _, _), slot in zip(told(news), news.slot, strict=True) if kind == READ]
        assert [r for r, _ in asked] == [row]
        made.transfer_ended(asked[0][1], row + 0.75)
    made.advance(9.0)
    assert desk.first_token_s.tolist() == [0.75, 1.75, 2.75]
    assert made.load().free_blocks == 40


def long_run(pool: int, page: int = 1, count: int = 120) -> DeskColumns:
    """Requests of 40 and 20 tokens, one every second step, through a decode engine of so many KV tokens."""
    made, desk = at([(40, 20)] * count, pool, role="decode", overlap=False, page_size=page, max_running_requests=64)
    for row in range(count):
        remotely(made, row, 40, 20, 2.0 * row, 2.0 * row + 1.0 if row else 0.0)
    made.advance(1e4)
    assert np.isfinite(desk.last_token_s).all()
    return desk


def test_kv_lies_in_one_piece_until_memory_has_gone_round() -> None:
    """12,000 tokens in all: 120 prompts of 40 and answers of 20 take 7,200 of them."""
    assert long_run(12_000).kv_runs.tolist() == [1.0] * 120


def test_kv_lies_in_pieces_towards_the_end_of_each_later_round() -> None:
    runs = long_run(8_000, count=400).kv_runs
    assert (runs[:130] == 1.0).all()  # the first round
    assert runs.max() > 5.0 and (runs <= 1.0 + 40).all()
    assert 1 <= (runs > 1.0).sum() <= 12  # ten requests have made 100 tokens: of a round no more than its end


def test_pages_of_more_tokens_are_fewer_pieces() -> None:
    fine, coarse = (long_run(8_000, page, 400).kv_runs for page in (1, 16))
    assert 1.0 < coarse.max() <= 1.0 + 3 < fine.max()


@given(left=st.integers(0, 3000), made=st.integers(1, 2000), tokens=st.integers(1, 400))
def test_pieces_are_at_least_one_and_at_most_a_page_each(left: int, made: int, tokens: int) -> None:
    """And the more, the nearer the round is to its end."""
    engine, _ = at([(tokens, 2)], 4000, role="decode")
    e = engine.state
    found = []
    for at_end in (left, left // 2):
        e.round_end, e.round_made, e.held_tokens, e.decode_tokens = 10_000, made, 10_000 - tokens - at_end, 0
        found.append(remote.runs(e, tokens, made))
    assert 1.0 <= found[0] <= found[1] <= 1.0 + tokens


def test_the_loop_comes_round_when_it_has_launched() -> None:
    """A prompt takes a second on the GPU and two to launch. The second comes while the first is being launched, at 1: it
    is in the next batch, launched from 2 to 4, which holds the first one's results until then. The third, at 3, is
    launched from 4 to 6, and the fourth, at 7, meets an idle loop."""
    cost = StepCostTable(affine=False, mixed_s=np.ones(64), mixed_launch_s=2.0 * np.ones(64))
    for macro in (True, False):
        made, desk = at([(30, 2)] * 4, role="prefill", overlap=True, cost=cost, macro=macro)
        for row, moment in enumerate((0.0, 1.0, 3.0, 7.0)):
            made.advance(moment)
            made.submit(row, 30, 1, moment, hand_over=True)
        made.advance(100.0)
        assert desk.prefill_end_s.tolist() == [4.0, 6.0, 6.0, 9.0]
