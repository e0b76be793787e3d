"""The machine through NumPy: slow, but everywhere. Rows from it show that the program works, not how fast a GPU is."""

from __future__ import annotations

import math
import platform
from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from simulator.calibration.measure.ops import OWN, Array, Paged, Pattern, Timing, Trace, Work
from simulator.calibration.measure.plan import Plan
from simulator.calibration.measure.store import Row
from simulator.calibration.measure.timing import wall_clock, wall_trace

_ROTARY_BASE, _EPSILON = 5e5, 1e-6


def _silu(x: Array) -> Array:
    return x / (1.0 + np.exp(-x))


class NumpyOps:
    """See ``Ops``. All formats but whole numbers are fp32."""

    kind, page = "numpy", 4

    def __init__(self, seed: int = 0) -> None:
        self._rng = np.random.default_rng(seed)

    def machine(self) -> dict[str, object]:
        return {
            "numpy": np.__version__,
            "kernels": "numpy",
            "python": platform.python_version(),
            "host": f"{platform.machine()} {platform.system()}",
        }

    def state(self) -> dict[str, float]:
        return {}

    def errors(self) -> dict[str, float]:
        return {}

    def gpus(self) -> int:
        return 2

    def peer(self, index: int) -> NumpyOps:
        return self

    def memory_bytes(self) -> int:
        return 2**28

    def l2_bytes(self) -> int:
        return 2**10

    def random(self, shape: Sequence[int], kind: str = "bf16") -> Array:
        return self._rng.standard_normal(tuple(shape), dtype=np.float32)

    def weights(self, shape: Sequence[int], kind: str, index: int) -> Array:
        return 0.02 * self.random(shape, kind)

    def empty(self, shape: Sequence[int], kind: str = "bf16") -> Array:
        return np.empty(tuple(shape), dtype=np.int32 if kind == "int" else np.float32)

    def integers(self, values: Sequence[int] | Sequence[Sequence[int]]) -> Array:
        return np.asarray(values, dtype=np.int32)

    def permutation(self, count: int) -> Array:
        return self._rng.permutation(count).astype(np.int32)

    def matmul(self, x: Array, w: Array, out: Array) -> None:
        np.matmul(x, w.T, out=out)

    def quantise(self, x: Array, out: Array, scales: Array) -> None:
        scales[:] = np.maximum(np.abs(x).max(axis=-1, keepdims=True) / 448.0, 1e-12)
        np.divide(x, scales, out=out)

    def matmul_fp8(self, x: Array, scales: Array, w: Array, out: Array) -> None:
        np.matmul(x * scales, w.T, out=out)

    def add_norm(self, x: Array, residual: Array, weight: Array, out: Array) -> None:
        residual += x
        out[:] = residual / np.sqrt(np.square(residual).mean(-1, keepdims=True) + _EPSILON) * weight

    def rotate(self, qkv: Array, positions: Array, heads: int, width: int) -> None:
        part = qkv[:, : heads * width].reshape(len(qkv), heads, 2, width // 2)
        speed = _ROTARY_BASE ** (-np.arange(width // 2, dtype=np.float32) / (width // 2))
        angle = (positions[:, None] * speed)[:, None, :]
        a, b = part[:, :, 0].copy(), part[:, :, 1].copy()
        turned = np.stack([a * np.cos(angle) - b * np.sin(angle), b * np.cos(angle) + a * np.sin(angle)], axis=2)
        qkv[:, : heads * width] = turned.reshape(len(qkv), -1)

    def write_cache(self, qkv: Array, q_heads: int, cache: Paged, slots: Array) -> None:
        pages, page, heads, width = cache.k.shape
        first, size = q_heads * width, heads * width
        for i, target in enumerate((cache.k, cache.v)):
            rows = qkv[:, first + i * size : first + (i + 1) * size].reshape(-1, heads, width)
            target.reshape(pages * page, heads, width)[slots] = rows

    def activate(self, x: Array, out: Array) -> None:
        gate, up = np.split(x, 2, axis=-1)
        np.multiply(_silu(gate), up, out=out)

    def embed(self, table: Array, tokens: Array, out: Array) -> None:
        np.take(table, tokens, axis=0, out=out)

    def sample(self, logits: Array, out: Array) -> None:
        out[:] = logits.argmax(axis=-1)

    def _history(self, cache: Paged, sequence: int) -> tuple[Array, Array]:
        length = int(cache.lengths[sequence])
        pages = cache.table[sequence, : -(-length // cache.k.shape[1])]
        k, v = (c[pages].reshape(-1, *c.shape[2:])[:length] for c in (cache.k, cache.v))
        return k, v

    def _attend(self, q: Array, k: Array, v: Array) -> Array:
        tokens, heads, width = q.shape
        length, kv_heads, _ = k.shape
        k, v = (np.repeat(x, heads // kv_heads, axis=1) for x in (k, v))
        score = np.einsum("qhd,khd->hqk", q, k) / math.sqrt(width)
        seen = np.arange(length)[None, :] <= (length - tokens + np.arange(tokens))[:, None]
        score = np.where(seen, score, -np.inf)
        share = np.exp(score - score.max(axis=-1, keepdims=True))
        return np.einsum("hqk,khd->qhd", share / share.sum(axis=-1, keepdims=True), v)

    def paged_libraries(self) -> tuple[str, ...]:
        return (OWN,)

    def prefill_attention(
        self, qkv: Array, starts: Array, longest: int, cache: Paged, out: Array, library: str = OWN
    ) -> None:
        width = cache.k.shape[3]
        heads = out.shape[1] // width
        for b, (first, last) in enumerate(pairwise(starts.tolist())):
            q = qkv[first:last, : heads * width].reshape(-1, heads, width)
            out[first:last] = self._attend(q, *self._history(cache, b)).reshape(last - first, -1)

    def dense_attention(self, q: Array, k: Array, v: Array, library: str) -> Array:
        turned = [x.transpose(0, 2, 1, 3) for x in (q, k, v)]
        found = [self._attend(*(x[i] for x in turned)) for i in range(len(q))]
        return np.stack(found).transpose(0, 2, 1, 3)

    def dense_libraries(self) -> tuple[str, ...]:
        return ("numpy",)

    def decode_attention(self, qkv: Array, q_heads: int, cache: Paged, out: Array, library: str = OWN) -> None:
        width = cache.k.shape[3]
        for b in range(len(out)):
            q = qkv[b : b + 1, : q_heads * width].reshape(1, q_heads, width)
            out[b] = self._attend(q, *self._history(cache, b)).reshape(-1)

    def choose(self, logits: Array, top_k: int, ids: Array, shares: Array) -> None:
        ids[:] = np.argsort(-logits, axis=-1, kind="stable")[:, :top_k]
        values = np.exp(np.take_along_axis(logits, ids.astype(np.int64), axis=-1))
        shares[:] = values / values.sum(axis=-1, keepdims=True)

    def experts(self, x: Array, ids: Array, shares: Array, weights: tuple[Array, Array], out: Array) -> None:
        out[:] = 0.0
        for expert in range(len(weights[0])):
            token, slot = np.where(ids == expert)
            if token.size:
                gate, up = np.split(x[token] @ weights[0][expert].T, 2, axis=-1)
                rows = (_silu(gate) * up) @ weights[1][expert].T
                np.add.at(out, token, rows * shares[token, slot][:, None])

    def stream(self, source: Array, target: Array) -> None:
        np.copyto(target, source)

    def empty_kernel(self) -> None:
        pass

    def host_buffer(self, size: int) -> Array:
        return np.ones(size, dtype=np.uint8)

    def device_buffer(self, size: int) -> Array:
        return np.ones(size, dtype=np.uint8)

    def copy_bytes(self, source: Array, target: Array, moves: Sequence[tuple[int, int, int]], streams: int = 1) -> None:
        for a, b, size in moves:
            target[b : b + size] = source[a : a + size]

    def gather_bytes(self, source: Array, target: Array, block: int, order: Array) -> None:
        target.reshape(-1, block)[: order.size] = source.reshape(-1, block)[order]

    def ranks(self, plan: Plan) -> list[Row]:
        return []

    def time(self, work: Work, seconds: float) -> Timing:
        return wall_clock(work, seconds)

    def trace(self, work: Work, pattern: Pattern) -> Trace:
        return wall_trace(work, pattern)

    def finish(self) -> None:
        pass
