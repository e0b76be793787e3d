"""What caches below the GPU let go, and what a pool of a given size would find, by hand and against plain lists."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simulator.errors import TraceError
from simulator.kv.eviction import EVICTION, PageCache
from simulator.kv.reuse import MAX_BLOCKS, POOLS, Reuse, reuse, reuse_by_pool
from simulator.workload.trace import Trace


class Plain:
    """The same caches as lists: for each page its depth, its uses and when it was used last."""

    def __init__(self, pages: float, policy: str) -> None:
        self.pages, self.policy, self.now = pages, policy, 0
        self.held: dict[int, list[int]] = {}
        self.pins: dict[int, int] = {}
        self.gone: list[tuple[int, int]] = []

    def order(self) -> list[int]:
        def rank(key: int) -> tuple[int, int]:
            depth, uses, used = self.held[key]
            return {"lru": 0, "lfu": uses, "length_aware": -depth}[self.policy], used

        return sorted(self.held, key=rank)

    def touch(self, key: int) -> None:
        self.now += 1
        self.held[key][1:] = self.held[key][1] + 1, self.now

    def add(self, key: int, depth: int) -> bool:
        if key in self.held:
            self.touch(key)
            return True
        if len(self.held) >= self.pages:
            free = [other for other in self.order() if not self.pins.get(other)]
            if not free:
                return False
            self.gone.append((free[0], self.held.pop(free[0])[0]))
        self.now += 1
        self.held[key] = [depth, 1, self.now]
        return True


MOVES = st.lists(
    st.tuples(st.sampled_from(["add", "add", "touch", "pin", "unpin"]), st.integers(0, 9), st.integers(0, 3)),
    max_size=80,
)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(st.sampled_from(sorted(EVICTION)), st.integers(1, 6), MOVES)
def test_the_same_pages_go_as_from_a_list(policy, pages, moves):
    gone: list[tuple[int, int]] = []
    cache, plain, most = PageCache(pages, policy, lambda *page: gone.append(page)), Plain(pages, policy), 0
    for what, key, depth in moves:
        if what == "add":
            assert cache.add(key, depth) == plain.add(key, depth)
        elif what == "touch" and key in cache:
            cache.touch(key)
            plain.touch(key)
        elif what == "pin" and key in cache:
            cache.pin(key)
            plain.pins[key] = plain.pins.get(key, 0) + 1
        elif what == "unpin" and plain.pins.get(key):
            cache.unpin(key)
            plain.pins[key] -= 1
        most = max(most, len(plain.held))
        assert gone == plain.gone
        assert {key: cache.held[key] for key in cache.held} == {key: row[0] for key, row in plain.held.items()}
        assert len(cache) == len(plain.held) and [key in cache for key in range(10)] == [
            key in plain.held for key in range(10)
        ]
    assert (cache.evicted, cache.peak) == (len(plain.gone), most)


@pytest.mark.parametrize("policy", sorted(EVICTION))
def test_an_order_knows_its_pages(policy):
    order = EVICTION[policy]()
    for key in (3, 1, 2):
        order.add(key, 5)
    assert list(order.victims()) == [3, 1, 2]
    order.touch(3)
    assert list(order.victims()) == [1, 2, 3]
    order.remove(1)
    assert list(order.victims()) == [2, 3]


def test_ranks_that_run_empty_and_fill_again():
    deep = EVICTION["length_aware"]()
    for key, depth in ((1, 0), (2, 9), (3, 4)):
        deep.add(key, depth)
    assert list(deep.victims()) == [2, 3, 1]
    deep.remove(2)
    assert list(deep.victims()) == [3, 1]
    deep.add(4, 9)
    assert list(deep.victims()) == [4, 3, 1]
    for key in (1, 3, 4):
        deep.remove(key)
    assert list(deep.victims()) == []
    rare = EVICTION["lfu"]()
    rare.add(1, 0)
    rare.touch(1)
    rare.touch(1)
    rare.add(2, 0)
    rare.touch(2)
    assert list(rare.victims()) == [2, 1]


def test_a_cache_without_an_end():
    cache = PageCache(math.inf, "lru")
    assert all(cache.add(key, 0) for key in range(1000))
    assert (len(cache), cache.evicted, cache.peak) == (1000, 0, 1000)
    assert not PageCache(0, "lru").add(1, 0)


# --- what a pool would find


def trace(ids, lengths, block_tokens=10):
    return Trace.from_columns(
        np.arange(len(ids), dtype=float),
        np.array(lengths),
        np.ones(len(ids), np.int64),
        hash_ids=np.array([i for row in ids for i in row], np.int64),
        hash_offsets=np.cumsum([0, *map(len, ids)]),
        block_tokens=block_tokens,
    )


def test_leading_blocks_are_found_by_token_and_by_block():
    # nothing; all of it, cut at 25 tokens; one block of three: the second is not the first's follower
    found = reuse(trace([[1, 2, 3], [1, 2, 3], [1, 9, 3]], [28, 25, 30]))
    assert found == Reuse(hit_tokens=35, tokens=83, hit_blocks=4, blocks=9)
    assert (found.token_ratio, found.block_ratio) == (35 / 83, 4 / 9)
    assert (Reuse(0, 0, 0, 0).token_ratio, Reuse(0, 0, 0, 0).block_ratio) == (0.0, 0.0)


def test_a_small_pool_keeps_the_beginnings():
    ids = [[1, 2, 3], [1, 2, 3]]
    assert reuse(trace(ids, [30, 30]), 20).hit_blocks == 2  # the last block was the first to go
    assert reuse(trace(ids, [30, 30]), 29).hit_blocks == 2
    assert reuse(trace(ids, [30, 30]), 30).hit_blocks == 3
    assert reuse(trace(ids, [30, 30]), 10).hit_blocks == 1
    assert reuse(trace([[1, 2], [1, 3], [1, 2]], [20] * 3), 20, "lru").hit_blocks == 2
    assert reuse(trace([[1, 2], [1, 3], [4], [1]], [20, 20, 10, 10]), 20, "lfu").hit_blocks == 2


def test_prompts_without_blocks_of_their_own_count_for_nothing():
    found = reuse(trace([[1], [], [1]], [10, 500, 10]))
    assert found == Reuse(10, 20, 1, 2)
    with pytest.raises(TraceError) as error:
        reuse(Trace.from_columns([0.0], [10], [1]))
    assert str(error.value).endswith(": no prefix blocks (hash_ids): nothing to find in a cache")


def test_pools_larger_than_the_trace_are_left_out():
    large = trace([[1, 2], [1, 2]], [2_000_000] * 2, block_tokens=1_000_000)
    assert reuse_by_pool(large) == {"1M": 0.25, "all": 0.5}
    assert reuse_by_pool(Trace.from_columns([0.0], [10], [1])) == {}
    assert list(POOLS) == ["1M", "3M", "10M", "50M", "all"] and MAX_BLOCKS == 2_000_000
    for name, tokens in POOLS.items():
        assert tokens == (math.inf if name == "all" else float(name.removesuffix("M")) * 1e6)
    assert reuse_by_pool(trace([[1]], [10])) == {"all": 0.0}
    exact = trace([[1, 2, 3], [1, 2, 3]], [3_000_000] * 2, block_tokens=1_000_000)
    assert list(reuse_by_pool(exact)) == ["1M", "all"]
