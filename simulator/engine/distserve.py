"""DistServe's two schedulers: a context stage that only prefills, a decoding stage that only decodes."""

from __future__ import annotations

from simulator.compiled import compiled
from simulator.engine.blocks import blocks_for, take_blocks
from simulator.engine.columns import RING
from simulator.engine.handed_over import ask_for_kv, begin_loaded
from simulator.engine.queues import leave_waiting
from simulator.engine.state import PREFILL
from simulator.engine.vllm import admit, compute_chunk, decode_all, log_decodes, preempt, settle_last_tokens

NOTHING = (0, 0, 0, 0, 0, 0.0, 0)


@compiled
def plan_stage(e, now):  # type: ignore[no-untyped-def]
    """Choose the next batch of either stage; returns its work and its decoding requests."""
    r = e.planned % RING
    e.batch_firsts[r], e.batch_leaving[r], e.batch_stale[r], e.batch_absent[r] = 0, 0, 0, 0
    if e.role == PREFILL:
        return plan_prompts(e, now), 0
    accept_prompts(e, now)
    phase = (-e.planned) % e.block_size
    while e.phase_count[phase] > e.pool.free:
        swap_out_newest(e)
    decode_all(e, phase)
    decodes = e.decodes
    work = (decodes, decodes * e.planned + e.offset_sum, 0, 0, 0, 0.0, 0)
    if e.logging:
        log_decodes(e)
    settle_last_tokens(e)
    swapped, work = swap_in(e, work, now)
    if swapped == 0 or e.running_count == 0:
        _, work = begin_loaded(e, e.token_budget - decodes, work, now, e.max_num_seqs)
    return work, decodes


@compiled
def plan_prompts(e, now):  # type: ignore[no-untyped-def]
    """Whole prompts, first come, first served, up to the first that breaks a limit.

    Free blocks are those that neither a running batch nor a prompt not yet taken over by a decoding stage holds.
    """
    work = NOTHING
    prompts, tokens = 0, 0
    while e.waiting_count > 0 and prompts < e.rules.prompt_seqs:
        s = e.waiting[e.waiting_head]
        prompt = e.prompt[s]
        if tokens + prompt > e.rules.prompt_tokens or blocks_for(e, prompt) > e.pool.free:
            break
        leave_waiting(e, 0)
        e.hit[s] = 0
        admit(e, s, now)
        work = compute_chunk(e, s, prompt, work)
        prompts += 1
        tokens += prompt
    return work


@compiled
def first_unaccepted(e):  # type: ignore[no-untyped-def]
    """Place in the queue of the first request whose KV is elsewhere; those before it have been swapped out."""
    position = 0
    while position < e.waiting_count and e.remote[e.waiting[(e.waiting_head + position) % e.waiting.size]] == 0:
        position += 1
    return position


@compiled
def is_acceptable(e, s):  # type: ignore[no-untyped-def]
    """Whether a prompt may be taken over: few blocks wait to be used, and there are enough for it."""
    waiting_blocks = 0
    for i in range(e.holding_count):
        waiting_blocks += blocks_for(e, e.prompt[e.holding[i]])
    return waiting_blocks < e.rules.accept_blocks and blocks_for(e, e.prompt[s] + 1) <= e.pool.free


@compiled
def accept_prompts(e, now):  # type: ignore[no-untyped-def]
    """Ask for the KV of prompts, in the order in which their prefill ended, up to the first not acceptable."""
    position = first_unaccepted(e)
    while position < e.waiting_count:
        s = e.waiting[(e.waiting_head + position) % e.waiting.size]
        if not is_acceptable(e, s):
            break
        leave_waiting(e, position)
        ask_for_kv(e, s, 0, now)


@compiled
def swap_out_newest(e):  # type: ignore[no-untyped-def]
    """The newest request goes to host memory, behind those that went before."""
    s = e.running[e.running_count - 1]
    preempt(e, s)
    e.pending_prompt_tokens -= e.prompt[s] + e.received[s]  # its KV is kept: nothing to be computed again
    size = e.waiting.size
    for i in range(first_unaccepted(e) - 1):
        e.waiting[(e.waiting_head + i) % size] = e.waiting[(e.waiting_head + i + 1) % size]
        e.waiting[(e.waiting_head + i + 1) % size] = s


@compiled
def swap_in(e, work, now):  # type: ignore[no-untyped-def]
    """Bring back who was swapped out, in that order, as blocks allow; returns how many are still out."""
    out = first_unaccepted(e)
    while out > 0 and e.running_count < e.max_num_seqs:
        s = e.waiting[e.waiting_head]
        known = e.prompt[s] + e.received[s]
        if blocks_for(e, known) > e.pool.free:
            break
        leave_waiting(e, 0)
        take_blocks(e, s, known)
        e.computed[s] = known - 1
        e.pending_prompt_tokens += 1
        admit(e, s, now)
        work = compute_chunk(e, s, 1, work)
        out -= 1
    return out, work


@compiled
def must_wait_stage(e):  # type: ignore[no-untyped-def]
    """Whether nobody can be brought back or taken over before a running request has ended."""
    if e.role == PREFILL:
        return False
    position = first_unaccepted(e)
    if position > 0:
        s = e.waiting[e.waiting_head]
        if e.running_count < e.max_num_seqs and blocks_for(e, e.prompt[s] + e.received[s]) <= e.pool.free:
            return False
    if position == e.waiting_count:
        return True
    return not is_acceptable(e, e.waiting[(e.waiting_head + position) % e.waiting.size])
