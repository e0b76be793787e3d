"""The scheduler of TensorRT-LLM: in-flight batching under a capacity policy (rules in docs/engines.md).

Two questions a step, as in the real one: the *capacity scheduler* says which requests may be there at all, the
*micro-batch scheduler* who of them gets how many tokens. Generation comes first, one token each; then prompts, first
come, first served.
"""

from __future__ import annotations

from simulator.compiled import compiled
from simulator.engine.blocks import blocks_for, cached_blocks, register_blocks, share_blocks, take_blocks
from simulator.engine.columns import RING
from simulator.engine.rules import AT_DECODE, MAX_UTILIZATION, STATIC_BATCH
from simulator.engine.state import DECODING, PREFILL, PREFILLING, READ, REMOTE, leave_waiting, log_entry, tell
from simulator.engine.vllm import (
    admit,
    compute_chunk,
    decode_all,
    leave_out_from,
    log_decodes,
    settle_last_tokens,
    take_decode_block,
)

NOTHING = (0, 0, 0, 0, 0, 0.0, 0)


@compiled
def plan_in_flight(e, now):  # type: ignore[no-untyped-def]
    """Choose the next batch; returns its work and decoding requests, as ``simulator.engine.vllm.plan_batch`` does."""
    r = e.planned % RING
    e.batch_firsts[r], e.batch_leaving[r], e.batch_stale[r], e.batch_absent[r] = 0, 0, 0, 0
    preempted_before = e.preempted
    may_start = e.rules.capacity != STATIC_BATCH or e.running_count == 0
    phase = (-e.planned) % e.block_size
    if e.phase_count[phase] <= e.pool.free:  # always so where blocks are promised
        decode_all(e, phase)
        decodes = e.decodes
        work = (decodes, decodes * e.planned + e.offset_sum, 0, 0, 0, 0.0, 0)
        if e.logging:
            log_decodes(e)
    else:
        work = decode_or_pause(e)
        decodes = work[0]
    settle_last_tokens(e)
    budget = e.token_budget - decodes
    if e.partials > 0:
        budget, work = continue_prompts(e, budget, work)
    if e.preempted == preempted_before:
        budget, work = begin_loaded(e, budget, work, now)
        if may_start:
            work = start_prompts(e, budget, work, now)
    return work, decodes


@compiled
def decode_or_pause(e):  # type: ignore[no-untyped-def]
    """MAX_UTILIZATION with too few blocks: in order of admission, pausing the newest until each has its block."""
    work = NOTHING
    i = 0
    while i < e.running_count:
        s = e.running[i]
        if e.status[s] == DECODING:
            if not take_decode_block(e, s):
                break
            work = (work[0] + 1, work[1] + e.planned + e.offset[s], 0, 0, 0, 0.0, 0)
            if e.logging:
                log_entry(e, s, 1)
        i += 1
    leave_out_from(e, i)
    return work


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
    if e.role == PREFILL:
        limit = 1
    elif row < e.rules.limits.size and e.rules.limits[row] >= 0:
        limit = min(limit, e.rules.limits[row])
    return min(blocks_for(e, prompt + max(limit, e.target[s] - 1)), e.pool.blocks)


@compiled
def hold(e, s, tokens, needed):  # type: ignore[no-untyped-def]
    """Take blocks for ``tokens`` tokens now, and have the rest of ``needed`` promised."""
    if e.rules.reserving:
        e.pledge[s] = needed
        e.promised += needed - e.held_blocks[s]
    take_blocks(e, s, tokens)


@compiled
def begin_loaded(e, budget, work, now):  # type: ignore[no-untyped-def]
    """Requests whose KV has come from a context server: their next token is an ordinary generation step."""
    i = 0
    while i < e.holding_count and budget > 0 and e.running_count < e.max_num_seqs:
        s = e.holding[i]
        known = e.prompt[s] + e.received[s]
        if e.remote[s] != 2:
            i += 1
            continue
        for j in range(i, e.holding_count - 1):
            e.holding[j] = e.holding[j + 1]
        e.holding_count -= 1
        e.remote[s] = 0
        register_blocks(e, s, e.prompt[s])
        e.computed[s] = known - 1
        e.pending_prompt_tokens += 1
        admit(e, s, now)
        send_first(e, s, now)
        work = compute_chunk(e, s, 1, work)
        budget -= 1
    return budget, work


@compiled
def send_first(e, s, now):  # type: ignore[no-untyped-def]
    """The token made at the context server goes to the client as the request begins here."""
    if e.rules.first_token == AT_DECODE:
        e.desk.first_token_s[e.row[s]] = now
    e.last_token[s] = e.desk.first_token_s[e.row[s]]
    e.token_sum[s] = e.last_token[s]


@compiled
def start_prompts(e, budget, work, now):  # type: ignore[no-untyped-def]
    """Waiting requests, first come, first served: up to the first for which blocks are missing.

    Where prompts may be cut, one whose next chunk would not fill a block lets shorter ones pass, but the blocks it
    needs are kept free in this step. Tokens found in the cache count against the budget all the same.
    """
    kept, position = 0, 0
    while position < e.waiting_count and budget > 0 and e.running_count + e.holding_count < e.max_num_seqs:
        s = e.waiting[(e.waiting_head + position) % e.waiting.size]
        needed = blocks_to_start(e, s)
        if needed > e.pool.free - e.promised - kept:
            break
        if e.remote[s] == 1:
            leave_waiting(e, position)
            ask_for_kv(e, s, needed, now)
            continue
        known = e.prompt[s] + e.received[s]
        tokens = chunk_of(e, known, budget)
        if e.received[s] > 0 and budget == e.token_budget and not e.rules.chunking:
            tokens = known  # a paused request may have grown beyond a step's limit: it starts over on its own
        if tokens == 0:
            if not e.rules.chunking:
                break
            kept += needed
            position += 1
            continue
        leave_waiting(e, position)
        budget = max(budget - tokens, 0)
        work = start_prompt(e, s, tokens, needed, work, now)
    return work


@compiled
def start_prompt(e, s, tokens, needed, work, now):  # type: ignore[no-untyped-def]
    """Admit a prompt; blocks for all of it are taken with its first chunk, what is cached is not computed."""
    known = e.prompt[s] + e.received[s]
    hits, _ = cached_blocks(e, s, known)
    if hits > 0:
        share_blocks(e, s, hits)
    found = hits * e.block_size
    hold(e, s, known, needed)
    if e.hit[s] < 0:
        e.hit[s] = found
        e.hit_tokens += found
        e.lookup_tokens += known
    e.computed[s] = found
    e.pending_prompt_tokens -= found
    admit(e, s, now)
    return compute_chunk(e, s, min(tokens, known - found), work)


@compiled
def ask_for_kv(e, s, needed, now):  # type: ignore[no-untyped-def]
    """Take blocks for a prompt computed elsewhere and ask for its KV."""
    hits, _ = cached_blocks(e, s, e.prompt[s])
    if hits > 0:
        share_blocks(e, s, hits)
    hold(e, s, e.prompt[s] + e.received[s], needed)
    e.computed[s] = e.prompt[s]
    e.status[s] = REMOTE
    e.first_batch[s], e.last_token[s] = e.planned, now
    e.holding[e.holding_count] = s
    e.holding_count += 1
    tell(e, READ, s, blocks_for(e, e.prompt[s]) - hits, now)


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
