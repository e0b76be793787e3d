"""The scheduler of TensorRT-LLM: in-flight batching under a capacity policy (rules in docs/engines.md).

Two questions a step, as in the real one: the *capacity scheduler* says which requests may be there at all, the
*micro-batch scheduler* who of them gets how many tokens. Generation comes first, one token each; then prompts, first
come, first served.
"""

from __future__ import annotations

import numpy as np

from simulator.compiled import compiled
from simulator.engine.blocks import blocks_for, cached_blocks, register_blocks, share_blocks
from simulator.engine.columns import RING
from simulator.engine.decoding import decode_or_pause
from simulator.engine.handed_over import ask_for_kv, ask_for_prefix, begin_loaded, hold
from simulator.engine.queues import leave_holding, leave_waiting
from simulator.engine.rules import MAX_UTILIZATION, STATIC_BATCH
from simulator.engine.speculative_plans import decode_drafts
from simulator.engine.state import LEAVING, PREFILL, PREFILLING
from simulator.engine.vllm import admit, compute_chunk, count_hits, decode_all, log_decodes, settle_last_tokens


@compiled
def plan_in_flight(e, now):  # type: ignore[no-untyped-def]
    """Choose the next batch; returns its work and decoding requests, as ``simulator.engine.vllm.plan_batch`` does."""
    r = e.planned % RING
    e.batch_firsts[r], e.batch_leaving[r], e.batch_stale[r], e.batch_absent[r] = 0, 0, 0, 0
    preempted_before = e.preempted
    may_start = e.rules.capacity != STATIC_BATCH or e.running_count == 0
    phase = (-e.planned) % e.block_size
    left, decodes = e.token_budget, 0
    if e.rules.drafts > 0:
        left, work = decode_drafts(e, left)
    elif e.phase_count[phase] <= e.pool.free:  # always so where blocks are promised
        decode_all(e, phase)
        decodes = e.decodes
        work = (decodes, decodes * e.planned + e.offset_sum, 0, 0, 0, 0.0, 0)
        if e.logging:
            log_decodes(e)
    else:
        work = decode_or_pause(e)
        decodes = work[0]
    settle_last_tokens(e)
    budget = left - decodes
    if e.partials > 0:
        budget, work = continue_prompts(e, budget, work)
    if e.preempted == preempted_before:
        most = e.max_num_seqs + seats_given_up(e)
        budget, work = begin_loaded(e, budget, work, now, most)
        budget, work = begin_prefixed(e, budget, work, now, most)
        if may_start and not company_is_missing(e, budget, work[0]):
            work = start_prompts(e, budget, work, now)
    return work, decodes


@compiled
def chunk_of(e, tokens, budget):  # type: ignore[no-untyped-def]
    """How many of a prompt's ``tokens`` fit the budget: all; or whole blocks, where prompts may be cut; or none."""
    if tokens <= budget:
        return tokens
    return budget // e.block_size * e.block_size if e.rules.chunking else 0


@compiled
def continue_prompts(e, budget, work):  # type: ignore[no-untyped-def]
    """Prompts that are partly computed; their blocks were taken with the first chunk."""
    for i in range(e.running_count):
        s = e.running[i]
        if e.status[s] == PREFILLING:
            tokens = chunk_of(e, e.prompt[s] + e.received[s] - e.computed[s], budget)
            if tokens > 0:
                work = compute_chunk(e, s, tokens, work)
                budget -= tokens
    return budget, work


@compiled
def blocks_to_start(e, s):  # type: ignore[no-untyped-def]
    """Blocks that must be there for a request to start: those of all it may become, or of what it is now.

    What it may become is the client's limit, cut to the longest context and to all blocks there are (traces that allow
    less than was made are taken at their word on what was made).
    """
    prompt = e.prompt[s]
    if not e.rules.reserving:
        return min(blocks_for(e, prompt + e.received[s]), e.pool.blocks)
    row, limit = e.row[s], e.max_model_len - prompt
    if e.part[s] == PREFILL:
        limit = 1
    elif row < e.rules.limits.size and e.rules.limits[row] >= 0:
        limit = min(limit, e.rules.limits[row])
    return min(blocks_for(e, prompt + max(limit, e.target[s] - 1)), e.pool.blocks)


