"""The radix tree where it is looked at without being touched, cleared, switched off, and when nodes come and go."""

from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simulator.compiled import compiled
from simulator.kv import radix
from simulator.kv.content import OUTPUT_CONTENT, PRIVATE_CONTENT, make_content
from simulator.kv.runs import NO_END

ROWS, BLOCK = 16, 8


@compiled
def touched(tree):  # type: ignore[no-untyped-def]
    """Nodes ever made, and visits."""
    return tree.used, tree.ticks


def content_of(ids):
    rows = np.arange(len(ids), dtype=np.int64)
    return make_content(
        np.array([BLOCK * len(row) for row in ids], np.int64),
        np.array([b for row in ids for b in row], np.int64),
        np.cumsum([0, *map(len, ids)], dtype=np.int64),
        BLOCK,
        PRIVATE_CONTENT + rows,
        OUTPUT_CONTENT + rows,
    )


PROMPTS = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=6), min_size=ROWS, max_size=ROWS)


@settings(max_examples=80, deadline=None, derandomize=True)
@given(PROMPTS, st.sampled_from([1, 4, 8, 16]), st.lists(st.tuples(st.integers(0, ROWS - 1), st.integers(0, 50))))
def test_looking_finds_what_a_match_would_and_changes_nothing(ids, page, inserts):
    content = content_of(ids)
    looked, matched = (radix.make_radix(page, True, content) for _ in range(2))
    for row, length in inserts:
        for tree in (looked, matched):
            radix.insert(tree, row, NO_END, min(length, BLOCK * len(ids[row])))
    for row in range(ROWS):
        for limit in range(0, BLOCK * len(ids[row]) + 1, 3):
            kept = max(
                (
                    common(ids, row, other, min(length // page * page, BLOCK * len(ids[other])), limit)
                    for other, length in inserts
                ),
                default=0,
            )
            assert radix.peek(looked, row, limit) == kept // page * page
        before = touched(looked)
        assert radix.peek(looked, row, 100) >= 0 and touched(looked) == before
        assert radix.match(matched, row, NO_END, BLOCK * len(ids[row]))[0] == radix.peek(
            looked, row, BLOCK * len(ids[row])
        )
    everything = radix.evictable_tokens(looked)
    assert radix.evict(looked, 1 << 40) == everything and radix.evictable_tokens(looked) == 0


def common(ids, one, other, length, limit):
    """Tokens that two prompts share, of the first ``length`` of the other and ``limit`` of the one."""
    shared = 0
    for a, b in zip(ids[one], ids[other], strict=False):
        if a != b:
            break
        shared += BLOCK
    return min(shared, length, limit)


def test_a_tree_without_caching_finds_nothing():
    tree = radix.make_radix(4, False, content_of([[1, 2]]))
    assert radix.match(tree, 0, NO_END, 16) == (0, radix.ROOT)
    assert radix.peek(tree, 0, 16) == 0


def test_a_cleared_tree_is_as_new():
    ids = [[1, 2, 3], [1, 2, 4], [5]]
    tree = radix.make_radix(4, True, content_of(ids))
    for _ in range(3):
        assert [radix.insert(tree, row, NO_END, BLOCK * len(ids[row]))[0] for row in (0, 1, 2)] == [0, 16, 0]
        assert radix.evictable_tokens(tree) == 40
        radix.clear(tree)
        assert radix.evictable_tokens(tree) == 0
        assert [radix.peek(tree, row, 24) for row in (0, 1, 2)] == [0, 0, 0]
        assert radix.evict(tree, 10) == 0


def test_locked_paths_stay_and_shared_ones_until_the_last_lets_go():
    ids = [[1, 2, 3], [1, 2, 4]]
    tree = radix.make_radix(4, True, content_of(ids))
    first = radix.insert(tree, 0, NO_END, 24)[1]
    second = radix.insert(tree, 1, NO_END, 24)[1]
    radix.lock(tree, first)
    radix.lock(tree, second)
    assert radix.evictable_tokens(tree) == 0 and radix.evict(tree, 100) == 0
    radix.unlock(tree, first)
    assert radix.evictable_tokens(tree) == 8  # the last block of the first
    assert radix.evict(tree, 1) == 8  # whole nodes go
    assert (radix.peek(tree, 0, 24), radix.peek(tree, 1, 24)) == (16, 24)
    radix.unlock(tree, second)
    assert radix.evictable_tokens(tree) == 24
    assert radix.evict(tree, 100) == 24


def test_the_least_recently_used_leaf_goes_first():
    ids = [[i] for i in range(8)]
    tree = radix.make_radix(8, True, content_of(ids))
    for row in (3, 1, 4, 0, 5, 2):
        radix.insert(tree, row, NO_END, 8)
    for row in (1, 4):
        assert radix.match(tree, row, NO_END, 8)[0] == 8  # used again
    gone = []
    for _ in range(6):
        before = {row for row in range(8) if radix.peek(tree, row, 8)}
        assert radix.evict(tree, 1) == 8
        gone += before - {row for row in range(8) if radix.peek(tree, row, 8)}
    assert gone == [3, 0, 5, 2, 1, 4]


@pytest.mark.parametrize("seed", range(4))
def test_hundreds_of_leaves_come_and_go_in_order_of_use(seed):
    """A list kept in order of use says which leaf goes; nodes, buckets and heap grow on the way and are used again."""
    rng, rows = random.Random(seed), 400
    tree = radix.make_radix(8, True, content_of([[i] for i in range(rows)]))
    used: list[int] = []
    for _ in range(1500):
        row = rng.randrange(rows)
        if rng.random() < 0.75:
            assert radix.insert(tree, row, NO_END, 8)[0] == (8 if row in used else 0)
            used = [other for other in used if other != row] + [row]
        elif rng.random() < 0.5 and row in used:
            assert radix.match(tree, row, NO_END, 8)[0] == 8
            used = [other for other in used if other != row] + [row]
        else:
            count = min(rng.randrange(12), len(used))
            assert radix.evict(tree, 8 * count) == 8 * count
            gone, used = used[:count], used[count:]
            assert not any(radix.peek(tree, other, 8) for other in gone)
        assert radix.evictable_tokens(tree) == 8 * len(used)
    assert all(radix.peek(tree, row, 8) == 8 for row in used)
