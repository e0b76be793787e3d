"""The state of one SGLang engine: its record, slots, the waiting queue, the heap of last steps.

A *slot* is the place of one live request in the columns. A running request gets a token in every step with decodes
("decode step", numbered from 0): it has ``base + decode_planned`` tokens with a KV slot, and nothing is updated per
token.
"""

from __future__ import annotations

import numpy as np

from simulator.compiled import compiled, record
from simulator.engine.columns import GAP_BINS, MAX_SAMPLES
from simulator.engine.sglang.columns import COLUMNS, RING
from simulator.engine.state import NEVER, PREFILL, longer, wider
from simulator.kv.radix import make_radix

FREE, WAITING, CHUNKED, PREFILLED_LAST, RUNNING, DROPPED, DONE, REMOTE, READY, HELD, RETRACTED = range(11)
STAYS, GONE, TOLD = range(3)  # a request's client: is there; has gone; has gone, and the scheduler knows
CLIP_MAX_NEW_TOKENS = 4096  # of a longer output, admission keeps room for so much only
RETRACT_DECODE_STEPS = 20  # a retraction makes room for so many steps

State = record("State", COLUMNS, __name__)


@compiled
def make_state(  # type: ignore[no-untyped-def]
    role,
    depth,
    max_running,
    chunk_size,
    max_prefill,
    mixed,
    lpm,
    ignore_eos,
    reserve_known,
    within_budget,
    binding,
    send_post_s,
    send_post_page_s,
    send_post_run_s,
    page,
    pool_size,
    longest,
    ratio_init,
    ratio_min,
    ratio_decay,
    decode_reserve,
    recv_interval,
    caching,
    tell_finished,
    tell_chunks,
    logging,
    macro,
    limits,
    cost,
    content,
    desk,
):
    """An idle engine with ``pool_size`` KV tokens, all free."""
    slots = 64
    ints = np.zeros(slots, np.int64)
    reals = np.zeros(slots)
    lists = np.zeros((RING, slots), np.int64)
    ring = np.zeros(RING, np.int64)
    free_slot = np.zeros(slots, np.int64)
    for i in range(slots):
        free_slot[i] = slots - 1 - i
    log = 1024 if logging else 1
    return State(
        # settings
        role,
        depth,
        max_running,
        chunk_size,
        max_prefill,
        mixed,
        lpm,
        ignore_eos,
        reserve_known,
        within_budget,
        binding,
        send_post_s,
        send_post_page_s,
        send_post_run_s,
        page,
        pool_size,
        longest,
        ratio_init,
        ratio_min,
        ratio_decay,
        decode_reserve,
        recv_interval,
        caching,
        tell_finished,
        tell_chunks,
        logging,
        macro,
        # numbers
        0,
        0,
        0,
        0,
        0.0,
        0.0,
        0.0,
        NEVER,
        -NEVER,
        -1.0,
        0,
        0,
        False,
        -1,
        0,
        False,
        False,
        0,
        ratio_init,
        pool_size,
        max_running,
        0,
        0,
        0,
        0,
        0,
        False,
        False,
        False,
        0,
        0,
        0,
        0.0,
        0,
        pool_size,
        0,
        0,
        0,
        0,
        0,
        0,
        0.0,
        -1,
        0,
        0,
        -1,
        0,
        0,
        0,
        0,
        0,
        slots,
        0.0,
        0.0,
        0.0,
        0,
        0,
        0,
        0,
        0,
        0,
        0.0,
        0.0,
        0.01,
        0.0,
        0,
        0,
        0,
        0,
        # slots: integers
        ints.copy(),
        ints.copy(),
        ints.copy(),
        ints.copy(),
        ints.copy(),
        ints.copy(),
        ints.copy(),
        ints.copy(),
        ints.copy(),
        ints.copy(),
        ints.copy(),
        ints.copy(),
        ints.copy(),
        ints.copy(),
        ints.copy(),
        ints.copy(),
        ints.copy(),
        ints.copy(),
        ints.copy(),
        ints.copy(),
        ints.copy(),
        ints.copy(),
        ints.copy(),
        ints.copy(),
        # slots: reals
        reals.copy(),
        reals.copy(),
        reals.copy(),
        reals.copy(),
        reals.copy(),
        reals.copy(),
        # arrays
        ints.copy(),
        ints.copy(),
        ints.copy(),
        ints.copy(),
        ints.copy(),
        ints.copy(),
        ints.copy(),
        ints.copy(),
        ints.copy(),
        np.full(cost.ranks, -1),
        np.zeros(cost.ranks, np.int64),
        np.zeros(cost.ranks, np.int64),
        np.zeros(cost.ranks, np.int64),
        np.zeros(cost.ranks),
        np.zeros(page, np.int64),
        ints.copy(),
        ints.copy(),
        ints.copy(),
        np.zeros(RING),
        ring.copy(),
        ring.copy(),
        ring.copy(),
        ring.copy(),
        ring.copy(),
        lists.copy(),
        lists.copy(),
        lists.copy(),
        free_slot,
        limits,
        ints.copy(),
        ints.copy(),
        ints.copy(),
        ints.copy(),
        reals.copy(),
        reals.copy(),
        np.zeros(GAP_BINS, np.int64),
        np.zeros(MAX_SAMPLES),
        np.zeros(MAX_SAMPLES, np.int64),
        np.zeros(MAX_SAMPLES, np.int64),
        np.zeros(MAX_SAMPLES, np.int64),
        np.zeros(log),
        np.zeros(log),
        np.zeros(log, np.int64),
        np.zeros(log, np.int64),
        np.zeros(log, np.int64),
        # records
        cost,
        make_radix(page, caching, content),
        make_radix(1, True, content),
        content,
        desk,
    )


