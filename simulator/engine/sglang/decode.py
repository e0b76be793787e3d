"""The running batch of an SGLang engine: joining it, a decode step for all of it, leaving it, retraction."""

from __future__ import annotations

import numpy as np

from simulator.compiled import compiled
from simulator.engine.sglang.columns import RING
from simulator.engine.sglang.memory import (
    decode_fits,
    decode_need,
    evict_for,
    release,
    settle_committed,
    take_decode,
)
from simulator.engine.sglang.state import (
    DONE,
    DROPPED,
    RETRACT_DECODE_STEPS,
    RETRACTED,
    RUNNING,
    WAITING,
    heap_pop,
    heap_push,
    next_last_step,
    outputs_now,
    sort_by_position,
    wait_last,
)
from simulator.engine.state import DECODE, log_entry

NOTHING = (0, 0, 0, 0, 0, 0.0, 0)


@compiled
def join(e, s):  # type: ignore[no-untyped-def]
    """From now on ``s`` is in every decode step. Its first token may still be on its way."""
    e.status[s] = RUNNING
    e.base[s] = e.committed[s] - e.decode_planned
    e.join[s] = e.decode_planned
    made = e.outputs[s] + (0 if e.started[s] else 1)
    e.last_step[s] = e.decode_planned + e.final[s] - made - 1
    e.base_sum += e.base[s]
    e.phase_count[e.base[s] % e.page] += 1
    e.position[s] = e.positions
    e.positions += 1
    e.ticket[s] = e.tickets
    e.tickets += 1
    e.fresh[e.fresh_count] = s
    e.fresh_count += 1
    if made < e.final[s]:
        heap_push(e, s)


@compiled
def renumber(e):  # type: ignore[no-untyped-def]
    """The order of the running batch has changed."""
    for i in range(e.running_count):
        e.position[e.running[i]] = e.positions + i
    e.positions += e.running_count


@compiled
def add_decodes(e):  # type: ignore[no-untyped-def]
    """Every running request gets a token in the step being planned; returns their computed tokens."""
    r = e.planned % RING
    take_decode(e)
    n, step = e.running_count, e.decode_planned
    context = n * step + e.base_sum
    e.batch_decodes[r] = n
    e.batch_tokens[r] = n - late_ones(e)
    while next_last_step(e) == step:
        e.leaving[r, e.batch_leaving[r]] = e.heap_slot[0]
        e.batch_leaving[r] += 1
        heap_pop(e)
    sort_by_position(e, e.leaving[r], e.batch_leaving[r])
    for i in range(e.fresh_count):
        s = e.fresh[i]
        if e.status[s] == RUNNING and e.join[s] == step and e.last_step[s] >= step:
            e.joined[r, e.batch_joined[r]] = s
            e.batch_joined[r] += 1
    e.fresh_count = 0
    if e.logging:
        for i in range(n):
            log_entry(e, e.running[i], 1)
    e.decode_planned += 1
    e.decode_tokens += n
    return context


@compiled
def late_ones(e):  # type: ignore[no-untyped-def]
    """Running requests whose last token is in flight: the step being planned makes one more, to be thrown away."""
    late = 0
    for b in range(e.completed, e.planned):
        r = b % RING
        for i in range(e.batch_leaving[r]):
            late += e.status[e.leaving[r, i]] == RUNNING
        for i in range(e.batch_firsts[r]):
            s = e.firsts[r, i]
            late += e.status[s] == RUNNING and e.outputs[s] + 1 >= e.final[s]
    return late


@compiled
def drop_finishing(e):  # type: ignore[no-untyped-def]
    """Overlap: requests whose token in flight is their last by length need no further step. Returns how many."""
    dropped = 0
    for b in range(e.completed, e.planned):
        r = b % RING
        for i in range(e.batch_leaving[r]):
            dropped += drop_if_by_length(e, e.leaving[r, i])
        for i in range(e.batch_firsts[r]):
            s = e.firsts[r, i]
            if e.outputs[s] + 1 >= e.final[s]:
                dropped += drop_if_by_length(e, s)
    if dropped > 0:
        e.full = False
        close_ranks(e)
    return dropped


@compiled
def drop_if_by_length(e, s):  # type: ignore[no-untyped-def]
    if e.status[s] != RUNNING or e.final[s] < e.limit[s]:
        return 0
    settle_committed(e, s)
    e.status[s] = DROPPED
    return 1


