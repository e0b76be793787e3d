"""SGLang's engines step by step: what is told when, what waits, what goes, at prefill, decode and colocated engines."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from engine_audit_sglang import audit
from engine_books import look, put
from engine_play import BASE
from test_engine_corners import content_of
from test_engine_policies import batches

from simulator.cost.table import StepCostTable, affine_cost
from simulator.engine.engine import Engine, EngineSpec, Survey
from simulator.engine.sglang import decode, state, steps
from simulator.engine.state import CHUNK, FINISHED, PREFILLED, READ, DeskColumns

Requests = list[tuple[int, int]]


def at(requests: Requests, pool: int = 4000, role: str = "colocated", **given: Any) -> tuple[Engine, DeskColumns]:
    """An engine of one-second steps and one-token pages, and its desk; nobody has come yet."""
    settings = {"page_size": 1, "disable_radix_cache": True, "ignore_eos": False, "chunked_prefill_size": -1}
    more = {name: given.pop(name) for name in ("logging", "tell_chunks", "macro") if name in given}
    cost = given.pop("cost", affine_cost(1.0))
    settings = BASE["sglang"] | settings | {"max_prefill_tokens": 500, "context_length": 2000} | given
    desk, outputs = DeskColumns(len(requests)), np.array([output for _, output in requests])
    spec = EngineSpec(
        "sglang",
        role,
        settings,
        pool // settings["page_size"],
        cost,
        tell_finished=True,
        extra={"max_output_tokens": outputs},
        **more,
    )
    return Engine(spec, content_of([prompt for prompt, _ in requests], [[] for _ in requests]), desk.record), desk


def told(news: Any) -> list[tuple[int, int, int, float]]:
    return (
        []
        if news is None
        else list(zip(news.kind.tolist(), news.row.tolist(), news.value.tolist(), news.at_s.tolist(), strict=True))
    )


def test_a_decode_engine_sends_first_tokens_when_it_begins() -> None:
    """KV of three is asked for at 0 and there at 2; one of them was to make one token only."""
    requests = [(30, 3), (20, 1), (10, 4)]
    made, desk = at(requests, role="decode")
    for row, (prompt, output) in enumerate(requests):
        made.submit(row, prompt, output, 0.0, remote=True)
    assert made.load().pending_prompt_tokens == 60
    news = made.advance(0.5)
    assert told(news) == [(READ, 0, 30, 0.0), (READ, 1, 20, 0.0), (READ, 2, 10, 0.0)]
    assert (made.load().holding, made.load().free_blocks) == (3, 4000 - 60)
    for slot in news.slot:
        made.transfer_ended(int(slot), 2.0)
    audit(made.state)
    assert made.progress() == {0: 0, 1: 0, 2: 0}
    assert told(made.advance(2.5)) == [(FINISHED, 1, 0, 2.0)]
    assert made.progress() == {0: 1, 2: 1}
    assert (made.load().free_blocks, made.load().pending_prompt_tokens) == (4000 - 42, 0)
    assert told(made.advance(50.0)) == [(FINISHED, 0, 0, 4.0), (FINISHED, 2, 0, 5.0)]
    assert desk.first_token_s.tolist() == [2.0] * 3
    assert desk.decode_start_s.tolist() == [2.0] * 3
    assert desk.last_token_s.tolist() == [4.0, 2.0, 5.0]
    assert desk.token_sum_s.tolist() == [2.0 + 3.0 + 4.0, 2.0, 2.0 + 3.0 + 4.0 + 5.0]
    totals = made.totals()
    assert (totals.decode_tokens, totals.gap_sum_s, totals.batches, totals.peak_blocks) == (5, 5.0, 3, 44)


@pytest.mark.parametrize("overlap", [False, True])
def test_one_that_begins_beside_others_waits_for_the_next_step(overlap: bool) -> None:
    """The first decodes from 0 on. The second's KV is asked for at 2, when the next step is planned, and is there at
    2.5: it begins at 3, or, planned ahead, when the step in flight has ended and its turn has come (see
    ``test_engine_sglang_remote``)."""
    made, desk = at([(30, 20), (20, 3)], role="decode", overlap=overlap)
    made.submit(0, 30, 20, 0.0, remote=True)
    made.transfer_ended(int(made.advance(0.0 + 1e-6).slot[0]), 0.0)
    made.advance(1.5)
    made.submit(1, 20, 3, 1.5, remote=True)
    news = made.advance(2.25)
    assert told(news) == [(READ, 1, 20, 2.0)]
    made.transfer_ended(int(news.slot[0]), 2.5)
    made.advance(100.0)
    start = 4.0 if overlap else 3.0
    assert (desk.first_token_s[1], desk.decode_start_s[1]) == (start, start)
    assert (desk.last_token_s[1], desk.token_sum_s[1]) == (start + 2.0, start + start + 1.0 + start + 2.0)
    assert made.totals().gap_sum_s == pytest.approx(desk.last_token_s.sum() - desk.first_token_s.sum())


def test_seats_of_a_decode_engine() -> None:
    """Two may hold KV: the third's is asked for when the first has ended, at 3."""
    requests = [(30, 3), (20, 5), (10, 3)]
    made, desk = at(requests, role="decode", max_running_requests=2)
    for row, (prompt, output) in enumerate(requests):
        made.submit(row, prompt, output, 0.0, remote=True)
    news = made.advance(0.5)
    assert news.row.tolist() == [0, 1]
    for slot in news.slot:
        made.transfer_ended(int(slot), 1.0)
    assert made.advance(2.5) is None
    news = made.advance(3.5)
    assert told(news) == [(FINISHED, 0, 0, 3.0), (READ, 2, 10, 3.0)]
    made.transfer_ended(int(news.slot[1]), 3.6)
    made.advance(50.0)
    assert desk.first_token_s.tolist() == [1.0, 1.0, 4.0] and desk.last_token_s.tolist() == [3.0, 5.0, 6.0]
    assert made.load().requests == 0 and made.load().free_blocks == 4000


