"""Norms, rotary embedding, cache writes, activation, quantisation and gathers in Triton, as engines have them."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def add_norm(X, R, W, OUT, width, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, BLOCK)
    inside = at < width
    x = tl.load(X + row * width + at, mask=inside, other=0.0).to(tl.float32)
    r = tl.load(R + row * width + at, mask=inside, other=0.0).to(tl.float32)
    total = x + r
    tl.store(R + row * width + at, total.to(R.dtype.element_ty), mask=inside)
    scale = 1.0 / tl.sqrt(tl.sum(total * total, axis=0) / width + 1e-6)
    w = tl.load(W + at, mask=inside, other=0.0).to(tl.float32)
    tl.store(OUT + row * width + at, (total * scale * w).to(OUT.dtype.element_ty), mask=inside)


@triton.jit
def rotate(X, P, stride, base, WIDTH: tl.constexpr, HEADS: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    heads = tl.program_id(1) * HEADS + tl.arange(0, HEADS)
    half: tl.constexpr = WIDTH // 2
    at = tl.arange(0, half)
    position = tl.load(P + row).to(tl.float32)
    angle = position * tl.exp2(-at.to(tl.float32) / half * base)
    cos, sin = tl.cos(angle)[None, :], tl.sin(angle)[None, :]
    place = X + row * stride + heads[:, None] * WIDTH + at[None, :]
    a = tl.load(place).to(tl.float32)
    b = tl.load(place + half).to(tl.float32)
    tl.store(place, (a * cos - b * sin).to(X.dtype.element_ty))
    tl.store(place + half, (b * cos + a * sin).to(X.dtype.element_ty))


@triton.jit
def write_cache(X, K, V, S, stride, first, width, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    slot = tl.load(S + row).to(tl.int64)
    at = tl.arange(0, BLOCK)
    inside = at < width
    k = tl.load(X + row * stride + first + at, mask=inside)
    v = tl.load(X + row * stride + first + width + at, mask=inside)
    tl.store(K + slot * width + at, k, mask=inside)
    tl.store(V + slot * width + at, v, mask=inside)


@triton.jit
def activate(X, OUT, width, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = at < width
    gate = tl.load(X + row * 2 * width + at, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(X + row * 2 * width + width + at, mask=inside, other=0.0).to(tl.float32)
    out = gate / (1.0 + tl.exp(-gate)) * up
    tl.store(OUT + row * width + at, out.to(OUT.dtype.element_ty), mask=inside)


@triton.jit
def quantise(X, OUT, S, width, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, BLOCK)
    inside = at < width
    x = tl.load(X + row * width + at, mask=inside, other=0.0).to(tl.float32)
    scale = tl.maximum(tl.max(tl.abs(x), axis=0) / 448.0, 1e-12)
    tl.store(S + row, scale)
    tl.store(OUT + row * width + at, (x / scale).to(OUT.dtype.element_ty), mask=inside)


@triton.jit
def gather(X, OUT, ORDER, words, BLOCK: tl.constexpr):
    entry = tl.program_id(0).to(tl.int64)
    source = tl.load(ORDER + entry).to(tl.int64)
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = at < words
    tl.store(OUT + entry * words + at, tl.load(X + source * words + at, mask=inside), mask=inside)


@triton.jit
def nothing(X):
    tl.store(X + tl.program_id(0), 1)
