"""Paged KV blocks of one engine: a counter, or with prefix caching every block with its key and a free queue.

The rules are those of vLLM's block pool (v1): a free block keeps its key and can be hit until it is handed out again;
freed blocks with a key join the tail of the free queue (oldest evicted first), those without go to its front.
"""

from __future__ import annotations

import numpy as np

from simulator.compiled import compiled, record

# What is kept of a block besides its key, side by side: a line of the processor's cache holds four blocks, and blocks
# that are handed out together lie together.
FOLLOWING, PRECEDING, REFERENCES, BUCKET_NEXT, _NODE = 0, 1, 2, 3, 4

BlockPool = record(
    "BlockPool",
    ("caching", "blocks", "free", "node", "key", "bucket_head", "telling", "evicted", "evicted_count"),
    __name__,
)


@compiled
def make_pool(blocks, caching, telling):  # type: ignore[no-untyped-def]
    """``blocks`` usable blocks, all free. Without ``caching`` only their number is kept.

    ``telling``: the keys of blocks that lose what they cached are written down, for whoever takes them.
    """
    tracked = blocks if caching else 0
    node = np.zeros((tracked + 2, _NODE), np.int32)
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
    key, evicted = np.zeros(tracked, np.int64), np.zeros(64, np.int64)
    return BlockPool(caching, blocks, blocks, node, key, np.full(buckets, -1, np.int32), telling, evicted, 0)


@compiled
def unlink(node, block):  # type: ignore[no-untyped-def]
    """Take ``block`` out of the free queue."""
    before, after = node[block, PRECEDING], node[block, FOLLOWING]
    node[before, FOLLOWING] = after
    node[after, PRECEDING] = before


@compiled
def link_after(node, before, block):  # type: ignore[no-untyped-def]
    after = node[before, FOLLOWING]
    node[before, FOLLOWING] = block
    node[block, PRECEDING] = before
    node[block, FOLLOWING] = after
    node[after, PRECEDING] = block


@compiled
def bucket_of(bucket_head, key):  # type: ignore[no-untyped-def]
    return (key >> 7) & (bucket_head.size - 1)


@compiled
def find(pool, key):  # type: ignore[no-untyped-def]
    """The block that was first to be cached under ``key`` and still is, or -1."""
    keys, node = pool.key, pool.node
    block = np.int64(pool.bucket_head[bucket_of(pool.bucket_head, key)])
    while block >= 0:
        if keys[block] == key:
            return block
        block = np.int64(node[block, BUCKET_NEXT])
    return np.int64(-1)


@compiled
def publish(pool, block, key):  # type: ignore[no-untyped-def]
    """Make ``block`` findable under ``key``; blocks of equal content stay side by side in order of caching."""
    if pool.key[block] == key:
        return
    if pool.key[block] != 0:
        forget(pool, block)
    node, bucket_head = pool.node, pool.bucket_head
    pool.key[block] = key
    node[block, BUCKET_NEXT] = -1
    bucket = bucket_of(bucket_head, key)
    last = bucket_head[bucket]
    if last < 0:
        bucket_head[bucket] = block
        return
    while node[last, BUCKET_NEXT] >= 0:
        last = node[last, BUCKET_NEXT]
    node[last, BUCKET_NEXT] = block


@compiled
def forget(pool, block):  # type: ignore[no-untyped-def]
    """Drop the key of ``block``."""
    node, bucket_head = pool.node, pool.bucket_head
    bucket = bucket_of(bucket_head, pool.key[block])
    at = bucket_head[bucket]
    if at == block:
        bucket_head[bucket] = node[block, BUCKET_NEXT]
    else:
        while node[at, BUCKET_NEXT] != block:
            at = node[at, BUCKET_NEXT]
        node[at, BUCKET_NEXT] = node[block, BUCKET_NEXT]
    node[block, BUCKET_NEXT] = -1
    pool.key[block] = 0


@compiled
def take(pool):  # type: ignore[no-untyped-def]
    """Hand out the first block of the free queue; what it cached is gone. The caller has checked ``free``."""
    node = pool.node
    block = np.int64(node[pool.blocks, FOLLOWING])
    unlink(node, block)
    key = pool.key[block]
    if key != 0:
        if pool.telling:
            note_evicted(pool, key)
        forget(pool, block)
    node[block, REFERENCES] = 1
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
    node = pool.node
    if node[block, REFERENCES] == 0:
        unlink(node, block)
        pool.free -= 1
    node[block, REFERENCES] += 1


@compiled
def give_back(pool, blocks, count):  # type: ignore[no-untyped-def]
    """A request lets go of ``blocks[:count]`` (its table, in token order)."""
    node, keys = pool.node, pool.key
    for i in range(count):  # keyless ones to the front, the later token first in line
        block = blocks[i]
        if node[block, REFERENCES] == 1 and keys[block] == 0:
            node[block, REFERENCES] = 0
            pool.free += 1
            link_after(node, pool.blocks, block)
            blocks[i] = -1
    for i in range(count - 1, -1, -1):
        block = blocks[i]
        if block < 0:
            continue
        node[block, REFERENCES] -= 1
        if node[block, REFERENCES] == 0:
            pool.free += 1
            link_after(node, node[pool.blocks + 1, PRECEDING], block)
