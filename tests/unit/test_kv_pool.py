"""The block pool against lists and dictionaries: which block is handed out, found and forgotten, and in which order."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simulator.compiled import compiled
from simulator.kv.pool import find, give_back, make_pool, publish, share, take
from simulator.kv.unshared import leave_unshared, make_unshared, take_unshared


@compiled
def free_of(pool):  # type: ignore[no-untyped-def]
    """How many blocks are free."""
    return pool.free


@compiled
def told_by(pool):  # type: ignore[no-untyped-def]
    """Keys that were written down, in order."""
    return pool.evicted[: pool.evicted_count].copy()


@compiled
def sizes_of(pool):  # type: ignore[no-untyped-def]
    """Free blocks, all blocks, and rows that are kept for them."""
    return pool.free, pool.blocks, pool.node.shape[0]


class Plain:
    """vLLM's rules with a list of free blocks (next one first) and, for each key, its blocks in order of caching."""

    def __init__(self, blocks: int) -> None:
        self.free, self.users = list(range(blocks)), [0] * blocks
        self.key: list[int] = [0] * blocks
        self.cached: dict[int, list[int]] = {}
        self.evicted: list[int] = []

    def find(self, key: int) -> int:
        return self.cached.get(key, [-1])[0]

    def forget(self, block: int) -> None:
        self.cached[self.key[block]].remove(block)
        if not self.cached[self.key[block]]:
            del self.cached[self.key[block]]
        self.key[block] = 0

    def publish(self, block: int, key: int) -> None:
        if self.key[block] == key:
            return
        if self.key[block]:
            self.forget(block)
        self.key[block] = key
        self.cached.setdefault(key, []).append(block)

    def take(self) -> int:
        block = self.free.pop(0)
        if self.key[block]:
            self.evicted.append(self.key[block])
            self.forget(block)
        self.users[block] = 1
        return block

    def share(self, block: int) -> None:
        if not self.users[block]:
            self.free.remove(block)
        self.users[block] += 1

    def give_back(self, blocks: list[int]) -> None:
        for block in blocks:
            self.users[block] -= 1
        gone = [block for block in blocks if not self.users[block]]
        for block in gone:
            if not self.key[block]:
                self.free.insert(0, block)
        self.free += [block for block in reversed(gone) if self.key[block]]


#: Keys that meet in buckets (the lowest 7 bits play no part) and some that do not.
KEYS = [1 + 128 * i for i in (1, 2, 17, 33, 65, 1 << 20)] + [2 + 128 * 17, 77 + 128 * 33]
MOVE = st.tuples(st.sampled_from(["take", "take", "back", "share"]), st.integers(1, 6), st.lists(st.sampled_from(KEYS)))


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.integers(1, 24), st.lists(MOVE, max_size=60))
def test_the_same_blocks_as_lists_would_give(blocks, moves):
    pool, plain = make_pool(blocks, True, True), Plain(blocks)
    tables: list[list[int]] = []
    for what, number, keys in moves:
        if what == "take":
            table = []
            for _ in range(min(number, len(plain.free))):
                block = take(pool)
                assert block == plain.take()
                table.append(block)
            for block, key in zip(table, keys, strict=False):
                publish(pool, block, key)
                plain.publish(block, key)
            tables.append(table)
        elif what == "back" and tables:
            table = tables.pop(number % len(tables))
            give_back(pool, np.array(table, np.int64), len(table))
            plain.give_back(table)
        elif what == "share":
            table = []
            for key in dict.fromkeys(keys):
                block = find(pool, key)
                assert block == plain.find(key)
                if block >= 0 and block not in table:
                    share(pool, block)
                    plain.share(block)
                    table.append(block)
            tables.append(table)
        assert free_of(pool) == len(plain.free)
        assert [find(pool, key) for key in KEYS] == [plain.find(key) for key in KEYS]
    assert told_by(pool).tolist() == plain.evicted
    assert [take(pool) for _ in range(free_of(pool))] == plain.free


def test_a_block_may_get_another_key():
    pool = make_pool(2, True, False)
    block = take(pool)
    publish(pool, block, 129)
    publish(pool, block, 129)
    publish(pool, block, 257)
    assert (find(pool, 129), find(pool, 257)) == (-1, block)
    give_back(pool, np.array([block]), 1)
    assert [take(pool), take(pool)] == [1, 0]  # the cached one is the last to go
    assert find(pool, 257) == -1
    assert told_by(pool).size == 0  # nobody asked to be told


def test_only_the_first_blocks_of_a_table_are_given_back():
    pool = make_pool(3, True, False)
    table = np.array([take(pool), take(pool)])
    give_back(pool, table, 1)
    assert free_of(pool) == 2
    assert [take(pool), take(pool)] == [0, 2]


@pytest.mark.parametrize("blocks", [1, 7, 8, 9, 100])
def test_many_blocks_that_are_told_of(blocks):
    pool = make_pool(blocks, True, True)
    keys = [1 + 128 * (i + 1) for i in range(blocks)]
    for _ in range(2):
        table = np.array([take(pool) for _ in range(blocks)])
        for block, key in zip(table, keys, strict=True):
            publish(pool, block, key)
        assert [find(pool, key) for key in keys] == table.tolist()
        give_back(pool, table, blocks)
        assert free_of(pool) == blocks
    for _ in range(blocks):
        take(pool)
    assert sorted(told_by(pool).tolist()) == sorted(keys * 2)


def test_without_caching_blocks_are_only_counted():
    pool = make_pool(9, False, False)
    assert sizes_of(pool) == (9, 9, 2)


@compiled
def kept_by(left):  # type: ignore[no-untyped-def]
    """Blocks that cache nothing, and the (row, blocks) that follow them."""
    kept = [(-1, left.blank)]
    for i in range(left.count):
        at = (left.head + i) % left.row.size
        kept.append((left.row[at], left.kept[at]))
    return kept


@pytest.mark.parametrize("taken", [0, 5, 70])
def test_hundreds_of_finished_requests_are_remembered_in_order(taken):
    """The ring of 64 grows while its beginning lies anywhere: rows 0, 1, 2, ... of three blocks each, oldest first."""
    left, rows = make_unshared(1), list(range(60))
    for row in rows:
        leave_unshared(left, row, 4, 3)
    assert kept_by(left) == [(-1, 61)] + [(row, 3) for row in rows]
    take_unshared(left, 61 + taken)
    for row in range(60, 300):
        leave_unshared(left, row, 3, 3)
    first, used = divmod(taken, 3)
    expected = [(-1, 0)] + [(row, 3) for row in range(first, 300)]
    if used:
        expected[1] = (first, 3 - used)
    assert kept_by(left) == expected
    take_unshared(left, sum(count for _, count in expected))
    assert kept_by(left) == [(-1, 0)]
