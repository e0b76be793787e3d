"""How batches follow one another: plan, launch, complete; stretches of pure decode in one go.

Planning takes no time. With asynchronous scheduling (depth 2) the next batch is planned when one ends and the one
planned before it starts; an engine with nothing in flight plans at once. Moments: a batch's end is taken first, then
whatever arrives in that instant, then planning (house rule 3).
"""

from __future__ import annotations

import numpy as np

from simulator.compiled import compiled
from simulator.cost.power import limited_step, step_energy_s
from simulator.cost.table import decode_launch_seconds, decode_step_seconds, mixed_step_seconds
from simulator.engine.blocks import (
    bucket_add,
    take_phase,
)
from simulator.engine.columns import RING
from simulator.engine.completion import advance_clock, complete, hear_of_transfer
from simulator.engine.launching import drawn_launch_s, limited_s, start_batch, start_decode
from simulator.engine.policies import must_wait, plan
from simulator.engine.queues import emptiest_rank, heap_push, next_last_batch, wait_by_priority, wait_last
from simulator.engine.rules import REMADE
from simulator.engine.speculation import verification_seconds
from simulator.engine.state import COLOCATED, DECODE, INSTANT_S, NEVER, REMOTE, date_chunks, longer, new_slot, sample
from simulator.engine.vllm import drop_decode, register_filled
from simulator.kv.pool import find


@compiled
def submit(e, row, prompt, target, part, outside, now):  # type: ignore[no-untyped-def]
    """A request comes in; returns when to look next.

    ``part``: what is done of it here; DECODE if its prompt's KV is to be read from elsewhere. ``outside``: leading
    prompt tokens that caches below this engine seem to hold.
    """
    s = new_slot(e, row, prompt, target, part)
    if part == DECODE:
        e.remote[s] = 1
        e.unread += 1
        if e.rules.first_token != REMADE:
            e.received[s] = 1
    else:
        e.pending_prompt_tokens += prompt
        if outside > 0:
            e.remote[s], e.outside[s] = 1, outside
            e.unread += 1
    if e.rules.ranks > 1:
        e.rank[s] = emptiest_rank(e)
    if e.rules.by_priority:
        e.arrival[s] = e.submissions
        e.submissions += 1
        wait_by_priority(e, s)
    else:
        wait_last(e, s)
    if e.planned == e.completed:
        e.plan_at_s = min(e.plan_at_s, now)
    return next_wake(e)


@compiled
def transfer_ended(e, s, now):  # type: ignore[no-untyped-def]
    """A read of the slot's KV has ended; the scheduler hears of it with the next batch, or at once when idle."""
    reading = e.status[s] == REMOTE
    if reading and now - e.last_token[s] < INSTANT_S and e.completed <= e.first_batch[s] < e.planned:
        r = e.first_batch[s] % RING  # a read that takes no time ends with the planning that began it
        e.batch_report[r, e.batch_reports[r]] = s
        e.batch_reports[r] += 1
        return next_wake(e)
    e.reports[e.reports_count] = s
    e.reports_count += 1
    if e.planned == e.completed:
        e.plan_at_s = min(e.plan_at_s, now)
    return next_wake(e)


@compiled
def schedule(e, now):  # type: ignore[no-untyped-def]
    """Plan until the engine has as many batches in flight as it may, or nothing is left to plan."""
    while e.planned - e.completed < e.depth:
        preempted = e.preempted
        if plan_and_launch(e, now):
            continue
        if e.planned > e.completed or (e.reports_count == 0 and e.preempted == preempted):
            break
        for i in range(e.reports_count):  # an idle engine hears at once, and plans again
            hear_of_transfer(e, e.reports[i])
        e.reports_count = 0


@compiled
def plan_and_launch(e, now):  # type: ignore[no-untyped-def]
    """Plan one batch and start it behind the one that runs; False if there was nothing to plan."""
    rows_before, news_before = e.log_rows, e.news_count
    work, decodes = plan(e, now)
    singles, context, chunks, new, past, attention, finished = work
    if singles + chunks == 0:
        e.log_rows = rows_before
        return False
    if e.drafted > 0:
        seconds = verification_seconds(e.cost, e.rules, e.drafted, work)
    elif chunks == 0:
        seconds = decode_step_seconds(e.cost, singles, context)
    else:
        seconds = mixed_step_seconds(e.cost, singles, context, chunks, new, past, attention, finished)
    launch = (
        drawn_launch_s(e, now, singles + new, singles + chunks)
        if chunks > 0
        else decode_launch_seconds(e.cost, singles)
    )
    r = e.planned % RING
    move_on_absent(e)
    for i in range(e.reports_count):
        e.batch_report[r, i] = e.reports[i]
    e.batch_reports[r] = e.reports_count
    e.reports_count = 0
    energy_s = step_energy_s(e.cost, singles, singles + new, context, attention, chunks)
    start = push_batch(e, now, seconds, energy_s, decodes, launch, chunks > 0)
    if e.tell_chunks:
        date_chunks(e, news_before, start, e.gpu_free_s)
    if e.logging:
        log_batch(e, start, rows_before)
    return True


