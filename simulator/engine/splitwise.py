"""Splitwise's machines: prompt machines, token machines, and mixed ones that favour prompts (docs/engines.md)."""

from __future__ import annotations

from simulator.compiled import compiled
from simulator.engine.blocks import blocks_for
from simulator.engine.columns import RING
from simulator.engine.decoding import decode_or_pause
from simulator.engine.handed_over import ask_for_kv, begin_loaded
from simulator.engine.queues import heap_pop, leave_waiting, next_last_batch
from simulator.engine.state import DECODING, log_entry
from simulator.engine.vllm import admit, compute_chunk, decode_all, drop_decode, leave_after, log_decodes

NOTHING = (0, 0, 0, 0, 0, 0.0, 0)


@compiled
def plan_machine(e, now):  # type: ignore[no-untyped-def]
    """Choose the next batch; returns its work and its decoding requests. If all that ran was paused, choose again."""
    paused_before = e.preempted
    work, decodes = plan_once(e, now)
    if e.preempted > paused_before and work[0] + work[2] == 0:
        return plan_once(e, now)
    return work, decodes


@compiled
def plan_once(e, now):  # type: ignore[no-untyped-def]
    r = e.planned % RING
    e.batch_firsts[r], e.batch_leaving[r], e.batch_stale[r], e.batch_absent[r] = 0, 0, 0, 0
    preempted_before = e.preempted
    phase = (-e.planned) % e.block_size
    prompts = 0
    if e.phase_count[phase] > e.pool.free:
        work = decode_or_pause(e)
    else:
        prompts, left = choose_prompts(e, e.phase_count[phase])
        if e.decodes - count_aged(e) <= left:
            decode_all(e, phase)
            work = (e.decodes, e.decodes * e.planned + e.offset_sum, 0, 0, 0, 0.0, 0)
            if e.logging:
                log_decodes(e)
        else:
            work = decode_some(e, left)
    decodes = work[0]
    settle_last(e)
    if e.preempted == preempted_before:
        for _ in range(prompts):
            s = e.waiting[e.waiting_head]
            leave_waiting(e, 0)
            e.hit[s] = max(e.hit[s], 0)
            e.computed[s] = 0
            admit(e, s, now)
            work = compute_chunk(e, s, e.prompt[s] + e.received[s], work)
        _, work = begin_loaded(e, e.max_num_seqs, work, now, e.max_num_seqs)
        ask_while_memory_lasts(e, now)
    return work, decodes


@compiled
def is_aged(e, s):  # type: ignore[no-untyped-def]
    """Whether a decoding request goes before prompts: it was left out just now, and often enough in all."""
    if e.rules.max_preemptions == 0:
        return True
    return e.passed[s] >= e.rules.max_preemptions and e.absent_batch[s] == e.planned - 1


@compiled
def count_aged(e):  # type: ignore[no-untyped-def]
    aged = 0
    for i in range(e.running_count):
        s = e.running[i]
        aged += e.status[s] == DECODING and is_aged(e, s)
    return aged


@compiled
def choose_prompts(e, reserved):  # type: ignore[no-untyped-def]
    """How many prompts from the head of the queue go into the batch, and the tokens that are left for decodes.

    Blocks that decodes may need are left alone. A prompt longer than the limit goes alone.
    """
    aged = count_aged(e)
    left, free = e.rules.prompt_tokens - aged, e.pool.free - reserved
    n = 0
    while n < e.waiting_count and e.running_count + n < e.max_num_seqs:
        s = e.waiting[(e.waiting_head + n) % e.waiting.size]
        known = e.prompt[s] + e.received[s]
        if e.remote[s] == 1 or blocks_for(e, known) > free or (known > left and aged + n > 0):
            break
        free -= blocks_for(e, known)
        left = max(left - known, 0)
        n += 1
    return n, left


@compiled
def decode_some(e, left):  # type: ignore[no-untyped-def]
    """Prompts leave room for ``left`` decodes besides the aged ones; the others are passed over, the newest first."""
    work = NOTHING
    r = e.planned % RING
    for i in range(e.running_count):
        s = e.running[i]
        if e.status[s] != DECODING:
            continue
        if not is_aged(e, s):
            if left == 0:
                e.passed[s] += 1
                e.absent[r, e.batch_absent[r]] = s
                e.batch_absent[r] += 1
                e.absent_batch[s] = e.planned
                continue
            left -= 1
        if (e.planned + e.offset[s]) % e.block_size == 0:
            e.pool.free -= 1
        work = (work[0] + 1, work[1] + e.planned + e.offset[s], 0, 0, 0, 0.0, 0)
        if e.logging:
            log_entry(e, s, 1)
    return work


@compiled
def settle_last(e):  # type: ignore[no-untyped-def]
    """Decoding requests for which the batch brings the last token leave the decoding set; not those passed over."""
    while next_last_batch(e) == e.planned:
        s = e.heap_slot[0]
        heap_pop(e)  # one passed over is noted again, a batch later
        if e.absent_batch[s] != e.planned:
            drop_decode(e, s)
            leave_after(e, s)


@compiled
def ask_while_memory_lasts(e, now):  # type: ignore[no-untyped-def]
    """Ask for the KV of prompts computed elsewhere, first come, first served, while blocks last."""
    while e.waiting_count > 0:
        s = e.waiting[e.waiting_head]
        if e.remote[s] == 0 or blocks_for(e, e.prompt[s] + e.received[s]) > e.pool.free:
            break
        leave_waiting(e, 0)
        ask_for_kv(e, s, 0, now)


@compiled
def must_wait_machine(e, full):  # type: ignore[no-untyped-def]
    """Whether the head of the queue can neither start nor be read before a running request has ended."""
    s = e.waiting[e.waiting_head]
    if e.remote[s] == 0 and full:
        return True
    return blocks_for(e, e.prompt[s] + e.received[s]) > e.pool.free
