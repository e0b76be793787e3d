"""A request's KV blocks: block tables, keys, taking, sharing and giving back, phase buckets of decoding requests."""

from __future__ import annotations

import numpy as np

from simulator.compiled import compiled
from simulator.engine.state import longer, wider
from simulator.engine.streaming import sending_batch
from simulator.kv.content import block_key, private_key, shares_nothing
from simulator.kv.pool import REFERENCES, find, give_back, publish, share, take
from simulator.kv.unshared import leave_unshared, take_unshared


@compiled
def blocks_for(e, tokens):  # type: ignore[no-untyped-def]
    """Blocks that hold ``tokens`` tokens."""
    return (tokens + e.block_size - 1) // e.block_size


@compiled
def open_table(e, s):  # type: ignore[no-untyped-def]
    """Give the slot a block table if it has none (prefix caching only)."""
    if e.table[s] >= 0:
        return
    if e.free_table[0] == 0:
        old = e.block_table.shape[0]
        e.block_table, e.block_keys = taller(e.block_table), taller(e.block_keys)
        e.keys_known, e.free_table = longer(e.keys_known), longer(e.free_table)
        for i in range(old):
            e.free_table[i + 1] = 2 * old - 1 - i
        e.free_table[0] = old
    t = e.free_table[e.free_table[0]]
    e.free_table[0] -= 1
    e.table[s] = t
    e.keys_known[t] = 0


@compiled
def taller(values):  # type: ignore[no-untyped-def]
    """A copy of a table with twice the rows."""
    rows, columns = values.shape
    grown = np.zeros((rows * 2, columns), values.dtype)
    grown[:rows] = values
    return grown


@compiled
def close_table(e, s):  # type: ignore[no-untyped-def]
    if e.table[s] >= 0:
        e.free_table[0] += 1
        e.free_table[e.free_table[0]] = e.table[s]
        e.table[s] = -1


@compiled
def key_of(e, s, j):  # type: ignore[no-untyped-def]
    """Key of the slot's block ``j`` (worked out once)."""
    t = e.table[s]
    while j >= e.block_keys.shape[1]:
        e.block_table, e.block_keys = wider(e.block_table), wider(e.block_keys)
    known = e.keys_known[t]
    if known <= j:
        row = e.row[s]
        alone = shares_nothing(e.content, row)
        key = e.block_keys[t, known - 1] if known > 0 else 1
        while known <= j:
            key = (
                private_key(row, known) if alone else block_key(e.content, row, key, known * e.block_size, e.block_size)
            )
            e.block_keys[t, known] = key
            known += 1
        e.keys_known[t] = known
    return e.block_keys[t, j]


