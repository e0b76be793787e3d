"""What happens when a batch ends: first and last tokens are written down, blocks freed, ended transfers heard of."""

from __future__ import annotations

from simulator.compiled import compiled
from simulator.engine.blocks import (
    blocks_for,
    close_table,
    drop_pledge,
    free_blocks,
    register_blocks,
)
from simulator.engine.columns import RING
from simulator.engine.queues import leave_running, leave_waiting
from simulator.engine.rules import AT_PREFILL
from simulator.engine.speculation import write_made
from simulator.engine.state import (
    COLOCATED,
    DECODING,
    FINISHED,
    HELD,
    LEAVING,
    PREFILL,
    PREFILLED,
    REMOTE,
    count_gap,
    free_slot,
    prompt_done,
    sample,
    tell,
)
from simulator.engine.streaming import send_groups, send_last, wait_for_group
from simulator.engine.vllm import close_stretch, register_filled


@compiled
def advance_clock(e, end):  # type: ignore[no-untyped-def]
    """Take over the end of the oldest batch: token gaps, and the compensated sum of batch ends."""
    r = e.completed % RING
    if e.rules.stream_interval > 1:
        send_groups(e, r, end)
    elif e.batch_decodes[r] > 0:
        count_gap(e, end - e.previous_end_s, e.batch_decodes[r])
    total = e.end_sum + end
    virtual = total - e.end_sum
    e.end_sum_low += (e.end_sum - (total - virtual)) + (end - virtual)
    e.end_sum = total
    e.previous_end_s = end
    e.completed += 1


@compiled
def complete(e):  # type: ignore[no-untyped-def]
    """The oldest batch ends: write down first and last tokens, free what is done, hear of ended transfers."""
    b = e.completed
    r = b % RING
    end = e.batch_end_s[r]
    sum_before, low_before, previous = e.end_sum, e.end_sum_low, e.previous_end_s
    advance_clock(e, end)
    for i in range(e.batch_firsts[r]):
        s = e.firsts[r, i]
        if e.stale_batch[s] != b:
            first_token(e, s, end, sum_before, low_before)
    if e.rules.drafts > 0:
        write_made(e, r, end)
    for i in range(e.batch_absent[r]):
        s = e.absent[r, i]
        if (e.status[s] == DECODING or e.status[s] == LEAVING) and e.first_batch[s] <= b:
            e.first_batch[s] += 1
            e.token_sum[s] -= end
            note_late(e, s, previous)
    if e.late_count > 0:
        count_late(e, b, end, previous)
    if e.caching and e.depth > 1:
        register_filled(e, b)
        register_leaving(e, (b + 1) % RING, e.planned > b + 1)
    for i in range(e.batch_leaving[r]):
        s = e.leaving[r, i]
        if e.stale_batch[s] != b:
            last_token(e, s, end)
    for i in range(e.batch_stale[r]):
        stale_token(e, e.stale[r, i], end)
    for i in range(e.batch_reports[r]):
        hear_of_transfer(e, e.batch_report[r, i])
    if end >= e.sample_next_s:
        sample(e, end)
    return end


@compiled
def note_late(e, s, previous):  # type: ignore[no-untyped-def]
    """The request was left out of a batch: its next gap began at the end of the batch before."""
    for i in range(e.late_count):
        if e.late[i] == s:
            return
    e.last_token[s] = previous
    e.late[e.late_count] = s
    e.late_count += 1


@compiled
def count_late(e, b, end, previous):  # type: ignore[no-untyped-def]
    """Requests that were left out and are in batch ``b``: their gap is not the batch's."""
    kept = 0
    for i in range(e.late_count):
        s = e.late[i]
        if e.status[s] != DECODING and e.status[s] != LEAVING:
            continue
        if e.first_batch[s] > b or e.absent_batch[s] >= b:
            e.late[kept] = s
            kept += 1
            continue
        count_gap(e, end - previous, -1)
        count_gap(e, end - e.last_token[s], 1)
    e.late_count = kept