@compiled
def grow_slots(e):  # type: ignore[no-untyped-def]
    """Twice the slots, when more requests are live than ever before."""
    old = e.row.size
    e.row, e.status, e.prompt, e.target = longer(e.row), longer(e.status), longer(e.prompt), longer(e.target)
    e.limit, e.final, e.outputs, e.fill = longer(e.limit), longer(e.final), longer(e.outputs), longer(e.fill)
    e.prefix, e.extend_end, e.protected = longer(e.prefix), longer(e.extend_end), longer(e.protected)
    e.committed, e.base, e.join = longer(e.committed), longer(e.base), longer(e.join)
    e.last_step, e.ticket, e.position = longer(e.last_step), longer(e.ticket), longer(e.position)
    e.node, e.matched, e.hit = longer(e.node), longer(e.matched), longer(e.hit)
    e.times_preempted, e.holds, e.started = longer(e.times_preempted), longer(e.holds), longer(e.started)
    e.gone = longer(e.gone)
    e.segment, e.segment_low = longer(e.segment), longer(e.segment_low)
    e.token_sum, e.last_token = longer(e.token_sum), longer(e.last_token)
    e.life_left, e.life_held = longer(e.life_left), longer(e.life_held)
    e.running, e.last, e.fresh, e.scratch = longer(e.running), longer(e.last), longer(e.fresh), longer(e.scratch)
    e.holding, e.ready, e.retracted, e.admitted = (
        longer(e.holding),
        longer(e.ready),
        longer(e.retracted),
        longer(e.admitted),
    )
    e.firsts, e.leaving, e.joined = wider(e.firsts), wider(e.leaving), wider(e.joined)
    e.free_slot = longer(e.free_slot)
    for i in range(old):
        e.free_slot[e.free_slots] = 2 * old - 1 - i
        e.free_slots += 1


