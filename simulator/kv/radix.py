"""A radix tree of cached KV in whole pages, with the rules of SGLang's prefix cache.

A node is the tokens ``start .. stop`` of some request's sequence (``row`` of the content columns): a path from the
root always has its tokens at the positions they have in every request that shares it. Which memory slot a token has
changes nothing, so the tree keeps counts: ``evictable`` tokens are those in nodes that no request locks.
Eviction takes the least recently used leaf as a whole. Times: one tick a visit; within a match the deeper node counts
as the more recent.
"""

from __future__ import annotations

import numpy as np

from simulator.compiled import compiled, record
from simulator.kv.runs import NO_END, chain, page_key, token_run

ROOT = 0
_DEPTH_BITS = 20

Radix = record(
    "Radix",
    (
        "page",
        "caching",
        "ticks",
        "evictable",
        "used",
        "spare_count",
        "heap_count",
        "row",
        "start",
        "stop",
        "end_at",
        "parent",
        "key",
        "locks",
        "children",
        "time",
        "in_heap",
        "bucket_next",
        "spare",
        "bucket_head",
        "heap_time",
        "heap_node",
        "content",
    ),
    __name__,
)


@compiled
def make_radix(page, caching, content):  # type: ignore[no-untyped-def]
    """An empty tree; without ``caching`` it stays empty and every function on it does nothing."""
    nodes = 64
    ints = np.zeros(nodes, np.int64)
    return Radix(
        page,
        caching,
        0,
        0,
        1,
        0,
        0,
        ints.copy(),
        ints.copy(),
        ints.copy(),
        ints.copy(),
        np.full(nodes, -1, np.int64),
        ints.copy(),
        ints.copy(),
        ints.copy(),
        ints.copy(),
        np.zeros(nodes, np.bool_),
        np.full(nodes, -1, np.int64),
        ints.copy(),
        np.full(128, -1, np.int64),
        ints.copy(),
        ints.copy(),
        content,
    )


@compiled
def clear(t):  # type: ignore[no-untyped-def]
    """Forget everything; only for trees whose nodes are neither locked nor evicted."""
    t.bucket_head[:] = -1
    t.children[ROOT] = 0
    t.used, t.spare_count, t.heap_count, t.evictable = 1, 0, 0, 0


@compiled
def grown(values):  # type: ignore[no-untyped-def]
    larger = np.zeros(values.size * 2, values.dtype)
    larger[: values.size] = values
    return larger


@compiled
def bucket_of(t, parent, key):  # type: ignore[no-untyped-def]
    hashed = chain(key, parent)
    return (hashed ^ (hashed >> 33)) & (t.bucket_head.size - 1)


@compiled
def hang(t, node):  # type: ignore[no-untyped-def]
    """Make ``node`` findable under its parent."""
    bucket = bucket_of(t, t.parent[node], t.key[node])
    t.bucket_next[node] = t.bucket_head[bucket]
    t.bucket_head[bucket] = node
    t.children[t.parent[node]] += 1


@compiled
def unhang(t, node):  # type: ignore[no-untyped-def]
    bucket = bucket_of(t, t.parent[node], t.key[node])
    at = t.bucket_head[bucket]
    if at == node:
        t.bucket_head[bucket] = t.bucket_next[node]
    else:
        while t.bucket_next[at] != node:
            at = t.bucket_next[at]
        t.bucket_next[at] = t.bucket_next[node]
    t.children[t.parent[node]] -= 1


@compiled
def grow(t):  # type: ignore[no-untyped-def]
    """Twice the nodes and buckets."""
    t.row, t.start, t.stop, t.end_at = grown(t.row), grown(t.start), grown(t.stop), grown(t.end_at)
    t.parent, t.key, t.locks = grown(t.parent), grown(t.key), grown(t.locks)
    t.children, t.time, t.in_heap = grown(t.children), grown(t.time), grown(t.in_heap)
    t.bucket_next, t.spare = grown(t.bucket_next), grown(t.spare)
    t.bucket_head = np.full(t.bucket_head.size * 2, -1, np.int64)
    for node in range(1, t.used):
        bucket = bucket_of(t, t.parent[node], t.key[node])
        t.bucket_next[node] = t.bucket_head[bucket]
        t.bucket_head[bucket] = node


