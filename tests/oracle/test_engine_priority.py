"""The production engine with ``scheduling_policy: priority`` against the plain stepper, on random small cases."""

from __future__ import annotations

import dataclasses
from itertools import pairwise

import pytest
from engine_case import as_case, assert_all_given_back, assert_equal
from hypothesis import assume, given
from hypothesis import strategies as st
from policy_case import some, thorough
from priority_stepper import run_by_priority
from random_cases import TRANSFERS, cases
from test_engine_vllm import takes_time
from vllm_scheduler import Role

from simulator.cluster.plan import ClusterPlan
from simulator.cluster.run import Cluster, RunOptions
from simulator.validation.scheduler import OUTPUT_TOKEN, case_plan
from simulator.workload.arrivals import Arrivals

ALL = tuple(Role)
POLICY = {True: "priority", False: "fcfs"}


def run_engine(case, priorities, *, macro=True, told=False, logging=False, roles=ALL, defer=False):
    case = dataclasses.replace(case, trace=case.trace.with_(priority=priorities))
    plan = case_plan(case)
    workers = tuple(
        dataclasses.replace(
            w,
            settings={
                **w.settings,
                "defer_block_frees": defer,
                "scheduling_policy": POLICY[Role[w.role.upper()] in roles],
            },
        )
        for w in plan.workers
    )
    options = RunOptions(macro=macro, one_output_content=OUTPUT_TOKEN[case.engine], tell_finished=told, logging=logging)
    cluster = Cluster(ClusterPlan(plan.topology, workers, plan.transfer), case.trace, Arrivals(), options)
    cluster.run()
    return cluster


@st.composite
def prioritised(draw, disaggregated=False, **given_):
    options, requests = draw(cases(disaggregated=disaggregated, **given_))
    classes = draw(st.sampled_from([1, 2, 3, 50]))
    drawn = draw(st.lists(st.integers(-1, classes - 2), min_size=len(requests), max_size=len(requests)))
    return options, [r | {"priority": p} for r, p in zip(requests, drawn, strict=True)]


