"""Production engines under crashes, slow spells and leaving clients against the one-iteration stepper."""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any

import numpy as np
import pytest
from engine_case import as_case
from fault_stepper import FaultCase
from hypothesis import given
from hypothesis import strategies as st
from policy_case import some, thorough
from random_cases import cases

from simulator.cluster.faults.plan import Event, FaultPlan, Health
from simulator.cluster.result import CANCELLED, COMPLETED
from simulator.cluster.run import Cluster, RunOptions
from simulator.validation.fault_laws import broken_laws
from simulator.validation.scheduler import OUTPUT_TOKEN, case_plan
from simulator.workload.arrivals import Arrivals

#: Irregular enough that no fault comes in the instant of a step's end.
RESTART_S, PROBES_S = 0.0713, 0.0137
ODD_S = 3.1e-6

moments = st.integers(0, 2000).map(lambda ms: ms * 1e-3 + ODD_S)
engines = st.integers(0, 1)
crash = st.tuples(engines, moments, st.integers(0, 300).map(lambda ms: ms * 1e-3))
spell = st.tuples(engines, moments, st.integers(1, 600).map(lambda ms: ms * 1e-3), st.sampled_from([1.5, 4.0]))


def check(
    case: tuple[dict[str, Any], list[dict[str, Any]]],
    crashes: list[tuple[int, float, float]],
    spells: list[tuple[int, float, float, float]],
    leave: dict[int, float],
    macro: bool,
) -> None:
    options, requests = case
    requests = [{**r, "arrival_s": r["arrival_s"] + 1.7e-6 * (i + 1) ** 1.37} for i, r in enumerate(requests)]
    options = {**options, "defer_block_frees": False}
    health = Health(PROBES_S, 1, 0.0)
    crashes = [(engine, at + ODD_S * k * 1.31, away) for k, (engine, at, away) in enumerate(crashes)]
    spells = [(engine, at + ODD_S * k * 1.77, span, factor) for k, (engine, at, span, factor) in enumerate(spells)]
    leaving = [(row, at + ODD_S * 2.3) for row, at in leave.items() if row < len(requests)]

    ups = [(engine, at, at + away + RESTART_S) for engine, at, away in crashes]
    stepper = FaultCase(
        options,
        requests,
        2,
        [(engine, at, up, health.back_s(up)) for engine, at, up in ups],
        [(engine, at, at + span, factor) for engine, at, span, factor in spells],
        leaving,
    )
    stepper.run()

    drawn = as_case(options, requests)
    plan = case_plan(drawn)
    first = plan.workers[0]
    events = [Event("crash", at, away, (engine,)) for engine, at, away in crashes]
    events += [Event("slow", at, span, (engine,), factor=factor) for engine, at, span, factor in spells]
    faults = FaultPlan(tuple(events), (), health, (RESTART_S,) * 2, retry_limit=1000, waits=True)
    two = (first, dataclasses.replace(first, index=1, name="colocated-1"))
    plan = dataclasses.replace(plan, workers=two, faults=faults)
    run = RunOptions(macro=macro, one_output_content=OUTPUT_TOKEN["vllm"])
    cluster = Cluster(plan, drawn.trace, Arrivals(), run)
    assert cluster.clients is not None
    for row, at in leaving:
        cluster.agenda.add(at, partial(cluster.clients._leave, row, CANCELLED, "gone"))
    cluster.run()

    assert broken_laws(cluster) == []
    for row, (done, times) in enumerate(zip(stepper.done, stepper.times, strict=True)):
        assert cluster.state[row] == (COMPLETED if done else CANCELLED)
        if done:
            np.testing.assert_allclose(cluster.desk.last_token_s[row], times[-1], rtol=0, atol=1e-9)
            np.testing.assert_allclose(cluster.desk.first_token_s[row], times[0], rtol=0, atol=1e-9)


leavers = st.dictionaries(st.integers(0, 11), moments, max_size=6)


@some(100)
@given(cases(disaggregated=False), st.lists(crash, max_size=4), st.booleans())
def test_crashes(case, crashes, macro):
    check(case, crashes, [], {}, macro)


@some(60)
@given(cases(disaggregated=False), st.lists(spell, max_size=4), st.booleans())
def test_slow_spells(case, spells, macro):
    check(case, [], spells, {}, macro)


@some(100)
@given(cases(disaggregated=False), leavers, st.booleans())
def test_clients_that_leave(case, leave, macro):
    check(case, [], [], leave, macro)


@pytest.mark.slow
@thorough(1000)
@given(cases(disaggregated=False), st.lists(crash, max_size=4), st.lists(spell, max_size=3), leavers, st.booleans())
def test_all_at_once(case, crashes, spells, leave, macro):
    check(case, crashes, spells, leave, macro)
