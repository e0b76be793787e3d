"""How an SGLang engine's steps follow one another: plan, launch, complete; stretches of pure decode in one go.

The normal loop plans when the step before has ended and been processed. The overlapped loop plans one step ahead: when
a step ends and its results are in, the next but one is planned. Moments: a step's end comes first, then whatever
arrives in that instant, then planning (house rule 3).
"""

from __future__ import annotations

import numpy as np

from simulator.compiled import compiled
from simulator.cost.power import limited_step, step_energy_s
from simulator.cost.table import decode_step_seconds, mixed_step_seconds
from simulator.engine.columns import MAX_SAMPLES
from simulator.engine.launching import limited_s, start_batch
from simulator.engine.sglang.columns import RING
from simulator.engine.sglang.decode import strike_done
from simulator.engine.sglang.ending import first_token, free_done, is_retracted, last_token
from simulator.engine.sglang.memory import pages_taken, release
from simulator.engine.sglang.plan import plan_step, prompts_launch_s, prompts_spread
from simulator.engine.sglang.posting import hold_before, plan_if_idle, posting_s
from simulator.engine.sglang.remote import kv_is_here
from simulator.engine.sglang.state import new_slot, next_last_step, wait_last
from simulator.engine.state import (
    COLOCATED,
    DECODE,
    INSTANT_S,
    NEVER,
    count_gap,
    date_chunks,
    free_slot,
    thin,
)
from simulator.engine.steps import log_batch
from simulator.kv.radix import peek


@compiled
def submit(e, row, prompt, target, part, outside, now):  # type: ignore[no-untyped-def]
    """A request comes in; returns when to look next. What is done of it (``part``) is the engine's own role."""
    s = new_slot(e, row, prompt, target)
    e.pending_prompt_tokens += prompt
    wait_last(e, s)
    if e.recv_interval > 1:
        e.unseen += 1
    plan_if_idle(e, now)
    return next_wake(e)


@compiled
def transfer_ended(e, s, now):  # type: ignore[no-untyped-def]
    """The read of a slot's KV has ended: the decode engine may begin, at the prefill engine the memory is free."""
    if e.role == DECODE:
        kv_is_here(e, s)
    else:
        release(e, s)
        e.holding_count -= 1
        e.full = False
        free_slot(e, s)
    plan_if_idle(e, now)
    return next_wake(e)


@compiled
def schedule(e, now):  # type: ignore[no-untyped-def]
    """Plan until as many steps are in flight as may be, or nothing is left to plan."""
    while e.planned - e.completed < e.depth:
        rows_before, news_before = e.log_rows, e.news_count
        singles, context, chunks, new, past, attention, finished = plan_step(e, now)
        if singles + chunks == 0:
            if e.planned == e.completed:
                e.ratio = e.ratio_init
                if give_up_first(e):
                    continue
            return
        if chunks == 0 and finished == 0:
            seconds = decode_step_seconds(e.cost, singles, context)
        else:
            prompts = prompts_spread(e, chunks)
            uneven = e.cost.ranks * e.fullest / new if e.binding and new > 0 else 0.0
            seconds = mixed_step_seconds(e.cost, singles, context, prompts, new, past, attention, finished, uneven)
        launching = prompts_launch_s(e, now, singles + new, singles + chunks, past, seconds) if chunks > 0 else 0.0
        energy_s = step_energy_s(e.cost, singles, singles + new, context, attention, chunks)
        begin, e.start_late_s = now + e.start_late_s, 0.0
        seconds = limited_s(e, begin, seconds, energy_s, launching, chunks > 0)
        start = launch(e, begin, seconds, launching)
        if chunks > 0 and e.planned > 1:
            hold_before(e, now, seconds)
        if e.tell_chunks:
            date_chunks(e, news_before, start, e.gpu_free_s)
        if e.logging:
            log_batch(e, start, rows_before)
        if launching > 0.0 and e.planned - e.completed < e.depth:
            e.plan_at_s = begin + launching  # the loop comes round when it has launched: with who has come by then
            return


@compiled
def give_up_first(e):  # type: ignore[no-untyped-def]
    """An engine that holds nothing and still cannot take the head of its queue never will: it stays without a token
    (SGLang refuses such prompts at its door, where they reach six tokens below the context or the KV memory)."""
    if e.waiting_count == 0 or e.holding_count + e.ready_count + e.retracted_count > 0:
        return False
    s = e.waiting[e.waiting_head]
    e.waiting_head += 1
    e.waiting_count -= 1
    e.pending_prompt_tokens -= e.prompt[s] + e.outputs[s]
    free_slot(e, s)
    return True


