"""Attention over a paged KV cache in Triton: causal chunks (FlashAttention's online softmax, arXiv 2205.14135), and one
query a sequence with the context split over processors (flash-decoding)."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _update(
    q,
    K,
    V,
    pages,
    total,
    cols,
    last,
    rows,
    head,
    acc,
    top,
    mass,
    PAGE: tl.constexpr,
    STRIDE: tl.constexpr,
    D: tl.constexpr,
    MASK: tl.constexpr,
):
    seen = cols < last
    page = tl.load(pages + cols // PAGE, mask=seen, other=0).to(tl.int64)
    place = (page * PAGE + cols % PAGE) * STRIDE + head * D
    d = tl.arange(0, D)
    if MASK:
        k = tl.load(K + place[:, None] + d[None, :], mask=seen[:, None], other=0.0)
        v = tl.load(V + place[:, None] + d[None, :], mask=seen[:, None], other=0.0)
    else:
        k = tl.load(K + place[:, None] + d[None, :])
        v = tl.load(V + place[:, None] + d[None, :])
    score = tl.dot(q, tl.trans(k))
    if MASK:
        score = tl.where((cols[None, :] <= rows[:, None]) & seen[None, :], score, float("-inf"))
    higher = tl.maximum(top, tl.max(score, axis=1))
    share = tl.exp2(score - higher[:, None])
    old = tl.exp2(top - higher)
    mass = mass * old + tl.sum(share, axis=1)
    acc = acc * old[:, None] + tl.dot(share.to(v.dtype), v)
    return acc, higher, mass


@triton.jit(do_not_specialize=["table_stride"])
def prefill(
    Q,
    K,
    V,
    OUT,
    TABLE,
    STARTS,
    LENGTHS,
    q_stride,
    table_stride,
    scale,
    HEADS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    D: tl.constexpr,
    PAGE: tl.constexpr,
    M: tl.constexpr,
    N: tl.constexpr,
):
    tile = tl.num_programs(0) - 1 - tl.program_id(0)  # the longest ones first
    head = tl.program_id(1)
    sequence = tl.program_id(2)
    start = tl.load(STARTS + sequence).to(tl.int64)
    new = (tl.load(STARTS + sequence + 1) - start).to(tl.int32)
    if tile * M < new:
        length = tl.load(LENGTHS + sequence)
        past = length - new
        own = tile * M + tl.arange(0, M)
        d = tl.arange(0, D)
        inside = own < new
        where = (start + own)[:, None] * q_stride + head * D + d[None, :]
        q = tl.load(Q + where, mask=inside[:, None], other=0.0)
        q = (q * scale).to(Q.dtype.element_ty)
        pages = TABLE + sequence * table_stride
        acc = tl.zeros([M, D], dtype=tl.float32)
        top = tl.full([M], float("-inf"), dtype=tl.float32)
        mass = tl.zeros([M], dtype=tl.float32)
        rows = past + own
        kv_head = head // (HEADS // KV_HEADS)
        whole = (past + tile * M) // N * N
        last = tl.minimum(past + (tile + 1) * M, length)
        for first in range(0, whole, N):
            cols = first + tl.arange(0, N)
            acc, top, mass = _update(
                q, K, V, pages, whole, cols, last, rows, kv_head, acc, top, mass, PAGE, KV_HEADS * D, D, False
            )
        for first in range(whole, last, N):
            cols = first + tl.arange(0, N)
            acc, top, mass = _update(
                q, K, V, pages, whole, cols, last, rows, kv_head, acc, top, mass, PAGE, KV_HEADS * D, D, True
            )
        out = (start + own)[:, None] * (HEADS * D) + head * D + d[None, :]
        tl.store(OUT + out, (acc / mass[:, None]).to(OUT.dtype.element_ty), mask=inside[:, None])


@triton.jit(do_not_specialize=["splits", "table_stride"])
def decode(
    Q,
    K,
    V,
    OUT,
    PART,
    LOGS,
    TABLE,
    LENGTHS,
    q_stride,
    table_stride,
    scale,
    splits,
    GROUP: tl.constexpr,
    ROWS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    D: tl.constexpr,
    PAGE: tl.constexpr,
    N: tl.constexpr,
):
    sequence = tl.program_id(0).to(tl.int64)
    kv_head = tl.program_id(1)
    split = tl.program_id(2)
    length = tl.load(LENGTHS + sequence)
    share = tl.cdiv(tl.cdiv(length, N), splits) * N
    begin = split * share
    last = tl.minimum(begin + share, length)
    row = tl.arange(0, ROWS)
    d = tl.arange(0, D)
    inside = row < GROUP
    heads = kv_head * GROUP + row
    q = tl.load(Q + sequence * q_stride + heads[:, None] * D + d[None, :], mask=inside[:, None], other=0.0)
    q = (q * scale).to(Q.dtype.element_ty)
    acc = tl.zeros([ROWS, D], dtype=tl.float32)
    top = tl.full([ROWS], float("-inf"), dtype=tl.float32)
    mass = tl.zeros([ROWS], dtype=tl.float32)
    pages = TABLE + sequence * table_stride
    rows = tl.full([ROWS], 2147483647, dtype=tl.int32)
    whole = begin + tl.maximum(last - begin, 0) // N * N
    for first in range(begin, whole, N):
        cols = first + tl.arange(0, N)
        acc, top, mass = _update(
            q, K, V, pages, whole, cols, last, rows, kv_head, acc, top, mass, PAGE, KV_HEADS * D, D, False
        )
    for first in range(whole, last, N):
        cols = first + tl.arange(0, N)
        acc, top, mass = _update(
            q, K, V, pages, whole, cols, last, rows, kv_head, acc, top, mass, PAGE, KV_HEADS * D, D, True
        )
    if splits == 1:
        out = sequence * (KV_HEADS * GROUP * D) + heads[:, None] * D + d[None, :]
        tl.store(OUT + out, (acc / mass[:, None]).to(OUT.dtype.element_ty), mask=inside[:, None])
    else:
        place = (sequence * KV_HEADS * GROUP + heads) * splits + split
        there = begin < length
        part = tl.where(there, acc / tl.maximum(mass, 1e-30)[:, None], 0.0)
        logs = tl.where(there, top + tl.log2(tl.maximum(mass, 1e-30)), float("-inf"))
        tl.store(PART + place[:, None] * D + d[None, :], part, mask=inside[:, None])
        tl.store(LOGS + place, logs, mask=inside)


@triton.jit(do_not_specialize=["splits"])
def combine(PART, LOGS, OUT, splits, D: tl.constexpr, SPLITS: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, SPLITS)
    d = tl.arange(0, D)
    there = at < splits
    logs = tl.load(LOGS + row * splits + at, mask=there, other=float("-inf"))
    share = tl.exp2(logs - tl.max(logs, axis=0))
    part = tl.load(PART + (row * splits + at)[:, None] * D + d[None, :], mask=there[:, None], other=0.0)
    out = tl.sum(part * share[:, None], axis=0) / tl.sum(share, axis=0)
    tl.store(OUT + row * D + d, out.to(OUT.dtype.element_ty))
