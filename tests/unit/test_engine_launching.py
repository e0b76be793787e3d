"""When a batch starts and ends: behind the one before, behind its launch; draws of launches; drafts and their cost."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from engine_books import look, put
from test_engine_corners import content_of
from test_engine_idle import idle
from test_engine_settings import DRAFTS, made
from test_engine_waiting import TRT, first_tokens

from simulator.cost.table import StepCostTable, affine_cost, step_cost_record
from simulator.engine import launching, speculation
from simulator.engine.engine import Engine, EngineSpec
from simulator.engine.rules import RuleSet, rules_record
from simulator.engine.sglang import plan as sglang_plan
from simulator.engine.state import COLOCATED, DeskColumns, new_slot
from simulator.engine.steps import push_batch

FLAT = np.full(64, 0.5)
LAUNCHED = StepCostTable(affine=False, mixed_launch_s=2.0 + 0.01 * np.arange(64), launch_seq_s=0.1)


def hashed(word: int) -> int:
    """Xor-shifts and odd factors, on 32 bits."""
    x = word % 2**32
    for shift, factor in ((16, 0x7FEB352D), (15, 0x31848BAB)):
        x = (x ^ x >> shift) * factor % 2**32
    return x ^ x >> 16


def exponential(word: int) -> float:
    return -math.log((word + 0.5) / 2**32)


@pytest.mark.parametrize("word", [0, 1, 2, 255, 2**16, 2**31 - 1, 2**32 - 1, 2**32, 2**32 + 1, 3_141_592_653])
def test_words_are_scrambled_on_32_bits(word: int) -> None:
    assert speculation.scrambled(word) == hashed(word)
    assert launching.exponential(word % 2**32) == exponential(word % 2**32)


def with_cost(cost: StepCostTable, planned: int = 0, completed: int = 0, **columns: Any) -> Any:
    e = idle("vllm-v1")
    put(e, cost=step_cost_record(cost), planned=planned, completed=completed, **columns)
    return e


@pytest.mark.parametrize(("jitter", "rate_hz"), [(0.0, 0.3), (0.25, 1.0), (1.0, 0.3)])
@pytest.mark.parametrize(("seed", "planned", "tokens"), [(0, 0, 5), (0, 1, 5), (0, 0, 6), (7, 3, 9)])
def test_a_launch_is_drawn_by_seed_batch_and_tokens(
    seed: int, planned: int, tokens: int, jitter: float, rate_hz: float
) -> None:
    e = with_cost(replace(LAUNCHED, launch_jitter=jitter, launch_seed=seed), planned)
    mean = 2.0 + 0.01 * tokens + 0.1 * 3
    word = hashed(hashed(hashed(seed + 1) + planned) + tokens)
    expected = mean * (1 - jitter + jitter * exponential(word))
    assert launching.drawn_launch_s(e, 7.5, tokens, 3) == pytest.approx(expected)
    stalled = with_cost(
        replace(LAUNCHED, launch_jitter=jitter, launch_seed=seed, stall_rate_hz=rate_hz, stall_s=4.0), planned
    )
    again = hashed(word)
    hit = exponential(again) < rate_hz * expected
    expected += 4.0 * exponential(hashed(again)) if hit else 0.0
    assert launching.drawn_launch_s(stalled, 7.5, tokens, 3) == pytest.approx(expected)


@pytest.mark.parametrize(("now", "stretch"), [(0.0, 0), (0.89, 0), (0.91, 1), (9.1, 10)])
def test_a_host_keeps_its_pace_for_a_stretch_of_time(now: float, stretch: int) -> None:
    cost = replace(LAUNCHED, launch_swing=0.5, launch_seed=4, launch_stretch_s=0.9)
    pace = 0.5 + (hashed(hashed(4 + 1) ^ hashed(stretch)) + 0.5) / 2**32
    for planned, tokens in ((0, 5), (3, 9)):
        expected = (2.0 + 0.01 * tokens + 0.1 * 3) * pace
        assert launching.drawn_launch_s(with_cost(cost, planned), now, tokens, 3) == pytest.approx(expected)


def test_launches_that_are_not_told_apart_take_no_time() -> None:
    assert launching.drawn_launch_s(with_cost(affine_cost(1.0)), 0.0, 5, 2) == 0.0
    nothing = StepCostTable(affine=False, launch_jitter=0.5, launch_seq_s=1.0, stall_rate_hz=1e9, stall_s=1.0)
    assert launching.drawn_launch_s(with_cost(nothing), 0.0, 5, 2) == 0.0


@pytest.mark.parametrize(
    ("gpu_free_s", "begin", "launch", "prepare", "start", "end"),
    [
        (0.0, 3.0, 0.0, 0.5, 3.0, 5.0),  # no launch told apart: it starts at once
        (4.0, 3.0, 0.0, 0.5, 4.0, 6.0),
        (0.0, 3.0, 1.0, 0.5, 3.5, 5.5),  # the first half second of the launch goes by before anything runs
        (4.0, 3.0, 1.0, 0.5, 4.0, 6.0),
        (0.0, 3.0, 9.0, 0.5, 3.5, 12.0),  # the last kernel is launched at 12
        (4.0, 3.0, 9.0, 0.0, 4.0, 12.0),
    ],
)
def test_a_batch_starts_behind_another_and_ends_no_sooner_than_it_is_launched(
    gpu_free_s: float, begin: float, launch: float, prepare: float, start: float, end: float
) -> None:
    e = with_cost(
        replace(LAUNCHED, mixed_prepare_s=prepare), gpu_free_s=gpu_free_s, busy_s=100.0, planned=3, completed=3
    )
    assert launching.start_batch(e, 3.0, begin, 2.0, launch) == start
    assert (look(e, "gpu_free_s"), look(e, "batch_end_s")[3]) == (end, end)
    assert look(e, "busy_s") == 100.0 + end - start
    assert not look(e, "batch_end_s")[2:3].any()


@pytest.mark.parametrize(
    ("begin", "launch", "earlier_end", "held"),
    [(3.0, 2.0, 4.0, 5.0), (3.0, 2.0, 7.0, 7.0), (3.5, 0.0, 1.0, 3.5), (3.0, 0.0, 1.0, 1.0)],
)
def test_results_wait_until_the_next_batch_is_launched(
    begin: float, launch: float, earlier_end: float, held: float
) -> None:
    """Batch 8 is in flight (place 0 of the ring); 9 is planned at 3."""
    e = with_cost(LAUNCHED, planned=9, completed=8)
    look(e, "batch_end_s")[:] = earlier_end
    launching.start_batch(e, 3.0, begin, 1.0, launch)
    others = np.delete(look(e, "batch_end_s"), [0, 1])
    assert look(e, "batch_end_s")[0] == held and set(others.tolist()) == {earlier_end}
    alone = with_cost(LAUNCHED, planned=9, completed=9)
    look(alone, "batch_end_s")[:] = earlier_end
    launching.start_batch(alone, 3.0, begin, 1.0, launch)
    assert look(alone, "batch_end_s")[0] == earlier_end


@pytest.mark.parametrize(("host_free_s", "start"), [(0.0, 5.0), (4.5, 6.5)])
def test_a_decode_batch_runs_once_its_graph_is_launched(host_free_s: float, start: float) -> None:
    """Planned at 3 (or when the host is done with reads, at 4.5); two seconds of launch go by before it runs."""
    e = with_cost(LAUNCHED, planned=9, completed=8, host_free_s=host_free_s)
    look(e, "batch_end_s")[0] = 3.5
    put(e, decode_tokens=10, peak_blocks=50)
    assert push_batch(e, 3.0, 1.0, 0.0, 7, 2.0, False) == start
    assert (look(e, "gpu_free_s"), look(e, "batch_end_s")[0]) == (start + 1.0, start)
    assert (look(e, "batch_decodes")[1], look(e, "decode_tokens"), look(e, "planned")) == (7, 17, 10)
    assert look(e, "peak_blocks") == 50
    mixed = with_cost(LAUNCHED, host_free_s=host_free_s)
    begin = max(3.0, host_free_s)
    assert push_batch(mixed, 3.0, 1.0, 0.0, 7, 2.0, True) == begin
    assert look(mixed, "gpu_free_s") == begin + 2.0


def test_two_batches_with_prompts_planned_from_idle_are_launched_in_turn() -> None:
    """Both planned at 3, launched by 5 and 7: the first one's results wait for the second; a decode batch waits for
    neither launch, only for the GPU."""
    e = with_cost(LAUNCHED)
    assert push_batch(e, 3.0, 1.0, 0.0, 0, 2.0, True) == 3.0
    assert push_batch(e, 3.0, 1.0, 0.0, 0, 2.0, True) == 5.0
    assert look(e, "batch_end_s")[:2].tolist() == [7.0, 7.0]
    assert push_batch(e, 3.0, 1.0, 0.0, 5, 2.5, False) == 7.0
    assert look(e, "batch_end_s")[:3].tolist() == [7.0, 7.0, 8.0]
    later = with_cost(LAUNCHED)
    push_batch(later, 3.0, 1.0, 0.0, 0, 2.0, True)
    assert push_batch(later, 9.0, 1.0, 0.0, 0, 2.0, True) == 9.0


@pytest.mark.parametrize(
    ("launch", "prompts", "gpu_free_s", "idle_s"),
    [(2.0, False, 0.0, 3.0), (2.0, True, 0.0, 1.5), (0.0, True, 0.0, 1.0), (2.0, False, 9.0, 7.0)],
)
def test_pressure_falls_while_nothing_runs(launch: float, prompts: bool, gpu_free_s: float, idle_s: float) -> None:
    """Work ended at 2; the host gets to the next batch at 3, and it runs when its graph is launched, half a second
    later where it holds prompts that are launched, or when the GPU is free."""
    cost = replace(LAUNCHED, mixed_prepare_s=0.5, power_window_s=4.0, power_idle=0.2, power_exponent=0.5)
    e = with_cost(cost, worked_s=2.0, pressure=0.9, gpu_free_s=gpu_free_s)
    before = 0.2 + 0.7 * math.exp(-idle_s / 4.0)
    drive = 0.2 + 0.3 / 1.0
    assert launching.limited_s(e, 3.0, 1.0, 0.3, launch, prompts) == 1.0  # below the limit
    assert look(e, "pressure") == pytest.approx(drive + (before - drive) * math.exp(-1.0 / 4.0))
    assert look(e, "worked_s") == 2.0 + idle_s + 1.0
    hot = with_cost(cost, worked_s=2.0, pressure=1.0, gpu_free_s=2.0)
    assert launching.limited_s(hot, 2.0, 1.0, 2.6, 0.0, False) == pytest.approx((2.6 / 0.8) ** 0.5)
    assert (look(hot, "pressure"), look(hot, "worked_s")) == (1.0, pytest.approx(2.0 + (2.6 / 0.8) ** 0.5))
    none = with_cost(LAUNCHED, worked_s=2.0, pressure=0.9)
    assert launching.limited_s(none, 3.0, 1.0, 2.6, 0.0, False) == 1.0
    assert (look(none, "pressure"), look(none, "worked_s")) == (0.9, 2.0)


def test_each_decode_step_waits_for_its_launch() -> None:
    """A second of work and half a second of launch, one after the other; planned ahead, the launch is hidden."""
    half = StepCostTable(affine=False, decode_s=2 * FLAT, mixed_s=2 * FLAT, decode_launch_s=FLAT)
    assert last_token("tensorrt-llm", half, TRT) == 1.0 + 4 * 1.5
    assert last_token("tensorrt-llm", half, TRT | {"overlap_scheduler": True}) == 5.0
    slow = replace(half, decode_launch_s=6 * FLAT)  # three seconds: longer than the step, they alone count
    assert last_token("tensorrt-llm", slow, TRT) == 1.0 + 4 * 4.0
    for macro in (True, False):
        assert last_token("tensorrt-llm", slow, TRT | {"overlap_scheduler": True}, macro) == 3.0 + 3 * 3.0 + 1.0


def last_token(policy: str, cost: StepCostTable, settings: dict[str, Any], macro: bool = True) -> float:
    """End of a request of five tokens."""
    desk = DeskColumns(1)
    spec = EngineSpec(policy, "colocated", settings, 100, cost, macro=macro, extra={"max_output_tokens": np.array([5])})
    engine = Engine(spec, content_of([20], [[]]), desk.record)
    engine.submit(0, 20, 5, 0.0)
    engine.advance(1e3)
    return float(desk.last_token_s[0])


@pytest.mark.parametrize("ranks", [1, 4])
def test_prompts_of_sglang_are_spread_over_ranks(ranks: int) -> None:
    e = idle("sglang")
    put(e, cost=step_cost_record(replace(LAUNCHED, ranks=ranks)), waiting_count=5, unseen=3)
    assert [sglang_plan.prompts_spread(e, n) for n in (1, 2, 3, 7)] == ([1, 2, 3, 7] if ranks == 1 else [3, 4, 4, 7])


def test_kernels_are_fetched_once() -> None:
    e = idle("sglang")
    put(e, cost=step_cost_record(replace(LAUNCHED, cold_prompt_s=5.0, cold_past_s=20.0)))
    launch = 2.0 + 0.01 * 5 + 0.1 * 2
    spent = [
        sglang_plan.prompts_launch_s(e, 0.0, 5, 2, past, seconds)
        for past, seconds in ((0, 1.0), (0, 1.0), (3, 9.0), (3, 9.0))
    ]
    assert spent == pytest.approx([launch + 5.0, launch, 9.0 + 20.0, launch])
    both = idle("sglang")
    put(both, cost=step_cost_record(replace(LAUNCHED, cold_prompt_s=5.0, cold_past_s=20.0)))
    assert sglang_plan.prompts_launch_s(both, 0.0, 5, 2, 1, 0.0) == pytest.approx(launch + 25.0)


@pytest.mark.parametrize(("seed", "row", "token"), [(0, 0, 1), (0, 0, 2), (0, 1, 1), (5, 3, 40)])
def test_a_draft_belongs_to_seed_row_and_token(seed: int, row: int, token: int) -> None:
    expected = hashed(hashed(hashed(seed + 1) + row) + token) / 2**32
    assert speculation.draft_draw(seed, row, token) == expected
    assert 0.0 <= expected < 1.0


@pytest.mark.parametrize(("seed", "received", "target"), [(s, r, t) for s in range(4) for r in (1, 6) for t in (7, 40)])
def test_right_drafts_are_kept_up_to_the_first_wrong_one(seed: int, received: int, target: int) -> None:
    e = idle("vllm-v1")
    chances = np.array([0.9, 0.6, 0.5, 0.3])
    put(e, rules=rules_record(RuleSet(drafts=4, acceptance=chances, seed=seed)))
    s = new_slot(e, 12, 20, target, COLOCATED)
    look(e, "received")[s] = received
    draws = [hashed(hashed(hashed(seed + 1) + 12) + received + j + 1) / 2**32 for j in range(4)]
    for drafts in range(5):
        right = next((j for j in range(drafts) if draws[j] >= chances[j]), drafts)
        assert speculation.tokens_kept(e, s, drafts) == min(right + 1, target - received)


@pytest.mark.parametrize(
    ("work", "drafted", "seconds"),
    [
        ((3, 90, 0, 0, 0, 0.0, 0), 6, max(0.2 + 0.003, 0.1 + 0.009 + 0.09) + 0.5),
        ((3, 90, 0, 0, 0, 0.0, 0), 16, 0.1 + 0.019 + 0.09 + 0.5),
        ((3, 90, 1, 20, 7, 0.04, 1), 6, 0.7 + 0.029 + 0.09 + 0.04 + 0.01 + 0.6),
    ],
)
def test_verifying_drafts_costs_a_pass_over_all_tokens(work: Any, drafted: int, seconds: float) -> None:
    """Two drafts at a quarter of a decode step each come on top."""
    n = np.arange(64)
    cost = StepCostTable(
        affine=False,
        decode_s=0.1 + 0.001 * n,
        decode_floor_s=0.2 + 0.001 * n,
        decode_add_s=np.full(64, 0.5),
        mixed_s=0.7 + 0.001 * n,
        mixed_add_s=np.full(64, 0.6),
        per_finished_prefill_s=0.01,
        context_knots=np.array([0.0, 1000.0]),
        decode_attention_s=np.outer(n, [0.0, 1.0]),
    )
    rules = rules_record(RuleSet(drafts=2, draft_cost=0.25, acceptance=np.array([0.5, 0.5])))
    step = max(0.2 + 0.003, 0.1 + 0.003 + 0.09) + 0.5
    found = speculation.verification_seconds(step_cost_record(cost), rules, drafted, work)
    assert found == pytest.approx(0.25 * 2 * step + seconds)
    affine = step_cost_record(affine_cost(1.0, 0.01, 0.001))
    singles, context, _, new, past, *_ = work
    step = 1.0 + 0.01 * singles + 0.001 * context
    whole = 1.0 + 0.01 * (singles + new + drafted) + 0.001 * (context + past)
    assert speculation.verification_seconds(affine, rules, drafted, work) == pytest.approx(0.5 * step + whole)


def test_tokens_of_a_step_with_drafts_reach_the_client_together() -> None:
    """All drafts are right: of eleven tokens the first comes with the prompt, then four a step, then the last two."""
    e = made("vllm-v1", **DRAFTS | {"speculative_acceptance": 1.0, "speculative_acceptance_decay": 1.0})
    assert look(e, "rules.drafts") == 3
    desk = DeskColumns(1)
    settings = {"speculative_acceptance": 1.0, "speculative_acceptance_decay": 1.0, "speculative_draft_cost": 0.0}
    spec = EngineSpec("tensorrt-llm", "colocated", TRT | DRAFTS | settings, 100, affine_cost(1.0), logging=True)
    engine = Engine(spec, content_of([20], [[]]), desk.record)
    engine.submit(0, 20, 11, 0.0)
    engine.advance(2.5)
    assert engine.progress() == {0: 5}
    engine.advance(100.0)
    assert (desk.first_token_s[0], desk.last_token_s[0], desk.token_sum_s[0]) == (
        1.0,
        4.0,
        1.0 + 4 * 2.0 + 4 * 3.0 + 2 * 4.0,
    )
    counts = engine.series()[4]
    assert (counts[0], counts.sum()) == (3 + 3 + 1, 10)
    totals = engine.totals()
    assert (totals.decode_tokens, totals.gap_sum_s, totals.gap_max_s, totals.batches) == (10, 3.0, 1.0, 4)
    assert engine.step_log()[4].tolist() == [20, 4, 4, 4]


def test_with_one_draft_two_tokens_come_at_once() -> None:
    settings = {"num_speculative_tokens": 1, "speculative_acceptance": 1.0, "speculative_draft_cost": 0.0}
    spec = EngineSpec("tensorrt-llm", "colocated", TRT | DRAFTS | settings, 100, affine_cost(1.0))
    engine = Engine(spec, content_of([20], [[]]), DeskColumns(1).record)
    engine.submit(0, 20, 11, 0.0)
    for moment, tokens in ((0.5, 0), (1.5, 1), (2.5, 3), (3.5, 5), (5.5, 9)):
        engine.advance(moment)
        assert engine.progress() == {0: tokens}


def test_first_tokens_wait_for_launches_too() -> None:
    cost = StepCostTable(affine=False, mixed_s=2 * FLAT, decode_s=2 * FLAT, mixed_launch_s=6 * FLAT)
    assert first_tokens("tensorrt-llm", TRT, [(0.0, 20)], cost=cost).tolist() == [3.0]
