"""What one prefill of SGLang may take in: the order of the waiting queue, and the token budgets (PrefillAdder)."""

from __future__ import annotations

from simulator.compiled import compiled
from simulator.engine.sglang.memory import evict_for
from simulator.engine.sglang.state import CLIP_MAX_NEW_TOKENS, outputs_now, pages, seen
from simulator.kv.radix import clear, insert, lock, match, unlock
from simulator.kv.runs import NO_END

CONTINUE, NO_TOKEN, OTHER = 0, 1, 2
WAITING_MATCHED = 128  # above so many waiting, lpm falls back to fcfs; so many are refreshed under fcfs
TOUCH_INTERVAL = 32
IN_BATCH_PREFIX = 32  # a prefix so long that somebody ahead in the queue will compute is waited for
LAST = 1 << 60


@compiled
def order_waiting(e):  # type: ignore[no-untyped-def]
    """lpm: longest cached prefix first, stable. Else the order stays, and the tree's times are refreshed at times."""
    if not e.caching:
        return
    if not e.lpm or seen(e) > WAITING_MATCHED:
        touch_waiting(e)
        return
    clear(e.queue_tree)
    for i in range(seen(e)):
        s = e.waiting[e.waiting_head + i]
        row, tokens = e.row[s], e.prompt[s] + e.outputs[s]
        found, _ = match(e.tree, row, NO_END, tokens)
        e.matched[s] = min(found, tokens - 1)
        if found <= IN_BATCH_PREFIX:
            ahead, _ = match(e.queue_tree, row, NO_END, tokens)
            if ahead >= IN_BATCH_PREFIX:
                e.matched[s] = -LAST
            else:
                insert(e.queue_tree, row, NO_END, tokens)
    for i in range(1, seen(e)):
        s = e.waiting[e.waiting_head + i]
        j = e.waiting_head + i
        while j > e.waiting_head and e.matched[e.waiting[j - 1]] < e.matched[s]:
            e.waiting[j] = e.waiting[j - 1]
            j -= 1
        e.waiting[j] = s


@compiled
def touch_waiting(e):  # type: ignore[no-untyped-def]
    """Now and then, refresh what the head of the queue will want, the first of it last."""
    if seen(e) == 0:
        return
    e.touches += 1
    if e.touches % TOUCH_INTERVAL == 1:
        for i in range(min(seen(e), WAITING_MATCHED) - 1, -1, -1):
            s = e.waiting[e.waiting_head + i]
            match(e.tree, e.row[s], NO_END, e.prompt[s] + e.outputs[s])


@compiled
def open_budget(e):  # type: ignore[no-untyped-def]
    """Budgets of a planning; the running requests' future is summed in batch order, as SGLang's floats are."""
    decodes = e.running_count if e.mixed else 0
    e.input_left = e.max_prefill - decodes
    e.chunk_left = e.chunk_size - decodes
    e.current_offset = decodes
    share = 1.0 if e.reserve_known else e.ratio
    future = 0.0
    for i in range(e.running_count):
        s = e.running[i]
        future += min(e.limit[s] - outputs_now(e, s), CLIP_MAX_NEW_TOKENS) * share
    e.total_offset = decodes + future
    e.admitted_count, e.new_chunked, e.lives_count = 0, -1, -1


@compiled
def total_left(e):  # type: ignore[no-untyped-def]
    return e.free + e.tree.evictable - e.total_offset


@compiled
def budget_state(e):  # type: ignore[no-untyped-def]
    """Whether one more may be tried: NO_TOKEN is memory, OTHER the step's own size."""
    if not (total_left(e) > 0 and e.free + e.tree.evictable - e.current_offset > 0):
        return NO_TOKEN
    if e.input_left <= 0 or (e.chunk_size > 0 and e.chunk_left <= 0):
        return OTHER
    return CONTINUE


@compiled
def admit(e, s, tokens, final):  # type: ignore[no-untyped-def]
    """Take ``tokens`` tokens of a prompt into the step; once it is ``final``, its outputs are promised room too."""
    e.extend_end[s] = e.prefix[s] + tokens
    e.admitted[e.admitted_count] = s
    e.admitted_count += 1
    paged = pages(e, tokens) * e.page
    e.current_offset += paged + e.page
    e.total_offset += paged + e.page + (min(e.limit[s], CLIP_MAX_NEW_TOKENS) if final else 0)
    e.input_left -= paged
    e.chunk_left -= paged


@compiled
def continue_chunked(e):  # type: ignore[no-untyped-def]
    """The next piece of the prompt under way comes first, and comes whatever memory says."""
    s = e.chunked
    left = min(e.chunk_left, int(total_left(e)))
    if left <= 0:
        left = e.chunk_left
    wanted = e.fill[s] - e.prefix[s]
    admit(e, s, min(wanted, left), wanted <= left)
    if wanted <= left:
        e.chunked = -1


