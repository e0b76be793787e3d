"""The scheduler of vLLM's V0 engine (rules as of 0.5, without chunked prefill): prompts before any decode.

A batch holds either whole prompts or one token of every running request. As long as a waiting prompt fits, decoding
requests stand still. Source: ``_schedule_default`` and ``_schedule_prefills`` of vllm/core/scheduler.py, 0.5.
"""

from __future__ import annotations

from simulator.compiled import compiled
from simulator.engine.blocks import blocks_for, cached_blocks, share_blocks
from simulator.engine.columns import RING
from simulator.engine.decoding import decode_or_pause
from simulator.engine.queues import leave_waiting
from simulator.engine.vllm import (
    admit,
    compute_chunk,
    count_hits,
    decode_all,
    leave_out_from,
    log_decodes,
    settle_last_tokens,
)


@compiled
def plan_prompts_first(e, now):  # type: ignore[no-untyped-def]
    """Choose the next batch; returns its work and its decoding requests. If all that ran was paused, choose again."""
    paused_before = e.preempted
    work, decodes = plan_prompts_or_decodes(e, now)
    if e.preempted > paused_before and work[0] + work[2] == 0:
        return plan_prompts_or_decodes(e, now)
    return work, decodes


@compiled
def plan_prompts_or_decodes(e, now):  # type: ignore[no-untyped-def]
    """Prompts if one fits; else a token of each running request, pausing the newest where blocks are short."""
    r = e.planned % RING
    e.batch_firsts[r], e.batch_leaving[r], e.batch_stale[r], e.batch_absent[r] = 0, 0, 0, 0
    work = admit_prompts(e, now)
    if work[0] + work[2] > 0:
        leave_out_from(e, 0)
        return work, 0
    phase = (-e.planned) % e.block_size
    if e.phase_count[phase] > e.pool.free:
        work = decode_or_pause(e)
    else:
        decode_all(e, phase)
        work = (e.decodes, e.decodes * e.planned + e.offset_sum, 0, 0, 0, 0.0, 0)
        if e.logging:
            log_decodes(e)
    decodes = work[0]
    settle_last_tokens(e)
    return work, decodes


@compiled
def fits(e, s):  # type: ignore[no-untyped-def]
    """Whether the request's blocks are there, the watermark's left alone. Blocks in the prefix cache are no discount.

    A request that would never fit so runs when nobody else does (the real engine refuses it).
    """
    spare = e.rules.watermark_blocks if e.running_count > 0 else 0
    return blocks_for(e, e.prompt[s] + e.received[s]) + spare <= e.pool.free


@compiled
def admit_prompts(e, now):  # type: ignore[no-untyped-def]
    """Whole prompts, first come, first served, up to the first that does not fit; one over the limit goes alone."""
    work = (0, 0, 0, 0, 0, 0.0, 0)
    budget = e.rules.prompt_tokens
    while e.waiting_count > 0 and e.running_count < e.max_num_seqs:
        s = e.waiting[e.waiting_head]
        known = e.prompt[s] + e.received[s]
        if not fits(e, s) or (known > budget and work[0] + work[2] > 0):
            break
        leave_waiting(e, 0)
        hits, _ = cached_blocks(e, s, known)
        if hits > 0:
            share_blocks(e, s, hits)
        found = hits * e.block_size
        count_hits(e, s, found, known)
        e.computed[s] = found
        e.pending_prompt_tokens -= found
        admit(e, s, now)
        work = compute_chunk(e, s, known - found, work)
        budget -= known
    return work


@compiled
def must_wait_behind(e):  # type: ignore[no-untyped-def]
    """Whether the head of the queue cannot start before a running request has ended: decoding only takes blocks."""
    return not fits(e, e.waiting[e.waiting_head])
