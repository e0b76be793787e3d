"""Engines with hardly any memory and small steps against the steppers: preemption, waiting and eviction all the time.

Cases are a tenth of the size of the ordinary ones, so that hundreds of them take a second or two.
"""

from __future__ import annotations

import pytest
from engine_case import as_case, assert_all_given_back, run_engine
from engine_sglang import hand_over
from hypothesis import assume, given
from hypothesis import strategies as st
from policy_case import some
from random_cases import STEP_TIMES, TRANSFERS
from test_engine_sglang import check as check_sglang
from test_engine_sglang import given_back
from test_engine_speculative import check as check_speculative
from test_engine_vllm import check as check_vllm


@st.composite
def small_requests(draw, longest=40, makes=25, most=12):
    rows = draw(
        st.lists(
            st.tuples(st.sampled_from([0, 0, 1, 5, 40]), st.integers(1, longest), st.integers(1, makes)),
            min_size=2,
            max_size=most,
        )
    )
    now, requests = 0, []
    for gap, prompt, output in rows:
        now += gap
        requests.append({"arrival_s": now / 1000, "input_length": prompt, "output_length": output})
    return requests


@st.composite
def tight_cases(draw, disaggregated):
    requests, block = draw(small_requests()), draw(st.sampled_from([2, 4, 8]))
    whole = max(r["input_length"] + r["output_length"] for r in requests)

    def engine():
        seqs = draw(st.sampled_from([2, 3, 6, 64]))
        return {
            "max_num_seqs": seqs,
            "max_num_batched_tokens": max(seqs, draw(st.sampled_from([3, 7, 16, 64]))),
            "num_blocks": 1 + -(-whole // block) + draw(st.sampled_from([0, 1, 2, 5])),
            "async_scheduling": draw(st.booleans()),
        }

    options = {
        "engine": "vllm",
        "max_model_len": whole + draw(st.sampled_from([0, 100])),
        "block_size": block,
        "prefix_caching": draw(st.booleans()),
        "step_time": draw(st.sampled_from(STEP_TIMES)),
        **engine(),
    }
    if disaggregated:
        decode = engine() | {"prefix_caching": options["prefix_caching"]}
        options |= {"disaggregated": True, "transfer": draw(st.sampled_from(TRANSFERS[:2])), "decode": decode}
    return options, requests


@some(250)
@given(tight_cases(False), st.booleans(), st.booleans())
def test_colocated(case, macro, told):
    check_vllm(case, macro, told)


@some(120)
@given(tight_cases(True), st.booleans(), st.booleans(), st.booleans())
def test_disaggregated(case, macro, told, defer):
    check_vllm(case, macro, told, defer)


@st.composite
def tight_speculative_cases(draw):
    options, requests = draw(tight_cases(False))
    policy, drafts = draw(st.sampled_from(["vllm", "trt"])), draw(st.integers(1, 4))
    whole = max(r["input_length"] + r["output_length"] for r in requests)
    tokens = max(options["max_num_batched_tokens"], max(r["input_length"] for r in requests) if policy == "trt" else 1)
    for request in requests:
        request["max_new_tokens"] = request["output_length"] + draw(st.sampled_from([0, 3]))
    own = {
        "policy": policy,
        "drafts": drafts,
        "acceptance": draw(st.sampled_from([0.0, 0.5, 1.0])),
        "decay": draw(st.sampled_from([1.0, 0.7])),
        "share": draw(st.sampled_from([0.0, 0.04])),
        "seed": draw(st.integers(0, 3)),
        "prefix_caching": False,
        "blocks": -(-whole // options["block_size"]) + draw(st.sampled_from([0, 1, 3, 8])),
        "tokens": tokens,
        "seqs": min(options["max_num_seqs"], max(tokens // (1 + drafts), 1) if policy == "trt" else 10**6),
        "longest": options["max_model_len"],
        "depth": 2 if options["async_scheduling"] else 1,
    }
    return options | own | options["step_time"], requests


@some(200)
@given(tight_speculative_cases(), st.booleans())
def test_speculative(case, told):
    check_speculative(case, told)


@st.composite
def tight_sglang_cases(draw):
    page = draw(st.sampled_from([1, 2, 4]))
    chunk = draw(st.sampled_from([-1, 4, 16]))
    chunk = chunk if chunk < 0 else max(chunk, page)
    case = {
        "context_length": 100,
        "max_total_num_tokens": draw(st.sampled_from([72, 96, 160])),
        "max_running_requests": draw(st.sampled_from([2, 5, 64])),
        "chunked_prefill_size": chunk,
        "max_prefill_tokens": draw(st.sampled_from([8, 50, 4096])),
        "schedule_policy": draw(st.sampled_from(["fcfs", "lpm"])),
        "schedule_conservativeness": draw(st.sampled_from([0.02, 0.3, 1.0])),
        "mixed_chunk": draw(st.booleans()) and chunk > 0,
        "disable_radix_cache": draw(st.booleans()),
        "page_size": page,
        "overlap": draw(st.booleans()),
        "ignore_eos": draw(st.booleans()),
        "step_time": {"base_s": 0.5, "per_token_s": 0.01, "per_context_token_s": 0.001},
    }
    requests = draw(small_requests(longest=30))
    for request in requests:
        request["arrival_s"] *= 100
        if not case["ignore_eos"] and draw(st.booleans()):
            request["max_new_tokens"] = request["output_length"] + draw(st.sampled_from([0, 1, 10]))
    return case, requests


@some(250)
@given(tight_sglang_cases(), st.booleans(), st.booleans())
def test_sglang(drawn, macro, told):
    check_sglang(drawn, macro, told)


@some(60)
@given(tight_sglang_cases(), st.sampled_from([0.01, 3.0]))
def test_sglang_handed_over(drawn, transfer_s):
    """The decode engine retracts, keeps KV in host memory and takes it back: macro-steps change nothing in that."""
    case, requests = drawn
    seen = []
    for macro in (True, False):
        rows, desk, prefill, decode = hand_over(case, requests, transfer_s, macro)
        for engine in (prefill, decode):
            given_back(engine, case)
        seen.append((rows, desk.token_sum_s.tolist(), desk.preemptions.tolist(), decode.totals().decode_tokens))
    assert seen[0] == seen[1]


@some(60)
@given(small_requests(most=20), st.integers(0, 6), st.booleans())
def test_with_room_for_everybody_nobody_waits_and_nobody_is_preempted(requests, spare, told):
    """Each request begins with the next step and takes as many as it makes tokens."""
    blocks = sum(-(-(r["input_length"] + r["output_length"]) // 4) for r in requests) + spare
    options = {
        "max_model_len": 100,
        "max_num_seqs": 64,
        "max_num_batched_tokens": 2000,
        "block_size": 4,
        "num_blocks": 1 + blocks,
        "prefix_caching": False,
        "async_scheduling": False,
        "step_time": {"base_s": 0.01, "per_token_s": 0.0, "per_context_token_s": 0.0},
    }
    assume(len(requests) > 1)
    cluster = run_engine(as_case(options, requests), told=told)
    assert_all_given_back(cluster)
    desk = cluster.desk
    assert not desk.preemptions.any()
    for i, request in enumerate(requests):
        assert abs(desk.last_token_s[i] - desk.first_token_s[i] - 0.01 * (request["output_length"] - 1)) < 1e-9
        assert 0.01 - 1e-9 <= desk.first_token_s[i] - request["arrival_s"] <= 0.02 + 1e-9


@pytest.mark.parametrize("page", [1, 4])
@pytest.mark.parametrize(("count", "pool"), [(3, 1800), (4, 1800), (6, 2400)])
def test_sglang_keeps_what_it_lets_go_of_and_goes_on_with_it(page, count, pool):
    """A decode engine that has taken over more than ends in its memory lets requests go and takes them back, in order;
    nothing is computed again, and every token costs a step."""
    case = {
        "context_length": 2000,
        "max_total_num_tokens": pool,
        "max_running_requests": 8,
        "chunked_prefill_size": -1,
        "max_prefill_tokens": 4096,
        "schedule_policy": "fcfs",
        "schedule_conservativeness": 1.0,
        "mixed_chunk": False,
        "disable_radix_cache": True,
        "page_size": page,
        "overlap": False,
        "ignore_eos": True,
        "step_time": {"base_s": 0.5, "per_token_s": 0.0, "per_context_token_s": 0.0},
    }
    requests = [{"arrival_s": 0.1 * i, "input_length": 31 + i, "output_length": 900 - 7 * i} for i in range(count)]
    seen = []
    for macro in (True, False):
        rows, desk, prefill, decode = hand_over(case, requests, 0.01, macro)
        for engine in (prefill, decode):
            given_back(engine, case)
        totals = decode.totals()
        assert totals.preemptions == desk.preemptions.sum() > 0
        assert totals.peak_blocks * page <= pool
        assert totals.prefill_tokens == 0
        assert totals.decode_tokens == sum(r["output_length"] - 1 for r in requests)
        lasts = [row["last_token_s"] - row["first_token_s"] for row in rows]
        assert all(last >= 0.5 * (r["output_length"] - 1) - 1e-6 for last, r in zip(lasts, requests, strict=True))
        seen.append((rows, desk.token_sum_s.tolist(), desk.preemptions.tolist(), totals.batches))
    assert seen[0] == seen[1]
