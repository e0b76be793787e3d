"""The scheduler of vLLM V1 (rules as of 0.32.0): what goes into the next batch.

One planning step, in this order: running requests first (a token for each that decodes, then the rest of the one prompt
that is partly computed), preempting the newest while blocks are missing; then, if nobody was preempted, waiting
requests first come, first served, in chunks of what is left of the token budget. Checked against exact cases of the
real scheduler (``simulate validate scheduler``).
"""

from __future__ import annotations

from simulator.compiled import compiled
from simulator.cost.table import chunk_attention_seconds
from simulator.engine.blocks import (
    blocks_for,
    bucket_add,
    bucket_remove,
    cached_blocks,
    count_out,
    free_blocks,
    register_blocks,
    share_blocks,
    take_blocks,
    take_phase,
)
from simulator.engine.columns import RING
from simulator.engine.queues import heap_push, leave_holding, leave_waiting, next_last_batch, wait_first
from simulator.engine.reads import start_read
from simulator.engine.speculation import note_made
from simulator.engine.state import (
    CHUNK,
    DECODE,
    DECODING,
    LEAVING,
    PREFILL,
    PREFILLING,
    SPECULATING,
    WAITING,
    log_entry,
    tell,
)
from simulator.engine.tracking import may_preempt, track_blocks


@compiled
def plan_batch(e, now):  # type: ignore[no-untyped-def]
    """Choose the next batch and note at once what it will have done.

    Returns what its cost depends on: (sequences with one new token, their computed tokens, longer chunks, new tokens
    of these, computed tokens before them, their attention seconds, prompts completed), and the decoding requests.
    """
    r = e.planned % RING
    e.batch_firsts[r], e.batch_leaving[r], e.batch_stale[r], e.batch_absent[r] = 0, 0, 0, 0
    preempted_before = e.preempted
    phase = (-e.planned) % e.block_size
    if e.counting and may_preempt(e, phase):
        track_blocks(e)
    prompt_is_last = e.partials == 0 or (e.partials == 1 and e.status[e.running[e.running_count - 1]] == PREFILLING)
    if prompt_is_last and e.phase_count[phase] <= e.pool.free:
        decode_all(e, phase)
        decodes, budget = e.decodes, e.token_budget - e.decodes
        work = (decodes, decodes * e.planned + e.offset_sum, 0, 0, 0, 0.0, 0)
        if e.logging:
            log_decodes(e)
        settle_last_tokens(e)
        if e.partials > 0 and budget > 0:
            budget, work, _ = continue_prompt(e, e.running[e.running_count - 1], budget, work)
    else:
        budget, work, decodes = run_in_order(e)
        settle_last_tokens(e)
    if e.preempted == preempted_before:
        budget, work = admit_loaded(e, budget, work, now)
        budget, work = admit_waiting(e, budget, work, now)
    return work, decodes


@compiled
def log_decodes(e):  # type: ignore[no-untyped-def]
    for i in range(e.running_count):
        s = e.running[i]
        if e.status[s] == DECODING:
            log_entry(e, s, 1)


@compiled
def decode_all(e, phase):  # type: ignore[no-untyped-def]
    """Every decoding request gets the block it may need, and with nothing in flight what it fills is cached."""
    take_phase(e, phase)
    if e.depth == 1:
        register_filled(e, e.planned)


@compiled
def register_filled(e, batch):  # type: ignore[no-untyped-def]
    """Cache the blocks that the tokens of ``batch`` fill (with nothing in flight, as soon as it is planned)."""
    if not e.caching:
        return
    s = e.bucket_head[(-batch - 1) % e.block_size]
    while s >= 0:
        register_blocks(e, s, batch + e.offset[s] + 1)
        s = e.bucket_next[s]


@compiled
def run_in_order(e):  # type: ignore[no-untyped-def]
    """Blocks are short: walk the running list, and preempt from its end until each request in turn has its block."""
    budget = e.token_budget
    work = (0, 0, 0, 0, 0, 0.0, 0)
    decodes, i = 0, 0
    while i < e.running_count and budget > 0:
        s = e.running[i]
        if e.status[s] == DECODING:
            if not take_decode_block(e, s):
                break
            decodes += 1
            budget -= 1
            singles, context, chunks, new, past, attention, finished = work
            work = (singles + 1, context + e.planned + e.offset[s], chunks, new, past, attention, finished)
            if e.logging:
                log_entry(e, s, 1)
        elif e.status[s] == PREFILLING:
            budget, work, done = continue_prompt(e, s, budget, work)
            if not done:
                break
        i += 1
    leave_out_from(e, i)
    return budget, work, decodes


@compiled
def take_decode_block(e, s):  # type: ignore[no-untyped-def]
    """Make room for the request's next token, preempting from the end of the running list; False if that fails."""
    computed = e.planned + e.offset[s]
    while computed % e.block_size == 0 and e.pool.free == 0:
        victim = e.running[e.running_count - 1]
        if e.deferred_frees and in_flight(e, victim):
            return False
        preempt(e, victim)
        if victim == s:
            return False
    if e.caching:
        take_blocks(e, s, computed + 1)
        if e.depth == 1:
            register_blocks(e, s, computed + 1)
    elif computed % e.block_size == 0:
        count_out(e, 1)
    return True


