"""Grouped products of a mixture of experts in Triton: rows sorted by expert, padded to tiles, as engines do."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def count(IDS, COUNTS, RANKS, total, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = at < total
    expert = tl.load(IDS + at, mask=inside, other=0)
    rank = tl.atomic_add(COUNTS + expert, 1, mask=inside)
    tl.store(RANKS + at, rank, mask=inside)


@triton.jit
def lay_out(COUNTS, OFFSETS, TILES, experts, tile_rows, EXPERTS: tl.constexpr, LIMIT: tl.constexpr):
    """Tile number of each expert's first row, and the expert of each tile (-1 past the last)."""
    at = tl.arange(0, EXPERTS)
    counts = tl.load(COUNTS + at, mask=at < experts, other=0)
    tiles = (counts + tile_rows - 1) // tile_rows
    ends = tl.cumsum(tiles, axis=0)
    begins = ends - tiles
    tl.store(OFFSETS + at, begins * tile_rows, mask=at < experts)
    number = tl.program_id(0) * LIMIT + tl.arange(0, LIMIT)
    inside = (number[:, None] >= begins[None, :]) & (number[:, None] < ends[None, :])
    owner = tl.sum(tl.where(inside, at[None, :] + 1, 0), axis=1) - 1
    tl.store(TILES + number, owner)


@triton.jit
def place(IDS, RANKS, OFFSETS, ROWS, COUNTS, total, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = at < total
    expert = tl.load(IDS + at, mask=inside, other=0)
    where = tl.load(OFFSETS + expert, mask=inside, other=0) + tl.load(RANKS + at, mask=inside, other=0)
    tl.store(ROWS + where, at, mask=inside)


@triton.jit
def product(
    X,
    W,
    OUT,
    SHARES,
    TILES,
    ROWS,
    OFFSETS,
    COUNTS,
    n,
    k,
    per_row,
    WEIGHTED: tl.constexpr,
    M: tl.constexpr,
    N: tl.constexpr,
    K: tl.constexpr,
):
    """Tile of ``OUT[row] = X[row // per_row] W[expert]^T``, times the row's share if ``WEIGHTED``."""
    tile = tl.program_id(1)
    expert = tl.load(TILES + tile).to(tl.int64)
    if expert >= 0:
        within = tile * M - tl.load(OFFSETS + expert) + tl.arange(0, M)
        inside = within < tl.load(COUNTS + expert)
        row = tl.load(ROWS + tile * M + tl.arange(0, M), mask=inside, other=0).to(tl.int64)
        cols = tl.program_id(0) * N + tl.arange(0, N)
        there = cols < n
        at = tl.arange(0, K)
        x = X + (row // per_row)[:, None] * k + at[None, :]
        w = W + expert * n * k + cols[None, :].to(tl.int64) * k + at[:, None]
        acc = tl.zeros([M, N], dtype=tl.float32)
        for first in range(0, k, K):
            left = at < k - first
            a = tl.load(x, mask=inside[:, None] & left[None, :], other=0.0)
            b = tl.load(w, mask=there[None, :] & left[:, None], other=0.0)
            acc = tl.dot(a, b, acc)
            x += K
            w += K
        if WEIGHTED:
            acc = acc * tl.load(SHARES + row, mask=inside, other=0.0)[:, None]
        tl.store(
            OUT + row[:, None] * n + cols[None, :], acc.to(OUT.dtype.element_ty), mask=inside[:, None] & there[None, :]
        )


@triton.jit
def add_up(X, OUT, width, TOP: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = at < width
    total = tl.zeros([BLOCK], dtype=tl.float32)
    for i in tl.static_range(TOP):
        total += tl.load(X + (row * TOP + i) * width + at, mask=inside, other=0.0).to(tl.float32)
    tl.store(OUT + row * width + at, total.to(OUT.dtype.element_ty), mask=inside)
