"""The decode side of a disaggregated SGLang engine: taking prompts over whose KV another engine has computed.

Rules of the decode queues of SGLang 0.5.23 (``disaggregation/decode.py``): memory for a prompt is taken before its KV
is read, and only while each live request keeps ``decode_reserve`` tokens free; a request whose KV is there begins with
its first token, which the prefill engine has made; one that is retracted goes to host memory and comes back whole.
"""

from __future__ import annotations

import numpy as np

from simulator.compiled import compiled
from simulator.cost.table import decode_host_seconds
from simulator.engine.sglang.columns import RING
from simulator.engine.sglang.decode import join
from simulator.engine.sglang.memory import release
from simulator.engine.sglang.state import (
    CLIP_MAX_NEW_TOKENS,
    DONE,
    READY,
    REMOTE,
    STAYS,
    outputs_now,
    pages,
    seen,
)
from simulator.engine.state import FINISHED, READ, free_slot, tell


@compiled
def take_over(e, now):  # type: ignore[no-untyped-def]
    """What a decode engine does before each planning: bring back retracted requests, ask for KV, begin others.
    Returns whether a step is planned now."""
    e.start_late_s = 0.0
    come_back(e)
    ask_for_kv(e, now)
    e.last_prefill = may_begin(e) > 0
    if not e.last_prefill:
        e.built_count = 0
        return True
    if e.depth == 1:
        begin_ready(e, now, e.ready_count)
    elif e.planned == e.completed:
        begin_unhidden(e, now)
    elif e.cost.ranks > 1:
        sit_out(e)
        return True
    else:
        return False
    ask_for_kv(e, now)  # the loop has come round again
    return True


@compiled
def may_begin(e):  # type: ignore[no-untyped-def]
    """How many of those ready there is a place for."""
    return min(e.ready_count, e.max_running - e.running_count)


@compiled
def begin_unhidden(e, now):  # type: ignore[no-untyped-def]
    """To the overlapped loop those ready are a batch without work: it takes a turn, in which the step in flight ends.
    The launch of the next one hides behind nothing, and their first tokens are sent after it."""
    e.start_late_s = decode_host_seconds(e.cost, e.running_count + may_begin(e))
    begin_ready(e, now + e.start_late_s, e.ready_count)
    e.built_count = 0


@compiled
def sit_out(e):  # type: ignore[no-untyped-def]
    """With attention data parallelism the ranks that have such a batch do nothing in the step that the others take; its
    result, first tokens, is looked at when that step has ended."""
    begin_ready(e, e.gpu_free_s, min(e.built_count, e.ready_count))
    e.built_count = may_begin(e)


@compiled
def own_future(e, s):  # type: ignore[no-untyped-def]
    """Tokens of a prompt and all that it may yet make (as far as admission looks)."""
    return e.prompt[s] + min(e.limit[s], CLIP_MAX_NEW_TOKENS)


@compiled
def room(e, retractable):  # type: ignore[no-untyped-def]
    """KV tokens that may be given to another prompt: the live ones keep a reserve, and the longest of them can end."""
    live = e.running_count + e.holding_count + e.ready_count
    kept = e.decode_reserve * live
    for i in range(e.running_count):
        kept = max(kept, own_future(e, e.running[i]) - retractable)
    return e.free - kept


@compiled
def come_back(e):  # type: ignore[no-untyped-def]
    """Retracted requests resume in order while memory allows."""
    back = 0
    while back < e.retracted_count and e.free_rows > 0:
        s = e.retracted[back]
        tokens = e.prompt[s] + e.outputs[s] - 1
        alone = e.running_count + e.holding_count + e.ready_count == 0
        needed = pages(e, tokens) * e.page + (0 if alone else e.decode_reserve)
        if needed > (e.free if alone else room(e, 1 << 60)):
            break
        hold(e, s, tokens)
        e.status[s] = READY
        e.ready[e.ready_count] = s
        e.ready_count += 1
        back += 1
    if back > 0:
        e.retracted_count -= back
        for i in range(e.retracted_count):
            e.retracted[i] = e.retracted[i + back]


@compiled
def hold(e, s, tokens):  # type: ignore[no-untyped-def]
    """Take KV for ``tokens`` tokens."""
    e.free -= pages(e, tokens) * e.page
    e.free_rows -= 1
    e.holds[s] = 1
    e.committed[s] = tokens


