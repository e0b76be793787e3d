"""Pushed prompts in the production engines against the one-iteration stepper, on random small cases."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from engine_case import as_case, assert_all_given_back, assert_equal
from handover_stepper import run_push
from hypothesis import given
from hypothesis import strategies as st
from policy_case import some, thorough
from random_cases import cases

from simulator.cluster.run import Cluster, RunOptions
from simulator.validation.scheduler import OUTPUT_TOKEN, case_plan
from simulator.workload.arrivals import Arrivals

#: Irregular enough that nothing but what causes another thing happens in the same instant.
TIMES = [
    {"setup_s": 0.00131, "per_block_s": 0.000_077},
    {"setup_s": 0.000_000_013, "per_block_s": 0.000_73},
    {"setup_s": 0.0713, "per_block_s": 0.000_001_7},
]


def check(case: tuple[dict[str, Any], list[dict[str, Any]]], mode: str, layers: int, macro: bool, told: bool) -> None:
    options, requests = case
    requests = [{**r, "arrival_s": r["arrival_s"] + 1.7e-6 * (i + 1) ** 1.37} for i, r in enumerate(requests)]
    options = {**options, "mode": mode, "layers": layers, "defer_block_frees": False}
    rows = run_push(options, requests)
    drawn = as_case(options, requests)
    plan = case_plan(drawn)
    assert plan.transfer is not None
    transfer = dataclasses.replace(plan.transfer, mode=mode, layers=layers)  # type: ignore[arg-type]
    run = RunOptions(macro=macro, one_output_content=OUTPUT_TOKEN["vllm"], tell_finished=told)
    cluster = Cluster(dataclasses.replace(plan, transfer=transfer), drawn.trace, Arrivals(), run)
    cluster.run()
    assert_equal(cluster, rows)
    assert_all_given_back(cluster)


@some(80)
@given(cases(disaggregated=True), st.sampled_from(TIMES), st.booleans(), st.booleans())
def test_pushed_chunks(case, times, macro, told):
    check(({**case[0], "transfer": times}, case[1]), "push", 1, macro, told)


@some(80)
@given(cases(disaggregated=True), st.sampled_from(TIMES), st.sampled_from([1, 4, 32]), st.booleans(), st.booleans())
def test_pushed_layers(case, times, layers, macro, told):
    check(({**case[0], "transfer": times}, case[1]), "layerwise", layers, macro, told)


@pytest.mark.slow
@thorough(600)
@given(
    cases(disaggregated=True, max_requests=40), st.sampled_from(TIMES), st.sampled_from([0, 1, 4, 32]), st.booleans()
)
def test_hundreds(case, times, layers, macro):
    mode = "layerwise" if layers else "push"
    check(({**case[0], "transfer": times}, case[1]), mode, max(layers, 1), macro, False)
