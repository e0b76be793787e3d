"""How a request of an SGLang engine ends: its first token, its last, and what becomes of its KV.

Of a request whose client has gone nothing is written down and nothing told; its tokens are made all the same.
"""

from __future__ import annotations

from simulator.compiled import compiled
from simulator.engine.sglang.memory import checkpoint, release, settle_committed
from simulator.engine.sglang.state import DONE, HELD, RETRACTED, STAYS, TOLD, WAITING, pages
from simulator.engine.state import FINISHED, PREFILL, PREFILLED, count_gap, free_slot, tell


@compiled
def is_retracted(e, s):  # type: ignore[no-untyped-def]
    """Whether a result that comes for it now is lost."""
    return e.status[s] == WAITING or e.status[s] == RETRACTED


@compiled
def free_done(e, slots, count):  # type: ignore[no-untyped-def]
    for i in range(count):
        if e.status[slots[i]] == DONE:
            free_slot(e, slots[i])


@compiled
def first_token(e, s, end):  # type: ignore[no-untyped-def]
    """A prompt is computed: the request's first token, or the next after a retraction. Returns 1 if it is the last."""
    if e.role == PREFILL:
        return prompt_done(e, s, end)
    if e.outputs[s] > 0:
        count_gap(e, end - e.last_token[s], 1)
    elif e.gone[s] == STAYS:
        e.desk.prefill_end_s[e.row[s]] = end
        e.desk.first_token_s[e.row[s]] = end
    e.outputs[s] += 1
    e.token_sum[s] += end
    e.last_token[s] = end
    e.segment[s], e.segment_low[s] = -e.end_sum, -e.end_sum_low
    e.started[s] = 1
    if e.outputs[s] >= e.final[s]:
        finish(e, s, end)
        return 1
    checkpoint(e, s, e.fill[s])
    return 0


@compiled
def prompt_done(e, s, end):  # type: ignore[no-untyped-def]
    """PREFILL: the prompt is kept for another engine; one that is known not to be wanted is let go uncached.
    Returns 1 for that."""
    if e.gone[s] == TOLD:
        release(e, s)
        e.status[s] = DONE
        return 1
    checkpoint(e, s, e.fill[s])
    e.status[s] = HELD
    e.holding_count += 1
    if e.gone[s] == STAYS:
        e.desk.prefill_end_s[e.row[s]] = end
        tell(e, PREFILLED, s, pages(e, e.committed[s]), end)
    return 0


@compiled
def last_token(e, s, end):  # type: ignore[no-untyped-def]
    """A decode step has brought the request's last token."""
    e.token_sum[s] += (e.end_sum + e.segment[s]) + (e.end_sum_low + e.segment_low[s])
    e.outputs[s] = e.final[s]
    finish(e, s, end)


@compiled
def finish(e, s, end):  # type: ignore[no-untyped-def]
    """The request is done: what it computed goes to the tree, the rest is free."""
    settle_committed(e, s)
    checkpoint(e, s, min(e.committed[s], e.prompt[s] + min(e.outputs[s], e.limit[s])))
    release(e, s)
    e.status[s] = DONE
    if e.gone[s] != STAYS:
        return
    row = e.row[s]
    e.desk.last_token_s[row] = end
    e.desk.token_sum_s[row] = e.token_sum[s]
    e.desk.preemptions[row] += e.times_preempted[s]
    if e.tell_finished:
        tell(e, FINISHED, s, 0, end)