@st.composite
def tight(draw, disaggregated=False):
    """Many short requests that outgrow a small pool together: victims stand anywhere, some with a last token on its
    way, most with a token of the step already."""
    gap_ms = draw(st.sampled_from([0, 5, 20]))
    rows = draw(
        st.lists(
            st.tuples(st.integers(0, gap_ms), st.integers(1, 24), st.integers(1, 60), st.integers(0, 9)),
            min_size=6,
            max_size=24,
        )
    )
    now_ms, requests = 0, []
    for gap, prompt, output, priority in rows:
        now_ms += gap
        requests.append(
            {"arrival_s": now_ms / 1000, "input_length": prompt, "output_length": output, "priority": priority}
        )
    block = draw(st.sampled_from([4, 8]))
    largest = max(r["input_length"] + r["output_length"] for r in requests)
    options = {
        "engine": "vllm",
        "max_model_len": largest,
        "max_num_seqs": 16,
        "max_num_batched_tokens": draw(st.sampled_from([16, 64, 512])),
        "block_size": block,
        "num_blocks": 1 + -(-largest // block) + draw(st.integers(0, 12)),
        "prefix_caching": draw(st.booleans()),
        "async_scheduling": draw(st.sampled_from([True, True, False])),
        "step_time": {"base_s": 0.005, "per_token_s": 2e-05, "per_context_token_s": 4e-08},
    }
    if disaggregated:
        options["disaggregated"] = True
        options["transfer"] = draw(st.sampled_from(TRANSFERS))
        seats, tokens = draw(st.sampled_from([(3, 3), (3, 4), (5, 16), (16, 16), (16, 64)]))
        options["decode"] = {"max_num_seqs": seats, "max_num_batched_tokens": tokens}
    return options, requests


def check(case, macro, told, roles=ALL, defer=False) -> None:
    options, requests = case
    assume(takes_time(options))
    compare(options, requests, macro, told, roles, defer)


def compare(options, requests, macro, told, roles=ALL, defer=False) -> None:
    rows = run_by_priority({**options, "defer_block_frees": defer}, requests, roles)
    drawn, priorities = as_case(options, requests), [r["priority"] for r in requests]
    cluster = run_engine(drawn, priorities, macro=macro, told=told, roles=roles, defer=defer)
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


@some(400)
@given(tight(), st.booleans(), st.booleans())
def test_where_blocks_are_short_all_the_time(case, macro, told):
    check(case, macro, told)


@some(100)
@given(prioritised(disaggregated=True), st.booleans(), st.booleans())
def test_at_a_prefill_engine(case, macro, told):
    check(case, macro, told, (Role.PREFILL,))


@some(100)
@given(
    prioritised(disaggregated=True), st.booleans(), st.booleans(), st.sampled_from([ALL, (Role.DECODE,)]), st.booleans()
)
def test_at_decode_engines(case, macro, told, roles, defer):
    check(case, macro, told, roles, defer)


@some(300)
@given(tight(disaggregated=True), st.booleans(), st.booleans(), st.sampled_from([ALL, (Role.DECODE,)]), st.booleans())
def test_where_blocks_of_decode_engines_are_short_all_the_time(case, macro, told, roles, defer):
    check(case, macro, told, roles, defer)


@pytest.mark.slow
@thorough(2000)
@given(tight(disaggregated=True), st.booleans(), st.booleans(), st.booleans())
def test_thousands_at_decode_engines(case, macro, told, defer):
    check(case, macro, told, ALL, defer)


def test_a_prompt_computed_again_loses_its_place_in_a_step_to_a_token_behind_it():
    """Found by search: a prompt under way could get no block; requests whose KV was there began behind it; in the next
    step it gets its tokens, and loses them, being the least urgent, as one of those lacks a block."""
    rows = (
        "3,17,9,7 9,3,7,0 12,2,14,7 28,24,5,9 30,38,8,9 41,3,10,2 50,2,4,1 53,38,19,7 61,3,6,2 107,2,14,6 111,2,4,4 "
        "126,1,10,1 130,1,14,7 147,37,19,7 152,3,7,5 159,1,13,5 174,4,11,1 186,3,3,5 198,2,13,0 215,3,3,5 222,2,11,2 "
        "235,2,14,6 236,3,12,0 266,4,2,0 272,4,10,7 279,3,4,2 286,3,13,6 296,4,8,1"
    )
    names = ("arrival_s", "input_length", "output_length", "priority")
    requests = [dict(zip(names, map(int, row.split(",")), strict=True)) for row in rows.split()]
    requests = [r | {"arrival_s": r["arrival_s"] / 1000} for r in requests]
    options = {
        "engine": "vllm",
        "max_model_len": 67,
        "max_num_seqs": 16,
        "max_num_batched_tokens": 64,
        "block_size": 1,
        "num_blocks": 82,
        "prefix_caching": False,
        "async_scheduling": True,
        "step_time": {"base_s": 0.005, "per_token_s": 2e-05, "per_context_token_s": 4e-08},
        "disaggregated": True,
        "transfer": {"setup_s": 0.002, "per_block_s": 2e-05},
        "decode": {"max_num_seqs": 8, "max_num_batched_tokens": 12},
    }
    for macro in (True, False):
        compare(options, requests, macro, False, ALL, True)


# Three run and the pool is short of a block: the least urgent goes, wherever it stands in the running list.
# One that stands before the request in need has its token of that step already, and loses it.
@pytest.mark.parametrize("is_async", [False, True])
@pytest.mark.parametrize("priorities", [(5, 0, 0), (0, 5, 0), (0, 0, 5), (2, 1, 0)])
def test_a_request_that_had_its_token_is_preempted(priorities, is_async):
    options = {
        "engine": "vllm",
        "max_model_len": 200,
        "max_num_seqs": 8,
        "max_num_batched_tokens": 64,
        "block_size": 8,
        "num_blocks": 1 + 9,
        "prefix_caching": False,
        "async_scheduling": is_async,
        "step_time": {"base_s": 0.005, "per_token_s": 1e-3, "per_context_token_s": 1e-5},
    }
    requests = [
        {"arrival_s": 0.0, "input_length": n, "output_length": 30, "priority": p}
        for n, p in zip((16, 14, 15), priorities, strict=True)
    ]
    rows = run_by_priority(options, requests)
    assert rows[min(range(3), key=lambda i: (priorities[i], i))]["preemptions"] == 0
    assert rows[max(range(3), key=lambda i: (priorities[i], i))]["preemptions"] > 0
    cluster = run_engine(as_case(options, requests), list(priorities), logging=True)
    assert_equal(cluster, rows)
    starts, _, first, logged, tokens = cluster.workers[0].engine.step_log()
    bounds = [*first.tolist(), len(logged)]
    for a, b in pairwise(bounds):
        inside = logged[a:b][tokens[a:b] > 0].tolist()
        assert len(set(inside)) == len(inside)
        assert not set(inside) & set(logged[a:b][tokens[a:b] < 0].tolist())
    assert (tokens < 0).sum() == cluster.desk.preemptions.sum() > 0
    assert len(starts) > 30
