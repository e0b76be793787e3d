"""Paged KV blocks of one engine: a counter, or with prefix caching every block with its key and a free queue.

The rules are those of vLLM's block pool (v1): a free block keeps its key and can be hit until it is handed out again;
freed blocks with a key join the tail of the free queue (oldest evicted first), those without go to its front.
"""

from __future__ import annotations

import numpy as np

from simulator.compiled import compiled, record

# What is kept of a block, side by side: a look at a block costs one line of the processor's cache.
FOLLOWING, PRECEDING, REFERENCES, KEY, BUCKET_NEXT, _NODE = 0, 1, 2, 3, 4, 8

BlockPool = record(
    "BlockPool",
    ("caching", "blocks", "free", "node", "bucket_head", "telling", "evicted", "evicted_count"),
    __name__,
)


@compiled
def make_pool(blocks, caching, telling):  # type: ignore[no-untyped-def]
    """``blocks`` usable blocks, all free. Without ``caching`` only their number is kept.

    ``telling``: the keys of blocks that lose what they cached are written down, for whoever takes them.
    """
    tracked = blocks if caching else 0
    node = np.zeros((tracked + 2, _NODE), np.int64)
    head, tail = tracked, tracked + 1
    previous = head
    for block in range(tracked):
        node[previous, FOLLOWING] = block
        node[block, PRECEDING] = previous
        node[block, BUCKET_NEXT] = -1
        previous = block
    node[previous, FOLLOWING] = tail
    node[tail, PRECEDING] = previous
    node[head, PRECEDING] = head
    node[tail, FOLLOWING] = tail
    buckets = 16
    while buckets < 2 * tracked:
        buckets *= 2
    evicted = np.zeros(64, np.int64)
    return BlockPool(caching, blocks, blocks, node, np.full(buckets, -1, np.int64), telling, evicted, 0)


@compiled
def unlink(pool, block):  # type: ignore[no-untyped-def]
    """Take ``block`` out of the free queue."""
    before, after = pool.node[block, PRECEDING], pool.node[block, FOLLOWING]
    pool.node[before, FOLLOWING] = after
    pool.node[after, PRECEDING] = before


@compiled
def link_after(pool, before, block):  # type: ignore[no-untyped-def]
    after = pool.node[before, FOLLOWING]
    pool.node[before, FOLLOWING] = block
    pool.node[block, PRECEDING] = before
    pool.node[block, FOLLOWING] = after
    pool.node[after, PRECEDING] = block


@compiled
def bucket_of(pool, key):  # type: ignore[no-untyped-def]
    return (key >> 7) & (pool.bucket_head.size - 1)


@compiled
def find(pool, key):  # type: ignore[no-untyped-def]
    """The block that was first to be cached under ``key`` and still is, or -1."""
    block = pool.bucket_head[bucket_of(pool, key)]
    while block >= 0:
        if pool.node[block, KEY] == key:
            return block
        block = pool.node[block, BUCKET_NEXT]
    return -1


@compiled
def publish(pool, block, key):  # type: ignore[no-untyped-def]
    """Make ``block`` findable under ``key``; blocks of equal content stay side by side in order of caching."""
    if pool.node[block, KEY] == key:
        return
    if pool.node[block, KEY] != 0:
        forget(pool, block)
    pool.node[block, KEY] = key
    pool.node[block, BUCKET_NEXT] = -1
    bucket = bucket_of(pool, key)
    last = pool.bucket_head[bucket]
    if last < 0:
        pool.bucket_head[bucket] = block
        return
    while pool.node[last, BUCKET_NEXT] >= 0:
        last = pool.node[last, BUCKET_NEXT]
    pool.node[last, BUCKET_NEXT] = block


@compiled
def forget(pool, block):  # type: ignore[no-untyped-def]
    """Drop the key of ``block``."""
    bucket = bucket_of(pool, pool.node[block, KEY])
    at = pool.bucket_head[bucket]
    if at == block:
        pool.bucket_head[bucket] = pool.node[block, BUCKET_NEXT]
    else:
        while pool.node[at, BUCKET_NEXT] != block:
            at = pool.node[at, BUCKET_NEXT]
        pool.node[at, BUCKET_NEXT] = pool.node[block, BUCKET_NEXT]
    pool.node[block, BUCKET_NEXT] = -1
    pool.node[block, KEY] = 0


@compiled
def take(pool):  # type: ignore[no-untyped-def]
    """Hand out the first block of the free queue; what it cached is gone. The caller has checked ``free``."""
    block = pool.node[pool.blocks, FOLLOWING]
    unlink(pool, block)
    if pool.node[block, KEY] != 0:
        if pool.telling:
            note_evicted(pool, pool.node[block, KEY])
        forget(pool, block)
    pool.node[block, REFERENCES] = 1
    pool.free -= 1
    return block


@compiled
def note_evicted(pool, key):  # type: ignore[no-untyped-def]
    if pool.evicted_count == pool.evicted.size:
        grown = np.zeros(2 * pool.evicted.size, np.int64)
        grown[: pool.evicted.size] = pool.evicted
        pool.evicted = grown
    pool.evicted[pool.evicted_count] = key
    pool.evicted_count += 1


@compiled
def share(pool, block):  # type: ignore[no-untyped-def]
    """One more request uses a cached block."""
    if pool.node[block, REFERENCES] == 0:
        unlink(pool, block)
        pool.free -= 1
    pool.node[block, REFERENCES] += 1


@compiled
def give_back(pool, blocks, count):  # type: ignore[no-untyped-def]
    """A request lets go of ``blocks[:count]`` (its table, in token order)."""
    for i in range(count):  # keyless ones to the front, the later token first in line
        block = blocks[i]
        if pool.node[block, REFERENCES] == 1 and pool.node[block, KEY] == 0:
            pool.node[block, REFERENCES] = 0
            pool.free += 1
            link_after(pool, pool.blocks, block)
            blocks[i] = -1
    for i in range(count - 1, -1, -1):
        block = blocks[i]
        if block < 0:
            continue
        pool.node[block, REFERENCES] -= 1
        if pool.node[block, REFERENCES] == 0:
            pool.free += 1
            link_after(pool, pool.node[pool.blocks + 1, PRECEDING], block)
