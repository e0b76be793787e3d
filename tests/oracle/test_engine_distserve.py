"""DistServe's policy against its plain stepper, on random small cases."""

from __future__ import annotations

import pytest
from distserve_scheduler import StageCase
from engine_case import as_case, assert_equal
from hypothesis import assume, given
from hypothesis import strategies as st
from policy_case import assert_empty, run_policy, some, thorough
from random_cases import cases

from simulator.errors import InputError


@st.composite
def stage_cases(draw, max_requests=25):
    options, requests = draw(cases(disaggregated=True, prefix_caching=False, max_requests=max_requests))
    options["async_scheduling"] = options["decode"]["async_scheduling"] = False
    options["prefix_caching"] = options["decode"]["prefix_caching"] = False
    longest = max(r["input_length"] for r in requests)
    whole = max(r["input_length"] + r["output_length"] for r in requests)
    options["decode"]["num_blocks"] = 1 + -(-whole // options["block_size"]) + draw(st.sampled_from([0, 3, 30, 200]))
    options |= {
        "max_batch_size": draw(st.sampled_from([1, 3, 128])),
        "max_tokens_per_batch": max(longest, draw(st.sampled_from([64, 512, 8192]))),
        "max_decode_batch_size": draw(st.sampled_from([1, 4, 1024])),
        "max_decode_tokens": 65536,
        "accept_block_fraction": draw(st.sampled_from([0.05, 0.3, 1.0])),
    }
    return options, requests


def stage_settings(options, decode=False):
    names = ("max_batch_size", "max_tokens_per_batch", "max_decode_batch_size", "max_decode_tokens")
    own = {name: options[name] for name in (*names, "accept_block_fraction", "block_size", "max_model_len")}
    blocks = (options["decode"] if decode else options)["num_blocks"] - 1
    return own | {"stream_interval": 1, "kv_blocks": blocks, "block": options["block_size"]}


def check(case, macro, told):
    options, requests = case
    assume(sum(options["transfer"].values()) > 0)
    oracle = StageCase(options, requests, None, 1e-9)
    oracle.run(0)
    roles = {"prefill": stage_settings(options), "decode": stage_settings(options, decode=True)}
    cluster = run_policy(as_case(options, requests), "distserve", roles, macro=macro, told=told)
    assert_equal(cluster, oracle.rows())
    assert_empty(cluster)


@some(80)
@given(stage_cases(), st.booleans(), st.booleans())
def test_both_stages(case, macro, told):
    check(case, macro, told)


@pytest.mark.slow
@thorough(2000)
@given(stage_cases(max_requests=40), st.booleans(), st.booleans())
def test_thousands(case, macro, told):
    check(case, macro, told)


def test_has_no_colocated_engine():
    request = {"arrival_s": 0.0, "input_length": 8, "output_length": 2}
    options = {"block_size": 16, "num_blocks": 9, "max_model_len": 99, "decode": {}, "accept_block_fraction": 0.05}
    options |= dict.fromkeys(
        ("max_batch_size", "max_tokens_per_batch", "max_decode_batch_size", "max_decode_tokens"), 9
    )
    case = {"max_num_seqs": 1, "max_num_batched_tokens": 9, "prefix_caching": False, "async_scheduling": False}
    step_time = {"base_s": 1.0, "per_token_s": 0.0, "per_context_token_s": 0.0}
    with pytest.raises(InputError, match="role 'colocated' is not allowed"):
        run_policy(
            as_case(options | case | {"step_time": step_time}, [request]),
            "distserve",
            {"colocated": stage_settings(options)},
        )
