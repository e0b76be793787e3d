"""Planning with speculative decoding: decodes of several tokens, for vLLM's and TensorRT-LLM's policies."""

from __future__ import annotations

from simulator.compiled import compiled
from simulator.engine.blocks import blocks_for, register_blocks, take_blocks
from simulator.engine.columns import RING
from simulator.engine.queues import leave_running
from simulator.engine.speculation import note_made, tokens_kept
from simulator.engine.state import LEAVING, PREFILLING, SPECULATING, log_entry
from simulator.engine.vllm import admit_loaded, admit_waiting, compute_chunk, in_flight, preempt


@compiled
def make_room(e, s, tokens):  # type: ignore[no-untyped-def]
    """Blocks for ``tokens`` tokens of a running request, if need be from the newest; False if that fails.

    Requests that already have their last token on its way are spared: their blocks are free when it comes.
    """
    while blocks_for(e, tokens) - e.held_blocks[s] > e.pool.free:
        i = e.running_count - 1
        while e.status[e.running[i]] == LEAVING:
            i -= 1
        victim = e.running[i]
        if e.deferred_frees and in_flight(e, victim):
            return False
        leave_running(e, victim)
        e.running[e.running_count] = victim
        e.running_count += 1
        preempt(e, victim)
        if victim == s:
            return False
    take_blocks(e, s, tokens)
    return True


@compiled
def decode_drafts(e, budget):  # type: ignore[no-untyped-def]
    """Every decoding request verifies its drafts, as far as the budget reaches; returns what is left, and the work."""
    singles, context = 0, 0
    i = 0
    while i < e.running_count and budget > 0:
        s = e.running[i]
        i += 1
        if e.status[s] != SPECULATING:
            continue
        new = min(1 + e.rules.drafts, budget)
        past = e.prompt[s] + e.received[s] - 1
        room = e.pool.blocks if e.pledge[s] == 0 else e.pledge[s]
        if not make_room(e, s, max(past + 1, min(past + new, room * e.block_size, e.max_model_len))):
            break
        made = tokens_kept(e, s, new - 1)
        note_made(e, s, made)
        e.decode_tokens += made
        register_blocks(e, s, e.prompt[s] + e.received[s] - 1)
        e.drafted += new - 1
        budget -= new
        singles, context = singles + 1, context + past
        if e.logging:
            log_entry(e, s, new)
    return budget, (singles, context, 0, 0, 0, 0.0, 0)


@compiled
def plan_with_drafts(e, now):  # type: ignore[no-untyped-def]
    """vLLM's planning step with speculative decoding: as ``plan_batch``, a decode taking all its tokens' budget."""
    r = e.planned % RING
    e.batch_leaving[r] = 0
    preempted_before = e.preempted
    budget, work = decode_drafts(e, e.token_budget)
    i = 0
    while e.partials > 0 and budget > 0 and i < e.running_count:
        s = e.running[i]
        i += 1
        if e.status[s] == PREFILLING:
            tokens = min(e.prompt[s] + e.received[s] - e.computed[s], budget)
            if not make_room(e, s, e.computed[s] + tokens):
                break
            budget -= tokens
            work = compute_chunk(e, s, tokens, work)
    if e.preempted == preempted_before:
        budget, work = admit_loaded(e, budget, work, now)
        budget, work = admit_waiting(e, budget, work, now)
    return work, 0
