"""The TensorRT-LLM policy against its plain stepper, on random small cases."""

from __future__ import annotations

from itertools import pairwise

import pytest
from engine_case import as_case, assert_equal
from hypothesis import assume, given
from hypothesis import strategies as st
from policy_case import assert_empty, run_policy, some, thorough
from random_cases import cases
from trt_scheduler import TrtCase


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


@some(60)
@given(trt_cases(disaggregated=False), st.booleans(), st.booleans())
def test_colocated(case, macro, told):
    check(case, macro, told)


@some(60)
@given(trt_cases(disaggregated=True), st.booleans(), st.booleans())
def test_context_and_generation_servers(case, macro, told):
    check(case, macro, told)


@pytest.mark.slow
@thorough(2000)
@given(trt_cases(max_requests=40), st.booleans(), st.booleans())
def test_thousands(case, macro, told):
    check(case, macro, told)


def sent_times(made, interval, first_at_once):
    """When the client sees each token, from when it is made."""
    n = len(made)
    ends = [i for i in range(1, n + 1) if (i % interval == (1 % interval if first_at_once else 0)) or i == n]
    return [made[next(e for e in ends if e >= i) - 1] for i in range(1, n + 1)]


@some(60)
@given(trt_cases(disaggregated=False), st.booleans(), st.booleans(), st.integers(2, 40), st.booleans())
def test_tokens_in_groups(case, macro, told, interval, first_at_once):
    """Nobody is paused here: first tokens and all gaps are those of the stepper's tokens, gathered."""
    options, requests = case
    options["capacity"] = "GUARANTEED_NO_EVICT"
    oracle = TrtCase(options, requests, None, 1e-9)
    oracle.run(0)
    own = trt_settings(options) | {"stream_interval": interval, "stream_first_token": first_at_once}
    cluster = run_policy(as_case(options, requests), "tensorrt-llm", {"colocated": own}, macro=macro, told=told)
    sent = [sent_times(made, interval, first_at_once) for made in oracle.token_times]
    assert cluster.desk.first_token_s == pytest.approx([times[0] for times in sent], abs=1e-9)
    assert cluster.desk.last_token_s == pytest.approx([times[-1] for times in sent], abs=1e-9)
    gaps = [b - a for times in sent for a, b in pairwise(times)]
    engine = cluster.workers[0].engine
    assert engine.series()[4].sum() == len(gaps)
    assert engine.totals().gap_sum_s == pytest.approx(sum(gaps), abs=1e-6)
    assert engine.totals().gap_max_s == pytest.approx(max(gaps, default=0.0), abs=1e-8)