def test_a_prefill_engine_keeps_pages_until_they_are_read() -> None:
    """50 tokens in all: the second prompt waits for the first to be read."""
    made, desk = at([(30, 9), (20, 9)], 50, role="prefill")
    made.submit(0, 30, 1, 0.0)
    made.submit(1, 20, 1, 0.0)
    news = made.advance(5.0)
    assert told(news) == [(PREFILLED, 0, 30, 1.0)]
    assert (made.load().holding, made.load().waiting, made.load().free_blocks) == (1, 1, 20)
    assert made.progress() == {0: 0, 1: 0}
    audit(made.state)
    survey = Survey([made])
    survey.look(5.0)
    assert survey.gauges.tolist() == [[0.0, 1.0, 1.0, 20.0, 50.0, 20.0]]
    made.transfer_ended(int(news.slot[0]), 6.0)
    assert (made.load().holding, made.load().free_blocks, made.wake_s) == (0, 50, pytest.approx(6.0))
    assert told(made.advance(8.0)) == [(PREFILLED, 1, 20, 7.0)]
    assert desk.prefill_start_s.tolist() == [0.0, 6.0] and desk.prefill_end_s.tolist() == [1.0, 7.0]
    assert np.isnan(desk.first_token_s).all() and made.totals().prefill_tokens == 50


def test_chunks_are_told_with_their_steps() -> None:
    made, _ = at([(100, 9), (20, 9)], role="prefill", chunked_prefill_size=64, tell_chunks=True)
    made.submit(0, 100, 1, 0.0)
    made.submit(1, 20, 1, 0.0)
    news = made.advance(5.0)
    chunks = [row for row in zip(*news[:2], *news[3:], strict=True) if row[0] == CHUNK]
    assert chunks == [(CHUNK, 0, 64, 1.0, 0.0), (CHUNK, 0, 100, 2.0, 1.0), (CHUNK, 1, 20, 2.0, 1.0)]


