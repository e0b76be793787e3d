"""vLLM V1's ``scheduling_policy: priority``: a smaller priority is more urgent, then the earlier arrival.

The waiting queue and the list of those whose KV is being read are kept in that order (``simulator.engine.queues``), so
planning differs from first come, first served only in a step in which blocks run short: the least urgent running
request is preempted, wherever it stands in the running list, and even if the step has tokens for it already. Source:
``schedule`` of vllm/v1/core/sched/scheduler.py and ``PriorityRequestQueue`` of request_queue.py, 0.32.0.
"""

from __future__ import annotations

import numpy as np

from simulator.compiled import compiled
from simulator.cost.table import chunk_attention_seconds
from simulator.engine.blocks import blocks_for, count_out, register_blocks, take_blocks
from simulator.engine.columns import RING
from simulator.engine.queues import comes_before, leave_running, wait_by_priority, without
from simulator.engine.state import DECODING, PREFILLING, log_entry
from simulator.engine.tracking import track_blocks
from simulator.engine.vllm import (
    admit_loaded,
    admit_waiting,
    compute_chunk,
    drop_decode,
    in_flight,
    leave_after,
    leave_out_from,
    plan_batch,
    start_over,
)


@compiled
def plan_by_priority(e, now):  # type: ignore[no-untyped-def]
    """Choose the next batch, as ``plan_batch`` does; returns the same."""
    if not runs_short(e):
        return plan_batch(e, now)
    r = e.planned % RING
    e.batch_firsts[r], e.batch_leaving[r], e.batch_stale[r], e.batch_absent[r] = 0, 0, 0, 0
    if e.counting:
        track_blocks(e)
    before = e.preempted
    budget, work, decodes = run_in_turn(e)
    settle_present(e)
    if e.preempted == before:
        budget, work = admit_loaded(e, budget, work, now)
        budget, work = admit_waiting(e, budget, work, now)
    return work, decodes


@compiled
def runs_short(e):  # type: ignore[no-untyped-def]
    """Whether running requests need more blocks in the batch being planned than there are, or may do so: a prompt under
    way is not the last to be looked at."""
    need = e.phase_count[(-e.planned) % e.block_size]
    if e.partials > 0:
        s = e.running[e.running_count - 1]
        if e.partials > 1 or e.status[s] != PREFILLING:
            return True
        tokens = min(e.prompt[s] + e.received[s] - e.computed[s], max(e.token_budget - e.decodes, 0))
        need += max(blocks_for(e, e.computed[s] + tokens) - e.held_blocks[s], 0)
    return need > e.pool.free


@compiled
def run_in_turn(e):  # type: ignore[no-untyped-def]
    """Walk the running list, and preempt the least urgent until each request in turn has its blocks."""
    budget, decodes, i = e.token_budget, 0, 0
    work = (0, 0, 0, 0, 0, 0.0, 0)
    log_first = e.log_rows
    chunk = np.zeros(e.row.size, np.int64)  # tokens of a prompt in the batch being planned
    busy = np.zeros(e.row.size, np.bool_)  # and whether a batch in flight works on it
    while i < e.running_count and budget > 0:
        s = e.running[i]
        if e.status[s] != DECODING and e.status[s] != PREFILLING:
            i += 1
            continue
        tokens = 1 if e.status[s] == DECODING else min(e.prompt[s] + e.received[s] - e.computed[s], budget)
        while lacks_block(e, s, tokens):
            victim = least_urgent(e)
            if e.deferred_frees and (busy[victim] if chunk[victim] > 0 else in_flight(e, victim)):
                leave_out_from(e, i)
                return budget, work, decodes
            ahead = place_of(e, victim) < i
            undone = ahead and chunk[victim] == 0 and e.status[victim] == DECODING
            if chunk[victim] > 0:
                work = take_back_chunk(e, victim, chunk[victim], work)
                budget += chunk[victim]
            elif undone:
                singles, context, chunks, new, past, attention, finished = work
                context -= e.planned + e.offset[victim]
                work = (singles - 1, context, chunks, new, past, attention, finished)
                decodes, budget = decodes - 1, budget + 1
            if e.logging:
                strike_out(e, log_first, victim)
            take_off(e, victim, undone)
            i -= ahead
            if victim == s:
                leave_out_from(e, i)
                return budget, work, decodes
        if e.status[s] == DECODING:
            work = give_token(e, s, work)
            decodes, budget = decodes + 1, budget - 1
        else:
            chunk[s], busy[s] = tokens, in_flight(e, s)
            work = compute_chunk(e, s, tokens, work)
            budget -= tokens
        i += 1
    leave_out_from(e, i)
    return budget, work, decodes


