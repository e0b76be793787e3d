"""Paged KV blocks of one engine: a counter, or with prefix caching every block with its key and a free queue.

The rules are those of vLLM's block pool (v1): a free block keeps its key and can be hit until it is handed out again;
freed blocks with a key join the tail of the free queue (oldest evicted first), those without go to its front.
"""

from __future__ import annotations

import numpy as np

from simulator.compiled import compiled, record

BlockPool = record(
    "BlockPool",
    ("caching", "blocks", "free", "following", "preceding", "references", "key", "bucket_head", "bucket_next"),
    __name__,
)


@compiled
def make_pool(blocks, caching):  # type: ignore[no-untyped-def]
    """``blocks`` usable blocks, all free. Without ``caching`` only their number is kept."""
    tracked = blocks if caching else 0
    following = np.empty(tracked + 2, np.int64)
    preceding = np.empty(tracked + 2, np.int64)
    head, tail = tracked, tracked + 1
    previous = head
    for block in range(tracked):
        following[previous] = block
        preceding[block] = previous
        previous = block
    following[previous] = tail
    preceding[tail] = previous
    preceding[head] = head
    following[tail] = tail
    buckets = 16
    while buckets < 2 * tracked:
        buckets *= 2
    return BlockPool(
        caching,
        blocks,
        blocks,
        following,
        preceding,
        np.zeros(tracked, np.int64),
        np.zeros(tracked, np.int64),
        np.full(buckets, -1, np.int64),
        np.full(tracked, -1, np.int64),
    )


@compiled
def unlink(pool, block):  # type: ignore[no-untyped-def]
    """Take ``block`` out of the free queue."""
    before, after = pool.preceding[block], pool.following[block]
    pool.following[before] = after
    pool.preceding[after] = before


@compiled
def link_after(pool, before, block):  # type: ignore[no-untyped-def]
    after = pool.following[before]
    pool.following[before] = block
    pool.preceding[block] = before
    pool.following[block] = after
    pool.preceding[after] = block


@compiled
def bucket_of(pool, key):  # type: ignore[no-untyped-def]
    return (key >> 7) & (pool.bucket_head.size - 1)


@compiled
def find(pool, key):  # type: ignore[no-untyped-def]
    """The block that was first to be cached under ``key`` and still is, or -1."""
    block = pool.bucket_head[bucket_of(pool, key)]
    while block >= 0:
        if pool.key[block] == key:
            return block
        block = pool.bucket_next[block]
    return -1


@compiled
def publish(pool, block, key):  # type: ignore[no-untyped-def]
    """Make ``block`` findable under ``key``; blocks of equal content stay side by side in order of caching."""
    if pool.key[block] == key:
        return
    if pool.key[block] != 0:
        forget(pool, block)
    pool.key[block] = key
    pool.bucket_next[block] = -1
    bucket = bucket_of(pool, key)
    last = pool.bucket_head[bucket]
    if last < 0:
        pool.bucket_head[bucket] = block
        return
    while pool.bucket_next[last] >= 0:
        last = pool.bucket_next[last]
    pool.bucket_next[last] = block


@compiled
def forget(pool, block):  # type: ignore[no-untyped-def]
    """Drop the key of ``block``."""
    bucket = bucket_of(pool, pool.key[block])
    at = pool.bucket_head[bucket]
    if at == block:
        pool.bucket_head[bucket] = pool.bucket_next[block]
    else:
        while pool.bucket_next[at] != block:
            at = pool.bucket_next[at]
        pool.bucket_next[at] = pool.bucket_next[block]
    pool.bucket_next[block] = -1
    pool.key[block] = 0


@compiled
def take(pool):  # type: ignore[no-untyped-def]
    """Hand out the first block of the free queue; what it cached is gone. The caller has checked ``free``."""
    block = pool.following[pool.blocks]
    unlink(pool, block)
    if pool.key[block] != 0:
        forget(pool, block)
    pool.references[block] = 1
    pool.free -= 1
    return block


@compiled
def share(pool, block):  # type: ignore[no-untyped-def]
    """One more request uses a cached block."""
    if pool.references[block] == 0:
        unlink(pool, block)
        pool.free -= 1
    pool.references[block] += 1


@compiled
def give_back(pool, blocks, count):  # type: ignore[no-untyped-def]
    """A request lets go of ``blocks[:count]`` (its table, in token order)."""
    for i in range(count):  # keyless ones to the front, the later token first in line
        block = blocks[i]
        if pool.references[block] == 1 and pool.key[block] == 0:
            pool.references[block] = 0
            pool.free += 1
            link_after(pool, pool.blocks, block)
            blocks[i] = -1
    for i in range(count - 1, -1, -1):
        block = blocks[i]
        if block < 0:
            continue
        pool.references[block] -= 1
        if pool.references[block] == 0:
            pool.free += 1
            link_after(pool, pool.preceding[pool.blocks + 1], block)