@compiled
def try_admit(e, s):  # type: ignore[no-untyped-def]
    """Match a waiting request and take it in if it fits; the verdict is for those behind it."""
    fill = e.prompt[s] + e.outputs[s]
    e.fill[s] = fill
    found, node = match(e.tree, e.row[s], NO_END, fill - 1)
    e.prefix[s], e.protected[s] = found, found
    if e.ignore_eos and not e.caching:
        return try_known_length(e, s)
    lock(e.tree, node)  # what it would reuse cannot be evicted for it
    tokens = fill - found
    promised = min(max(e.limit[s] - e.outputs[s], 0), CLIP_MAX_NEW_TOKENS)
    verdict = CONTINUE
    final = True
    if not tokens + promised + e.page < total_left(e):
        verdict = NO_TOKEN
    elif (e.chunk_size == 0 or e.within_budget) and has_company(e) and pages(e, tokens) * e.page >= e.input_left:
        verdict = OTHER
    elif e.chunk_size > 0 and pages(e, tokens) * e.page > e.chunk_left:
        end = found + e.chunk_left // e.page * e.page
        tokens = end // e.page * e.page - found
        final = False
        if tokens <= 0:
            verdict = OTHER
    if verdict != CONTINUE:
        unlock(e.tree, node)
        return verdict
    e.node[s] = node
    admit(e, s, tokens, final)
    if not final:
        e.new_chunked = s
    return budget_state(e)


@compiled
def has_company(e):  # type: ignore[no-untyped-def]
    """Whether the step, or the rank's part of it, holds a prompt already."""
    return e.input_left < e.max_prefill // e.cost.ranks if e.binding else e.admitted_count > 0


@compiled
def try_known_length(e, s):  # type: ignore[no-untyped-def]
    """No cache, and limits that are lengths: admit if memory holds at each coming end of a request."""
    tokens = e.fill[s] - e.prefix[s]
    paged = pages(e, tokens) * e.page + e.page
    current_left = e.free + e.tree.evictable - e.current_offset
    if paged > min(current_left, total_left(e)):
        return NO_TOKEN
    note_life(e, s)
    left, freed = current_left - paged, 0.0
    for i in range(e.lives_count):
        beside = e.lives_count - i
        if left + freed - e.life_left[i] * beside <= beside:
            return NO_TOKEN
        freed += e.life_held[i]
    if e.chunk_size == 0 or tokens <= e.chunk_left:
        admit(e, s, tokens, True)
    elif e.chunk_left <= 0:
        return OTHER
    else:
        e.new_chunked = s
        admit(e, s, e.chunk_left, False)
    return budget_state(e)


@compiled
def note_life(e, s):  # type: ignore[no-untyped-def]
    """Keep what each request still makes and what it holds then, shortest first.

    The list is made with the pass's first candidate; a later one goes before the first that is not shorter, and if
    all are shorter before the last (SGLang's own loop ends there).
    """
    if e.lives_count < 0:
        e.lives_count = 0
        add_life(e, s, True)
        for i in range(e.running_count):
            add_life(e, e.running[i], True)
        for i in range(e.admitted_count):
            add_life(e, e.admitted[i], True)
    else:
        add_life(e, s, False)


@compiled
def add_life(e, s, behind_equals):  # type: ignore[no-untyped-def]
    made = outputs_now(e, s)
    left = float(e.limit[s] - made)
    if left <= 0:
        return
    if e.lives_count == e.life_left.size:
        return
    n = e.lives_count
    at = 0
    while at < n and (e.life_left[at] < left or (behind_equals and e.life_left[at] == left)):
        at += 1
    if not behind_equals and at == n:
        at = max(n - 1, 0)
    for i in range(n, at, -1):
        e.life_left[i], e.life_held[i] = e.life_left[i - 1], e.life_held[i - 1]
    e.life_left[at], e.life_held[at] = left, float(e.prompt[s] + made)
    e.lives_count += 1


@compiled
def take_extend(e):  # type: ignore[no-untyped-def]
    """KV for everything admitted; room for a page more each is made first."""
    tokens, taken = 0, 0
    for i in range(e.admitted_count):
        s = e.admitted[i]
        tokens += e.extend_end[s] - e.prefix[s]
        taken += pages(e, e.extend_end[s]) - pages(e, e.prefix[s])
        if e.holds[s] == 0:
            e.holds[s] = 1
            e.free_rows -= 1
        e.committed[s] = e.extend_end[s]
    evict_for(e, tokens if e.page == 1 else tokens + e.admitted_count * e.page)
    e.free -= taken * e.page
