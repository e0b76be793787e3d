"""KV tokens of an SGLang engine: free pages, what goes into the tree and when, taking and giving back."""

from __future__ import annotations

from simulator.compiled import compiled
from simulator.engine.sglang.state import RUNNING, pages
from simulator.kv.radix import evict, insert, lock, unlock
from simulator.kv.runs import NO_END, end_position


@compiled
def evict_for(e, wanted):  # type: ignore[no-untyped-def]
    """Evict until ``wanted`` tokens are free, or nothing more can be evicted."""
    if e.free < wanted and e.caching:
        e.free += evict(e.tree, wanted - e.free)


@compiled
def checkpoint(e, s, tokens):  # type: ignore[no-untyped-def]
    """Give the first ``tokens`` computed tokens to the tree, in whole pages, and lock them there instead of before.

    Our copies of what others have cached meanwhile are freed. A leaf that holds prompt and output is cut between them.
    """
    if not e.caching or tokens <= 0:
        return
    length = tokens // e.page * e.page
    row = e.row[s]
    outputs = e.prompt[s] + e.target[s] - e.content.input_tokens[row]  # some may stand in the prompt already
    there, node = insert(e.tree, row, end_position(e.content, row, length, outputs), length)
    e.free += max(0, there - e.protected[s])
    prompt = e.prompt[s] // e.page * e.page
    if 0 < prompt < length:
        insert(e.tree, row, NO_END, prompt)
    unlock(e.tree, e.node[s])
    lock(e.tree, node)
    e.node[s] = node
    e.protected[s] = length


@compiled
def release(e, s):  # type: ignore[no-untyped-def]
    """Give back what the tree does not own, and the lock."""
    e.free += (pages(e, e.committed[s]) - e.protected[s] // e.page) * e.page
    unlock(e.tree, e.node[s])
    e.node[s] = -1
    e.holds[s] = 0
    e.free_rows += 1


@compiled
def settle_committed(e, s):  # type: ignore[no-untyped-def]
    """A request leaves the running batch: from here on its KV tokens are a plain number."""
    if e.status[s] == RUNNING:
        e.committed[s] = e.base[s] + e.decode_planned
        e.base_sum -= e.base[s]
        e.phase_count[e.base[s] % e.page] -= 1


@compiled
def decode_need(e):  # type: ignore[no-untyped-def]
    """KV tokens that the next decode step of the whole running batch takes."""
    return e.phase_count[(-e.decode_planned) % e.page] * e.page


@compiled
def decode_fits(e, need):  # type: ignore[no-untyped-def]
    """Whether the next decode step fits, after evicting what it needs."""
    evict_for(e, need)
    return e.free >= need


@compiled
def take_decode(e):  # type: ignore[no-untyped-def]
    """KV for one more token of each running request; room for a page each is made first."""
    evict_for(e, e.running_count * e.page)
    e.free -= decode_need(e)


@compiled
def pages_taken(e):  # type: ignore[no-untyped-def]
    """Pages that requests hold or lock."""
    return (e.pool_size - e.free - e.tree.evictable) // e.page