@compiled
def leave_out_from(e, position):  # type: ignore[no-untyped-def]
    """Decoding requests from this place of the running list on found no room in the batch being planned."""
    r = e.planned % RING
    for i in range(position, e.running_count):
        s = e.running[i]
        if e.status[s] == DECODING and e.first_batch[s] < e.planned:
            e.absent[r, e.batch_absent[r]] = s
            e.batch_absent[r] += 1


@compiled
def in_flight(e, s):  # type: ignore[no-untyped-def]
    """Whether a batch that has not ended yet works on the request."""
    if e.planned == e.completed:
        return False
    if e.status[s] == DECODING:
        return e.absent_batch[s] != e.planned - 1
    if e.status[s] == LEAVING:
        return e.last_batch[s] >= e.completed
    return e.first_batch[s] >= e.completed


@compiled
def preempt(e, s):  # type: ignore[no-untyped-def]
    """Take the newest running request off, its blocks with it; it waits at the head of the queue and starts over."""
    e.running_count -= 1
    start_over(e, s, e.planned + e.offset[s])
    wait_first(e, s)


@compiled
def start_over(e, s, tokens):  # type: ignore[no-untyped-def]
    """A request just taken off the running list gives everything back: blocks for ``tokens``, if it decodes."""
    status = e.status[s]
    busy = in_flight(e, s)
    lost = e.computed[s]
    if status == DECODING:
        e.held_blocks[s] = blocks_for(e, tokens)
        if e.completed > e.first_batch[s]:
            e.received[s] += e.completed - e.first_batch[s]
            close_stretch(e, s)
        drop_decode(e, s)
    elif status == LEAVING and e.last_batch[s] > e.first_batch[s]:
        e.received[s] = e.target[s] - 1
        close_stretch(e, s)
    if status == LEAVING:
        e.held_blocks[s] = blocks_for(e, e.prompt[s] + e.target[s] - 1)
    if status != PREFILLING:
        lost = e.prompt[s] + e.received[s]
        # the token on its way still counts, except where the prefill's result is to be handed over
        if busy and status != SPECULATING:
            b = e.last_batch[s] if status == LEAVING else e.planned - 1
            e.stale_batch[s] = b
            if e.part[s] != PREFILL:
                e.stale[b % RING, e.batch_stale[b % RING]] = s
                e.batch_stale[b % RING] += 1
    free_blocks(e, s)
    e.pending_prompt_tokens += lost
    e.computed[s] = 0
    e.status[s] = WAITING
    e.times_preempted[s] += 1
    e.preempted += 1
    if status == PREFILLING:
        e.partials -= 1
    if e.logging:
        log_entry(e, s, -1)


@compiled
def close_stretch(e, s):  # type: ignore[no-untyped-def]
    """Add the token times of the stretch of decoding that ends here."""
    e.token_sum[s] += (e.end_sum + e.segment[s]) + (e.end_sum_low + e.segment_low[s])
    e.last_token[s] = e.previous_end_s


@compiled
def drop_decode(e, s):  # type: ignore[no-untyped-def]
    e.decodes -= 1
    e.offset_sum -= e.offset[s]
    bucket_remove(e, s)


@compiled
def join_decode(e, s):  # type: ignore[no-untyped-def]
    """From the next batch on the request decodes."""
    b = e.planned
    e.status[s] = DECODING
    e.first_batch[s] = b
    e.offset[s] = e.prompt[s] + e.received[s] - b - 1
    e.last_batch[s] = b + e.target[s] - e.received[s] - 1
    e.decodes += 1
    e.offset_sum += e.offset[s]
    bucket_add(e, s)
    heap_push(e, e.last_batch[s], s)


@compiled
def compute_chunk(e, s, tokens, work):  # type: ignore[no-untyped-def]
    """Put the next ``tokens`` tokens of a prompt into the batch; blocks are taken, and cached at once."""
    past = e.computed[s]
    known = e.prompt[s] + e.received[s]
    take_blocks(e, s, past + tokens)
    register_blocks(e, s, past + tokens)
    e.computed[s] = past + tokens
    e.first_batch[s] = e.planned
    e.pending_prompt_tokens -= tokens
    e.prefill_tokens += tokens
    if e.tell_chunks and e.part[s] == PREFILL:
        tell(e, CHUNK, s, past + tokens, 0.0)
    if e.logging:
        log_entry(e, s, tokens)
    singles, single_past, chunks, new, before, attention, finished = work
    if tokens == 1:  # one query token, as a decode: same kernels, same CUDA graph
        singles, single_past = singles + 1, single_past + past
    else:
        chunks, new, before = chunks + 1, new + tokens, before + past
        if not e.cost.affine:
            attention += chunk_attention_seconds(e.cost, tokens, past)
    was_partial = e.status[s] == PREFILLING
    if e.computed[s] < known:
        e.status[s] = PREFILLING
        e.partials += 0 if was_partial else 1
        return (singles, single_past, chunks, new, before, attention, finished)
    if was_partial:
        e.partials -= 1
    if e.rules.drafts > 0:
        note_made(e, s, 1)
        return (singles, single_past, chunks, new, before, attention, finished + 1)
    r = e.planned % RING
    e.firsts[r, e.batch_firsts[r]] = s
    e.batch_firsts[r] += 1
    if e.received[s] + 1 >= e.target[s]:
        leave_after(e, s)
    else:
        join_decode(e, s)
    return (singles, single_past, chunks, new, before, attention, finished + 1)


