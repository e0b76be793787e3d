"""The decode side of a disaggregated SGLang engine: taking prompts over whose KV another engine has computed.

Rules of the decode queues of SGLang 0.5.23 (``disaggregation/decode.py``): memory for a prompt is taken before its KV
is read, and only while each live request keeps ``decode_reserve`` tokens free; a request whose KV is there begins with
its first token, which the prefill engine has made; one that is retracted goes to host memory and comes back whole.
"""

from __future__ import annotations

from simulator.compiled import compiled
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
    """What a decode engine does before each planning: bring back retracted requests, begin others, ask for KV.
    Returns whether any have begun."""
    come_back(e)
    begun = begin_ready(e, now)
    if e.retracted_count == 0:
        ask_for_kv(e, now)
    return begun > 0


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
def begin_ready(e, now):  # type: ignore[no-untyped-def]
    """Requests whose KV is there join the running batch; new ones with the token that came along."""
    begun = 0
    while begun < e.ready_count and e.running_count < e.max_running:
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
    return begun


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
    """Waiting prompts get memory in order of arrival, and their KV is asked for."""
    retractable = 0
    for i in range(e.running_count):
        retractable += e.prompt[e.running[i]] + outputs_now(e, e.running[i])
    while seen(e) > 0 and e.free_rows > 0:
        s = e.waiting[e.waiting_head]
        taken = pages(e, e.prompt[s]) * e.page
        alone = e.running_count + e.holding_count + e.ready_count == 0
        needed = max(taken + (0 if alone else e.decode_reserve), own_future(e, s) - retractable)
        if needed > room(e, retractable) and not (alone and taken <= e.free):
            break
        e.waiting_head += 1
        e.waiting_count -= 1
        hold(e, s, e.prompt[s])
        e.status[s] = REMOTE
        e.holding[e.holding_count] = s
        e.holding_count += 1
        if e.gone[s] == STAYS:
            tell(e, READ, s, pages(e, e.prompt[s]), now)


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
