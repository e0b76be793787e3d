"""What an SGLang engine does next: merge, prefill first, else decode, retract where memory is short.

Checked against exact cases of the real scheduler (``simulate validate scheduler``) and, step by step, against the
plain oracle of the tests.
"""

from __future__ import annotations

from simulator.compiled import compiled
from simulator.cost.table import chunk_attention_seconds
from simulator.engine.launching import drawn_launch_s
from simulator.engine.sglang.aborting import read_aborts
from simulator.engine.sglang.admission import (
    CONTINUE,
    NO_TOKEN,
    OTHER,
    budget_state,
    continue_chunked,
    open_budget,
    order_waiting,
    take_extend,
    try_admit,
)
from simulator.engine.sglang.columns import RING
from simulator.engine.sglang.decode import NOTHING, add_decodes, drop_finishing, join, plan_decode, renumber
from simulator.engine.sglang.memory import checkpoint, decode_fits, decode_need
from simulator.engine.sglang.ranks import fill_ranks, go_on_with_cuts
from simulator.engine.sglang.remote import take_over
from simulator.engine.sglang.state import CHUNKED, PREFILLED_LAST, STAYS, WAITING, seen
from simulator.engine.state import CHUNK, DECODE, PREFILL, log_entry, tell


@compiled
def plan_step(e, now):  # type: ignore[no-untyped-def]
    """Choose the next step. Returns what its cost depends on: (sequences with one new token, their computed tokens,
    longer chunks, new tokens of these, computed tokens before them, their attention seconds, prompts completed)."""
    r = e.planned % RING
    e.batch_decodes[r], e.batch_tokens[r] = 0, 0
    e.batch_firsts[r], e.batch_leaving[r], e.batch_joined[r] = 0, 0, 0
    if e.recv_interval > 1:
        look_for_requests(e)
    if e.aborts > 0 and e.since_look == 0:
        read_aborts(e)
    if e.role == DECODE:
        return plan_decode(e) if take_over(e, now) and e.running_count > 0 else NOTHING
    if e.chunked >= 0:
        s = e.chunked
        checkpoint(e, s, e.extend_end[s])
        e.prefix[s] = e.extend_end[s]
    if e.cut_count > 0:
        go_on_with_cuts(e)
    merge_last(e)
    if e.running_count == 0:
        e.full = False
    if may_prefill(e):
        order_waiting(e)
        open_budget(e)
        if e.binding:
            fill_ranks(e)
        else:
            fill_step(e)
        if e.admitted_count > 0:
            e.last_prefill = True
            return launch_prefill(e, now)
    e.last_prefill = False
    if e.running_count > 0:
        return plan_decode(e)
    return NOTHING


@compiled
def look_for_requests(e):  # type: ignore[no-untyped-def]
    """New requests are fetched after a step with prompts, every ``recv_interval`` decode steps, and when idle; by a
    decode engine also after others have begun (to it a batch of ready-made prompts)."""
    e.since_look += 1
    idle = e.planned == e.completed and e.running_count == 0
    if e.last_prefill or idle or e.since_look >= e.recv_interval:
        e.since_look, e.unseen = 0, 0


@compiled
def merge_last(e):  # type: ignore[no-untyped-def]
    """Requests whose prompts the last planned step completes join the running batch."""
    if e.last_chunk or e.last_mixed:
        e.full = False
    e.last_chunk = False
    if e.last_count > 0 and e.role != PREFILL:
        if e.running_count == 0:
            e.full = False
        n, m = e.running_count, e.last_count
        if e.last_mixed:  # in a mixed step the prefills stand before the decodes
            for i in range(n - 1, -1, -1):
                e.running[i + m] = e.running[i]
            e.running[:m] = e.last[:m]
        else:
            e.running[n : n + m] = e.last[:m]
        for i in range(m):
            join(e, e.last[i])
        e.running_count = n + m
        if e.last_mixed:
            renumber(e)
    e.last_mixed = False
    e.last_count = 0


@compiled
def places(e, held):  # type: ignore[no-untyped-def]
    """Requests that may be in the step being planned."""
    return min(e.max_running - e.running_count, e.free_rows + held)


@compiled
def may_prefill(e):  # type: ignore[no-untyped-def]
    """Whether a prefill is tried at all."""
    if e.chunked >= 0 or e.cut_count > 0:
        return True
    if e.full or seen(e) == 0:
        return False
    if places(e, 0) <= 0:
        e.full = True
        return False
    return True