@compiled
def leave_after(e, s):  # type: ignore[no-untyped-def]
    """The batch being planned brings the request's last token."""
    r = e.planned % RING
    e.status[s] = LEAVING
    e.last_batch[s] = e.planned
    e.leaving[r, e.batch_leaving[r]] = s
    e.batch_leaving[r] += 1


@compiled
def continue_prompt(e, s, budget, work):  # type: ignore[no-untyped-def]
    """The rest of a prompt that is partly computed, as far as the budget reaches; False if blocks are missing."""
    tokens = min(e.prompt[s] + e.received[s] - e.computed[s], budget)
    while blocks_for(e, e.computed[s] + tokens) - e.held_blocks[s] > e.pool.free:
        victim = e.running[e.running_count - 1]
        if e.deferred_frees and in_flight(e, victim):
            return budget, work, False
        preempt(e, victim)
        if victim == s:
            return budget, work, False
    return budget - tokens, compute_chunk(e, s, tokens, work), True


@compiled
def admit(e, s, now):  # type: ignore[no-untyped-def]
    """Append to the running list."""
    e.running[e.running_count] = s
    e.running_count += 1
    e.order[s] = e.admissions
    e.admissions += 1
    row = e.row[s]
    start = max(now, e.gpu_free_s)
    if e.part[s] == DECODE:
        if e.desk.decode_start_s[row] != e.desk.decode_start_s[row]:
            e.desk.decode_start_s[row] = start
    elif e.desk.prefill_start_s[row] != e.desk.prefill_start_s[row]:
        e.desk.prefill_start_s[row] = start


@compiled
def admit_loaded(e, budget, work, now):  # type: ignore[no-untyped-def]
    """Requests whose KV is there: of a prompt computed elsewhere only the last token is left, of others the rest."""
    i = 0
    while i < e.holding_count and budget > 0 and e.running_count < e.max_num_seqs:
        s = e.holding[i]
        if e.remote[s] != 2:
            i += 1
            continue
        leave_holding(e, i)
        register_blocks(e, s, e.computed[s])
        if e.outside[s] > 0:
            count_hits(e, s, e.computed[s], e.prompt[s])
        else:
            e.computed[s] = e.prompt[s] - 1
            e.pending_prompt_tokens += 1
        admit(e, s, now)
        tokens = min(e.prompt[s] - e.computed[s], budget)
        work = compute_chunk(e, s, tokens, work)
        budget -= tokens
    return budget, work


@compiled
def admit_waiting(e, budget, work, now):  # type: ignore[no-untyped-def]
    """First come, first served; the first that does not fit holds up those behind it."""
    while budget > 0 and e.waiting_count > 0 and e.running_count < e.max_num_seqs:
        s = e.waiting[e.waiting_head]
        known = e.prompt[s] + e.received[s]
        hits, idle = cached_blocks(e, s, known)
        hit_tokens = hits * e.block_size
        if e.remote[s] == 1 and (e.outside[s] == 0 or e.outside[s] > hit_tokens):
            if not start_read(e, s, hits, idle, now):
                break
            continue
        tokens = min(known - hit_tokens, budget)
        # the whole prompt must fit, not only its first chunk, though nothing is reserved for the rest
        if blocks_for(e, known) - hits + idle > e.pool.free:
            break
        leave_waiting(e, 0)
        if e.remote[s] == 1:  # what caches below hold of it has been computed here meanwhile
            e.remote[s] = 0
            e.unread -= 1
        if hits > 0:
            share_blocks(e, s, hits)
        count_hits(e, s, hit_tokens, known)
        e.computed[s] = hit_tokens
        e.pending_prompt_tokens -= hit_tokens
        admit(e, s, now)
        work = compute_chunk(e, s, tokens, work)
        budget -= tokens
    return budget, work


@compiled
def count_hits(e, s, found, known):  # type: ignore[no-untyped-def]
    """At its first admission ``found`` of a request's ``known`` tokens need no computing."""
    if e.hit[s] < 0:
        e.hit[s] = found
        e.hit_tokens += found
        e.lookup_tokens += known


@compiled
def settle_last_tokens(e):  # type: ignore[no-untyped-def]
    """Decoding requests for which the batch being planned brings the last token leave the decoding set."""
    r = e.planned % RING
    while next_last_batch(e) == e.planned:
        s = e.heap_slot[0]
        if e.batch_absent[r] > 0 and e.order[s] >= e.order[e.absent[r, 0]]:  # left out, as all behind it are
            break
        drop_decode(e, s)
        leave_after(e, s)
