"""Clients that leave SGLang engines: its own scheduler, the step-by-step one, and the compiled engine agree."""

from __future__ import annotations

import csv
import gzip
import math
from pathlib import Path

import numpy as np
import pytest
from engine_sglang import END_S, content_of, make_engine, steps_of
from hypothesis import given, reject
from hypothesis import strategies as st
from policy_case import some, thorough
from sglang_aborts import run_aborts
from sglang_case import read_case
from sglang_memory import OutOfMemoryError
from test_engine_sglang import cases, given_back

from simulator.engine.state import DeskColumns

CASES = sorted(p.parent for p in (Path(__file__).parents[1] / "data" / "sglang_aborts").glob("*/case.json"))
NEAR_S = 1e-9


def same_steps(got, want):
    """Start, end, new tokens and retractions of every step."""
    assert len(got) == len(want)
    for one, other in zip(got, want, strict=True):
        assert one["retracted"] == other["retracted"]
        assert {int(k): v for k, v in one["tokens"].items()} == {int(k): v for k, v in other["tokens"].items()}
        assert one["start_s"] == pytest.approx(other["start_s"], rel=0, abs=NEAR_S)
        assert one["end_s"] == pytest.approx(other["end_s"], rel=0, abs=NEAR_S)


def play(case, requests, macro, told):
    """The compiled engine; its desk, and the rows whose clients left before they had an answer."""
    desk, gone = DeskColumns(len(requests)), set()
    engine = make_engine(case, requests, desk, content_of(requests), macro=macro, logging=not macro, told=told)
    comes = [(r["arrival_s"], 0, i) for i, r in enumerate(requests)]
    goes = [(r["abort_s"], 1, i) for i, r in enumerate(requests) if "abort_s" in r]
    for at, kind, i in sorted(comes + goes):
        while told and engine.wake_s < at:
            engine.advance(engine.wake_s)
        engine.advance(at)
        if kind == 0:
            engine.submit(i, requests[i]["input_length"], requests[i]["output_length"], at)
        elif engine.withdraw(i, at):
            gone.add(i)
            assert i not in engine.progress() and not engine.withdraw(i, at)
    while told and engine.wake_s < END_S:
        engine.advance(engine.wake_s)
    engine.advance(END_S)
    return engine, desk, gone


def agree(case, requests, stepper, macro, told=False):
    """The engine gives what the stepper says: times of all who stayed, and every step."""
    engine, desk, gone = play(case, requests, macro, told)
    given_back(engine, case)
    assert engine.progress() == {}
    assert gone == {r.index for r in stepper.requests if not r.answered}
    for r in stepper.requests:
        if r.index in gone:
            assert np.isnan(desk.last_token_s[r.index]) and desk.token_sum_s[r.index] == 0.0
            left = requests[r.index]["abort_s"]
            seen = [t for t in r.times[:1] if t <= left + NEAR_S]
            assert np.isnan(desk.first_token_s[r.index]) == (seen == [])
            continue
        assert desk.first_token_s[r.index] == pytest.approx(r.times[0], rel=0, abs=NEAR_S)
        assert desk.last_token_s[r.index] == pytest.approx(r.times[-1], rel=0, abs=NEAR_S)
        assert desk.token_sum_s[r.index] == pytest.approx(math.fsum(r.times), rel=0, abs=NEAR_S * len(r.times))
        assert (desk.cached_tokens[r.index], desk.preemptions[r.index]) == (r.cached_seen, r.retractions)
    assert engine.totals().batches == len(stepper.steps)
    assert sum(engine.series()[4]) == sum(len(r.times) - 1 for r in stepper.requests if r.times)
    if not macro:
        same_steps(steps_of(engine), stepper.steps)


@pytest.mark.parametrize("folder", CASES, ids=lambda p: p.name)
def test_as_the_real_scheduler_does(folder):
    case, requests, _, steps = read_case(folder)
    stepper = run_aborts(case, requests)
    same_steps(stepper.steps, steps)
    assert [s["mode"] for s in stepper.steps] == [s["mode"] for s in steps]
    with gzip.open(folder / "expected.csv.gz", "rt") as f:
        expected = list(csv.DictReader(f))
    assert sum(int(row["tokens"]) < int(row["output_length"]) for row in expected) > 9
    for r, row in zip(stepper.requests, expected, strict=True):
        assert (len(r.times), r.retractions) == (int(row["tokens"]), int(row["retractions"]))
        if r.times:
            assert r.cached_seen == int(row["cached_tokens"])
            assert r.times[0] == pytest.approx(float(row["first_token_s"]), rel=0, abs=NEAR_S)
            assert r.times[-1] == pytest.approx(float(row["last_token_s"]), rel=0, abs=NEAR_S)
            assert math.fsum(r.times) == pytest.approx(float(row["token_sum_s"]), rel=0, abs=NEAR_S * len(r.times))
    for macro in (True, False):
        agree(case, requests, stepper, macro)


@st.composite
def left(draw):
    case, requests = draw(cases())
    for r in requests:
        if draw(st.booleans()):
            r["abort_s"] = r["arrival_s"] + draw(st.integers(0, 12_000)) * 1e-3 + 3.1e-6
    return case, requests


def check(drawn, macro, told):
    case, requests = drawn
    try:
        stepper = run_aborts(case, requests)
    except OutOfMemoryError:
        reject()
    agree(case, requests, stepper, macro, told)


@some(200)
@given(left(), st.booleans(), st.booleans())
def test_random_cases_equal_the_stepper(drawn, macro, told):
    check(drawn, macro, told)


@pytest.mark.slow
@thorough(3000)
@given(left(), st.booleans(), st.booleans())
def test_thousands(drawn, macro, told):
    check(drawn, macro, told)