@compiled
def fill_step(e):  # type: ignore[no-untyped-def]
    """The prompt under way, then the waiting queue up to the first that does not fit."""
    held = 0
    if e.chunked >= 0:
        continue_chunked(e)
        held = 1
    for i in range(seen(e)):
        if budget_state(e) == OTHER:
            break
        if e.admitted_count >= places(e, held):
            e.full = True
        if e.full:
            break
        verdict = try_admit(e, e.waiting[e.waiting_head + i])
        if verdict != CONTINUE:
            if verdict == NO_TOKEN:
                e.full = e.admitted_count > 0 or e.running_count > 0
            break


@compiled
def launch_prefill(e, now):  # type: ignore[no-untyped-def]
    """The admitted prompts become the step; with mixed chunks the running requests ride along."""
    r = e.planned % RING
    if e.new_chunked >= 0:
        e.chunked = e.new_chunked
    take_extend(e)
    chunks, new, past, attention, finished, singles, single_past = 0, 0, 0, 0.0, 0, 0, 0
    for i in range(e.admitted_count):
        s = e.admitted[i]
        if e.status[s] == WAITING:
            leave_queue(e, s, now)
        tokens = e.extend_end[s] - e.prefix[s]
        e.pending_prompt_tokens -= tokens
        e.prefill_tokens += tokens
        if e.tell_chunks:
            tell(e, CHUNK, s, e.extend_end[s], 0.0)
        if tokens == 1:  # one query token, as a decode: same kernels
            singles, single_past = singles + 1, single_past + e.prefix[s]
        else:
            chunks, new, past = chunks + 1, new + tokens, past + e.prefix[s]
            if not e.cost.affine:
                attention += chunk_attention_seconds(e.cost, tokens, e.prefix[s])
        if e.logging:
            log_entry(e, s, tokens)
        if e.extend_end[s] < e.fill[s]:
            e.status[s] = CHUNKED
            e.last_chunk = True
        else:
            finished += 1
            e.status[s] = PREFILLED_LAST
            e.firsts[r, e.batch_firsts[r]] = s
            e.batch_firsts[r] += 1
            e.last[e.last_count] = s
            e.last_count += 1
    if e.mixed and e.running_count > 0:
        drop_finishing(e)
        if e.running_count > 0 and decode_fits(e, decode_need(e)):
            context = add_decodes(e)
            singles, single_past = singles + e.running_count, single_past + context
            e.last_mixed = True
    return (singles, single_past, chunks, new, past, attention, finished)


@compiled
def leave_queue(e, s, now):  # type: ignore[no-untyped-def]
    """A waiting request has been admitted; those admitted are always the head of the queue."""
    e.waiting_head += 1
    e.waiting_count -= 1
    e.pending_prompt_tokens -= e.prefix[s]
    row = e.row[s]
    if e.hit[s] < 0:
        e.hit[s] = e.prefix[s]
        e.hit_tokens += e.prefix[s]
        e.lookup_tokens += e.fill[s]
        if e.gone[s] != STAYS:
            return
        e.desk.cached_tokens[row] = e.prefix[s]
        e.desk.prefill_start_s[row] = max(now, e.gpu_free_s)


@compiled
def prompts_spread(e, chunks):  # type: ignore[no-untyped-def]
    """Prompts in a step of data-parallel ranks: each rank cuts its own, while they are one queue here.

    A step's tokens are as many as all ranks' chunks together; with prompts waiting, every rank has one to cut. Where
    prompts are bound to ranks, they are as they are.
    """
    if e.binding:
        return chunks
    return max(chunks, min(e.cost.ranks, chunks + seen(e))) if e.cost.ranks > 1 else chunks


@compiled
def prompts_launch_s(e, now, tokens, seqs, past, seconds):  # type: ignore[no-untyped-def]
    """Host seconds to launch the step being planned: ``tokens`` of ``seqs`` sequences, some of prompts, that take
    ``seconds`` on the GPU; ``past``: tokens of its prompts computed before. Kernels that it is the first to need are
    fetched or compiled meanwhile."""
    cold = 0.0
    if not e.warm_prompt:
        e.warm_prompt = True
        cold += e.cost.cold_prompt_s
    if past > 0 and not e.warm_past:
        e.warm_past = True
        cold += e.cost.cold_past_s
    launching = drawn_launch_s(e, now, tokens, seqs)
    return launching if cold == 0.0 else max(launching, seconds) + cold
