"""The scheduling policies: for each, what it plans and when the head of its queue has to wait. A line each."""

from __future__ import annotations

from simulator.compiled import compiled
from simulator.engine.blocks import blocks_for
from simulator.engine.distserve import must_wait_stage, plan_stage
from simulator.engine.priorities import plan_by_priority
from simulator.engine.rules import DISTSERVE, SPLITWISE, TENSORRT_LLM, VLLM_V0
from simulator.engine.speculative_plans import plan_with_drafts
from simulator.engine.splitwise import must_wait_machine, plan_machine
from simulator.engine.tensorrt_llm import must_wait_in_flight, plan_in_flight
from simulator.engine.vllm import plan_batch
from simulator.engine.vllm_v0 import must_wait_behind, plan_prompts_first


@compiled
def plan(e, now):  # type: ignore[no-untyped-def]
    """Choose the next batch: (sequences with one new token, their computed tokens, longer chunks, new tokens of these,
    computed tokens before them, their attention seconds, prompts completed), and the decoding requests."""
    e.drafted = 0
    if e.rules.policy == TENSORRT_LLM:
        return plan_in_flight(e, now)
    if e.rules.policy == DISTSERVE:
        return plan_stage(e, now)
    if e.rules.policy == SPLITWISE:
        return plan_machine(e, now)
    if e.rules.policy == VLLM_V0:
        return plan_prompts_first(e, now)
    if e.rules.drafts > 0:
        return plan_with_drafts(e, now)
    if e.rules.by_priority:
        return plan_by_priority(e, now)
    return plan_batch(e, now)


@compiled
def must_wait(e, full):  # type: ignore[no-untyped-def]
    """Whether no waiting request can join while nothing but decode happens. False where that is not certain.

    ``full``: no further request may run at all.
    """
    if e.rules.policy == DISTSERVE:
        return must_wait_stage(e)
    if e.rules.policy == SPLITWISE:
        return must_wait_machine(e, full)
    if full:
        return True
    if e.rules.policy == TENSORRT_LLM:
        return must_wait_in_flight(e)
    if e.rules.policy == VLLM_V0:
        return must_wait_behind(e)
    s = e.waiting[e.waiting_head]
    return not e.caching and blocks_for(e, e.prompt[s] + e.received[s]) > e.pool.free
