"""Prefixes loaded from caches below the engine: the production engine against the one-iteration stepper."""

from __future__ import annotations

import pytest
from engine_case import as_case, assert_all_given_back, assert_equal
from hypothesis import assume, given
from hypothesis import strategies as st
from policy_case import assert_empty, policy_cluster, some, thorough
from random_cases import cases
from test_engine_trt import trt_cases, trt_settings
from trt_scheduler import TrtCase
from vllm_stepper import run_case

from simulator.cluster.run import Cluster, RunOptions
from simulator.validation.scheduler import OUTPUT_TOKEN, case_plan
from simulator.workload.arrivals import Arrivals

LOADS = [{"setup_s": 0.004, "per_block_s": 4e-05}, {"setup_s": 0.05, "per_block_s": 0.002}]


class StatedCache:
    """A cache that holds of each prompt what the case says, and loads it in the time the case says."""

    def __init__(self, cluster, times, requests, block_size):
        self.cluster, self.times, self.requests, self.block_size = cluster, times, requests, block_size
        self.loads = {}

    def outside(self, worker, row):
        return self.requests[row].get("outside", 0)

    def load(self, worker, row, slot, hits, now):
        blocks = max(self.requests[row]["there"] // self.block_size - hits, 0)
        end = now + self.times["setup_s"] + self.times["per_block_s"] * blocks
        self.loads[row] = blocks
        worker.engine.will_hold(slot, (hits + blocks) * self.block_size)
        self.cluster.agenda.add(end, lambda at: worker.transfer_ended(slot, at))

    def computed(self, worker, row, now): ...

    def drain(self, worker, now): ...

    def finished(self, worker, row, now): ...


def run_engine(options, requests, *, macro, told):
    case = as_case(options, requests)
    run_options = RunOptions(macro=macro, one_output_content=OUTPUT_TOKEN[case.engine], tell_finished=told)
    cluster = Cluster(case_plan(case), case.trace, Arrivals(), run_options)
    return run_with_caches(cluster, options, requests)


def run_with_caches(cluster, options, requests):
    cluster.caches = StatedCache(cluster, options["load"], requests, options["block_size"])
    cluster.workers[0].outside = cluster.caches.outside
    cluster.run()
    return cluster


@st.composite
def loading_cases(draw, **kinds):
    """Random cases of vLLM with prefix caching."""
    return draw(loads_of(*draw(cases(**kinds))))


@st.composite
def loads_of(draw, options, requests):
    """Some prompts seem to be held below, and more or less of each is."""
    options = {**options, "prefix_caching": True, "load": draw(st.sampled_from(LOADS))}
    if "decode" in options:
        options["decode"] = {**options["decode"], "prefix_caching": True}
    size = options["block_size"]
    marked = []
    for request in requests:
        whole = (request["input_length"] - 1) // size
        share = draw(st.sampled_from([0, 0, 1, 2, 3]))
        there = draw(st.sampled_from([0, 1, 2, 3]))
        marked.append({**request, "outside": whole * share // 3 * size, "there": whole * there // 3 * size})
    return options, marked


def check(case, macro, told):
    options, requests = case
    if options.get("disaggregated") and sum(options["transfer"].values()) == 0:
        return  # reads of no length end in the instant that began them: the driver's business
    rows, _ = run_case(options, requests, instant_s=1e-9)
    cluster = run_engine(options, requests, macro=macro, told=told)
    assert_equal(cluster, rows)
    assert_all_given_back(cluster)


@some(120)
@given(loading_cases(disaggregated=False), st.booleans(), st.booleans())
def test_colocated(case, macro, told):
    check(case, macro, told)


@some(80)
@given(loading_cases(disaggregated=True), st.booleans(), st.booleans())
def test_disaggregated(case, macro, told):
    check(case, macro, told)


def check_trt(case, macro, told):
    """TensorRT-LLM: prompts whose beginning comes from below, among generation, chunks and reads."""
    options, requests = case
    assume(not options.get("disaggregated") or sum(options["transfer"].values()) > 0)
    oracle = TrtCase(options, requests, None, 1e-9)
    oracle.run(0)
    roles = {"colocated": trt_settings(options)}
    if options.get("disaggregated"):
        roles = {"prefill": trt_settings(options), "decode": trt_settings(options, decode=True)}
    cluster = policy_cluster(as_case(options, requests), "tensorrt-llm", roles, macro=macro, told=told)
    run_with_caches(cluster, options, requests)
    assert_equal(cluster, oracle.rows())
    assert_empty(cluster)


@st.composite
def trt_loading_cases(draw, disaggregated=None):
    options, requests = draw(trt_cases(disaggregated=disaggregated))
    return draw(loads_of(options, requests))


@some(120)
@given(trt_loading_cases(), st.booleans(), st.booleans())
def test_tensorrt_llm(case, macro, told):
    check_trt(case, macro, told)


@pytest.mark.slow
@thorough(2000)
@given(trt_loading_cases(), st.booleans(), st.booleans())
def test_many_of_tensorrt_llm(case, macro, told):
    check_trt(case, macro, told)


@pytest.mark.slow
@thorough(600)
@given(loading_cases(max_requests=30), st.booleans(), st.booleans())
def test_many(case, macro, told):
    check(case, macro, told)
