"""Attention kernels of a model: decode over cached tokens, prefill chunks over earlier ones, windows and MLA."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike

from simulator.cost.kernels import Kernel, Kernels, at_least_one, gemm_format
from simulator.cost.roofline import (
    AttentionShape,
    Chunks,
    Floats,
    Time,
    decode_attention_time,
    gemm_time,
    prefill_attention_time,
)
from simulator.hardware.gpu import Gpu
from simulator.models.model import Model
from simulator.models.precision import Parallel, Precision

BF16 = 2.0


def chunk_pairs(new: ArrayLike, past: ArrayLike, window: int) -> tuple[Floats, Floats]:
    """Query-key pairs of a causal chunk, and tokens of K and V it reads.

    Token i of the chunk (1-based) sees ``past + i`` tokens, at most ``window`` of them if that is not 0.
    """
    q, p = np.asarray(new, dtype=np.float64), np.asarray(past, dtype=np.float64)
    if window == 0:
        return q * p + q * (q + 1) / 2, p + q
    ramp = np.clip(window - p, 0.0, q)  # tokens that still see everything before them
    pairs = ramp * p + ramp * (ramp + 1) / 2 + (q - ramp) * window
    return pairs, np.minimum(p, window) + q


@dataclass(frozen=True)
class Attention:
    """Attention of all layers on one GPU. Counts are those of the whole engine; data-parallel ranks share them.
    ``past``: efficiency over earlier tokens as a fraction of that over a chunk's own, 0 for the kernel profile's."""

    model: Model
    gpu: Gpu
    precision: Precision
    parallel: Parallel
    backend: str
    kernels: Kernels
    past: float = 0.0

    @cached_property
    def layers(self) -> tuple[tuple[int, int], ...]:
        """(window, number of layers with it), 0 meaning full attention."""
        return tuple(sorted(Counter(self.model.windows).items()))

    @cached_property
    def _kv_format(self) -> str:
        return "fp8" if self.precision.kv_cache.startswith(("fp8", "int8")) else "bf16"

    @cached_property
    def _arithmetic(self) -> str:
        asked = self.precision.attention_arithmetic
        return asked if asked in self.gpu.peak_flops else "bf16"

    @cached_property
    def heads(self) -> int:
        return -(-self.model.q_heads // self.parallel.tp)

    @cached_property
    def decode_shape(self) -> AttentionShape:
        """What the decode kernel sees: for MLA one latent head, absorbed."""
        kv_bytes = self.model.kv_layer_bytes_per_token(self.precision.kv_cache, self.parallel.tp)
        mla = self.model.mla
        if mla is not None:
            return AttentionShape(self.heads, 1, mla.kv_rank + mla.rope_dim, mla.kv_rank, kv_bytes, self._arithmetic)
        kv_heads, d = self.model.kv_heads_per_rank(self.parallel.tp), self.model.head_dim
        return AttentionShape(self.heads, kv_heads, d, d, kv_bytes, self._arithmetic)

    @cached_property
    def prefill_shape(self) -> AttentionShape:
        """What the prefill kernel sees: for MLA expanded heads."""
        mla = self.model.mla
        if mla is None:
            return self.decode_shape
        qk = mla.nope_dim + mla.rope_dim
        return AttentionShape(self.heads, self.heads, qk, mla.v_dim, self.heads * (qk + mla.v_dim) * BF16, "bf16")

    @cached_property
    def decode_kernel(self) -> Kernel:
        return self.kernels.find(self._name("decode"), self.backend, self._kv_format, "bf16")

    @cached_property
    def prefill_kernel(self) -> Kernel:
        first = f"{self._arithmetic}-{self._kv_format}"
        return self.kernels.find(self._name("prefill"), self.backend, first, f"bf16-{self._kv_format}", "bf16-bf16")

    def _name(self, phase: str) -> str:
        return f"mla_{phase}" if self.model.mla is not None else f"{phase}_attention"

    def _key(self, shape: AttentionShape) -> tuple[float, ...]:
        if self.model.mla is not None:
            return (shape.heads,)
        return (shape.heads, shape.kv_heads, shape.qk_dim)

    def decode(self, seqs: ArrayLike, context: ArrayLike, window: int, queries: int = 1) -> Time:
        """One layer's decode attention: ``seqs`` sequences, each with ``context`` tokens computed before. Their
        ``queries`` tokens (drafts included) read the cache once."""
        n = at_least_one(np.ceil(np.asarray(seqs, dtype=np.float64) / self.parallel.dp))
        kv = np.asarray(context, dtype=np.float64) + 1.0
        kv = np.minimum(kv, window) if window else kv
        shape, kernel = self.decode_shape, self.decode_kernel
        asked = replace(shape, heads=shape.heads * queries)
        found = decode_attention_time(self.gpu, kernel.parameters, asked, (n, kv), warm=False)
        return kernel.apply(found, self._key(shape), n * shape.kv_heads, kv)

    def chunk(self, new: ArrayLike, past: ArrayLike, window: int) -> Time:
        """One layer's attention of one prefill chunk, without the launch, which all chunks of a step share.

        Over a past it takes the residual of the measured prompt whose queries see as many tokens on average, and a
        batch large enough to fill the GPU, as the other chunks of the step would.
        """
        q = at_least_one(new)
        p = np.asarray(past, dtype=np.float64)
        pairs, attended = chunk_pairs(q, p, window)
        shape, kernel = self.prefill_shape, self.prefill_kernel
        same = 2.0 * pairs / q - 1.0
        batch = np.maximum(kernel.parameters["fill_tokens"] / same, 1.0)
        own, _ = chunk_pairs(q, 0.0, window)
        work = Chunks(q * batch, pairs * batch, attended * batch, np.maximum(pairs - own, 0.0) * batch)
        parameters = {**kernel.parameters, "past": self.past} if self.past else kernel.parameters
        found = prefill_attention_time(self.gpu, parameters, shape, work)
        found = kernel.apply(found, self._key(shape), batch * shape.heads, same).without_fixed()
        found = Time(*(getattr(found, f) / batch for f in Time.__dataclass_fields__))
        found = found.scaled(1.0 / self.parallel.dp)
        return found if self.model.mla is None else self._with_expansion(found, p)

    def _with_expansion(self, found: Time, past: Floats) -> Time:
        """MLA keeps the latent: a chunk over a past expands the past tokens' K and V again."""
        mla = self.model.mla
        assert mla is not None
        _, form = gemm_format(self.gpu, "bf16", "bf16")
        kernel = self.kernels.find("gemm", self.backend, "bf16")
        width = self.heads * (mla.nope_dim + mla.v_dim)
        again = gemm_time(self.gpu, kernel.parameters, form, at_least_one(past), (width, mla.kv_rank)).without_fixed()
        again = again.scaled(np.where(past > 0, 1.0, 0.0))
        return Time(*(getattr(found, f) + getattr(again, f) for f in Time.__dataclass_fields__))

    def chunk_launch_s(self) -> float:
        """Fixed seconds of the prefill attention kernels of one step, all layers."""
        return self.prefill_kernel.parameters["t0_s"] * self.model.layers

    def decode_seconds(self, seqs: ArrayLike, context: ArrayLike, queries: int = 1) -> Floats:
        """All layers' decode attention; nothing for no sequence."""
        total: Floats = sum((self.decode(seqs, context, w, queries).seconds * n for w, n in self.layers), np.zeros(1))
        return np.where(np.asarray(seqs) > 0, total, 0.0)

    def chunk_seconds(self, new: ArrayLike, past: ArrayLike) -> Floats:
        """All layers' attention of one chunk; nothing for an empty one."""
        total: Floats = sum((self.chunk(new, past, w).seconds * n for w, n in self.layers), np.zeros(1))
        return np.where(np.asarray(new) > 0, total, 0.0)
