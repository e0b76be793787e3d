"""Speculative decoding against its plain stepper, on random small cases; and how many tokens a step gives."""

from __future__ import annotations

import numpy as np
import pytest
from engine_case import as_case
from hypothesis import given
from hypothesis import strategies as st
from policy_case import assert_empty, run_policy, some, thorough
from random_cases import cases
from speculative_stepper import run

from simulator.engine.speculation import draft_draw
from simulator.errors import InputError


@st.composite
def speculative_cases(draw, max_requests=20):
    options, requests = draw(cases(disaggregated=False, prefix_caching=False, max_requests=max_requests))
    drafts = draw(st.integers(1, 5))
    policy = draw(st.sampled_from(["vllm", "trt"]))
    whole = max(r["input_length"] + r["output_length"] for r in requests)
    tokens = max(options["max_num_batched_tokens"], max(r["input_length"] for r in requests) if policy == "trt" else 1)
    for request in requests:
        request["max_new_tokens"] = request["output_length"] + draw(st.sampled_from([0, 0, 7, 100]))
    own = {
        "policy": policy,
        "drafts": drafts,
        "acceptance": draw(st.sampled_from([0.0, 0.5, 0.9, 1.0])),
        "decay": draw(st.sampled_from([1.0, 0.7])),
        "share": draw(st.sampled_from([0.0, 0.04])),
        "seed": draw(st.integers(0, 3)),
        "blocks": -(-whole // options["block_size"]) + draw(st.sampled_from([0, 1, 4, 30, 1000])),
        "tokens": tokens,
        "seqs": min(options["max_num_seqs"], max(tokens // (1 + drafts), 1) if policy == "trt" else 10**6),
        "longest": options["max_model_len"],
        "depth": 2 if options["async_scheduling"] else 1,
    }
    return options | own | options["step_time"], requests


def engine_settings(s):
    shared = {
        "num_speculative_tokens": s["drafts"],
        "speculative_acceptance": s["acceptance"],
        "speculative_acceptance_decay": s["decay"],
        "speculative_draft_cost": s["share"],
        "speculative_seed": s["seed"],
        "stream_interval": 1,
        "kv_blocks": s["blocks"],
        "block": s["block_size"],
    }
    if s["policy"] == "vllm":
        own = {"max_num_seqs": s["seqs"], "max_num_batched_tokens": s["tokens"], "max_model_len": s["longest"]}
        own |= {"block_size": s["block_size"], "prefix_caching": False, "async_scheduling": s["depth"] == 2}
        return "vllm-v1", shared | own
    own = {"max_batch_size": s["seqs"], "max_num_tokens": s["tokens"], "max_seq_len": s["longest"]}
    own |= {"capacity_scheduler_policy": "GUARANTEED_NO_EVICT", "enable_chunked_prefill": False}
    own |= {"tokens_per_block": s["block_size"], "enable_block_reuse": False, "overlap_scheduler": s["depth"] == 2}
    return "tensorrt-llm", shared | own | {"stream_first_token": False}


def check(case, told):
    s, requests = case

    def keeps(row, token, position):
        return draft_draw(s["seed"], row, token) < s["acceptance"] * s["decay"] ** position

    times, preemptions = run(s, requests, keeps)
    policy, own = engine_settings(s)
    cluster = run_policy(as_case(s, requests), policy, {"colocated": own}, told=told)
    desk = cluster.desk
    assert desk.first_token_s == pytest.approx([t[0] for t in times], abs=1e-9)
    assert desk.last_token_s == pytest.approx([t[-1] for t in times], abs=1e-9)
    assert desk.token_sum_s == pytest.approx([sum(t) for t in times], abs=1e-7)
    assert desk.preemptions.tolist() == preemptions
    assert_empty(cluster)
    gaps = np.concatenate([np.diff(t) for t in times])
    assert cluster.workers[0].engine.series()[4].sum() == gaps.size
    assert cluster.workers[0].engine.totals().gap_sum_s == pytest.approx(gaps.sum(), abs=1e-6)


@some(100)
@given(speculative_cases(), st.booleans())
def test_equals_the_stepper(case, told):
    check(case, told)


@pytest.mark.slow
@thorough(2000)
@given(speculative_cases(max_requests=40), st.booleans())
def test_thousands(case, told):
    check(case, told)


def alone(**changes):
    """One request of 4,001 tokens in steps of a second."""
    s = {"policy": "vllm", "drafts": 2, "acceptance": 0.8, "decay": 0.5, "share": 0.0, "seed": 0, "blocks": 1000}
    s |= {"tokens": 2048, "seqs": 8, "longest": 10_000, "depth": 1, "block_size": 16, "prefix_caching": False}
    s |= {"max_model_len": 10_000, "max_num_seqs": 8, "max_num_batched_tokens": 2048, "num_blocks": 1001}
    s |= {"async_scheduling": False, "step_time": {"base_s": 1.0, "per_token_s": 0.0, "per_context_token_s": 0.0}}
    s |= changes
    policy, own = engine_settings(s)
    case = as_case(s, [{"arrival_s": 0.0, "input_length": 100, "output_length": 4001}])
    desk = run_policy(case, policy, {"colocated": own}).desk
    return float(desk.last_token_s[0] - desk.first_token_s[0])


def test_tokens_a_step():
    """0.8, and 0.4 for the second if the first is right: 1 + 0.8 + 0.8 * 0.4 tokens a step; all or nothing exactly."""
    assert 4000 / alone() == pytest.approx(2.12, rel=0.03)
    assert alone(acceptance=0.0) == 4000
    assert alone(acceptance=1.0, decay=1.0, drafts=3) == 1000
    assert alone() == alone()
    assert alone() != alone(seed=1)


def test_draws_are_even_and_independent():
    draws = np.array([[draft_draw(3, row, token) for token in range(400)] for row in range(20)])
    assert np.abs(np.histogram(draws, 10, (0, 1))[0] / draws.size - 0.1).max() < 0.012
    assert abs(np.corrcoef(draws[:, 1:].ravel(), draws[:, :-1].ravel())[0, 1]) < 0.03
    assert abs(np.corrcoef(draws[1:].ravel(), draws[:-1].ravel())[0, 1]) < 0.03


def test_drafting_takes_time():
    assert alone(acceptance=1.0, decay=1.0, drafts=3, share=0.1) == pytest.approx(1300)


def test_groups_of_tokens_are_refused():
    with pytest.raises(InputError, match="cannot be simulated together"):
        alone_with = {"policy": "vllm"}
        s = {"drafts": 2, "acceptance": 0.8, "decay": 0.5, "share": 0.0, "seed": 0, "blocks": 9, "tokens": 99}
        s |= {"seqs": 8, "longest": 99, "depth": 1, "block_size": 16, "prefix_caching": False, "max_model_len": 99}
        s |= {"max_num_seqs": 8, "max_num_batched_tokens": 99, "num_blocks": 10, "async_scheduling": False}
        s |= {"step_time": {"base_s": 1.0, "per_token_s": 0.0, "per_context_token_s": 0.0}} | alone_with
        policy, own = engine_settings(s)
        case = as_case(s, [{"arrival_s": 0.0, "input_length": 10, "output_length": 4}])
        run_policy(case, policy, {"colocated": own | {"stream_interval": 4}})
