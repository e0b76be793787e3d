"""What must hold of an SGLang engine's books at any moment: sums, counts and lists against its requests' columns."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
from engine_books import books, of

from simulator.engine.sglang.columns import RING
from simulator.engine.sglang.state import (
    CHUNKED,
    DONE,
    DROPPED,
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
)
from simulator.engine.state import DECODE, PREFILL

NAMES = (
    "role depth max_running page pool_size caching planned completed decode_planned decode_done gpu_free_s "
    "running_count base_sum chunked last_count fresh_count free free_rows waiting_head waiting_count unseen "
    "holding_count ready_count retracted_count pending_prompt_tokens positions tickets heap_count free_slots "
    "peak_pages tree.evictable tree.used tree.start tree.stop tree.spare tree.spare_count "
    "row status prompt target limit final outputs fill prefix extend_end protected committed base join last_step "
    "ticket position node hit holds started gone aborts "
    "running last fresh waiting holding ready retracted phase_count heap_batch heap_order heap_slot batch_end_s "
    "batch_decodes batch_tokens batch_firsts batch_leaving batch_joined firsts leaving joined free_slot"
)


def audit(state: Any) -> None:
    """Raises where the books of an SGLang engine do not add up."""
    e = books(state, NAMES)
    live = np.flatnonzero(e.status != FREE).tolist()
    audit_lists(e, live)
    audit_memory(e, live)
    audit_steps(e, live)


def first(values: Any, count: int) -> list[int]:
    return [int(value) for value in values[:count]]


def audit_lists(e: SimpleNamespace, live: list[int]) -> None:
    """Every live request stands in the list of its state."""
    running = first(e.running, e.running_count)
    assert sorted(running) == of(e, live, RUNNING)
    places = e.position[running].tolist()
    assert places == sorted(set(places)) and all(place < e.positions for place in places)
    assert len({*e.ticket[running].tolist()}) == len(running) and (e.ticket[running] < e.tickets).all()
    queue = first(e.waiting[e.waiting_head :], e.waiting_count)
    assert sorted(queue) == of(e, live, WAITING)
    assert 0 <= e.unseen <= e.waiting_count
    assert of(e, live, CHUNKED) == ([e.chunked] if e.chunked >= 0 else [])
    if e.role != PREFILL:
        assert sorted(first(e.last, e.last_count)) == of(e, live, PREFILLED_LAST)
    assert set(first(e.fresh, e.fresh_count)) <= {*running, *of(e, live, DROPPED)}
    if e.role == DECODE:
        assert sorted(first(e.holding, e.holding_count)) == of(e, live, REMOTE)
    else:
        assert e.holding_count == len(of(e, live, HELD))
    assert sorted(first(e.ready, e.ready_count)) == of(e, live, READY)
    assert sorted(first(e.retracted, e.retracted_count)) == of(e, live, RETRACTED)
    assert sorted([*first(e.free_slot, e.free_slots), *live]) == list(range(e.row.size))
    assert not of(e, live, DONE)
    if e.role == DECODE:
        coming = [s for s in of(e, live, WAITING, REMOTE, READY) if e.outputs[s] == 0]
        pending = sum(e.prompt[s] for s in coming)
    else:
        pending = sum(e.prompt[s] + e.outputs[s] for s in queue)
        pending += sum(e.fill[s] - e.extend_end[s] for s in of(e, live, CHUNKED))
    assert e.pending_prompt_tokens == pending


def audit_memory(e: SimpleNamespace, live: list[int]) -> None:
    """KV tokens are free, in the tree, or held by a request beyond what the tree has of it."""
    running = of(e, live, RUNNING)
    assert e.base_sum == e.base[running].sum()
    assert e.phase_count.tolist() == np.bincount(e.base[running] % e.page, minlength=e.page).tolist()
    held = 0
    for s in live:
        assert e.holds[s] in (0, 1)
        if e.holds[s]:
            written = e.base[s] + e.decode_planned if e.status[s] == RUNNING else e.committed[s]
            held += (-(-int(written) // e.page) - int(e.protected[s]) // e.page) * e.page
    sizes = e.tree_stop - e.tree_start
    in_tree = sizes[1 : e.tree_used].sum() - sizes[e.tree_spare[: e.tree_spare_count]].sum()
    assert e.pool_size == e.free + in_tree + held
    assert 0 <= e.tree_evictable <= in_tree and e.free >= 0
    assert e.free_rows == e.max_running - e.holds[live].sum()
    assert e.holds[of(e, live, WAITING, RETRACTED)].sum() == 0
    assert e.holds[of(e, live, CHUNKED, PREFILLED_LAST, RUNNING, REMOTE, READY, HELD)].all()
    assert e.peak_pages * e.page <= e.pool_size
    assert e.caching or in_tree == 0


def audit_steps(e: SimpleNamespace, live: list[int]) -> None:
    """Steps in flight, and the heap of last ones."""
    flying = [b % RING for b in range(e.completed, e.planned)]
    assert len(flying) <= e.depth
    assert e.decode_planned - e.decode_done == sum(e.batch_decodes[r] > 0 for r in flying)
    for r in flying:
        for name in ("firsts", "leaving", "joined"):
            found = first(getattr(e, name)[r], getattr(e, f"batch_{name}")[r])
            assert len(set(found)) == len(found) and set(found) <= set(live), name
        assert 0 <= e.batch_tokens[r] <= e.batch_decodes[r]
        leaving = first(e.leaving[r], e.batch_leaving[r])
        places = e.position[leaving].tolist()
        assert places == sorted(places)
    if flying:
        assert e.batch_end_s[flying[-1]] == e.gpu_free_s
    entries = list(zip(e.heap_batch, e.heap_order, e.heap_slot, strict=True))[: e.heap_count]
    for i in range(1, e.heap_count):
        assert entries[(i - 1) // 2][0] <= entries[i][0]
    assert e.aborts >= (e.gone[live] == GONE).sum()
    stay = [s for s in live if e.gone[s] != TOLD]  # the others end with their next token
    coming = [s for s in of(e, stay, RUNNING) if e.last_step[s] >= e.decode_planned]
    assert {(e.last_step[s], e.ticket[s], s) for s in coming} <= set(entries)
    for s in of(e, stay, RUNNING):
        made = e.outputs[s] + (0 if e.started[s] else 1)
        assert e.last_step[s] == e.join[s] + max(e.final[s], made) - made - 1
    assert all(e.final[s] == max(min(e.limit[s], e.target[s]), 1) for s in stay)