@compiled
def new_node(t, parent, row, start, stop, end_at):  # type: ignore[no-untyped-def]
    """A node with a new time, not yet findable."""
    if t.spare_count > 0:
        t.spare_count -= 1
        node = t.spare[t.spare_count]
    else:
        if t.used == t.row.size:
            grow(t)
        node = t.used
        t.used += 1
    t.row[node], t.start[node], t.stop[node], t.end_at[node] = row, start, stop, end_at
    t.parent[node], t.locks[node], t.children[node], t.in_heap[node] = parent, 0, 0, False
    t.time[node] = tick(t)
    return node


@compiled
def tick(t):  # type: ignore[no-untyped-def]
    t.ticks += 1
    return t.ticks << _DEPTH_BITS


@compiled
def shared_length(t, node, row, end_at, limit):  # type: ignore[no-untyped-def]
    """Tokens, in whole pages, that ``node`` and the sequence share from the node's start on; up to ``limit``."""
    position = t.start[node]
    end = min(t.stop[node], limit)
    other, other_end = t.row[node], t.end_at[node]
    if other == row and other_end == end_at:
        position = end
    while position < end:
        a, a_stop = token_run(t.content, row, end_at, position)
        b, b_stop = token_run(t.content, other, other_end, position)
        if a != b:
            break
        position = min(min(a_stop, b_stop), end)
    return (position - t.start[node]) // t.page * t.page


@compiled
def child_at(t, parent, row, end_at, position):  # type: ignore[no-untyped-def]
    """The child of ``parent`` that begins with the sequence's page at ``position``, or -1."""
    if t.children[parent] == 0:
        return -1
    key = page_key(t.content, t.page, row, end_at, position)
    node = t.bucket_head[bucket_of(t, parent, key)]
    while node >= 0:
        if t.parent[node] == parent and t.key[node] == key:
            return node
        node = t.bucket_next[node]
    return -1


@compiled
def split(t, lower, length):  # type: ignore[no-untyped-def]
    """Cut a node after ``length`` tokens; returns the upper part, which has as many locks."""
    at = t.start[lower] + length
    upper = new_node(t, t.parent[lower], t.row[lower], t.start[lower], at, t.end_at[lower])
    t.locks[upper] = t.locks[lower]
    t.key[upper] = t.key[lower]
    unhang(t, lower)
    hang(t, upper)
    t.parent[lower], t.start[lower] = upper, at
    t.key[lower] = page_key(t.content, t.page, t.row[lower], t.end_at[lower], at)
    hang(t, lower)
    t.time[lower] = tick(t)
    return upper


@compiled
def match(t, row, end_at, limit):  # type: ignore[no-untyped-def]
    """Longest cached prefix of the sequence's first ``limit`` tokens: its length and last node."""
    limit = limit // t.page * t.page
    if not t.caching or limit <= 0:
        return 0, ROOT
    node, done = ROOT, 0
    while done < limit:
        child = child_at(t, node, row, end_at, done)
        if child < 0:
            break
        shared = shared_length(t, child, row, end_at, limit)
        done += shared
        if done < t.stop[child]:
            node = split(t, child, shared)
            break
        node = child
    now, up = tick(t), node
    while up >= 0:
        t.time[up] = now
        now -= 1
        up = t.parent[up]
    return done, node


@compiled
def peek(t, row, limit):  # type: ignore[no-untyped-def]
    """Length of the longest cached prefix of a prompt's first ``limit`` tokens; leaves the tree as it is."""
    limit = limit // t.page * t.page
    node, done = ROOT, 0
    while t.caching and done < limit:
        child = child_at(t, node, row, NO_END, done)
        if child < 0:
            break
        done += shared_length(t, child, row, NO_END, limit)
        if done < t.stop[child]:
            break
        node = child
    return done


