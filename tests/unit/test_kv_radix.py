"""The compiled radix tree against the oracle's plain one: same matches, same evictions, same counts."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from simulator.kv import radix
from simulator.kv.content import OUTPUT_CONTENT, PRIVATE_CONTENT, make_content
from simulator.kv.runs import chain, end_position

sys.path.insert(0, str(Path(__file__).parents[1] / "oracle"))
from sglang_radix import RadixTree, Tokens

ROWS, BLOCK = 24, 8


@st.composite
def sequences(draw):
    """Prompts of few different blocks, cut anywhere, so that paths share, split and end inside pages."""
    ids = [draw(st.lists(st.integers(0, 2), min_size=1, max_size=6)) for _ in range(ROWS)]
    cuts = [draw(st.integers(0, BLOCK - 1)) for _ in range(ROWS)]
    targets = [draw(st.integers(1, 12)) for _ in range(ROWS)]
    return ids, [BLOCK * len(i) - c for i, c in zip(ids, cuts, strict=True)], targets


OPERATION = st.tuples(
    st.sampled_from(["match", "lock", "insert", "insert", "unlock", "evict"]),
    st.integers(0, ROWS - 1),
    st.integers(0, 12),
    st.integers(0, 80),
)


@settings(
    max_examples=300,
    deadline=None,
    derandomize=True,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)
@given(sequences(), st.sampled_from([1, 4, 16]), st.lists(OPERATION, max_size=80))
def test_equals_the_plain_tree(drawn, page, operations):
    ids, lengths, targets = drawn
    content = make_content(
        np.array(lengths, np.int64),
        np.array([b for row in ids for b in row], np.int64),
        np.cumsum([0, *map(len, ids)], dtype=np.int64),
        BLOCK,
        PRIVATE_CONTENT + np.arange(ROWS, dtype=np.int64),
        np.full(ROWS, OUTPUT_CONTENT, np.int64),
    )
    tree, plain, held = radix.make_radix(page, True, content), RadixTree(page), []
    for what, row, outputs, number in operations:
        tokens = Tokens()
        for i, block in enumerate(ids[row]):
            tokens.add(block, min(BLOCK, lengths[row] - i * BLOCK))
        made = min(outputs, targets[row])
        tokens.add(-1, min(made, targets[row] - 1)).add(-2, made - min(made, targets[row] - 1))
        length = min(number, len(tokens))
        end_at = end_position(content, row, len(tokens), targets[row])
        if what == "insert":
            assert radix.insert(tree, row, end_at, length)[0] == plain.insert(tokens, length)[0]
        elif what == "evict":
            assert radix.evict(tree, number) == plain.evict(number)
        elif what == "unlock":
            if held:
                ours, theirs = held.pop(number % len(held))
                radix.unlock(tree, ours)
                plain.unlock(theirs)
        else:
            (found, ours), (wanted, theirs) = radix.match(tree, row, end_at, length), plain.match(tokens, length)
            assert found == wanted
            if what == "lock":
                radix.lock(tree, ours)
                plain.lock(theirs)
                held.append((ours, theirs))
        assert radix.evictable_tokens(tree) == plain.evictable
    for ours, _ in held:
        radix.unlock(tree, ours)
    everything = radix.evictable_tokens(tree)
    assert radix.evict(tree, 1 << 40) == everything


def test_many_nodes_outgrow_the_first_arrays():
    rows = 500
    content = make_content(
        np.full(rows, 20, np.int64),
        np.zeros(0, np.int64),
        np.zeros(rows + 1, np.int64),
        BLOCK,
        PRIVATE_CONTENT + np.arange(rows, dtype=np.int64),
        np.full(rows, OUTPUT_CONTENT, np.int64),
    )
    tree = radix.make_radix(1, True, content)
    for row in range(rows):
        assert radix.insert(tree, row, 1 << 60, 20)[0] == 0
    assert [radix.match(tree, row, 1 << 60, 20)[0] for row in range(rows)] == [20] * rows
    assert radix.evict(tree, 1 << 40) == 20 * rows
    assert radix.match(tree, 7, 1 << 60, 20)[0] == 0


def test_hashes_are_the_same_compiled_or_not():
    plain = chain.py_func if hasattr(chain, "py_func") else chain
    for value in (0, 1, 7, (1 << 31) - 1, 1 << 31, PRIVATE_CONTENT + 3, OUTPUT_CONTENT, 1 << 47):
        hashed = 1
        for _ in range(5):
            assert chain(hashed, value) == plain(hashed, value)
            hashed = plain(hashed, value)
            assert 0 <= hashed < 1 << 62
