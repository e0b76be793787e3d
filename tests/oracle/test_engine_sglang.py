"""The production SGLang engine against the real scheduler's cases and against the step-by-step oracle."""

from __future__ import annotations

import numpy as np
import pytest
from engine_sglang import hand_over, run_engine
from hypothesis import given, reject
from hypothesis import strategies as st
from policy_case import some, thorough
from sglang_case import differences, read_case
from sglang_memory import OutOfMemoryError
from sglang_stepper import run_case
from test_sglang_stepper import CASES

from simulator.cost.table import StepCostTable


def given_back(engine, case) -> None:
    """No KV is lost: all of it is free or can be evicted, and nobody is left."""
    load = engine.load()
    assert load.free_blocks == load.blocks == case["max_total_num_tokens"] // case["page_size"]
    assert load.requests == 0
    assert load.pending_prompt_tokens == 0


@pytest.mark.parametrize("folder", CASES, ids=lambda p: f"{p.parent.parent.name}-{p.name}")
def test_real_cases_exactly(folder):
    case, requests, expected, steps = read_case(folder)
    for macro in (True, False):
        rows, got, engine = run_engine(case, requests, macro=macro, logging=not macro)
        for want, step in zip(steps, got, strict=False):
            step["mode"] = want["mode"]
        assert differences(rows, got, expected, steps if got else [], tolerance_s=1e-9) == []
        given_back(engine, case)


@st.composite
def cases(draw):
    page = draw(st.sampled_from([1, 1, 4, 16]))
    pool = draw(st.sampled_from([256, 640, 1600])) * max(1, page // 4)
    chunk = draw(st.sampled_from([-1, 16, 48, 512]))
    case = {
        "context_length": draw(st.sampled_from([400, 4096])),
        "max_total_num_tokens": pool,
        "max_running_requests": draw(st.sampled_from([2, 5, 64])),
        "chunked_prefill_size": chunk,
        "max_prefill_tokens": draw(st.sampled_from([20, 200, 4096])),
        "schedule_policy": draw(st.sampled_from(["fcfs", "lpm"])),
        "schedule_conservativeness": draw(st.sampled_from([0.02, 0.3, 1.0, 2.0])),
        "mixed_chunk": draw(st.booleans()) and chunk > 0,
        "disable_radix_cache": draw(st.sampled_from([False, False, True])),
        "page_size": page,
        "overlap": draw(st.booleans()),
        "ignore_eos": draw(st.sampled_from([False, False, True])),
        "reserve_known_lengths": draw(st.booleans()),
        "prompts_within_budget": draw(st.booleans()),
        "step_time": {"base_s": 0.5, "per_token_s": 0.01, "per_context_token_s": 0.001},
    }
    longest = min(case["context_length"], pool)
    requests, now = [], 0.0
    for _ in range(draw(st.integers(1, 25))):
        now += draw(st.sampled_from([0.0, 0.0, 0.3, 1.7, 20.0]))
        ids = draw(st.lists(st.integers(0, 2), max_size=2))
        prompt = draw(st.integers(1, min(150, longest - 60)))
        if ids:  # hashed prompts come in blocks of 512: near such lengths where the pool allows, else the first block
            prompt = min(512 * (len(ids) - 1) + prompt, longest - 60)
        output = draw(st.integers(1, 40))
        line = {"arrival_s": now, "input_length": prompt, "output_length": output}
        if ids:
            line["hash_ids"] = ids
        if not case["ignore_eos"] and draw(st.booleans()):
            line["max_new_tokens"] = output + draw(st.sampled_from([0, 1, 30, 5000]))
        requests.append(line)
    return case, requests


def check(drawn, macro, told):
    case, requests = drawn
    try:
        want, steps = run_case(case, requests)
    except OutOfMemoryError:
        reject()
    rows, _, engine = run_engine(case, requests, macro=macro, told=told)
    assert differences(rows, [], want_rows(want), [], tolerance_s=1e-9) == []
    given_back(engine, case)
    assert engine.totals().batches == len(steps)
    assert sum(engine.series()[4]) == sum(len(r["times"]) - 1 for r in want)


def want_rows(rows):
    return [{k: v for k, v in row.items() if k != "times"} for row in rows]


@some(150)
@given(cases(), st.booleans(), st.booleans())
def test_random_cases_equal_the_oracle(drawn, macro, told):
    check(drawn, macro, told)


#: A GPU that is above its power limit after some full steps in a row. A prompt's last token alone counts as a decode.
STEP_S, STEP_ENERGY_S = 0.3 + 0.01 * np.arange(80.0), 0.27 + 0.015 * np.arange(80.0)
LIMITED = StepCostTable(
    affine=False,
    decode_s=STEP_S,
    mixed_s=STEP_S,
    context_knots=np.array([0.0, 1000.0]),
    decode_attention_s=np.outer(np.arange(80.0), [0.0, 0.2]),
    chunk_attention_s=np.array([[0.0, 0.0], [0.01, 0.011]]),
    power_window_s=1.5,
    power_idle=0.1,
    power_exponent=0.6,
    decode_energy_s=STEP_ENERGY_S,
    mixed_energy_s=STEP_ENERGY_S,
    context_energy_s=1e-4,
    attention_drive=0.9,
)


@some(60)
@given(cases(), st.booleans(), st.booleans())
def test_at_the_power_limit_it_equals_the_oracle(drawn, macro, told):
    case, requests = drawn
    check(({**case, "table": LIMITED}, requests), macro, told)


@pytest.mark.slow
@thorough(3000)
@given(cases(), st.booleans(), st.booleans())
def test_thousands(drawn, macro, told):
    check(drawn, macro, told)


@some(60)
@given(cases(), st.sampled_from([0.01, 3.0]), st.booleans())
def test_handed_over_requests_all_end_and_leave_nothing_behind(drawn, transfer_s, macro):
    case, requests = drawn
    case = {**case, "max_total_num_tokens": case["max_total_num_tokens"] * 4}
    rows, desk, prefill, decode = hand_over(case, requests, transfer_s, macro)
    for engine in (prefill, decode):
        given_back(engine, case)
    for row in rows:
        i = row["i"]
        assert desk.prefill_start_s[i] >= row["arrival_s"]
        assert desk.prefill_end_s[i] + transfer_s <= row["first_token_s"] + 1e-9 <= row["last_token_s"] + 2e-9
    assert np.isfinite(desk.token_sum_s).all()


def test_a_prompt_that_never_fits_does_not_hold_up_the_others():
    case, requests, _, _ = read_case(CASES[0])
    case = {**case, "max_total_num_tokens": 640, "page_size": 1}
    requests = [{"arrival_s": 0.0, "input_length": n, "output_length": 2} for n in (100, 640, 50)]
    rows, _, engine = run_engine(case, requests)
    assert [np.isfinite(r["last_token_s"]) for r in rows] == [True, False, True]
    given_back(engine, case)