@compiled
def lacks_block(e, s, tokens):  # type: ignore[no-untyped-def]
    if e.status[s] == DECODING:
        return (e.planned + e.offset[s]) % e.block_size == 0 and e.pool.free == 0
    return blocks_for(e, e.computed[s] + tokens) - e.held_blocks[s] > e.pool.free


@compiled
def least_urgent(e):  # type: ignore[no-untyped-def]
    """The running request with the largest priority, and of several the last to come."""
    found = e.running[0]
    for i in range(1, e.running_count):
        if comes_before(e, found, e.running[i]):
            found = e.running[i]
    return found


@compiled
def place_of(e, s):  # type: ignore[no-untyped-def]
    """Place in the running list."""
    i = 0
    while e.running[i] != s:
        i += 1
    return i


@compiled
def is_left_out(e, s):  # type: ignore[no-untyped-def]
    r = e.planned % RING
    for i in range(e.batch_absent[r]):
        if e.absent[r, i] == s:
            return True
    return False


@compiled
def take_off(e, s, undone):  # type: ignore[no-untyped-def]
    """Preempt a running request; ``undone``: it had got its token of the batch being planned, and the block for it."""
    leave_running(e, s)
    start_over(e, s, e.planned + e.offset[s] + (1 if undone else 0))
    wait_by_priority(e, s)


@compiled
def take_back_chunk(e, s, tokens, work):  # type: ignore[no-untyped-def]
    """A request with prompt tokens in the batch being planned loses them: as if its prompt were still under way."""
    singles, single_past, chunks, new, before, attention, finished = work
    past = e.computed[s] - tokens
    if tokens == 1:
        singles, single_past = singles - 1, single_past - past
    else:
        chunks, new, before = chunks - 1, new - tokens, before - past
        if not e.cost.affine:
            attention -= chunk_attention_seconds(e.cost, tokens, past)
    e.prefill_tokens -= tokens
    if e.status[s] == PREFILLING:
        return (singles, single_past, chunks, new, before, attention, finished)
    r = e.planned % RING
    if e.status[s] == DECODING:
        drop_decode(e, s)
    else:
        e.batch_leaving[r] = without(e.leaving[r], e.batch_leaving[r], s)
    e.batch_firsts[r] = without(e.firsts[r], e.batch_firsts[r], s)
    e.status[s] = PREFILLING
    e.partials += 1
    return (singles, single_past, chunks, new, before, attention, finished - 1)


@compiled
def give_token(e, s, work):  # type: ignore[no-untyped-def]
    """A decoding request gets its token of the batch being planned, and the block it may need: one is free."""
    computed = e.planned + e.offset[s]
    if e.caching:
        take_blocks(e, s, computed + 1)
        # cached as far as its tokens are known, as soon as it is planned: it may yet lose this token
        register_blocks(e, s, computed + (0 if in_flight(e, s) else 1))
    elif computed % e.block_size == 0:
        count_out(e, 1)
    if e.logging:
        log_entry(e, s, 1)
    singles, context, chunks, new, past, attention, finished = work
    return (singles + 1, context + computed, chunks, new, past, attention, finished)


@compiled
def strike_out(e, first, s):  # type: ignore[no-untyped-def]
    """Take the request's entry out of what is written down of the batch being planned, from entry ``first`` on."""
    kept = first
    for i in range(first, e.log_rows):
        if e.log_row[i] != e.row[s] or e.log_tokens[i] < 0:
            e.log_row[kept], e.log_tokens[kept] = e.log_row[i], e.log_tokens[i]
            kept += 1
    e.log_rows = kept


@compiled
def settle_present(e):  # type: ignore[no-untyped-def]
    """Requests that get their last token of the batch being planned leave the decoding set; some may be left out."""
    for i in range(e.running_count):
        s = e.running[i]
        if e.status[s] == DECODING and e.last_batch[s] == e.planned and not is_left_out(e, s):
            drop_decode(e, s)
            leave_after(e, s)
