"""A client has gone: what SGLang's scheduler does when the message reaches it (``Scheduler.abort_request``, 0.5.23).

Messages are read where new requests are, before a step is planned. Who waits leaves at once; a prompt that is computed
in part leaves before its next chunk; a running request is only marked, and leaves with the next result that it has a
part in. A step planned ahead by then still has it: that token is thrown away, as behind an end of sequence.
"""

from __future__ import annotations

from simulator.compiled import compiled
from simulator.engine.queues import without
from simulator.engine.sglang.columns import RING
from simulator.engine.sglang.memory import release
from simulator.engine.sglang.ranks import forget_cut
from simulator.engine.sglang.state import (
    CHUNKED,
    FREE,
    GONE,
    HELD,
    PREFILLED_LAST,
    READY,
    REMOTE,
    RETRACTED,
    RUNNING,
    TOLD,
    WAITING,
    heap_push,
    outputs_now,
    sort_by_position,
)
from simulator.engine.state import PREFILL, free_slot


@compiled
def read_aborts(e):  # type: ignore[no-untyped-def]
    """Do what the messages of clients who have gone ask for."""
    e.aborts = 0
    for s in range(e.row.size):
        if e.gone[s] == GONE and e.status[s] != FREE:
            e.gone[s] = TOLD
            abort(e, s)


@compiled
def abort(e, s):  # type: ignore[no-untyped-def]
    """One request: out of its queue at once, or out of the batch with its next result."""
    status = e.status[s]
    if status == RUNNING:
        end_with_next_token(e, s)
    elif status == PREFILLED_LAST:
        if e.role != PREFILL:  # there it is let go when the result comes
            e.final[s] = e.outputs[s] + 1
    elif status == WAITING:
        e.waiting_count = without(e.waiting[e.waiting_head :], e.waiting_count, s)
        e.pending_prompt_tokens -= e.prompt[s] + e.outputs[s]
        free_slot(e, s)
    elif status == CHUNKED:
        forget_cut(e, s)
        e.chunked = -1
        e.pending_prompt_tokens -= e.fill[s] - e.extend_end[s]
        give_back(e, s)
    elif status == REMOTE:
        leave_reading(e, s)
    elif status == READY:
        e.ready_count = without(e.ready, e.ready_count, s)
        if e.outputs[s] == 0:
            e.pending_prompt_tokens -= e.prompt[s]
        give_back(e, s)
    elif status == RETRACTED:
        e.retracted_count = without(e.retracted, e.retracted_count, s)
        free_slot(e, s)
    elif status == HELD:
        e.holding_count -= 1
        give_back(e, s)


@compiled
def end_with_next_token(e, s):  # type: ignore[no-untyped-def]
    """The token in flight is its last, or else the one of the next step with decodes.

    Messages are read before a step is planned: at most one is in flight, none that a retracted request has a part in,
    and first tokens of all who run have come.
    """
    if e.last_step[s] < e.decode_planned:  # its last token is in flight as it is
        return
    e.final[s] = outputs_now(e, s) + 1
    e.ticket[s] = e.tickets  # its entry in the heap does not hold any more
    e.tickets += 1
    if max(e.join[s], e.decode_done) < e.decode_planned:
        r = (e.planned - 1) % RING
        e.leaving[r, e.batch_leaving[r]] = s
        e.batch_leaving[r] += 1
        sort_by_position(e, e.leaving[r], e.batch_leaving[r])
    else:
        e.last_step[s] = e.decode_planned
        heap_push(e, s)


@compiled
def leave_reading(e, s):  # type: ignore[no-untyped-def]
    """DECODE: the KV that a slot waits for is not wanted, or will not come."""
    e.holding_count = without(e.holding, e.holding_count, s)
    e.pending_prompt_tokens -= e.prompt[s]
    give_back(e, s)


@compiled
def give_back(e, s):  # type: ignore[no-untyped-def]
    """What the slot holds, and the slot; nothing more of it goes to the tree."""
    release(e, s)
    free_slot(e, s)
