"""The production engine against the one-iteration stepper, on thousands of random small cases."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from engine_case import as_case, assert_all_given_back, assert_equal, run_engine
from hypothesis import assume, given
from hypothesis import strategies as st
from policy_case import some, thorough
from random_cases import cases
from table_seconds import table_launch, table_pace, table_seconds
from vllm_stepper import run_case

from simulator.cost.table import StepCostTable


def takes_time(options) -> bool:
    """Reads of no length end in the instant that began them; what comes first in it is the driver's business."""
    return not options.get("disaggregated") or sum(options["transfer"].values()) > 0


def check(case, macro: bool, told: bool, defer: bool = False) -> None:
    options, requests = case
    assume(takes_time(options))
    rows, _ = run_case({**options, "defer_block_frees": defer}, requests, instant_s=1e-9)
    cluster = run_engine(as_case(options, requests), macro=macro, told=told, defer=defer)
    assert_equal(cluster, rows)
    assert_all_given_back(cluster)


@some(120)
@given(cases(disaggregated=False), st.booleans(), st.booleans())
def test_colocated(case, macro, told):
    check(case, macro, told)


@some(120)
@given(cases(disaggregated=True), st.booleans(), st.booleans(), st.booleans())
def test_disaggregated(case, macro, told, defer):
    check(case, macro, told, defer)


@pytest.mark.slow
@thorough(2000)
@given(cases(max_requests=40), st.booleans(), st.booleans(), st.booleans())
def test_thousands(case, macro, told, defer):
    check(case, macro, told, defer)


def curved_table() -> StepCostTable:
    """A step cost with kinks in every direction: host floors, knots in context, chunk attention."""
    n = np.arange(0, 65, dtype=float)
    tokens = np.arange(0, 257, dtype=float)
    knots = np.array([0.0, 40.0, 130.0, 500.0])
    decode = 1e-5 * np.outer(n, 1 + knots / 100) + 3e-6 * np.sqrt(np.outer(n, knots))
    new, past = np.array([0.0, 30.0, 200.0]), np.array([0.0, 100.0, 400.0])
    chunk = 1e-7 * (np.add.outer(new**2, 0 * past) + 2 * np.outer(new, past))
    return StepCostTable(
        affine=False,
        decode_s=2e-3 + 1e-4 * np.ceil(n / 8),
        decode_floor_s=2.5e-3 + 2e-5 * n,
        decode_add_s=1e-4 + 0 * n,
        mixed_s=2e-3 + 3e-5 * tokens + 5e-4 * np.ceil(tokens / 64),
        mixed_floor_s=4e-3 + 0 * n,
        mixed_add_s=3e-4 + 1e-6 * n,
        per_finished_prefill_s=2e-5,
        context_knots=knots,
        decode_attention_s=decode,
        chunk_new_knots=new,
        chunk_past_knots=past,
        chunk_attention_s=chunk,
    )


@some(80)
@given(cases(), st.booleans())
def test_with_a_cost_table(case, told):
    options, requests = case
    assume(takes_time(options))
    table = curved_table()
    rows, _ = run_case(options, requests, step_seconds=table_seconds(table), instant_s=1e-9)
    cluster = run_engine(as_case(options, requests), told=told, cost=table)
    assert_equal(cluster, rows)


@some(80)
@given(cases(), st.booleans(), st.sampled_from([0.0, 0.4]))
def test_with_launches_that_hold_results_back(case, told, swing):
    """Graphs up to 64 tokens, slower launches beyond; some longer than the step, some shorter; on an even host, or
    one whose pace swings."""
    options, requests = case
    assume(takes_time(options))
    tokens = np.arange(0, 257, dtype=float)
    launch = np.where(tokens > 64, 12e-3, 2e-3 + 1e-5 * tokens)
    table = dataclasses.replace(
        curved_table(),
        mixed_launch_s=launch,
        mixed_prepare_s=1e-3,
        launch_jitter=0.3,
        launch_swing=swing,
        launch_stretch_s=0.0537,
        launch_seq_s=1e-4,
        stall_rate_hz=20.0,
        stall_s=8e-3,
        decode_launch_s=1e-3 + 5e-5 * np.arange(0, 17, dtype=float),
        mixed_slower=0.05,
    )
    rows, _ = run_case(
        options, requests, step_seconds=table_seconds(table), launch_seconds=table_launch(table), instant_s=1e-9
    )
    cluster = run_engine(as_case(options, requests), told=told, cost=table)
    assert_equal(cluster, rows)


@pytest.mark.parametrize("told", [False, True])
def test_a_long_stretch_is_the_sum_of_its_steps(told):
    """One request alone: its tokens come exactly one step after another, over thousands of steps."""
    options = {
        "engine": "vllm",
        "max_model_len": 100_000,
        "max_num_seqs": 8,
        "max_num_batched_tokens": 2048,
        "block_size": 16,
        "num_blocks": 2000,
        "prefix_caching": False,
        "async_scheduling": False,
        "step_time": {"base_s": 0.003, "per_token_s": 1e-5, "per_context_token_s": 1e-8},
    }
    request = {"arrival_s": 1.5, "input_length": 777, "output_length": 20_000}
    desk = run_engine(as_case(options, [request]), told=told).desk
    first = 1.5 + 0.003 + 1e-5 * 777
    steps = 0.003 + 1e-5 + 1e-8 * (777 + np.arange(19_999))
    assert desk.first_token_s[0] == pytest.approx(first, abs=1e-12)
    assert desk.last_token_s[0] == pytest.approx(first + steps.sum(), abs=1e-9)


def limited_table() -> StepCostTable:
    """A GPU at its limit: prompts want up to twice of it, large batches of decode a little more than it."""
    tokens, n = np.arange(0, 257, dtype=float), np.arange(0, 65, dtype=float)
    return dataclasses.replace(
        curved_table(),
        power_window_s=8e-3,
        power_idle=0.1,
        power_exponent=0.5,
        mixed_energy_s=1e-3 + 9e-5 * tokens,
        decode_energy_s=1e-3 + 2.5e-4 * n,
        context_energy_s=1e-6,
        attention_drive=1.3,
    )


@some(80)
@given(cases(), st.booleans(), st.booleans(), st.booleans())
def test_with_a_power_limit(case, told, macro, ahead):
    options, requests = case
    assume(takes_time(options))
    table = limited_table()
    if ahead:
        launch = np.where(np.arange(0, 257) > 64, 12e-3, 2e-3)
        table = dataclasses.replace(
            table, mixed_launch_s=launch, mixed_prepare_s=1e-3, launch_seq_s=1e-4, launch_most_seqs=3
        )
    rows, _ = run_case(
        options,
        requests,
        step_seconds=table_seconds(table),
        launch_seconds=table_launch(table) if ahead else None,
        pace=lambda: table_pace(table),
        instant_s=1e-9,
    )
    cluster = run_engine(as_case(options, requests), told=told, macro=macro, cost=table)
    assert_equal(cluster, rows)