@compiled
def close_ranks(e):  # type: ignore[no-untyped-def]
    """Take those that have left out of the running list; the order of the others stays."""
    n = 0
    for i in range(e.running_count):
        s = e.running[i]
        if e.status[s] == RUNNING:
            e.running[n] = s
            n += 1
    e.running_count = n


@compiled
def plan_decode(e):  # type: ignore[no-untyped-def]
    """One token for each running request, or for those whom memory lets stay."""
    dropped = drop_finishing(e) if e.role != DECODE else 0
    if e.running_count == 0:
        e.full = False
        return NOTHING
    if decode_fits(e, decode_need(e)):
        e.ratio = max(e.ratio - e.ratio_decay, e.ratio_min)
    elif dropped > 0:  # what they hold is free after this step: wait for it
        e.full = False
        return NOTHING
    else:
        retract(e)
        e.full = False
        if e.running_count == 0:
            return NOTHING
    n = e.running_count
    context = add_decodes(e)
    return (n, context, 0, 0, 0, 0.0, 0)


@compiled
def retract(e):  # type: ignore[no-untyped-def]
    """Let go of requests, fewest outputs first, until the others can decode; the batch stays in that order."""
    n = e.running_count
    keys = np.empty(n, np.int64)
    for i in range(n):
        s = e.running[i]
        keys[i] = e.prompt[s] - (outputs_now(e, s) << 32)
    order = np.argsort(keys, kind="mergesort")
    e.scratch[:n] = e.running[:n]
    for i in range(n):
        e.running[i] = e.scratch[order[i]]
    before = n
    while n > 1 and (n == before or not decode_fits(e, decode_need(e))):
        n -= 1
        let_go(e, e.running[n], n)
    e.running_count = n
    renumber(e)
    outputs, limits = 0, 0
    for i in range(n):
        outputs += outputs_now(e, e.running[i])
        limits += e.limit[e.running[i]]
    e.ratio = min(1.0, (outputs + RETRACT_DECODE_STEPS * n) / (limits + 1))


@compiled
def let_go(e, s, left):  # type: ignore[no-untyped-def]
    """Retract one request: its KV is gone, what it has made stays, and it waits again at the queue's end."""
    if e.planned > e.completed and e.started[s] and e.join[s] < e.decode_planned and e.decode_done < e.decode_planned:
        e.batch_tokens[(e.planned - 1) % RING] -= 1
    close_stretch(e, s)
    settle_committed(e, s)
    release(e, s)
    evict_for(e, left * RETRACT_DECODE_STEPS)
    e.started[s] = 0
    e.prefix[s], e.protected[s], e.committed[s], e.extend_end[s] = 0, 0, 0, 0
    e.times_preempted[s] += 1
    e.preempted += 1
    if e.role == DECODE:  # its KV goes to host memory and comes back without being computed again
        e.status[s] = RETRACTED
        e.retracted[e.retracted_count] = s
        e.retracted_count += 1
    else:
        e.status[s] = WAITING
        e.pending_prompt_tokens += e.prompt[s] + e.outputs[s]
        wait_last(e, s)
        e.unseen = 0  # it stands behind those not yet fetched: they are taken as fetched
    if e.logging:
        log_entry(e, s, -1)


@compiled
def close_stretch(e, s):  # type: ignore[no-untyped-def]
    """Count the tokens and add the token times of the decode steps completed since the request joined."""
    if e.status[s] == RUNNING and e.started[s] and e.decode_done > e.join[s]:
        e.outputs[s] += e.decode_done - e.join[s]
        e.join[s] = e.decode_done
        e.token_sum[s] += (e.end_sum + e.segment[s]) + (e.end_sum_low + e.segment_low[s])
        e.last_token[s] = e.previous_end_s


@compiled
def strike_done(e):  # type: ignore[no-untyped-def]
    """Finished requests leave the lists they are still in, and make room for admission."""
    e.full = False
    close_ranks(e)
    n = 0
    for i in range(e.last_count):
        s = e.last[i]
        if e.status[s] != DONE:
            e.last[n] = s
            n += 1
    e.last_count = n
    n = 0
    for i in range(e.fresh_count):
        s = e.fresh[i]
        if e.status[s] == RUNNING:
            e.fresh[n] = s
            n += 1
    e.fresh_count = n
