"""A decode engine of SGLang learns that the KV it waits for will not come: the request is dropped."""

from __future__ import annotations

from simulator.compiled import compiled
from simulator.engine.sglang.aborting import leave_reading
from simulator.engine.sglang.steps import next_wake


@compiled
def abandon(e, s, _recompute, now):  # type: ignore[no-untyped-def]
    """Give back what the slot holds, and the slot. SGLang computes nothing again at its decode engines.

    The slot has asked for its KV, and its transfer's end has not been told. Returns when to look next.
    """
    leave_reading(e, s)
    if e.planned == e.completed:
        e.plan_at_s = min(e.plan_at_s, now)
    return next_wake(e)