@compiled
def new_slot(e, row, prompt, target):  # type: ignore[no-untyped-def]
    """A slot for a request that has just come; what it may make is cut to what can ever fit.

    Where the end of sequence is ignored, the length of the trace is what the client asked for.
    """
    if e.free_slots == 0:
        grow_slots(e)
    e.free_slots -= 1
    s = e.free_slot[e.free_slots]
    limit = target
    if not e.ignore_eos and e.role != PREFILL and row < e.limits.size and e.limits[row] >= 0:
        limit = e.limits[row]
    limit = max(0, min(limit, e.longest - prompt - 1))
    limit = max(0, min(limit, e.pool_size - pages(e, prompt) * e.page - e.page - 1))
    e.row[s], e.status[s], e.prompt[s], e.target[s] = row, WAITING, prompt, target
    e.limit[s], e.final[s] = limit, max(min(limit, target), 1)
    e.outputs[s], e.fill[s], e.prefix[s], e.extend_end[s] = 0, prompt, 0, 0
    e.protected[s], e.committed[s], e.matched[s] = 0, 0, 0
    e.node[s], e.hit[s], e.times_preempted[s], e.holds[s], e.started[s] = -1, -1, 0, 0, 0
    e.gone[s], e.token_sum[s], e.last_token[s] = STAYS, 0.0, 0.0
    return s


@compiled
def pages(e, tokens):  # type: ignore[no-untyped-def]
    """KV pages that hold ``tokens`` tokens."""
    return (tokens + e.page - 1) // e.page


@compiled
def wait_last(e, s):  # type: ignore[no-untyped-def]
    """Append to the waiting queue."""
    end = e.waiting_head + e.waiting_count
    if end == e.waiting.size:
        if e.waiting_head * 2 < e.waiting.size:
            e.waiting = longer(e.waiting)
        for i in range(e.waiting_count):
            e.waiting[i] = e.waiting[e.waiting_head + i]
        e.waiting_head = 0
        end = e.waiting_count
    e.waiting[end] = s
    e.waiting_count += 1


@compiled
def seen(e):  # type: ignore[no-untyped-def]
    """Waiting requests that the scheduler knows of."""
    return e.waiting_count - e.unseen


@compiled
def outputs_now(e, s):  # type: ignore[no-untyped-def]
    """Output tokens whose steps have been completed."""
    if e.status[s] == RUNNING:
        return e.outputs[s] + max(0, e.decode_done - e.join[s])
    return e.outputs[s]


@compiled
def heap_push(e, s):  # type: ignore[no-untyped-def]
    """Note in which decode step ``s`` gets its last token."""
    if e.heap_count == e.heap_batch.size:
        e.heap_batch, e.heap_order, e.heap_slot = longer(e.heap_batch), longer(e.heap_order), longer(e.heap_slot)
    i, step = e.heap_count, e.last_step[s]
    e.heap_count += 1
    while i > 0 and e.heap_batch[(i - 1) // 2] > step:
        up = (i - 1) // 2
        e.heap_batch[i], e.heap_order[i], e.heap_slot[i] = e.heap_batch[up], e.heap_order[up], e.heap_slot[up]
        i = up
    e.heap_batch[i], e.heap_order[i], e.heap_slot[i] = step, e.ticket[s], s


@compiled
def heap_pop(e):  # type: ignore[no-untyped-def]
    """Drop the heap's first entry."""
    e.heap_count -= 1
    n = e.heap_count
    step, order, s = e.heap_batch[n], e.heap_order[n], e.heap_slot[n]
    i = 0
    while 2 * i + 1 < n:
        child = 2 * i + 1
        if child + 1 < n and e.heap_batch[child + 1] < e.heap_batch[child]:
            child += 1
        if e.heap_batch[child] >= step:
            break
        e.heap_batch[i], e.heap_order[i] = e.heap_batch[child], e.heap_order[child]
        e.heap_slot[i] = e.heap_slot[child]
        i = child
    e.heap_batch[i], e.heap_order[i], e.heap_slot[i] = step, order, s


@compiled
def next_last_step(e):  # type: ignore[no-untyped-def]
    """The decode step that brings the next last token; entries that no longer hold are dropped."""
    while e.heap_count > 0:
        s = e.heap_slot[0]
        if e.status[s] == RUNNING and e.ticket[s] == e.heap_order[0]:
            return e.heap_batch[0]
        heap_pop(e)
    return 1 << 60


@compiled
def sort_by_position(e, slots, count):  # type: ignore[no-untyped-def]
    """Put a short list of running slots in batch order."""
    for i in range(1, count):
        s = slots[i]
        j = i
        while j > 0 and e.position[slots[j - 1]] > e.position[s]:
            slots[j] = slots[j - 1]
            j -= 1
        slots[j] = s