@compiled
def launch(e, now, seconds, launching):  # type: ignore[no-untyped-def]
    """Start the planned step behind the one that runs; returns when it starts."""
    start = start_batch(e, now, now, seconds, launching)
    e.planned += 1
    e.peak_pages = max(e.peak_pages, pages_taken(e))
    return start


@compiled
def count_decodes(e, r, end):  # type: ignore[no-untyped-def]
    """Take over the end of a step with decodes: token gaps, and the compensated sum of ends."""
    step = e.decode_done
    known = e.batch_tokens[r]
    for i in range(e.batch_joined[r]):
        s = e.joined[r, i]
        if e.join[s] == step and not is_retracted(e, s):
            count_gap(e, end - e.last_token[s], 1)
            known -= 1
    if known > 0:
        count_gap(e, end - e.previous_end_s, known)
    total = e.end_sum + end
    virtual = total - e.end_sum
    e.end_sum_low += (e.end_sum - (total - virtual)) + (end - virtual)
    e.end_sum = total
    e.previous_end_s = end
    e.decode_done += 1


@compiled
def complete(e):  # type: ignore[no-untyped-def]
    """The oldest step ends: its results are processed in batch order, prompts before decodes."""
    r = e.completed % RING
    end = e.batch_end_s[r]
    if e.batch_decodes[r] > 0:
        count_decodes(e, r, end)
    e.completed += 1
    done = 0
    for i in range(e.batch_firsts[r]):
        s = e.firsts[r, i]
        if not is_retracted(e, s):
            done += first_token(e, s, end)
    for i in range(e.batch_leaving[r]):
        s = e.leaving[r, i]
        if not is_retracted(e, s):
            last_token(e, s, end)
            done += 1
    if done > 0:
        strike_done(e)
        free_done(e, e.firsts[r], e.batch_firsts[r])
        free_done(e, e.leaving[r], e.batch_leaving[r])
    if end >= e.sample_next_s:
        sample(e, end)
    if e.send_post_s + e.send_post_page_s + e.send_post_run_s > 0.0:
        e.posting_until_s = end + posting_s(e, r)
        return e.posting_until_s
    return end


@compiled
def sample(e, now):  # type: ignore[no-untyped-def]
    """Write a point of the time series."""
    if e.samples == MAX_SAMPLES:
        thin(e)
    i = e.samples
    e.samples += 1
    e.sample_s[i], e.sample_running[i] = now, e.running_count + e.last_count
    e.sample_waiting[i], e.sample_blocks[i] = all_waiting(e), pages_taken(e)
    e.sample_next_s = now + e.sample_every_s


@compiled
def is_plain(e):  # type: ignore[no-untyped-def]
    """Whether nothing but decode is in sight: no prompt, no first or last token, nobody who could be admitted."""
    if e.running_count == 0 or e.chunked >= 0 or e.last_count > 0 or e.last_chunk or e.last_mixed or e.fresh_count > 0:
        return False
    if e.planned - e.completed != e.depth or (e.waiting_count > 0 and not e.full) or e.unseen + e.aborts > 0:
        return False
    if e.ready_count + e.retracted_count > 0:
        return False
    for b in range(e.completed, e.planned):
        r = b % RING
        if e.batch_decodes[r] == 0 or e.batch_firsts[r] + e.batch_leaving[r] + e.batch_joined[r] > 0:
            return False
    return True


@compiled
def decode_run(e, until):  # type: ignore[no-untyped-def]
    """A macro-step: steps of pure decode one after another, up to the first that is anything more.

    Each is the same sum that planning and completing it would do, so the result is the stepper's to the last bit.
    """
    if not is_plain(e):
        return
    stop = next_last_step(e)
    n = e.running_count
    while e.decode_planned < stop and e.free >= n * e.page:
        done = e.completed % RING
        end = e.batch_end_s[done]
        if end >= until - INSTANT_S:
            return
        count_decodes(e, done, end)
        e.completed += 1
        if end >= e.sample_next_s:
            sample(e, end)
        e.ratio = max(e.ratio - e.ratio_decay, e.ratio_min)
        step = e.decode_planned
        e.free -= e.phase_count[(-step) % e.page] * e.page
        e.decode_planned += 1
        e.since_look = (e.since_look + 1) % e.recv_interval
        e.decode_tokens += n
        r = e.planned % RING
        e.batch_decodes[r], e.batch_tokens[r] = n, n
        e.batch_firsts[r], e.batch_leaving[r], e.batch_joined[r] = 0, 0, 0
        context = n * step + e.base_sum
        seconds, energy_s = decode_step_seconds(e.cost, n, context), step_energy_s(e.cost, n, n, context, 0.0, 0)
        launch(e, end, limited_s(e, end, seconds, energy_s, 0.0, False), 0.0)


