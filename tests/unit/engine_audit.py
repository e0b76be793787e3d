"""What must hold of an engine's books at any moment: its sums, counts and lists against the columns of its requests."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
from engine_books import books, of

from simulator.engine.columns import RING
from simulator.engine.rules import DISTSERVE
from simulator.engine.state import (
    DECODE,
    DECODING,
    FREE,
    HELD,
    LEAVING,
    PREFILLING,
    REMOTE,
    SPECULATING,
    WAITING,
)

NAMES = (
    "role depth max_num_seqs token_budget block_size caching counting planned completed gpu_free_s plan_at_s "
    "running_count decodes offset_sum partials admissions waiting_head waiting_count holding_count unread "
    "pending_prompt_tokens promised heap_count reports_count free_slots peak_blocks pool.free pool.blocks "
    "rules.policy rules.drafts rules.stream_interval rules.stream_first rules.reserving rules.ranks "
    "row part status prompt target received computed offset first_batch last_batch absent_batch stale_batch order "
    "held_blocks registered table hit bucket_next pledge outside remote rank "
    "running waiting holding phase_count bucket_head heap_batch heap_order heap_slot batch_end_s batch_decodes "
    "batch_firsts batch_leaving batch_stale batch_absent batch_made firsts leaving stale absent made_slot "
    "made_tokens free_slot block_table free_table stream_phase reports"
)
LISTS = ("firsts", "leaving", "stale", "absent")


def audit(state: Any) -> None:
    """Raises where the books of an engine of ``simulator.engine.steps`` do not add up."""
    e = books(state, NAMES)
    live = np.flatnonzero(e.status != FREE).tolist()
    audit_lists(e, live)
    audit_sums(e, live)
    audit_blocks(e, live)
    audit_batches(e, live)


def queue(e: SimpleNamespace) -> list[int]:
    return [int(e.waiting[(e.waiting_head + i) % e.waiting.size]) for i in range(e.waiting_count)]


def audit_lists(e: SimpleNamespace, live: list[int]) -> None:
    """Every live request stands in exactly one list: running, waiting, holding, or kept for another engine."""
    running = e.running[: e.running_count].tolist()
    assert sorted(running) == of(e, live, PREFILLING, DECODING, LEAVING, SPECULATING)
    orders = e.order[running].tolist()
    assert orders == sorted(set(orders)) and all(order < e.admissions for order in orders)
    assert sorted(queue(e)) == of(e, live, WAITING)
    holding = e.holding[: e.holding_count].tolist()
    assert sorted(holding) == of(e, live, REMOTE)
    free = e.free_slot[: e.free_slots].tolist()
    assert sorted([*free, *live]) == list(range(e.row.size))
    assert e.unread == sum(e.remote[s] == 1 for s in queue(e))
    assert all(e.remote[s] in (1, 2) for s in holding)
    assert not any(e.remote[s] for s in running)
    assert all(0 <= e.rank[s] < e.rules_ranks for s in live)
    assert len(running) <= e.max_num_seqs + len(of(e, live, LEAVING))


def audit_sums(e: SimpleNamespace, live: list[int]) -> None:
    """Sums over decoding requests, prompt tokens to be computed, the heap of last batches, groups of tokens."""
    decoding = of(e, live, DECODING)
    assert e.decodes == len(decoding)
    assert e.offset_sum == e.offset[decoding].sum()
    assert e.partials == len(of(e, live, PREFILLING))
    pending = sum(e.prompt[s] + e.received[s] for s in queue(e) if counted(e, s))
    pending += sum(e.prompt[s] + e.received[s] - e.computed[s] for s in of(e, live, PREFILLING))
    pending += sum(e.prompt[s] - e.computed[s] for s in of(e, live, REMOTE) if e.part[s] != DECODE)
    assert e.pending_prompt_tokens == pending
    entries = list(zip(e.heap_batch, e.heap_order, e.heap_slot, strict=True))[: e.heap_count]
    for i in range(1, e.heap_count):
        assert entries[(i - 1) // 2][:2] <= entries[i][:2]
    assert {(e.last_batch[s], e.order[s], s) for s in decoding} <= set(entries)
    if e.rules_stream_interval > 1:
        phases = np.zeros(e.rules_stream_interval, np.int64)
        for s in decoding:
            made = e.planned + e.offset[s] + 2 - e.prompt[s]  # number of the token that the next batch makes
            phases[(e.planned + (1 if e.rules_stream_first else 0) - made) % e.rules_stream_interval] += 1
        assert e.stream_phase.tolist() == phases.tolist()


def counted(e: SimpleNamespace, s: int) -> bool:
    """Whether a waiting request's tokens are to be computed here: not if its KV is elsewhere, or in host memory."""
    swapped = e.rules_policy == DISTSERVE and e.part[s] == DECODE
    return not swapped and (e.part[s] != DECODE or e.remote[s] == 0)


