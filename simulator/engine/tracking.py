"""From counted blocks to blocks told apart, when requests that share nothing may be preempted for the first time.

Which of several free blocks that cache nothing a request holds makes no difference, so numbers are given as they come;
what each block caches and the order of the free queue are those that the engine would have had from the start.
"""

from __future__ import annotations

from simulator.compiled import compiled
from simulator.engine.blocks import blocks_for, key_of, open_table
from simulator.engine.state import DECODING, FREE, LEAVING, wider
from simulator.kv.content import private_key
from simulator.kv.pool import FOLLOWING, make_pool, publish, take


@compiled
def may_preempt(e, phase):  # type: ignore[no-untyped-def]
    """Whether blocks may run short in the batch being planned (``phase``: of the decoding requests in need of one)."""
    if e.partials > 1:
        return True
    prompt = blocks_for(e, e.token_budget) + 1 if e.partials == 1 else 0
    return e.phase_count[phase] + prompt > e.pool.free


@compiled
def track_blocks(e):  # type: ignore[no-untyped-def]
    """Tell blocks apart from now on."""
    e.pool = make_pool(e.pool.blocks, True, False)
    e.caching, e.counting = True, False
    for s in range(e.row.size):
        if e.status[s] == DECODING or e.status[s] == LEAVING:
            settle(e, s)
        if e.status[s] != FREE and e.held_blocks[s] > 0:
            number_blocks(e, s)
    publish_free(e)
    chain_phases(e)


@compiled
def settle(e, s):  # type: ignore[no-untyped-def]
    """What a decoding request holds and has cached, which counting does not keep up to date."""
    if e.status[s] == DECODING:
        tokens = e.planned + e.offset[s]
        cached = tokens if e.depth == 1 else e.completed + e.offset[s]
    else:
        tokens = e.prompt[s] + e.target[s] - 1
        cached = tokens if e.depth == 1 else tokens - 1 - (e.last_batch[s] - min(e.completed, e.last_batch[s]))
    e.held_blocks[s] = blocks_for(e, tokens)
    e.registered[s] = max(e.registered[s], cached // e.block_size)


@compiled
def number_blocks(e, s):  # type: ignore[no-untyped-def]
    """Give a request's blocks numbers, and make those it has cached findable."""
    open_table(e, s)
    t = e.table[s]
    while e.held_blocks[s] > e.block_table.shape[1]:
        e.block_table, e.block_keys = wider(e.block_table), wider(e.block_keys)
    for j in range(e.held_blocks[s]):
        e.block_table[t, j] = take(e.pool)
        if j < e.registered[s]:
            publish(e.pool, e.block_table[t, j], key_of(e, s, j))


@compiled
def publish_free(e):  # type: ignore[no-untyped-def]
    """What the free blocks cache: nothing at the head of the queue, then finished requests, oldest first."""
    left, pool = e.left, e.pool
    block = pool.node[pool.blocks, FOLLOWING]
    for _ in range(left.blank):
        block = pool.node[block, FOLLOWING]
    for i in range(left.count):
        at = (left.head + i) % left.row.size
        for j in range(left.kept[at] - 1, -1, -1):
            publish(pool, block, private_key(left.row[at], j))
            block = pool.node[block, FOLLOWING]


@compiled
def chain_phases(e):  # type: ignore[no-untyped-def]
    """Decoding requests by block phase, in running order."""
    last = e.bucket_head.copy()
    last[:] = -1
    for i in range(e.running_count):
        s = e.running[i]
        if e.status[s] != DECODING:
            continue
        phase = e.offset[s] % e.block_size
        if last[phase] < 0:
            e.bucket_head[phase] = s
        else:
            e.bucket_next[last[phase]] = s
        e.bucket_next[s] = -1
        last[phase] = s
