"""The TensorRT-LLM policy against its plain stepper, on random small cases."""

from __future__ import annotations

import pytest
from engine_case import as_case, assert_equal
from hypothesis import HealthCheck, Phase, assume, given, settings
from hypothesis import strategies as st
from policy_case import assert_empty, run_policy
from random_cases import cases
from trt_scheduler import TrtCase


def some(examples: int) -> settings:
    phases = [Phase.explicit, Phase.generate]
    checks = list(HealthCheck)
    return settings(max_examples=examples, deadline=None, derandomize=True, phases=phases, suppress_health_check=checks)


@st.composite
def trt_cases(draw, disaggregated=None, max_requests=25):
    options, requests = draw(cases(disaggregated=disaggregated, max_requests=max_requests))
    longest = max(r["input_length"] for r in requests)
    chunking = draw(st.booleans())
    own = {"capacity": draw(st.sampled_from(["GUARANTEED_NO_EVICT", "MAX_UTILIZATION", "STATIC_BATCH"]))}
    own |= {"chunking": chunking}
    for part in [options, options.get("decode", {})]:
        if "max_num_batched_tokens" not in part:
            continue
        least = part["max_num_seqs"] if chunking else longest
        tokens = max(part["max_num_batched_tokens"], least, options["block_size"] if chunking else 1)
        part["max_num_batched_tokens"] = tokens
        part["max_num_seqs"] = min(part["max_num_seqs"], tokens)
    if chunking:  # a step must have room for a chunk beside all generation
        for part in [options, options.get("decode", {})]:
            if part:
                part["max_num_batched_tokens"] = max(
                    part["max_num_batched_tokens"], part["max_num_seqs"] + options["block_size"]
                )
    for request in requests:
        request["max_new_tokens"] = request["output_length"] + draw(st.sampled_from([0, 0, 7, 100, 1000]))
    own["limits"] = [r["max_new_tokens"] for r in requests]
    return options | own, requests


def trt_settings(options, decode=False):
    s = options | options["decode"] if decode else options
    return {
        "max_batch_size": s["max_num_seqs"],
        "max_num_tokens": s["max_num_batched_tokens"],
        "max_seq_len": options["max_model_len"],
        "capacity_scheduler_policy": options["capacity"],
        "enable_chunked_prefill": options["chunking"],
        "tokens_per_block": options["block_size"],
        "enable_block_reuse": s["prefix_caching"],
        "overlap_scheduler": s["async_scheduling"],
        "stream_interval": 1,
        "stream_first_token": False,
        "kv_blocks": s["num_blocks"] - 1,
        "block": options["block_size"],
    }


def check(case, macro, told):
    options, requests = case
    disaggregated = options.get("disaggregated")
    assume(not disaggregated or sum(options["transfer"].values()) > 0)
    oracle = TrtCase(options, requests, None, 1e-9)
    oracle.run(0)
    rows = oracle.rows()
    roles = {"colocated": trt_settings(options)}
    if disaggregated:
        roles = {"prefill": trt_settings(options), "decode": trt_settings(options, decode=True)}
    cluster = run_policy(as_case(options, requests), "tensorrt-llm", roles, macro=macro, told=told)
    assert_equal(cluster, rows)
    assert_empty(cluster)


@some(100)
@given(trt_cases(disaggregated=False), st.booleans(), st.booleans())
def test_colocated(case, macro, told):
    check(case, macro, told)


@some(100)
@given(trt_cases(disaggregated=True), st.booleans(), st.booleans())
def test_context_and_generation_servers(case, macro, told):
    check(case, macro, told)


@pytest.mark.slow
@some(2000)
@given(trt_cases(max_requests=40), st.booleans(), st.booleans())
def test_thousands(case, macro, told):
    check(case, macro, told)