@compiled
def next_wake(e):  # type: ignore[no-untyped-def]
    """The next moment at which something may happen that the cluster has to hear of; NEVER if only an arrival can.

    In a stretch of pure decode it is found by running ahead on the sums alone, without committing anything.
    """
    if not e.tell_finished and (e.role == COLOCATED or (e.role == DECODE and e.waiting_count == 0)):
        return NEVER
    if e.plan_at_s < NEVER:
        return e.plan_at_s + 2 * INSTANT_S
    if e.planned == e.completed:
        return NEVER
    if not e.macro or not is_plain(e):
        return e.batch_end_s[e.completed % RING]
    stop = next_last_step(e)
    ends = np.empty(RING)
    ends[:] = e.batch_end_s
    done, planned, free, gpu_free = e.completed, e.planned, e.free, e.gpu_free_s
    step, n = e.decode_planned, e.running_count
    pressure, worked = e.pressure, e.worked_s
    while step < stop and free >= n * e.page:
        free -= e.phase_count[(-step) % e.page] * e.page
        start, context = max(ends[done % RING], gpu_free), n * step + e.base_sum
        seconds, energy_s = decode_step_seconds(e.cost, n, context), step_energy_s(e.cost, n, n, context, 0.0, 0)
        seconds, pressure, worked = limited_step(e.cost, start, seconds, energy_s, pressure, worked)
        gpu_free = start + seconds
        ends[planned % RING] = gpu_free
        done += 1
        planned += 1
        step += 1
    return ends[done % RING]


@compiled
def advance(e, until):  # type: ignore[no-untyped-def]
    """Live through everything before the instant of ``until``, and the ends of steps within it.

    Planning that falls into that instant stays due, so that what else arrives in it comes first.
    """
    while True:
        while e.plan_at_s < until - INSTANT_S:  # again where it has launched, and comes round
            now = e.plan_at_s
            e.plan_at_s = NEVER
            schedule(e, now)
            if e.macro:
                decode_run(e, until)
        if e.plan_at_s < NEVER or e.planned == e.completed:
            return
        if e.batch_end_s[e.completed % RING] > until + INSTANT_S:
            return
        e.plan_at_s = complete(e)


@compiled
def pulse(e, until):  # type: ignore[no-untyped-def]
    """Advance, and say how many news there are and when to come again."""
    advance(e, until)
    return e.news_count, next_wake(e)


@compiled
def all_waiting(e):  # type: ignore[no-untyped-def]
    """Requests that wait to run; on a decode engine also those whose KV has come, or has been taken from them."""
    return e.waiting_count + e.ready_count + e.retracted_count


@compiled
def load(e):  # type: ignore[no-untyped-def]
    """What a router may see: running, waiting, holding, free pages, all pages, prompt tokens not yet computed."""
    running = e.running_count + e.last_count + (1 if e.chunked >= 0 else 0) + e.cut_count
    free = (e.free + e.tree.evictable) // e.page
    return running, all_waiting(e), e.holding_count, free, e.pool_size // e.page, e.pending_prompt_tokens


@compiled
def survey(engines, until, gauges, news_counts, wakes):  # type: ignore[no-untyped-def]
    """``pulse`` every engine of a pool, and write what ``load`` says into its row of ``gauges``."""
    for i in range(len(engines)):
        e = engines[i]
        advance(e, until)
        row = gauges[i]
        row[0], row[1], row[2], row[3], row[4], row[5] = load(e)
        news_counts[i] = e.news_count
        wakes[i] = next_wake(e)


@compiled
def overlaps(engines, content, row, tokens, keys, found):  # type: ignore[no-untyped-def]
    """Leading tokens of a prompt that each engine's tree holds, into ``found``; nothing is touched."""
    for i in range(len(engines)):
        found[i] = peek(engines[i].tree, row, tokens)


@compiled
def totals(e):  # type: ignore[no-untyped-def]
    """Sums over the run: steps, busy seconds, peak pages, retractions, decode, prompt, hit and looked-up tokens."""
    return (
        e.completed,
        e.busy_s,
        e.peak_pages,
        e.preempted,
        e.decode_tokens,
        e.prefill_tokens,
        e.hit_tokens,
        e.lookup_tokens,
        e.gap_sum_s,
        e.gap_max_s,
    )