@pytest.mark.parametrize("place", [0, 1, 2])
def test_kv_that_does_not_come_is_given_up(place: int) -> None:
    made, desk = at([(30, 3)] * 3, role="decode")
    for row in range(3):
        made.submit(row, 30, 3, 0.0, remote=True)
    news = made.advance(0.5)
    made.abandon(int(news.slot[place]), True, 1.0)
    left = [int(slot) for i, slot in enumerate(news.slot) if i != place]
    assert look(made.state, "holding")[: look(made.state, "holding_count")].tolist() == left
    load = made.load()
    assert (load.holding, load.free_blocks, load.pending_prompt_tokens) == (2, 4000 - 60, 60)
    assert made.wake_s == pytest.approx(1.0)
    audit(made.state)
    for slot in left:
        made.transfer_ended(slot, 2.0)
    made.advance(50.0)
    assert np.flatnonzero(np.isnan(desk.last_token_s)).tolist() == [place]
    assert made.load().requests == 0


def test_a_prompt_that_never_fits_is_passed_by() -> None:
    """Fewer than six tokens below the memory there is: nothing of it comes, and those behind it go on."""
    made, desk = at([(60, 2), (99, 2), (20, 2)], 100)
    for row, prompt in enumerate((60, 99, 20)):
        made.submit(row, prompt, 2, 0.0)
    made.advance(50.0)
    assert np.isfinite(desk.last_token_s).tolist() == [True, False, True]
    assert (made.load().requests, made.load().pending_prompt_tokens, made.load().free_blocks) == (0, 0, 100)
    e = made.state
    assert not steps.give_up_first(e)  # nobody waits
    state.wait_last(e, state.new_slot(e, 0, 60, 2))
    for name in ("holding_count", "ready_count", "retracted_count"):
        put(e, **{name: 1})
        assert not steps.give_up_first(e)
        put(e, **{name: 0})
    put(e, pending_prompt_tokens=60)
    assert steps.give_up_first(e) and look(e, "pending_prompt_tokens") == 0


def test_with_overlap_a_step_more_is_made_where_the_end_is_not_known() -> None:
    """Two of four tokens; the first may make nine, so that its end is seen only when it is there."""
    made, desk = at([(10, 4), (10, 4)], overlap=True, logging=True)
    look(made.state, "limits")[0] = 9
    made.submit(0, 10, 4, 0.0)
    made.submit(1, 10, 4, 0.0)
    made.advance(50.0)
    assert batches(made) == [{0: 10, 1: 10}, {0: 1, 1: 1}, {0: 1, 1: 1}, {0: 1, 1: 1}, {0: 1}]
    assert desk.last_token_s.tolist() == [4.0, 4.0]
    assert (made.totals().decode_tokens, made.series()[4].sum(), made.totals().gap_sum_s) == (7, 6, 6.0)


@pytest.mark.parametrize("macro", [True, False])
def test_steps_take_as_long_as_the_power_limit_makes_them(macro: bool) -> None:
    """Steps of a second whose GPU reaches its limit at once: a prompt of 30 tokens draws three times as much, 20 more
    tokens twice, a decode step in which two requests are a quarter more; alone one stays below."""
    joules = StepCostTable(
        affine=False,
        decode_s=np.ones(64),
        mixed_s=np.ones(64),
        mixed_energy_s=0.1 * np.arange(64.0),
        decode_energy_s=0.625 * np.arange(64.0),
        power_window_s=1e-9,
        power_idle=0.0,
        power_exponent=1.0,
    )
    made, desk = at([(30, 4), (20, 4)], cost=joules, macro=macro, overlap=False)
    made.submit(0, 30, 4, 0.0)
    made.advance(1.0)
    made.submit(1, 20, 4, 1.0)
    made.advance(50.0)
    assert desk.first_token_s.tolist() == pytest.approx([3.0, 5.0])
    assert desk.last_token_s.tolist() == pytest.approx([5.0 + 3 * 1.25, 5.0 + 3 * 1.25])


