"""Free blocks of an engine whose requests share nothing: counted, not told apart.

The prefix cache of such an engine can only be hit by a request that was preempted and starts over. Until that happens
it is enough to know how many blocks at the head of the free queue cache nothing, and how many of each finished request
follow them, oldest request first: its last tokens are evicted before its first, so what is left is its beginning.
"""

from __future__ import annotations

import numpy as np

from simulator.compiled import compiled, record

Unshared = record("Unshared", ("blank", "row", "kept", "head", "count"), __name__)


@compiled
def make_unshared(blocks):  # type: ignore[no-untyped-def]
    """``blocks`` free blocks that cache nothing."""
    return Unshared(blocks, np.zeros(64, np.int64), np.zeros(64, np.int64), 0, 0)


@compiled
def take_unshared(left, blocks):  # type: ignore[no-untyped-def]
    """Hand out blocks from the head of the free queue. The caller has checked that so many are free."""
    missing = blocks - left.blank
    if missing <= 0:
        left.blank -= blocks
        return
    left.blank = 0
    while missing > 0:
        kept = left.kept[left.head]
        if kept > missing:
            left.kept[left.head] = kept - missing
            return
        missing -= kept
        left.head = (left.head + 1) % left.row.size
        left.count -= 1


@compiled
def leave_unshared(left, row, blocks, filled):  # type: ignore[no-untyped-def]
    """A request gives ``blocks`` back, of which the first ``filled`` are cached."""
    left.blank += blocks - filled
    if filled == 0:
        return
    if left.count == left.row.size:
        unroll(left)
    at = (left.head + left.count) % left.row.size
    left.row[at], left.kept[at] = row, filled
    left.count += 1


@compiled
def unroll(left):  # type: ignore[no-untyped-def]
    """Twice the room, with the oldest request first."""
    size = left.row.size
    row, kept = np.zeros(2 * size, np.int64), np.zeros(2 * size, np.int64)
    for i in range(left.count):
        row[i], kept[i] = left.row[(left.head + i) % size], left.kept[(left.head + i) % size]
    left.row, left.kept, left.head = row, kept, 0
