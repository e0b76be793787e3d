"""The production engine with ``scheduling_policy: priority`` against the plain stepper, on random small cases."""

from __future__ import annotations

import dataclasses

from engine_case import as_case, assert_all_given_back, assert_equal
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from priority_stepper import run_by_priority
from random_cases import cases

from simulator.cluster.plan import ClusterPlan
from simulator.cluster.run import Cluster, RunOptions
from simulator.validation.scheduler import OUTPUT_TOKEN, case_plan
from simulator.workload.arrivals import Arrivals


def some(examples: int) -> settings:
    """The same cases on every run; a failing one is told as drawn."""
    phases = [Phase.explicit, Phase.generate]
    checks = list(HealthCheck)
    return settings(max_examples=examples, deadline=None, derandomize=True, phases=phases, suppress_health_check=checks)


def run_engine(case, priorities, *, macro=True, told=False, logging=False):
    case = dataclasses.replace(case, trace=case.trace.with_(priority=priorities))
    plan = case_plan(case)
    workers = tuple(
        dataclasses.replace(
            w, settings={**w.settings, "scheduling_policy": "priority", "num_speculative_tokens": 0}
        )
        for w in plan.workers
    )
    options = RunOptions(
        macro=macro, one_output_content=OUTPUT_TOKEN[case.engine], tell_finished=told, logging=logging
    )
    cluster = Cluster(ClusterPlan(plan.topology, workers, plan.transfer), case.trace, Arrivals(), options)
    cluster.run()
    return cluster


@st.composite
def prioritised(draw, **given_):
    options, requests = draw(cases(disaggregated=False, **given_))
    classes = draw(st.sampled_from([1, 2, 3, 50]))
    drawn = draw(st.lists(st.integers(-1, classes - 2), min_size=len(requests), max_size=len(requests)))
    return options, [r | {"priority": p} for r, p in zip(requests, drawn, strict=True)]


def check(case, macro, told) -> None:
    options, requests = case
    rows = run_by_priority(options, requests)
    cluster = run_engine(as_case(options, requests), [r["priority"] for r in requests], macro=macro, told=told)
    assert_equal(cluster, rows)
    assert_all_given_back(cluster)


@some(300)
@given(prioritised(), st.booleans(), st.booleans())
def test_random_cases(case, macro, told):
    check(case, macro, told)


@some(150)
@given(prioritised(prefix_caching=True, max_requests=40), st.booleans(), st.booleans())
def test_with_shared_prefixes(case, macro, told):
    check(case, macro, told)
