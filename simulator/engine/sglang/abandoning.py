"""A decode engine of SGLang learns that the KV it waits for will not come: the request is dropped."""

from __future__ import annotations

from simulator.compiled import compiled
from simulator.engine.sglang.memory import release
from simulator.engine.sglang.steps import next_wake
from simulator.engine.state import free_slot


@compiled
def abandon(e, s, _recompute, now):  # type: ignore[no-untyped-def]
    """Give back what the slot holds, and the slot. SGLang computes nothing again at its decode engines.

    The slot has asked for its KV, and its transfer's end has not been told. Returns when to look next.
    """
    kept = 0
    for i in range(e.holding_count):
        if e.holding[i] != s:
            e.holding[kept] = e.holding[i]
            kept += 1
    e.holding_count = kept
    release(e, s)
    e.pending_prompt_tokens -= e.prompt[s]
    free_slot(e, s)
    if e.planned == e.completed:
        e.plan_at_s = min(e.plan_at_s, now)
    return next_wake(e)