@compiled
def insert(t, row, end_at, length):  # type: ignore[no-untyped-def]
    """Put the sequence's first ``length`` tokens in, whole pages: how many were there, and the last node."""
    length = length // t.page * t.page
    t.time[ROOT] = tick(t)
    node, done = ROOT, 0
    while done < length:
        child = child_at(t, node, row, end_at, done)
        if child < 0:
            break
        t.time[child] = tick(t)
        shared = shared_length(t, child, row, end_at, length)
        done += shared
        node = split(t, child, shared) if done < t.stop[child] else child
    if done < length:
        leaf = new_node(t, node, row, done, length, end_at)
        t.key[leaf] = page_key(t.content, t.page, row, end_at, done)
        hang(t, leaf)
        t.evictable += length - done
        offer(t, leaf)
        node = leaf
    return done, node


@compiled
def lock(t, node):  # type: ignore[no-untyped-def]
    """One more request holds the path to ``node``."""
    while node > ROOT:
        if t.locks[node] == 0:
            t.evictable -= t.stop[node] - t.start[node]
        t.locks[node] += 1
        node = t.parent[node]


@compiled
def unlock(t, node):  # type: ignore[no-untyped-def]
    while node > ROOT:
        t.locks[node] -= 1
        if t.locks[node] == 0:
            t.evictable += t.stop[node] - t.start[node]
            offer(t, node)
        node = t.parent[node]


@compiled
def is_leaf(t, node):  # type: ignore[no-untyped-def]
    """Whether eviction may take the node."""
    return node != ROOT and t.locks[node] == 0 and t.children[node] == 0


@compiled
def offer(t, node):  # type: ignore[no-untyped-def]
    """Put a node that may be evicted into the heap, unless it is there. Its time there may lag behind."""
    if t.in_heap[node] or not is_leaf(t, node):
        return
    t.in_heap[node] = True
    if t.heap_count == t.heap_node.size:
        t.heap_time, t.heap_node = grown(t.heap_time), grown(t.heap_node)
    i, now = t.heap_count, t.time[node]
    t.heap_count += 1
    while i > 0:
        up = (i - 1) // 2
        if t.heap_time[up] <= now:
            break
        t.heap_time[i], t.heap_node[i] = t.heap_time[up], t.heap_node[up]
        i = up
    t.heap_time[i], t.heap_node[i] = now, node


@compiled
def replace_first(t, now, node):  # type: ignore[no-untyped-def]
    """Let the entry ``(now, node)`` take the place of the heap's first."""
    i, n = 0, t.heap_count
    while True:
        child = 2 * i + 1
        if child >= n:
            break
        if child + 1 < n and t.heap_time[child + 1] < t.heap_time[child]:
            child += 1
        if t.heap_time[child] >= now:
            break
        t.heap_time[i], t.heap_node[i] = t.heap_time[child], t.heap_node[child]
        i = child
    t.heap_time[i], t.heap_node[i] = now, node


@compiled
def oldest_leaf(t):  # type: ignore[no-untyped-def]
    """Take the least recently used leaf out of the heap; -1 if there is none."""
    while t.heap_count > 0:
        node = t.heap_node[0]
        if is_leaf(t, node) and t.time[node] != t.heap_time[0]:
            replace_first(t, t.time[node], node)
            continue
        t.heap_count -= 1
        if t.heap_count > 0:
            replace_first(t, t.heap_time[t.heap_count], t.heap_node[t.heap_count])
        t.in_heap[node] = False
        if is_leaf(t, node):
            return node
    return -1


@compiled
def evict(t, wanted):  # type: ignore[no-untyped-def]
    """Drop leaves until ``wanted`` tokens are free or nothing is left; returns how many tokens were freed."""
    freed = 0
    while freed < wanted:
        node = oldest_leaf(t)
        if node < 0:
            break
        size = t.stop[node] - t.start[node]
        freed += size
        t.evictable -= size
        parent = t.parent[node]
        unhang(t, node)
        t.spare[t.spare_count] = node
        t.spare_count += 1
        offer(t, parent)
    return freed


@compiled
def evictable_tokens(t):  # type: ignore[no-untyped-def]
    """Tokens in nodes that nobody locks."""
    return t.evictable