@compiled
def register_leaving(e, r, there):  # type: ignore[no-untyped-def]
    """Requests outside the decoding set of the batch after this one: the block this one filled is cached too."""
    if there:
        for i in range(e.batch_leaving[r]):
            s = e.leaving[r, i]
            if e.status[s] == LEAVING and e.last_batch[s] > e.first_batch[s]:
                register_blocks(e, s, e.prompt[s] + e.target[s] - 2)
        for i in range(e.batch_absent[r]):
            s = e.absent[r, i]
            if e.status[s] == DECODING:
                register_blocks(e, s, e.planned + e.offset[s])


@compiled
def first_token(e, s, end, sum_before, low_before):  # type: ignore[no-untyped-def]
    """The first token of a stretch: a request's first, or the next after a preemption."""
    row = e.row[s]
    e.segment[s], e.segment_low[s] = -sum_before, -low_before
    if e.received[s] > 0:
        count_gap(e, end - e.last_token[s], 1)
    elif e.part[s] == PREFILL:
        e.desk.prefill_end_s[row] = end
        if e.rules.first_token == AT_PREFILL:
            e.desk.first_token_s[row] = end
    else:
        if e.part[s] == COLOCATED:
            prompt_done(e, s, end)
        if e.rules.stream_first:
            e.desk.first_token_s[row] = end
    if not e.rules.stream_first and e.desk.first_token_s[row] != e.desk.first_token_s[row]:
        wait_for_group(e, s)


@compiled
def last_token(e, s, end):  # type: ignore[no-untyped-def]
    """The request is done here."""
    leave_running(e, s)
    if e.rules.drafts == 0:
        close_stretch(e, s)
        e.held_blocks[s] = blocks_for(e, e.prompt[s] + e.target[s] - 1)
    e.received[s] = e.target[s]
    if e.part[s] == PREFILL:
        e.status[s] = HELD
        drop_pledge(e, s)
        tell(e, PREFILLED, s, e.held_blocks[s], end)
        row = e.row[s]
        e.desk.cached_tokens[row] = e.hit[s]
        e.desk.preemptions[row] += e.times_preempted[s]
        return
    register_blocks(e, s, e.prompt[s] + e.target[s] - 1)
    if e.rules.stream_interval > 1:
        send_last(e, s, e.completed - 1, end)
    finish(e, s, end)


@compiled
def finish(e, s, end):  # type: ignore[no-untyped-def]
    row = e.row[s]
    e.desk.last_token_s[row] = end
    e.desk.token_sum_s[row] = e.token_sum[s]
    e.desk.preemptions[row] += e.times_preempted[s]
    if e.part[s] == COLOCATED:
        e.desk.cached_tokens[row] = e.hit[s]
    if e.tell_finished:
        tell(e, FINISHED, s, 0, end)
    free_blocks(e, s)
    close_table(e, s)
    free_slot(e, s)


@compiled
def stale_token(e, s, end):  # type: ignore[no-untyped-def]
    """The token that was on its way when the request was preempted: it counts, and may be the last."""
    e.stale_batch[s] = -1
    e.received[s] += 1
    e.pending_prompt_tokens += 1
    e.token_sum[s] += end
    if e.received[s] > 1 and e.first_batch[s] == e.completed - 1:  # a stretch's first: the batch counts no gap for it
        count_gap(e, end - e.last_token[s], 1)
    e.last_token[s] = end
    if e.received[s] == 1 and (e.rules.stream_first or e.target[s] == 1):
        e.desk.first_token_s[e.row[s]] = end
        if e.part[s] == COLOCATED:
            prompt_done(e, s, end)
    if e.received[s] == e.target[s]:
        if e.rules.stream_interval > 1:
            send_last(e, s, e.completed - 1, end)
        position = 0
        while e.waiting[(e.waiting_head + position) % e.waiting.size] != s:
            position += 1
        leave_waiting(e, position)
        e.pending_prompt_tokens -= e.prompt[s] + e.received[s]
        finish(e, s, end)


@compiled
def hear_of_transfer(e, s):  # type: ignore[no-untyped-def]
    """A reported read: at the reading engine the request may start, at the other its blocks are free."""
    if e.status[s] == REMOTE:
        e.remote[s] = 2
        return
    free_blocks(e, s)
    close_table(e, s)
    free_slot(e, s)
