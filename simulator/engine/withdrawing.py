"""A request is taken out of an engine at any moment: its client has gone, or it goes on elsewhere. And how far it got.

As vLLM aborts a request: its blocks are free at once, and what a batch in flight makes of it is thrown away.
"""

from __future__ import annotations

import numpy as np

from simulator.compiled import compiled
from simulator.engine.blocks import blocks_for, close_table, free_blocks
from simulator.engine.columns import RING
from simulator.engine.queues import leave_running, leave_waiting, without
from simulator.engine.rules import DISTSERVE
from simulator.engine.state import (
    DECODE,
    DECODING,
    FREE,
    HELD,
    LEAVING,
    PREFILLING,
    REMOTE,
    WAITING,
    free_slot,
)
from simulator.engine.steps import next_wake
from simulator.engine.tracking import settle
from simulator.engine.vllm import close_stretch, drop_decode


@compiled
def withdraw(e, row, now):  # type: ignore[no-untyped-def]
    """Take the request of this row out, whatever is being done of it; its KV is not kept.

    A prompt that is kept for another engine is not looked at: its end is told by its slot. Call after ``advance(now)``.
    Returns whether the request was there, and when to look next.
    """
    s = slot_of(e, row)
    if s < 0:
        return False, next_wake(e)
    if e.status[s] == WAITING:
        leave_queue(e, s)
    elif e.status[s] == REMOTE:
        e.holding_count = without(e.holding, e.holding_count, s)
        if e.part[s] != DECODE:  # a prefix was being loaded, the rest of the prompt is yet to be computed
            e.pending_prompt_tokens -= e.prompt[s] - e.computed[s]
    else:
        leave_batches(e, s)
    forget_in_flight(e, s)
    free_blocks(e, s)
    close_table(e, s)
    free_slot(e, s)
    if e.planned == e.completed:
        e.plan_at_s = min(e.plan_at_s, now)
    return True, next_wake(e)


@compiled
def slot_of(e, row):  # type: ignore[no-untyped-def]
    """The slot of a row's request, -1 where there is none at work."""
    for s in range(e.row.size):
        if e.status[s] != FREE and e.status[s] != HELD and e.row[s] == row:
            return s
    return -1


@compiled
def leave_queue(e, s):  # type: ignore[no-untyped-def]
    position = 0
    while e.waiting[(e.waiting_head + position) % e.waiting.size] != s:
        position += 1
    leave_waiting(e, position)
    counted = e.part[s] != DECODE or e.rules.policy != DISTSERVE  # what DistServe has swapped out keeps its KV
    if e.remote[s] == 1:
        e.unread -= 1
        counted = e.part[s] != DECODE
    if counted:
        e.pending_prompt_tokens -= e.prompt[s] + e.received[s]


@compiled
def leave_batches(e, s):  # type: ignore[no-untyped-def]
    """A running request leaves the running list, the decoding set, and the sums that go with them."""
    status = e.status[s]
    leave_running(e, s)
    if e.counting and e.rules.drafts == 0 and status != PREFILLING:
        settle(e, s)
    if status == PREFILLING:
        e.partials -= 1
        e.pending_prompt_tokens -= e.prompt[s] + e.received[s] - e.computed[s]
    elif status == DECODING:
        e.held_blocks[s] = blocks_for(e, e.planned + e.offset[s])
        for b in range(max(e.completed, e.first_batch[s] + 1), e.planned):
            if e.absent_batch[s] != b:
                e.batch_decodes[b % RING] -= 1
        if e.completed > e.first_batch[s]:
            close_stretch(e, s)
        drop_decode(e, s)
    elif status == LEAVING and e.rules.drafts == 0:
        e.held_blocks[s] = blocks_for(e, e.prompt[s] + e.target[s] - 1)
        if e.first_batch[s] < e.last_batch[s]:
            for b in range(max(e.completed, e.first_batch[s] + 1), e.last_batch[s] + 1):
                e.batch_decodes[b % RING] -= 1


@compiled
def forget_in_flight(e, s):  # type: ignore[no-untyped-def]
    """Batches in flight do not know the slot any more, nor do lists of what is to be told."""
    for b in range(e.completed, e.planned):
        r = b % RING
        e.batch_firsts[r] = without(e.firsts[r], e.batch_firsts[r], s)
        e.batch_leaving[r] = without(e.leaving[r], e.batch_leaving[r], s)
        e.batch_stale[r] = without(e.stale[r], e.batch_stale[r], s)
        e.batch_absent[r] = without(e.absent[r], e.batch_absent[r], s)
        e.batch_reports[r] = without(e.batch_report[r], e.batch_reports[r], s)
        made = 0
        for i in range(e.batch_made[r]):
            if e.made_slot[r, i] != s:
                e.made_slot[r, made], e.made_tokens[r, made] = e.made_slot[r, i], e.made_tokens[r, i]
                made += 1
        e.batch_made[r] = made
    e.reports_count = without(e.reports, e.reports_count, s)
    e.late_count = without(e.late, e.late_count, s)
    e.unsent_count = without(e.unsent, e.unsent_count, s)


@compiled
def progress(e):  # type: ignore[no-untyped-def]
    """Rows of the requests that are here, and the output tokens of each that have reached its client."""
    n = 0
    rows = np.zeros(e.row.size, np.int64)
    tokens = np.zeros(e.row.size, np.int64)
    for s in range(e.row.size):
        if e.status[s] == FREE:
            continue
        rows[n] = e.row[s]
        if e.status[s] != HELD:
            tokens[n] = sent(e, s, made(e, s))
        n += 1
    return rows[:n], tokens[:n]


@compiled
def made(e, s):  # type: ignore[no-untyped-def]
    """Output tokens of batches that have ended."""
    status, tokens = e.status[s], e.received[s]
    if e.rules.drafts > 0:
        for b in range(e.completed, e.planned):
            r = b % RING
            for i in range(e.batch_made[r]):
                if e.made_slot[r, i] == s:
                    tokens -= e.made_tokens[r, i]
    elif status == DECODING:
        tokens += max(e.completed - e.first_batch[s], 0)
    elif status == LEAVING and e.last_batch[s] > e.first_batch[s]:
        tokens += max(min(e.completed, e.last_batch[s]) - e.first_batch[s], 0)
    return tokens


@compiled
def sent(e, s, tokens):  # type: ignore[no-untyped-def]
    """Of ``tokens`` made, those that have gone out: whole groups, where tokens are sent in groups."""
    n = e.rules.stream_interval
    if n == 1 or tokens == 0:
        return tokens
    return (tokens - 1) // n * n + 1 if e.rules.stream_first else tokens // n * n