@compiled
def rank_budgets(e, budget):  # type: ignore[no-untyped-def]
    """Prompt tokens that each attention data-parallel rank may take in this step; one rank has the whole budget."""
    ranks = e.rules.ranks
    if ranks == 1:
        return np.full(1, budget)
    left = np.full(ranks, e.token_budget // ranks)
    for i in range(e.running_count):
        left[e.rank[e.running[i]]] -= 1 + e.rules.drafts
    return np.maximum(left, 0)


@compiled
def seats_given_up(e):  # type: ignore[no-untyped-def]
    """Requests whose last token is on its way: they are in no further batch, so others may have their places (with
    drafts that is not known before the token is there)."""
    found = 0
    if e.rules.drafts == 0:
        for b in range(e.completed, e.planned):
            for i in range(e.batch_leaving[b % RING]):
                s = e.leaving[b % RING, i]
                found += e.status[s] == LEAVING and e.stale_batch[s] != b
    return found


@compiled
def free_seats(e):  # type: ignore[no-untyped-def]
    """Requests that may still join."""
    return e.max_num_seqs + seats_given_up(e) - e.running_count - e.holding_count


@compiled
def startable(e, budget, starting):  # type: ignore[no-untyped-def]
    """Prompt tokens of the waiting requests that could start in this step; counts them by rank into ``starting``."""
    left = rank_budgets(e, budget)
    tokens, kept, seats = 0, 0, free_seats(e)
    for i in range(e.waiting_count):
        s = e.waiting[(e.waiting_head + i) % e.waiting.size]
        kept += blocks_to_start(e, s)
        if seats == 0 or e.remote[s] == 1 or kept > e.pool.free - e.promised:
            break
        known, r = e.prompt[s] + e.received[s], e.rank[s]
        now = chunk_of(e, known, left[r])
        if now == 0:
            if e.rules.ranks == 1:
                break
            kept -= blocks_to_start(e, s)
            continue
        tokens += known
        left[r] -= now
        seats -= 1
        starting[r] += 1
    return tokens


@compiled
def company_is_missing(e, budget, generating):  # type: ignore[no-untyped-def]
    """Whether prompts that could start wait for others (rules 9 and 10 of docs/engines.md)."""
    rules = e.rules
    if rules.balance_steps > 0 and rules.ranks > 1:
        return ranks_are_uneven(e, budget)
    if (rules.wait_steps == 0 and rules.wait_ratio == 0.0) or e.waiting_count == 0 or generating == 0:
        return False
    tokens = startable(e, budget, np.zeros(rules.ranks, np.int64))
    if tokens == 0:
        return False
    enough = rules.wait_ratio * e.token_budget
    if e.waited_steps >= rules.wait_steps or tokens + generating * (1 + rules.drafts) >= enough:
        e.waited_steps = 0
        return False
    e.waited_steps += 1
    return True


@compiled
def ranks_are_uneven(e, budget):  # type: ignore[no-untyped-def]
    """Attention data parallelism: prompts start when each rank has one, when a rank has nothing to generate, or when
    ``balance_steps`` steps have passed since the count began; the count goes on while nobody waits."""
    rules = e.rules
    generating, starting = np.zeros(rules.ranks, np.int64), np.zeros(rules.ranks, np.int64)
    for i in range(e.running_count):
        generating[e.rank[e.running[i]]] += e.status[e.running[i]] != PREFILLING
    startable(e, budget, starting)
    if starting.min() > 0 and generating.max() < e.max_num_seqs // rules.ranks:
        e.balance_from = e.planned + 1
        if generating.min() > 0 and e.gathered_steps < rules.balance_gather:
            e.gathered_steps += 1
            return True
        e.gathered_steps = 0
        return False
    if generating.min() == 0:
        e.balance_from = e.planned + 1
        return False
    return (e.planned - e.balance_from + 1) % rules.balance_steps != 0


@compiled
def start_prompts(e, budget, work, now):  # type: ignore[no-untyped-def]
    """Waiting requests, first come, first served: up to the first for which blocks are missing.

    Where prompts may be cut, one whose next chunk would not fill a block lets shorter ones pass, but the blocks it
    needs are kept free in this step. Tokens found in the cache count against the budget all the same.
    """
    kept, position, seats = 0, 0, free_seats(e)
    left = rank_budgets(e, budget)
    while position < e.waiting_count and budget > 0 and seats > 0:
        s = e.waiting[(e.waiting_head + position) % e.waiting.size]
        needed = blocks_to_start(e, s)
        if needed > e.pool.free - e.promised - kept:
            break
        if e.remote[s] == 1 and e.outside[s] == 0:
            leave_waiting(e, position)
            ask_for_kv(e, s, needed, now)
            seats -= 1
            continue
        if e.remote[s] == 1 and ask_for_prefix(e, s, position, needed, now):
            seats -= 1
            continue
        known = e.prompt[s] + e.received[s]
        tokens = chunk_of(e, known, left[e.rank[s]])
        if e.received[s] > 0 and budget == e.token_budget and not e.rules.chunking:
            tokens = known  # a paused request may have grown beyond a step's limit: it starts over on its own
        if tokens == 0:
            if e.rules.ranks > 1:  # the next may be another rank's
                position += 1
                continue
            if not e.rules.chunking:
                break
            kept += needed
            position += 1
            continue
        leave_waiting(e, position)
        seats -= 1
        budget = max(budget - tokens, 0)
        left[e.rank[s]] = max(left[e.rank[s]] - tokens, 0)
        work = start_prompt(e, s, tokens, needed, work, now)
    return work


@compiled
def begin_prefixed(e, budget, work, now, most):  # type: ignore[no-untyped-def]
    """Prompts whose beginning has been loaded from caches below, as long as fewer than ``most`` run: the rest is
    computed, as far as the budget reaches."""
    i = 0
    while i < e.holding_count and budget > 0 and e.running_count < most:
        s = e.holding[i]
        tokens = chunk_of(e, e.prompt[s] - e.computed[s], budget) if e.outside[s] > 0 and e.remote[s] == 2 else 0
        if tokens == 0:
            i += 1
            continue
        leave_holding(e, i)
        register_blocks(e, s, e.computed[s])
        count_hits(e, s, e.computed[s], e.prompt[s])
        admit(e, s, now)
        work = compute_chunk(e, s, tokens, work)
        budget -= tokens
    return budget, work


@compiled
def start_prompt(e, s, tokens, needed, work, now):  # type: ignore[no-untyped-def]
    """Admit a prompt; blocks for all of it are taken with its first chunk, what is cached is not computed."""
    known = e.prompt[s] + e.received[s]
    hits, _ = cached_blocks(e, s, known)
    if hits > 0:
        share_blocks(e, s, hits)
    found = hits * e.block_size
    hold(e, s, known, needed)
    count_hits(e, s, found, known)
    e.computed[s] = found
    e.pending_prompt_tokens -= found
    admit(e, s, now)
    return compute_chunk(e, s, min(tokens, known - found), work)


@compiled
def must_wait_in_flight(e):  # type: ignore[no-untyped-def]
    """Whether the head of the queue cannot start before a running request has ended."""
    if e.rules.capacity == STATIC_BATCH and e.running_count > 0:
        return True
    if e.running_count + e.holding_count >= e.max_num_seqs:
        return True
    s = e.waiting[e.waiting_head]
    if e.remote[s] == 0 and not e.rules.chunking and e.prompt[s] + e.received[s] > e.token_budget - e.decodes:
        return True
    if e.rules.capacity == MAX_UTILIZATION:
        return not e.caching and blocks_to_start(e, s) > e.pool.free
    return blocks_to_start(e, s) > e.pool.free - e.promised
