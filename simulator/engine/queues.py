"""The engine's queues: the waiting ring, the running list in order of admission, the heap of last batches."""

from __future__ import annotations

import numpy as np

from simulator.compiled import compiled
from simulator.engine.state import DECODING, NO_BATCH, longer


@compiled
def wait_last(e, s):  # type: ignore[no-untyped-def]
    """Append to the waiting queue."""
    e.waiting[(e.waiting_head + e.waiting_count) % e.waiting.size] = s
    e.waiting_count += 1


@compiled
def wait_first(e, s):  # type: ignore[no-untyped-def]
    """Put at the head of the waiting queue."""
    e.waiting_head = (e.waiting_head - 1) % e.waiting.size
    e.waiting[e.waiting_head] = s
    e.waiting_count += 1


@compiled
def priority_of(e, s):  # type: ignore[no-untyped-def]
    """The request's priority: a smaller value is more urgent."""
    row = e.row[s]
    return e.rules.priorities[row] if row < e.rules.priorities.size else 0


@compiled
def comes_before(e, a, b):  # type: ignore[no-untyped-def]
    """Whether ``a`` is more urgent than ``b``: by priority, then by arrival."""
    mine, other = priority_of(e, a), priority_of(e, b)
    return mine < other or (mine == other and e.arrival[a] < e.arrival[b])


@compiled
def wait_by_priority(e, s):  # type: ignore[no-untyped-def]
    """Put into a waiting queue that is in order of urgency."""
    size = e.waiting.size
    i = e.waiting_count
    e.waiting_count += 1
    while i > 0:
        ahead = e.waiting[(e.waiting_head + i - 1) % size]
        if comes_before(e, ahead, s):
            break
        e.waiting[(e.waiting_head + i) % size] = ahead
        i -= 1
    e.waiting[(e.waiting_head + i) % size] = s


@compiled
def hold_by_priority(e, s):  # type: ignore[no-untyped-def]
    """Put on the list of those that wait for KV, which is in order of urgency."""
    i = e.holding_count
    e.holding_count += 1
    while i > 0 and comes_before(e, s, e.holding[i - 1]):
        e.holding[i] = e.holding[i - 1]
        i -= 1
    e.holding[i] = s


@compiled
def without(slots, count, s):  # type: ignore[no-untyped-def]
    """Take a slot out of the first ``count`` of a list, the order of the others kept; returns how many are left."""
    kept = 0
    for i in range(count):
        if slots[i] != s:
            slots[kept] = slots[i]
            kept += 1
    return kept


@compiled
def leave_waiting(e, position):  # type: ignore[no-untyped-def]
    """Take the slot at ``position`` (0 = head) out of the waiting queue."""
    size = e.waiting.size
    for i in range(position, 0, -1):
        e.waiting[(e.waiting_head + i) % size] = e.waiting[(e.waiting_head + i - 1) % size]
    e.waiting_head = (e.waiting_head + 1) % size
    e.waiting_count -= 1


@compiled
def leave_holding(e, position):  # type: ignore[no-untyped-def]
    """Take the slot at ``position`` off the list of those that wait for KV: it is there."""
    e.remote[e.holding[position]] = 0
    e.holding_count -= 1
    for j in range(position, e.holding_count):
        e.holding[j] = e.holding[j + 1]


@compiled
def leave_running(e, s):  # type: ignore[no-untyped-def]
    """Take ``s`` out of the running list; the order of the others stays."""
    i = 0
    while e.running[i] != s:
        i += 1
    e.running_count -= 1
    while i < e.running_count:
        e.running[i] = e.running[i + 1]
        i += 1


@compiled
def emptiest_rank(e):  # type: ignore[no-untyped-def]
    """The attention data-parallel rank with the fewest requests, running and waiting; the first of several."""
    load = np.zeros(e.rules.ranks, np.int64)
    for i in range(e.running_count):
        load[e.rank[e.running[i]]] += 1
    for i in range(e.waiting_count):
        load[e.rank[e.waiting[(e.waiting_head + i) % e.waiting.size]]] += 1
    return np.argmin(load)


@compiled
def heap_push(e, batch, s):  # type: ignore[no-untyped-def]
    """Note that ``s`` gets its last token in ``batch``."""
    if e.heap_count == e.heap_batch.size:
        e.heap_batch, e.heap_order, e.heap_slot = longer(e.heap_batch), longer(e.heap_order), longer(e.heap_slot)
    i = e.heap_count
    e.heap_count += 1
    order = e.order[s]
    while i > 0:
        parent = (i - 1) // 2
        if e.heap_batch[parent] < batch or (e.heap_batch[parent] == batch and e.heap_order[parent] <= order):
            break
        e.heap_batch[i], e.heap_order[i] = e.heap_batch[parent], e.heap_order[parent]
        e.heap_slot[i] = e.heap_slot[parent]
        i = parent
    e.heap_batch[i], e.heap_order[i], e.heap_slot[i] = batch, order, s


@compiled
def heap_pop(e):  # type: ignore[no-untyped-def]
    """Drop the heap's first entry."""
    e.heap_count -= 1
    n = e.heap_count
    batch, order, s = e.heap_batch[n], e.heap_order[n], e.heap_slot[n]
    i = 0
    while True:
        child = 2 * i + 1
        if child >= n:
            break
        right = child + 1
        if right < n and (
            e.heap_batch[right] < e.heap_batch[child]
            or (e.heap_batch[right] == e.heap_batch[child] and e.heap_order[right] < e.heap_order[child])
        ):
            child = right
        if e.heap_batch[child] > batch or (e.heap_batch[child] == batch and e.heap_order[child] >= order):
            break
        e.heap_batch[i], e.heap_order[i] = e.heap_batch[child], e.heap_order[child]
        e.heap_slot[i] = e.heap_slot[child]
        i = child
    e.heap_batch[i], e.heap_order[i], e.heap_slot[i] = batch, order, s


@compiled
def next_last_batch(e):  # type: ignore[no-untyped-def]
    """The batch in which a decoding request gets its last token next; entries that no longer hold are dropped."""
    while e.heap_count > 0:
        s = e.heap_slot[0]
        if e.status[s] == DECODING and e.order[s] == e.heap_order[0] and e.last_batch[s] == e.heap_batch[0]:
            return e.heap_batch[0]
        heap_pop(e)
    return NO_BATCH
