"""Splitwise's policy against its plain stepper, on random small cases."""

from __future__ import annotations

from itertools import pairwise

import pytest
from engine_case import as_case, assert_equal
from hypothesis import assume, given
from hypothesis import strategies as st
from policy_case import assert_empty, run_policy, some, thorough
from random_cases import cases
from splitwise_scheduler import MachineCase


@st.composite
def machine_cases(draw, disaggregated=None, max_requests=25):
    options, requests = draw(cases(disaggregated=disaggregated, prefix_caching=False, max_requests=max_requests))
    options["async_scheduling"] = options["prefix_caching"] = False
    whole = max(r["input_length"] + r["output_length"] for r in requests)
    options["num_blocks"] = 1 + -(-whole // options["block_size"]) + draw(st.sampled_from([0, 3, 30, 200, 2000]))
    if "decode" in options:
        options["decode"] = {"async_scheduling": False, "prefix_caching": False}
    options |= {
        "max_prompt_tokens": draw(st.sampled_from([20, 64, 512, 2048])),
        "max_batch_size": draw(st.sampled_from([1, 5, 20, 256])),
        "max_preemptions": draw(st.sampled_from([0, 1, 4])),
    }
    return options, requests


def machine_settings(options):
    names = ("max_prompt_tokens", "max_batch_size", "max_preemptions", "block_size", "max_model_len")
    own = {name: options[name] for name in names}
    return own | {"stream_interval": 1, "kv_blocks": options["num_blocks"] - 1, "block": options["block_size"]}


def check(case, macro, told):
    options, requests = case
    disaggregated = options.get("disaggregated")
    assume(not disaggregated or sum(options["transfer"].values()) > 0)
    oracle = MachineCase(options, requests, None, 1e-9)
    oracle.run(0)
    roles = dict.fromkeys(("prefill", "decode") if disaggregated else ("colocated",), machine_settings(options))
    cluster = run_policy(as_case(options, requests), "splitwise", roles, macro=macro, told=told)
    assert_equal(cluster, oracle.rows())
    assert_empty(cluster)
    return oracle, cluster


@some(80)
@given(machine_cases(disaggregated=False), st.booleans(), st.booleans())
def test_mixed_machine(case, macro, told):
    """Gaps too: those of requests that were passed over span several batches."""
    oracle, cluster = check(case, macro, told)
    assume(not cluster.desk.preemptions.any())
    gaps = [b - a for times in oracle.token_times for a, b in pairwise(times)]
    engine = cluster.workers[0].engine
    assert engine.series()[4].sum() == len(gaps)
    assert engine.totals().gap_sum_s == pytest.approx(sum(gaps), abs=1e-6)
    assert engine.totals().gap_max_s == pytest.approx(max(gaps, default=0.0), abs=1e-8)


@some(60)
@given(machine_cases(disaggregated=True), st.booleans(), st.booleans())
def test_prompt_and_token_machines(case, macro, told):
    check(case, macro, told)


@pytest.mark.slow
@thorough(2000)
@given(machine_cases(max_requests=40), st.booleans(), st.booleans())
def test_thousands(case, macro, told):
    check(case, macro, told)