@compiled
def begin_ready(e, now, most):  # type: ignore[no-untyped-def]
    """Requests whose KV is there, so many at most, join the running batch; new ones with the token that came along."""
    begun = 0
    while begun < most and e.running_count < e.max_running:
        s = e.ready[begun]
        begun += 1
        if e.outputs[s] == 0:
            send_first(e, s, now)
        if e.outputs[s] >= e.final[s]:
            end_at_once(e, s, now)
            continue
        start_stretch(e, s)
        join(e, s)
        e.running[e.running_count] = s
        e.running_count += 1
    if begun > 0:
        e.ready_count -= begun
        for i in range(e.ready_count):
            e.ready[i] = e.ready[i + begun]


@compiled
def send_first(e, s, now):  # type: ignore[no-untyped-def]
    if e.gone[s] == STAYS:
        row = e.row[s]
        e.desk.decode_start_s[row] = max(now, e.gpu_free_s)
        e.desk.first_token_s[row] = now
    e.outputs[s] = 1
    e.token_sum[s] = now
    e.last_token[s] = now
    e.pending_prompt_tokens -= e.prompt[s]


@compiled
def start_stretch(e, s):  # type: ignore[no-untyped-def]
    """Its decode steps are those planned from now on: what is in flight is not among them."""
    e.started[s] = 1
    e.segment[s], e.segment_low[s] = -e.end_sum, -e.end_sum_low
    for b in range(e.completed, e.planned):
        e.segment[s] -= e.batch_end_s[b % RING]


@compiled
def end_at_once(e, s, now):  # type: ignore[no-untyped-def]
    """One token was all."""
    release(e, s)
    if e.gone[s] == STAYS:
        e.desk.last_token_s[e.row[s]] = now
        e.desk.token_sum_s[e.row[s]] = e.token_sum[s]
        if e.tell_finished:
            tell(e, FINISHED, s, 0, now)
    e.status[s] = DONE
    free_slot(e, s)


@compiled
def ask_for_kv(e, now):  # type: ignore[no-untyped-def]
    """Waiting prompts get memory in order of arrival, and their KV is asked for; not while any retracted wait."""
    if e.retracted_count > 0 or seen(e) == 0:
        return
    retractable, made = 0, 0
    for i in range(e.running_count):
        retractable += e.prompt[e.running[i]]
        made += outputs_now(e, e.running[i])
    retractable += made
    while seen(e) > 0 and e.free_rows > 0:
        s = e.waiting[e.waiting_head]
        taken = pages(e, e.prompt[s]) * e.page
        alone = e.running_count + e.holding_count + e.ready_count == 0
        needed = max(taken + (0 if alone else e.decode_reserve), own_future(e, s) - retractable)
        if needed > room(e, retractable) and not (alone and taken <= e.free):
            break
        e.waiting_head += 1
        e.waiting_count -= 1
        e.desk.kv_runs[e.row[s]] = runs(e, e.prompt[s], made)
        hold(e, s, e.prompt[s])
        e.held_tokens += e.prompt[s]
        e.status[s] = REMOTE
        e.holding[e.holding_count] = s
        e.holding_count += 1
        if e.gone[s] == STAYS:
            tell(e, READ, s, pages(e, e.prompt[s]), now)


@compiled
def runs(e, tokens, made):  # type: ignore[no-untyped-def]
    """In how many stretches of pages side by side a prompt's KV is kept, on average; ``made``: tokens that the running
    requests have made.

    Free pages are handed out in order of address, and put in order again when not enough are left
    (``TokenToKVPoolAllocator`` of prefill and decode engines). So each round through them ends where the round before
    did: at the pages in which running requests keep what they have made, in each step one page beside the other. Of
    those of one step the share p belongs to who still runs, the rest is free in n p (1 - p) stretches: p for each free
    page. With answers of one length p grows evenly to 1, the share of free pages falls so, and the free ones up to a
    place are the square of what is left of the way: p = 1 - sqrt(left / all). All of them are as many as those held.
    """
    taken = e.held_tokens + e.decode_tokens
    if taken + tokens > e.round_end:
        e.round_end, e.round_made = taken + e.free, made
    left = e.round_end - taken - tokens / 2
    if left >= e.round_made:
        return 1.0
    return 1.0 + pages(e, tokens) * (1.0 - np.sqrt(max(left, 0.0) / e.round_made))


@compiled
def kv_is_here(e, s):  # type: ignore[no-untyped-def]
    """The read of a slot's KV has ended; the next planning sees it."""
    n = 0
    for i in range(e.holding_count):
        if e.holding[i] != s:
            e.holding[n] = e.holding[i]
            n += 1
    e.holding_count = n
    e.status[s] = READY
    e.ready[e.ready_count] = s
    e.ready_count += 1