@compiled
def push_batch(e, now, seconds, energy_s, decodes, launch, prompts):  # type: ignore[no-untyped-def]
    """Start the planned batch; returns when it does. ``prompts``: whether it holds any prompt tokens."""
    r = e.planned % RING
    # of two batches with prompts that are planned from idle, the second is launched behind the first; a decode step
    # behind a lone prompt holds back none of its tokens
    begin = max(now, e.host_free_s, e.launched_s if prompts else 0.0)
    seconds = limited_s(e, begin, seconds, energy_s, launch, prompts)
    if prompts:
        start = start_batch(e, now, begin, seconds, launch)
        e.launched_s = begin + launch
    else:
        start = start_decode(e, now, begin, seconds, launch)
    e.batch_decodes[r] = decodes
    if e.rules.stream_interval > 1:
        e.batch_sent[r] = e.stream_phase[e.planned % e.rules.stream_interval]
    e.decode_tokens += decodes
    e.planned += 1
    e.peak_blocks = max(e.peak_blocks, e.pool.blocks - e.pool.free)
    return start


@compiled
def log_batch(e, start, first):  # type: ignore[no-untyped-def]
    i = e.log_batches
    if i == e.log_start_s.size:
        e.log_start_s, e.log_end_s, e.log_first = longer(e.log_start_s), longer(e.log_end_s), longer(e.log_first)
    e.log_start_s[i], e.log_end_s[i], e.log_first[i] = start, e.gpu_free_s, first
    e.log_batches += 1


@compiled
def move_on_absent(e):  # type: ignore[no-untyped-def]
    """Requests left out of the batch being launched stay where they are: everything one batch later for them."""
    r = e.planned % RING
    for i in range(e.batch_absent[r]):
        s = e.absent[r, i]
        drop_decode(e, s)
        e.absent_batch[s] = e.planned
        e.offset[s] -= 1
        e.last_batch[s] += 1
        e.decodes += 1
        e.offset_sum += e.offset[s]
        bucket_add(e, s)
        heap_push(e, e.last_batch[s], s)


@compiled
def is_plain(e):  # type: ignore[no-untyped-def]
    """Whether nothing but decode is in sight: no prompt, no report, no first or last token, nobody who could join."""
    if e.decodes == 0 or e.partials + e.reports_count + e.late_count > 0 or e.planned - e.completed != e.depth:
        return False
    for b in range(e.completed, e.planned):
        r = b % RING
        if e.batch_firsts[r] + e.batch_leaving[r] + e.batch_stale[r] + e.batch_absent[r] + e.batch_reports[r] > 0:
            return False
    full = e.running_count >= e.max_num_seqs or e.token_budget <= e.decodes
    if not full:
        for i in range(e.holding_count):
            if e.remote[e.holding[i]] == 2:
                return False
    return e.waiting_count == 0 or must_wait(e, full)


@compiled
def decode_run(e, until):  # type: ignore[no-untyped-def]
    """A macro-step: batches of pure decode one after another, up to the first that is anything more.

    Each is the same sum that planning and completing it would do, so the result is the stepper's to the last bit.
    """
    if not is_plain(e):
        return
    stop = next_last_batch(e)
    n = e.decodes
    launch = decode_launch_seconds(e.cost, n)
    while e.planned < stop:
        end = e.batch_end_s[e.completed % RING]
        phase = (-e.planned) % e.block_size
        if end >= until - INSTANT_S or e.phase_count[phase] > e.pool.free:
            return
        done = e.completed
        advance_clock(e, end)
        if e.caching and e.depth > 1:
            register_filled(e, done)
        if end >= e.sample_next_s:
            sample(e, end)
        take_phase(e, phase)
        if e.caching and e.depth == 1:
            register_filled(e, e.planned)
        r = e.planned % RING
        e.batch_firsts[r], e.batch_leaving[r], e.batch_stale[r], e.batch_absent[r] = 0, 0, 0, 0
        e.batch_reports[r] = 0
        context = n * e.planned + e.offset_sum
        energy_s = step_energy_s(e.cost, n, n, context, 0.0, 0)
        push_batch(e, end, decode_step_seconds(e.cost, n, context), energy_s, n, launch, False)


