"""A decode engine learns that the KV it waits for will not come."""

from __future__ import annotations

from simulator.compiled import compiled
from simulator.engine.blocks import close_table, free_blocks
from simulator.engine.queues import wait_by_priority, wait_first
from simulator.engine.rules import AT_DECODE
from simulator.engine.state import WAITING, free_slot
from simulator.engine.steps import next_wake


@compiled
def abandon(e, s, recompute, now):  # type: ignore[no-untyped-def]
    """Give back what the slot holds. With ``recompute`` its prompt goes to the head of the queue, to be computed here.

    The slot has asked for its KV, and its transfer's end has not been told. Returns when to look next.
    """
    kept = 0
    for i in range(e.holding_count):
        if e.holding[i] != s:
            e.holding[kept] = e.holding[i]
            kept += 1
    e.holding_count = kept
    free_blocks(e, s)
    e.remote[s], e.computed[s] = 0, 0
    if recompute:
        e.status[s] = WAITING
        if e.rules.first_token == AT_DECODE:  # the token that was to come with the KV is made here, too
            e.received[s] = 0
        e.pending_prompt_tokens += e.prompt[s] + e.received[s]
        if e.rules.by_priority:
            wait_by_priority(e, s)
        else:
            wait_first(e, s)
    else:
        close_table(e, s)
        free_slot(e, s)
    if e.planned == e.completed:
        e.plan_at_s = min(e.plan_at_s, now)
    return next_wake(e)
