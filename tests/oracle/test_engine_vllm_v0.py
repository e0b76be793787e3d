"""vLLM's V0 policy against its plain stepper, on random small cases."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from engine_case import as_case, assert_equal
from hypothesis import assume, given
from hypothesis import strategies as st
from policy_case import assert_empty, run_policy, some, thorough
from random_cases import cases
from vllm_v0_scheduler import PromptsFirstCase

from simulator.cost.table import affine_cost
from simulator.engine.engine import Engine, EngineSpec
from simulator.engine.state import DeskColumns
from simulator.errors import InputError
from simulator.kv.content import unshared_content

OWN = ("max_num_seqs", "max_num_batched_tokens", "block_size", "max_model_len", "prefix_caching", "async_scheduling")


@st.composite
def colocated_cases(draw, max_requests=25):
    """No prompt is longer than a batch may be: the real engine refuses such."""
    options, requests = draw(cases(disaggregated=False, max_requests=max_requests))
    longest = max(r["input_length"] for r in requests)
    whole = max(r["input_length"] + r["output_length"] for r in requests)
    options["async_scheduling"] = False
    options["max_num_batched_tokens"] = longest + draw(st.sampled_from([0, 30, 500, 8000]))
    options["num_blocks"] = 1 + -(-whole // options["block_size"]) + draw(st.sampled_from([0, 3, 30, 200, 2000]))
    return options, requests


def check(case, macro, told):
    options, requests = case
    oracle = PromptsFirstCase(options, requests, None, 1e-9)
    oracle.run(0)
    own = {name: options[name] for name in OWN} | {
        "kv_blocks": options["num_blocks"] - 1,
        "block": options["block_size"],
    }
    cluster = run_policy(as_case(options, requests), "vllm-v0", {"colocated": own}, macro=macro, told=told)
    assert_equal(cluster, oracle.rows())
    assert_empty(cluster)
    return oracle, cluster


@some(120)
@given(colocated_cases(), st.booleans(), st.booleans())
def test_prompts_first(case, macro, told):
    """Gaps too: those of requests that stood still behind prompts span several batches."""
    oracle, cluster = check(case, macro, told)
    assume(not cluster.desk.preemptions.any())
    gaps = [b - a for times in oracle.token_times for a, b in pairwise(times)]
    totals = cluster.workers[0].engine.totals()
    assert cluster.workers[0].engine.series()[4].sum() == len(gaps)
    assert totals.gap_sum_s == pytest.approx(sum(gaps), abs=1e-6)
    assert totals.gap_max_s == pytest.approx(max(gaps, default=0.0), abs=1e-8)


@pytest.mark.slow
@thorough(2000)
@given(colocated_cases(max_requests=40), st.booleans(), st.booleans())
def test_thousands(case, macro, told):
    check(case, macro, told)


@pytest.mark.parametrize(
    ("role", "changed", "words"),
    [
        ("prefill", {}, "role 'prefill' is not allowed"),
        ("colocated", {"async_scheduling": True}, "async_scheduling True is not allowed"),
        ("colocated", {"num_speculative_tokens": 2}, "num_speculative_tokens 2 is not allowed"),
        ("colocated", {"stream_interval": 4}, "stream_interval 4 is not allowed"),
    ],
)
def test_what_it_does_not_do_is_refused(role, changed, words):
    settings = {
        "max_num_seqs": 8, "max_num_batched_tokens": 100, "block_size": 16, "max_model_len": 100,
        "prefix_caching": False, "async_scheduling": False,
    }  # fmt: skip
    spec = EngineSpec("vllm-v0", role, settings | changed, 100, affine_cost(1e-3))
    with pytest.raises(InputError, match=words):
        Engine(spec, unshared_content(np.array([5])), DeskColumns(1).record)
