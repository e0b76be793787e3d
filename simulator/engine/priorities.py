"""vLLM V1's ``scheduling_policy: priority``: a smaller priority is more urgent, then the earlier arrival.

The waiting queue is kept in that order (``simulator.engine.queues``), so planning differs from first come, first
served only in a step in which blocks run short: the least urgent running request is preempted, wherever it stands in
the running list, and even if the step has a token for it already. Source: ``schedule`` of
vllm/v1/core/sched/scheduler.py and ``PriorityRequestQueue`` of request_queue.py.
"""

from __future__ import annotations

from simulator.compiled import compiled
from simulator.engine.blocks import blocks_for, count_out, register_blocks, take_blocks
from simulator.engine.columns import RING
from simulator.engine.queues import comes_before, leave_running, wait_by_priority
from simulator.engine.state import DECODING, PREFILLING, log_entry
from simulator.engine.tracking import track_blocks
from simulator.engine.vllm import (
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
        budget, work = admit_waiting(e, budget, work, now)
    return work, decodes


@compiled
def runs_short(e):  # type: ignore[no-untyped-def]
    """Whether running requests need more blocks in the batch being planned than there are."""
    need = e.phase_count[(-e.planned) % e.block_size]
    if e.partials > 0:
        s = e.running[e.running_count - 1]
        tokens = min(e.prompt[s] + e.received[s] - e.computed[s], max(e.token_budget - e.decodes, 0))
        need += max(blocks_for(e, e.computed[s] + tokens) - e.held_blocks[s], 0)
    return need > e.pool.free


@compiled
def run_in_turn(e):  # type: ignore[no-untyped-def]
    """Walk the running list, and preempt the least urgent until each request in turn has its block.

    The walk keeps vLLM's cursor, which a preempted request moves back only if the step had a token for it: one whose
    last token is on the way has none, and whoever stands behind the request that took its blocks is passed over.
    """
    budget, decodes, i = e.token_budget, 0, 0
    work = (0, 0, 0, 0, 0, 0.0, 0)
    log_first = e.log_rows
    while i < e.running_count and budget > 0:
        s = e.running[i]
        if e.status[s] != DECODING and e.status[s] != PREFILLING:
            i += 1
            continue
        tokens = 1 if e.status[s] == DECODING else min(e.prompt[s] + e.received[s] - e.computed[s], budget)
        at = i
        while lacks_block(e, s, tokens):
            victim = least_urgent(e)
            position = place_of(e, victim)
            undone = position < at and has_token(e, victim)
            if undone:
                singles, context, chunks, new, past, attention, finished = work
                context -= e.planned + e.offset[victim]
                work = (singles - 1, context, chunks, new, past, attention, finished)
                decodes, budget, i = decodes - 1, budget + 1, i - 1
                if e.logging:
                    strike_out(e, log_first, victim)
            take_off(e, victim, undone)
            if position < at:
                at -= 1
            if victim == s:
                leave_out_from(e, position)
                return budget, work, decodes
        if e.status[s] == DECODING:
            work = give_token(e, s, work)
            decodes, budget = decodes + 1, budget - 1
        else:
            work = compute_chunk(e, s, tokens, work)
            budget -= tokens
        for j in range(at + 1, min(i + 1, e.running_count)):
            leave_out(e, e.running[j])
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
def has_token(e, s):  # type: ignore[no-untyped-def]
    """Whether a request that the walk has come by has a token of the batch being planned."""
    return e.status[s] == DECODING and not is_left_out(e, s)


@compiled
def is_left_out(e, s):  # type: ignore[no-untyped-def]
    r = e.planned % RING
    for i in range(e.batch_absent[r]):
        if e.absent[r, i] == s:
            return True
    return False


@compiled
def leave_out(e, s):  # type: ignore[no-untyped-def]
    """The cursor passes a request over: if it decodes, it is not in the batch being planned."""
    if e.status[s] == DECODING:
        r = e.planned % RING
        e.absent[r, e.batch_absent[r]] = s
        e.batch_absent[r] += 1


@compiled
def take_off(e, s, undone):  # type: ignore[no-untyped-def]
    """Preempt a running request; ``undone``: it had got its token of the batch being planned, and the block for it."""
    r = e.planned % RING
    kept = 0
    for i in range(e.batch_absent[r]):
        if e.absent[r, i] != s:
            e.absent[r, kept] = e.absent[r, i]
            kept += 1
    e.batch_absent[r] = kept
    leave_running(e, s)
    start_over(e, s, e.planned + e.offset[s] + (1 if undone else 0))
    wait_by_priority(e, s)


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