@compiled
def cached_blocks(e, s, tokens):  # type: ignore[no-untyped-def]
    """Leading blocks of the slot's ``tokens`` tokens that are in the prefix cache, and how many of them are free.

    At least one token is left to compute, so that there is something to sample from.
    """
    hits, idle = 0, 0
    if not e.caching:
        return hits, idle
    open_table(e, s)
    pool = e.pool
    node = pool.node
    for j in range((tokens - 1) // e.block_size):
        block = find(pool, key_of(e, s, j))
        if block < 0:
            break
        hits += 1
        if node[block, REFERENCES] == 0:
            idle += 1
    return hits, idle


@compiled
def share_blocks(e, s, hits):  # type: ignore[no-untyped-def]
    """Put the first ``hits`` blocks found in the cache into the slot's table."""
    pool, keys, blocks = e.pool, e.block_keys[e.table[s]], e.block_table[e.table[s]]
    for j in range(hits):
        block = find(pool, keys[j])
        share(pool, block)
        blocks[j] = block
    e.held_blocks[s] = hits
    e.registered[s] = hits


@compiled
def take_blocks(e, s, tokens):  # type: ignore[no-untyped-def]
    """Take what is missing to hold ``tokens`` tokens. The caller has checked that so much is free."""
    wanted = blocks_for(e, tokens)
    missing = wanted - e.held_blocks[s]
    if missing <= 0:
        return
    if e.pledge[s] > 0:
        e.promised -= missing
    if e.caching:
        while wanted > e.block_table.shape[1]:
            e.block_table, e.block_keys = wider(e.block_table), wider(e.block_keys)
        pool, blocks = e.pool, e.block_table[e.table[s]]
        for j in range(e.held_blocks[s], wanted):
            blocks[j] = take(pool)
    else:
        count_out(e, missing)
    e.held_blocks[s] = wanted


@compiled
def count_out(e, blocks):  # type: ignore[no-untyped-def]
    """Take blocks that need not be told apart."""
    e.pool.free -= blocks
    if e.counting:
        take_unshared(e.left, blocks)


@compiled
def take_phase(e, phase):  # type: ignore[no-untyped-def]
    """Every decoding request gets the block it may need in the batch being planned: those in need are of one phase."""
    if not e.caching:
        count_out(e, e.phase_count[phase])
        if e.rules.reserving:
            e.promised -= e.phase_count[phase]
        return
    s = e.bucket_head[phase]
    while s >= 0:
        take_blocks(e, s, e.planned + e.offset[s] + 1)
        s = e.bucket_next[s]


@compiled
def register_blocks(e, s, tokens):  # type: ignore[no-untyped-def]
    """Make the blocks filled by the first ``tokens`` tokens findable."""
    full = tokens // e.block_size
    if e.caching and full > e.registered[s]:
        key_of(e, s, full - 1)  # all keys up to it
        pool, keys, blocks = e.pool, e.block_keys[e.table[s]], e.block_table[e.table[s]]
        for j in range(e.registered[s], full):
            publish(pool, blocks[j], keys[j])
    e.registered[s] = max(e.registered[s], full)


@compiled
def drop_pledge(e, s):  # type: ignore[no-untyped-def]
    """Nothing more is promised to the slot than it holds."""
    if e.pledge[s] > 0:
        e.promised -= e.pledge[s] - e.held_blocks[s]
        e.pledge[s] = 0


@compiled
def free_blocks(e, s):  # type: ignore[no-untyped-def]
    """Give all blocks of the slot back, and what was promised to it."""
    drop_pledge(e, s)
    if e.caching:
        if e.table[s] >= 0:
            give_back(e.pool, e.block_table[e.table[s]], e.held_blocks[s])
    else:
        e.pool.free += e.held_blocks[s]
        if e.counting:
            leave_unshared(e.left, e.row[s], e.held_blocks[s], e.registered[s])
    e.held_blocks[s] = 0
    e.registered[s] = 0


@compiled
def bucket_add(e, s):  # type: ignore[no-untyped-def]
    """Count a decoding request under its block phase; with caching, in running order."""
    phase = e.offset[s] % e.block_size
    e.phase_count[phase] += 1
    if e.rules.stream_interval > 1:
        e.stream_phase[sending_batch(e, s)] += 1
    if not e.caching:
        return
    before, at = -1, e.bucket_head[phase]
    while at >= 0 and e.order[at] < e.order[s]:
        before, at = at, e.bucket_next[at]
    e.bucket_next[s] = at
    if before < 0:
        e.bucket_head[phase] = s
    else:
        e.bucket_next[before] = s


@compiled
def bucket_remove(e, s):  # type: ignore[no-untyped-def]
    phase = e.offset[s] % e.block_size
    e.phase_count[phase] -= 1
    if e.rules.stream_interval > 1:
        e.stream_phase[sending_batch(e, s)] -= 1
    if not e.caching:
        return
    if e.bucket_head[phase] == s:
        e.bucket_head[phase] = e.bucket_next[s]
        return
    at = e.bucket_head[phase]
    while e.bucket_next[at] != s:
        at = e.bucket_next[at]
    e.bucket_next[at] = e.bucket_next[s]