@compiled
def next_wake(e):  # type: ignore[no-untyped-def]
    """The next moment at which something may happen that the cluster has to hear of; NEVER if only an arrival can.

    In a stretch of pure decode it is found by running ahead on the sums alone, without committing anything.
    """
    if not e.tell_finished and e.unread == 0 and e.role in (COLOCATED, DECODE):
        return NEVER
    if e.plan_at_s < NEVER:
        if e.running_count + e.waiting_count + e.holding_count == 0:
            return NEVER  # only ended transfers to hear of, which can wait
        return e.plan_at_s + 2 * INSTANT_S
    if e.planned == e.completed:
        return NEVER
    if not e.macro or not is_plain(e):
        return e.batch_end_s[e.completed % RING]
    stop = next_last_batch(e)
    ends = np.empty(RING)
    ends[:] = e.batch_end_s
    done, planned, free, gpu_free = e.completed, e.planned, e.pool.free, e.gpu_free_s
    n, pressure, worked = e.decodes, e.pressure, e.worked_s
    launch = decode_launch_seconds(e.cost, n)
    while True:
        end = ends[done % RING]
        need = e.phase_count[(-planned) % e.block_size]
        if planned >= stop or need > free:
            return end
        free -= need
        if planned > done + 1:
            ends[(planned - 1) % RING] = max(ends[(planned - 1) % RING], end + launch)
        start, context = max(end + launch, gpu_free), n * planned + e.offset_sum
        seconds, energy_s = decode_step_seconds(e.cost, n, context), step_energy_s(e.cost, n, n, context, 0.0, 0)
        seconds, pressure, worked = limited_step(e.cost, start, seconds, energy_s, pressure, worked)
        gpu_free = start + seconds
        ends[planned % RING] = gpu_free
        done += 1
        planned += 1


@compiled
def advance(e, until):  # type: ignore[no-untyped-def]
    """Live through everything before the instant of ``until``, and the ends of batches within it.

    Planning that falls into that instant stays due, so that what else arrives in it comes first.
    """
    while True:
        if e.plan_at_s < until - INSTANT_S:
            now = e.plan_at_s
            e.plan_at_s = NEVER
            schedule(e, now)
            if e.macro:
                decode_run(e, until)
        if e.plan_at_s < NEVER or e.planned == e.completed:
            return
        if e.batch_end_s[e.completed % RING] > until + INSTANT_S:
            return
        end = complete(e)
        if e.running_count + e.waiting_count + e.holding_count + e.reports_count > 0 or e.planned > e.completed:
            e.plan_at_s = end


@compiled
def pulse(e, until):  # type: ignore[no-untyped-def]
    """Advance, and say how many news there are and when to come again."""
    advance(e, until)
    return e.news_count, next_wake(e)


@compiled
def take_news(e):  # type: ignore[no-untyped-def]
    """Copies of the news: kind, row, slot, value, moment, since when."""
    n = e.news_count
    e.news_count = 0
    return (
        e.news_kind[:n].copy(),
        e.news_row[:n].copy(),
        e.news_slot[:n].copy(),
        e.news_value[:n].copy(),
        e.news_s[:n].copy(),
        e.news_from_s[:n].copy(),
    )


@compiled
def load(e):  # type: ignore[no-untyped-def]
    """What a router may see: running, waiting, holding, free blocks, all blocks, prompt tokens not yet computed."""
    return (
        e.running_count,
        e.waiting_count,
        e.holding_count,
        e.pool.free,
        e.pool.blocks,
        e.pending_prompt_tokens,
    )


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
    """Leading tokens of a prompt that each engine's prefix cache holds, into ``found``; nothing is touched.

    ``keys``: of its whole blocks, chained (``simulator.kv.content.block_keys``).
    """
    for i in range(len(engines)):
        e = engines[i]
        hits = 0
        if e.caching:
            while hits < keys.size and find(e.pool, keys[hits]) >= 0:
                hits += 1
        found[i] = hits * e.block_size


@compiled
def take_evicted(e):  # type: ignore[no-untyped-def]
    """Keys of the blocks whose content the prefix cache has dropped since the last time, in order."""
    n = e.pool.evicted_count
    e.pool.evicted_count = 0
    return e.pool.evicted[:n].copy()


@compiled
def totals(e):  # type: ignore[no-untyped-def]
    """Sums over the run: batches, busy seconds, peak blocks, preemptions, decode, prompt, hit and looked-up tokens."""
    return (
        e.completed,
        e.busy_s,
        e.peak_blocks,
        e.preempted,
        e.decode_tokens,
        e.prefill_tokens,
        e.hit_tokens,
        e.lookup_tokens,
        e.gap_sum_s,
        e.gap_max_s,
    )


@compiled
def series(e):  # type: ignore[no-untyped-def]
    """The time series: moments, running, waiting, blocks taken; and the histogram of token gaps."""
    n = e.samples
    return (
        e.sample_s[:n].copy(),
        e.sample_running[:n].copy(),
        e.sample_waiting[:n].copy(),
        e.sample_blocks[:n].copy(),
        e.gap_counts.copy(),
    )


@compiled
def step_log(e):  # type: ignore[no-untyped-def]
    """Every batch written down: starts, ends, first entries; and the entries' rows and tokens."""
    n, m = e.log_batches, e.log_rows
    return (
        e.log_start_s[:n].copy(),
        e.log_end_s[:n].copy(),
        e.log_first[:n].copy(),
        e.log_row[:m].copy(),
        e.log_tokens[:m].copy(),
    )
