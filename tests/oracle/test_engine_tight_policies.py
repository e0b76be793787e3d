"""The other policies with hardly any memory and small steps against their steppers, as ``test_engine_tight`` does."""

from __future__ import annotations

import test_engine_distserve
import test_engine_loads
import test_engine_priority
import test_engine_splitwise
import test_engine_trt
import test_engine_vllm_v0
import test_sglang_aborts
from hypothesis import given
from hypothesis import strategies as st
from policy_case import some
from test_engine_tight import tight_cases, tight_sglang_cases
from test_fault_stepper import check as check_faults
from test_fault_stepper import crash, moments
from vllm_scheduler import Role


def longest(requests):
    return max(r["input_length"] for r in requests)


def parts(options):
    """Settings of each engine."""
    return [options, *([options["decode"]] if "decode" in options else [])]


@st.composite
def tight_trt(draw, disaggregated):
    options, requests = draw(tight_cases(disaggregated))
    chunking = draw(st.booleans())
    options |= {"capacity": draw(st.sampled_from(["GUARANTEED_NO_EVICT", "MAX_UTILIZATION", "STATIC_BATCH"]))}
    for part in parts(options):
        least = part["max_num_seqs"] + options["block_size"] if chunking else longest(requests)
        part["max_num_batched_tokens"] = max(part["max_num_batched_tokens"], least)
        part["max_num_seqs"] = min(part["max_num_seqs"], part["max_num_batched_tokens"])
    for request in requests:
        request["max_new_tokens"] = request["output_length"] + draw(st.sampled_from([0, 0, 3, 50]))
    limits = [request["max_new_tokens"] for request in requests]
    return options | {"chunking": chunking, "limits": limits}, requests


@some(80)
@given(tight_trt(False), st.booleans(), st.booleans())
def test_tensorrt_llm(case, macro, told):
    test_engine_trt.check(case, macro, told)


@some(60)
@given(tight_trt(True), st.booleans(), st.booleans())
def test_tensorrt_llm_handed_over(case, macro, told):
    test_engine_trt.check(case, macro, told)


@st.composite
def tight_stages(draw):
    options, requests = draw(tight_cases(True))
    for part in parts(options):
        part |= {"async_scheduling": False, "prefix_caching": False}
    options |= {
        "max_batch_size": draw(st.sampled_from([1, 3, 128])),
        "max_tokens_per_batch": longest(requests) + draw(st.sampled_from([0, 10, 100])),
        "max_decode_batch_size": draw(st.sampled_from([1, 4, 1024])),
        "max_decode_tokens": 65536,
        "accept_block_fraction": draw(st.sampled_from([0.05, 0.3, 1.0])),
    }
    return options, requests


@some(60)
@given(tight_stages(), st.booleans(), st.booleans())
def test_distserve(case, macro, told):
    test_engine_distserve.check(case, macro, told)


@st.composite
def tight_machines(draw, disaggregated):
    options, requests = draw(tight_cases(disaggregated))
    options |= {"async_scheduling": False, "prefix_caching": False}
    if disaggregated:
        options["decode"] = {"async_scheduling": False, "prefix_caching": False}
    options |= {
        "max_prompt_tokens": draw(st.sampled_from([5, 20, 64])),
        "max_batch_size": draw(st.sampled_from([1, 3, 20])),
        "max_preemptions": draw(st.sampled_from([0, 1, 4])),
    }
    return options, requests


@some(60)
@given(tight_machines(False), st.booleans(), st.booleans())
def test_splitwise(case, macro, told):
    test_engine_splitwise.check(case, macro, told)


@some(60)
@given(tight_machines(True), st.booleans(), st.booleans())
def test_splitwise_handed_over(case, macro, told):
    test_engine_splitwise.check(case, macro, told)


@st.composite
def tight_v0(draw):
    options, requests = draw(tight_cases(False))
    options |= {"async_scheduling": False, "max_num_batched_tokens": longest(requests) + draw(st.integers(0, 40))}
    options["num_blocks"] += draw(st.sampled_from([0, 0, 120]))  # over a hundred blocks the watermark is one of them
    return options, requests


@some(80)
@given(tight_v0(), st.booleans(), st.booleans())
def test_vllm_v0(case, macro, told):
    test_engine_vllm_v0.check(case, macro, told)


@st.composite
def tight_priorities(draw, disaggregated):
    options, requests = draw(tight_cases(disaggregated))
    return options, [request | {"priority": draw(st.integers(-1, 2))} for request in requests]


@some(100)
@given(tight_priorities(False), st.booleans(), st.booleans())
def test_priorities(case, macro, told):
    test_engine_priority.check(case, macro, told)


@some(50)
@given(test_engine_priority.tight(), st.booleans(), st.booleans())
def test_priorities_where_many_outgrow_the_pool(case, macro, told):
    test_engine_priority.check(case, macro, told)


@some(60)
@given(
    st.one_of(tight_priorities(True), test_engine_priority.tight(disaggregated=True)),
    st.booleans(),
    st.booleans(),
    st.sampled_from([test_engine_priority.ALL, (Role.DECODE,)]),
    st.booleans(),
)
def test_priorities_at_decode_engines(case, macro, told, roles, defer):
    test_engine_priority.check(case, macro, told, roles, defer)


@st.composite
def tight_leavers(draw):
    case, requests = draw(tight_sglang_cases())
    for request in requests:
        if draw(st.integers(0, 2)) == 0:
            request["abort_s"] = request["arrival_s"] + draw(st.floats(0.0, 30.0, allow_nan=False))
    return case, requests


@some(100)
@given(tight_leavers(), st.booleans(), st.booleans())
def test_clients_of_sglang_that_leave(drawn, macro, told):
    test_sglang_aborts.check(drawn, macro, told)


@some(60)
@given(tight_cases(False).flatmap(lambda case: test_engine_loads.loads_of(*case)), st.booleans(), st.booleans())
def test_loads(case, macro, told):
    test_engine_loads.check(case, macro, told)


@some(60)
@given(
    st.booleans().flatmap(tight_trt).flatmap(lambda case: test_engine_loads.loads_of(*case)),
    st.booleans(),
    st.booleans(),
)
def test_loads_of_tensorrt_llm(case, macro, told):
    test_engine_loads.check_trt(case, macro, told)


soon = st.integers(0, 400).map(lambda ms: ms * 1e-3 + 3.1e-6)


@some(60)
@given(
    tight_cases(False),
    st.lists(crash, max_size=1),
    st.dictionaries(st.integers(0, 11), st.one_of(soon, moments), max_size=6),
    st.booleans(),
)
def test_clients_that_leave(case, crashes, leave, macro):
    check_faults(case, crashes, [], leave, macro)
