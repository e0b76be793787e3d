"""Keys of blocks and pages: equal where all tokens up to there are, and nowhere else."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from simulator.kv import content as kv
from simulator.kv.content import (
    OUTPUT_CONTENT,
    PRIVATE_CONTENT,
    SESSION_CONTENT,
    all_share_nothing,
    block_key,
    block_keys,
    make_content,
    mix,
    private_key,
    run_at,
    shares_nothing,
    unshared_content,
)
from simulator.kv.runs import END_CONTENT, NO_END, chain, end_position, page_key, token_run

#: Tokens of a trace's own prefix blocks, and of the cache's blocks.
HASHED, SIZE = 6, 4


@dataclass(frozen=True)
class Made:
    """Requests, and what the room makes of them; a request without ``ids`` has a prompt of its own."""

    ids: list[list[int]]
    lengths: list[int]
    outputs: list[int]
    prompts: list[int]

    @property
    def content(self):
        """The columns."""
        return make_content(
            np.array(self.lengths, np.int64),
            np.array([i for row in self.ids for i in row], np.int64),
            np.cumsum([0, *map(len, self.ids)], dtype=np.int64),
            HASHED,
            np.array(self.prompts, np.int64),
            np.array(self.outputs, np.int64),
        )

    def tokens(self, row, count, end_at=NO_END):
        """The content of each token, one by one."""
        found = []
        for position in range(count):
            if position >= end_at:
                found.append(END_CONTENT)
            elif position >= self.lengths[row]:
                found.append(self.outputs[row])
            else:
                found.append(self.ids[row][position // HASHED] if self.ids[row] else self.prompts[row])
        return found


def made(ids, lengths, outputs=None):
    """Requests whose outputs are their own, unless told."""
    rows = range(len(lengths))
    outputs = [OUTPUT_CONTENT + row for row in rows] if outputs is None else outputs
    return Made(ids, lengths, outputs, [PRIVATE_CONTENT + row for row in rows])


@st.composite
def requests(draw):
    """Prompts that begin alike: few different blocks, neighbours that repeat, some prompts of their own."""
    ids = draw(st.lists(st.lists(st.integers(0, 2), max_size=5), min_size=2, max_size=6))
    lengths = [HASHED * len(i) - draw(st.integers(0, HASHED - 1)) if i else draw(st.integers(1, 30)) for i in ids]
    return made(ids, lengths, [OUTPUT_CONTENT + draw(st.integers(0, 1)) for _ in ids])


@settings(max_examples=150, deadline=None, derandomize=True)
@given(requests())
def test_blocks_have_one_key_where_their_tokens_and_all_before_are_equal(drawn):
    content, count = drawn.content, 40
    seen: dict[tuple[int, ...], int] = {}
    for row in range(len(drawn.lengths)):
        tokens, key = drawn.tokens(row, count), 1
        for end in range(SIZE, count + 1, SIZE):
            key = block_key(content, row, key, end - SIZE, SIZE)
            assert 0 < key <= 1 << 62
            assert seen.setdefault(tuple(tokens[:end]), key) == key
    assert len(set(seen.values())) == len(seen)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(requests(), st.sampled_from([1, 3, 4, 8, 16]), st.lists(st.integers(1, 12), min_size=6, max_size=6))
def test_pages_have_one_key_where_their_tokens_are_equal(drawn, page, targets):
    content = drawn.content
    seen: dict[tuple[int, ...], int] = {}
    for row in range(len(drawn.lengths)):
        end_at = end_position(content, row, 48, targets[row])
        tokens = drawn.tokens(row, 48, end_at)
        for start in range(48 - page + 1):
            key = page_key(content, page, row, end_at, start)
            assert seen.setdefault(tuple(tokens[start : start + page]), key) == key
    assert len(set(seen.values())) == len(seen)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(requests(), st.integers(1, 30))
def test_runs_end_where_they_say(drawn, target):
    content = drawn.content
    for row in range(len(drawn.lengths)):
        end_at = end_position(content, row, 60, target)
        tokens, position = drawn.tokens(row, 60, end_at), 0
        while position < 60:
            value, stop = token_run(content, row, end_at, position)
            assert stop > position
            assert {value} == set(tokens[position : min(stop, 60)])
            if end_at == NO_END:
                assert (value, stop) == run_at(content, row, position)
            position = stop


def test_an_end_of_sequence_stands_behind_the_last_output_but_not_in_sessions():
    content = made([[], []], [10, 10], [OUTPUT_CONTENT, SESSION_CONTENT]).content
    assert end_position(content, 0, 20, 5) == 14
    assert end_position(content, 0, 15, 5) == 14
    assert end_position(content, 0, 14, 5) == NO_END  # not made yet
    assert end_position(content, 1, 20, 5) == NO_END
    assert token_run(content, 0, 14, 13) == (OUTPUT_CONTENT, 14)
    assert token_run(content, 0, 14, 14) == (END_CONTENT, NO_END)


def test_whose_prompts_are_their_own():
    own = made([[], []], [10, 10]).content
    assert [bool(shares_nothing(own, row)) for row in (0, 1)] == [True, True]
    assert all_share_nothing(own)
    mixed = made([[], [7]], [10, 6]).content
    assert [bool(shares_nothing(mixed, row)) for row in (0, 1)] == [True, False]
    assert not all_share_nothing(mixed)
    for first, alone in ((PRIVATE_CONTENT - 1, False), (PRIVATE_CONTENT, True), (OUTPUT_CONTENT, False)):
        assert bool(shares_nothing(Made([[]], [10], [0], [first]).content, 0)) is alone
    plain = unshared_content(np.array([5, 6, 7]))
    assert all_share_nothing(plain)
    assert run_at(plain, 1, 5) == (PRIVATE_CONTENT + 1, 6)
    assert run_at(plain, 2, 7) == (OUTPUT_CONTENT + 2, 1 << 60)


def test_keys_of_the_whole_blocks_of_a_request():
    content = made([[1, 2], [1, 3], []], [12, 12, 12]).content
    first, second = block_keys(content, 0, 11, SIZE), block_keys(content, 1, 12, SIZE)
    assert (first.size, second.size) == (2, 3)
    assert first[0] == second[0] == block_key(content, 0, 1, 0, SIZE)
    assert first[1] != second[1]
    assert first[1] == block_key(content, 0, int(first[0]), SIZE, SIZE)
    alone = block_keys(content, 2, 12, SIZE)
    assert alone.tolist() == [private_key(2, j) for j in range(3)]


def test_keys_of_prompts_of_their_own_differ_everywhere():
    keys = {int(private_key(row, block)) for row in range(200) for block in range(200)}
    assert len(keys) == 200 * 200 and min(keys) > 0
    assert private_key(0, 0) % 128 == private_key(9, 9) % 128  # the bits that buckets leave out say nothing


def test_hashes_tell_chains_apart_and_spread_them():
    values = [0, 1, 2, 511, PRIVATE_CONTENT, PRIVATE_CONTENT + 1, OUTPUT_CONTENT, (1 << 31) - 1, 1 << 31, 1 << 47]
    for one in (mix, chain):
        found = {int(one(one(one(1, a), b), c)) for a in values for b in values for c in values}
        assert len(found) == len(values) ** 3
        assert all(0 <= key <= 1 << 62 for key in found)
        for shift in (7, 20, 40, 55):  # a quarter more or less than half of the keys have each bit
            assert 0.4 < sum(key >> shift & 1 for key in found) / len(found) < 0.6
    assert kv.mix(0, 0) > 0