def test_running_ones_whose_last_token_is_in_flight() -> None:
    e = at([(10, 4)] * 4)[0].state
    for row in range(4):
        s = state.new_slot(e, row, 10, 4)
        look(e, "status")[s] = state.RUNNING
    look(e, "status")[3] = state.DROPPED
    put(e, planned=6, completed=4)
    look(e, "leaving")[0, :2], look(e, "leaving")[1, 0], look(e, "leaving")[2, 0] = [0, 3], 1, 2
    look(e, "batch_leaving")[:3] = [2, 1, 1]
    assert decode.late_ones(e) == 2  # steps 4 and 5 are in flight; one of three has left already
    look(e, "batch_leaving")[:2] = 0
    look(e, "firsts")[1, :2], look(e, "batch_firsts")[1] = [0, 1], 2
    look(e, "outputs")[:2] = [3, 2]
    assert decode.late_ones(e) == 1
    look(e, "limit")[1] = 9
    assert [decode.drop_if_by_length(e, s) for s in (0, 1, 3)] == [1, 0, 0]
    assert look(e, "status")[:4].tolist() == [state.DROPPED, state.RUNNING, state.RUNNING, state.DROPPED]


def test_a_survey_brings_all_engines_to_a_moment() -> None:
    """What a router reads of each is what the engine itself says."""
    engines = [at([(30, 9), (20, 9)], pool, chunked_prefill_size=16)[0] for pool in (400, 500, 600)]
    for i, engine in enumerate(engines):
        for row in range(i):
            engine.submit(row, (30, 20)[row], 9, 0.0)
    survey = Survey(engines)
    for moment in (0.5, 1.5, 2.5, 30.0):
        found = survey.look(moment)
        loads = [tuple(engine.load()) for engine in engines]
        assert survey.gauges.tolist() == [[float(value) for value in load] for load in loads]
        assert found == ([1, 2] if moment == 30.0 else [])
        assert [engine.seen_s for engine in engines] == [moment] * 3
    assert loads[1][3:5] == (500, 500)
    half = at([(30, 9)], 400, chunked_prefill_size=16)[0]
    half.submit(0, 30, 9, 0.0)
    half.advance(0.5)
    assert tuple(half.load()) == (1, 0, 0, 384, 400, 14)
    assert look(half.state, "last_chunk") and not look(half.state, "last_mixed")


def test_gaps_across_a_retraction_are_as_long_as_they_are() -> None:
    """Two that outgrow the memory: one is let go and computed again; all gaps together last from first to last tokens."""
    made, desk = at([(10, 30), (10, 30)], 55, schedule_conservativeness=0.01)
    made.submit(0, 10, 30, 0.0)
    made.submit(1, 10, 30, 3.0)
    made.advance(500.0)
    totals = made.totals()
    assert totals.preemptions == desk.preemptions.sum() == 1
    assert totals.gap_sum_s == pytest.approx((desk.last_token_s - desk.first_token_s).sum())
    assert totals.gap_max_s > 1.0 and made.series()[4].sum() == 58


def test_a_decode_engine_looks_for_requests_when_one_has_begun() -> None:
    """Every ten steps, and with the step behind one with which somebody has begun: at 1, not at 10."""
    made, _ = at([(30, 20), (20, 3)], role="decode", scheduler_recv_interval=10)
    made.submit(0, 30, 20, 0.0, remote=True)
    made.transfer_ended(int(made.advance(1e-6).slot[0]), 0.0)
    made.advance(0.5)
    made.submit(1, 20, 3, 0.5, remote=True)
    assert told(made.advance(1.5)) == [(READ, 1, 20, 1.0)]