def held(e: SimpleNamespace, s: int) -> int:
    """Blocks that a request has, from the tokens whose KV it holds or is about to write."""
    tokens = -1
    if e.status[s] == DECODING:
        tokens = e.planned + e.offset[s]
    elif e.status[s] == LEAVING and not e.rules_drafts:
        tokens = e.prompt[s] + e.target[s] - 1
    return int(e.held_blocks[s]) if tokens < 0 else -(-int(tokens) // e.block_size)


def audit_blocks(e: SimpleNamespace, live: list[int]) -> None:
    """Blocks are free or held; promises are what pledges leave open; phases and their chains are those of offsets."""
    decoding = of(e, live, DECODING)
    phases = np.bincount(e.offset[decoding] % e.block_size, minlength=e.block_size)
    assert e.phase_count.tolist() == phases.tolist()
    assert all(held(e, s) == 0 and e.pledge[s] == 0 for s in of(e, live, WAITING))
    if e.caching:
        tables = {s: e.table[s] for s in live if e.table[s] >= 0}
        assert len(set(tables.values())) == len(tables)
        unused = e.free_table[1 : e.free_table[0] + 1].tolist()
        assert sorted([*unused, *tables.values()]) == list(range(e.block_table.shape[0]))
        own = [set(e.block_table[t, : e.held_blocks[s]].tolist()) for s, t in tables.items()]
        assert all(e.held_blocks[s] == 0 for s in live if e.table[s] < 0)
        assert all(len(blocks) == e.held_blocks[s] for blocks, s in zip(own, tables, strict=True))
        assert e.pool_blocks - e.pool_free == len(set().union(*own))
        for phase in range(e.block_size):
            chain, s = [], int(e.bucket_head[phase])
            while s >= 0:
                chain.append(s)
                s = int(e.bucket_next[s])
            assert chain == sorted(
                (s for s in decoding if e.offset[s] % e.block_size == phase), key=e.order.__getitem__
            )
    else:
        assert e.pool_blocks - e.pool_free == sum(held(e, s) for s in live)
    assert e.promised == sum(e.pledge[s] - held(e, s) for s in live if e.pledge[s] > 0)
    assert e.rules_reserving or not e.pledge[live].any()
    assert e.pool_free >= 0 and e.peak_blocks <= e.pool_blocks


def audit_batches(e: SimpleNamespace, live: list[int]) -> None:
    """Batches in flight: who decodes in them, gets a first or last token, was preempted or left out."""
    assert 0 <= e.planned - e.completed <= e.depth
    for b in range(e.completed, e.planned):
        r = b % RING
        lists = {name: getattr(e, name)[r, : getattr(e, f"batch_{name}")[r]].tolist() for name in LISTS}
        for name, found in lists.items():
            assert len(set(found)) == len(found), name
            assert set(found) <= set(live), name
        assert set(lists["leaving"]) - {s for s in live if e.stale_batch[s] == b} == {
            s for s in of(e, live, LEAVING) if e.last_batch[s] == b
        }
        assert all(e.stale_batch[s] == b for s in lists["stale"])
        if e.rules_drafts:
            made = dict(zip(e.made_slot[r, : e.batch_made[r]], e.made_tokens[r, : e.batch_made[r]], strict=True))
            assert set(made) <= set(live) and all(n > 0 for n in made.values())
            continue
        decodes = sum(e.first_batch[s] < b and s not in lists["absent"] for s in of(e, live, DECODING))
        decodes += sum(
            e.first_batch[s] < b <= e.last_batch[s] and s not in lists["absent"] for s in of(e, live, LEAVING)
        )
        decodes += sum(e.first_batch[s] < b for s in lists["stale"])
        assert e.batch_decodes[r] == decodes
    if e.planned > e.completed:
        assert e.batch_end_s[(e.planned - 1) % RING] == e.gpu_free_s
    waiting = [s for s in live if e.stale_batch[s] >= e.completed]
    assert all(e.status[s] == WAITING for s in waiting)
    assert set(e.reports[: e.reports_count].tolist()) <= set(of(e, live, REMOTE, HELD))
