"""Roofline times of kernels: pure formulas on arrays, with the fitted parameters handed in.

Every kernel takes ``fixed + ((compute)^p + (memory)^p)^(1/p)`` seconds. A large exponent ``p`` means that arithmetic
and memory traffic overlap well, 1 that they add up. Efficiencies are fractions of the datasheet peaks.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from statistics import NormalDist

import numpy as np
from numpy.typing import ArrayLike, NDArray

from simulator.hardware.gpu import Gpu

Floats = NDArray[np.float64]

#: What bounds a kernel, in the order of ``Time.bound_by``.
BOUNDS = ("memory", "compute", "latency")


@dataclass(frozen=True)
class Time:
    """Seconds of one kernel and what they are made of; every field has the shape of the asked counts.

    ``flops`` and ``bytes`` are what the work needs, without padding. ``seconds`` may differ from the roofline of the
    three parts by a measured residual.
    """

    seconds: Floats
    compute_s: Floats
    memory_s: Floats
    fixed_s: Floats
    flops: Floats
    bytes: Floats

    def bound_by(self) -> str:
        """The largest of the three parts, for a time of one count."""
        parts = [float(np.ravel(x)[0]) for x in (self.memory_s, self.compute_s, self.fixed_s)]
        return BOUNDS[int(np.argmax(parts))]

    def times(self, count: ArrayLike) -> Time:
        """The same kernel launched ``count`` times."""
        return Time(*(getattr(self, name) * np.asarray(count) for name in self.__dataclass_fields__))

    def scaled(self, ratio: ArrayLike) -> Time:
        """The same work with ``seconds`` multiplied by a residual."""
        return replace(self, seconds=self.seconds * np.asarray(ratio, dtype=np.float64))

    def at_bandwidth(self, where: ArrayLike) -> Time:
        """The same work where a kernel takes no longer than its fixed part and its bytes do."""
        least = np.minimum((self.fixed_s + self.memory_s) / self.seconds, 1.0)
        return self.scaled(np.where(where, least, 1.0))

    def longer(self, seconds: Floats) -> Time:
        """The same work, with so many seconds of computation more."""
        return replace(self, seconds=self.seconds + seconds, compute_s=self.compute_s + seconds)

    def after(self, seconds: float) -> Time:
        """The same work, begun so many seconds later."""
        return replace(self, seconds=self.seconds + seconds, fixed_s=self.fixed_s + seconds)

    def without_fixed(self) -> Time:
        """The part that grows with the work: for kernels that serve several chunks in one launch."""
        return replace(self, seconds=np.maximum(self.seconds - self.fixed_s, 0.0), fixed_s=self.fixed_s * 0)


def either(first: ArrayLike, one: Time, other: Time) -> Time:
    """``one`` where ``first``, else ``other``."""
    return Time(*(np.where(first, getattr(one, name), getattr(other, name)) for name in one.__dataclass_fields__))


def p_norm(a: ArrayLike, b: ArrayLike, p: float) -> Floats:
    """``(a^p + b^p)^(1/p)``, stable for large ``p``."""
    x, y = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    top = np.maximum(np.maximum(x, y), 1e-300)
    result: Floats = top * ((x / top) ** p + (y / top) ** p) ** (1.0 / p)
    return result


def _time(fixed: ArrayLike, compute: ArrayLike, memory: ArrayLike, p: float, flops: ArrayLike, size: ArrayLike) -> Time:
    c, m = np.broadcast_arrays(np.asarray(compute, dtype=np.float64), np.asarray(memory, dtype=np.float64))
    f = np.broadcast_to(np.asarray(fixed, dtype=np.float64), c.shape)
    whole = np.broadcast_to(np.asarray(flops, dtype=np.float64), c.shape)
    moved = np.broadcast_to(np.asarray(size, dtype=np.float64), c.shape)
    return Time(f + p_norm(c, m, p), c, m, f, whole, moved)


def wave_padding(tiles: ArrayLike, sms: int, smooth: float) -> Floats:
    """Factor by which ``tiles`` equal tiles on ``sms`` processors take longer than an even split: the last wave runs
    part empty. ``smooth`` (0..1) is how much of that is felt; stream-K kernels feel less of it."""
    n = np.maximum(np.asarray(tiles, dtype=np.float64), 1e-9)
    full = np.ceil(n / sms) * sms / n
    result: Floats = 1.0 + smooth * (full - 1.0)
    return result


def smooth_padding(tiles: ArrayLike, sms: int, smooth: float) -> Floats:
    """``wave_padding`` without its steps, for tiles of unequal work: half a wave is lost on average, and all but one
    tile a processor when there are fewer."""
    waves = np.maximum(np.asarray(tiles, dtype=np.float64), 1e-9) / sms
    result: Floats = 1.0 + smooth * (np.maximum(0.5 / waves, 1.0 / waves - 1.0))
    return result


@dataclass(frozen=True)
class GemmFormat:
    """Bytes a number of weights and activations in memory, and the arithmetic they are multiplied in."""

    weight_bytes: float
    activation_bytes: float
    arithmetic: str
    quantised: bool  # activations come in bf16 and are quantised by an extra pass
    widened_per_s: float = 0.0  # weights a second the GPU can widen in registers, where it has to; 0: it need not
    compute_share: float = 1.0  # arithmetic it reaches beside widening, of what it reaches without


def weights_s(gpu: Gpu, kernel: Mapping[str, float], kind: GemmFormat, count: ArrayLike) -> Floats:
    """Seconds to read ``count`` weights, or to widen them if that takes longer."""
    numbers = np.asarray(count, dtype=np.float64)
    read: Floats = numbers * kind.weight_bytes / (kernel["memory"] * gpu.memory_bandwidth_bytes_per_s)
    return np.maximum(read, numbers / kind.widened_per_s) if kind.widened_per_s else read


def gemm_time(
    gpu: Gpu, kernel: Mapping[str, float], kind: GemmFormat, m: ArrayLike, weights: tuple[ArrayLike, ArrayLike]
) -> Time:
    """``out[m, n] = x[m, k] W[n, k]^T``; ``weights``: n, k. Parameters: t0_s, compute, memory, p, tile_m, tile_n, wave,
    and quantise (bandwidth fraction of the pass that quantises activations)."""
    rows = np.asarray(m, dtype=np.float64)
    n, k = (np.asarray(x, dtype=np.float64) for x in weights)
    flops = 2.0 * rows * n * k
    tile_m, tile_n = kernel["tile_m"], kernel["tile_n"]
    padded_rows = np.ceil(rows / tile_m) * tile_m
    tiles = padded_rows / tile_m * np.ceil(n / tile_n)
    padding = 1.0 + kernel["wave"] * (padded_rows / rows * wave_padding(tiles, gpu.sms, 1.0) - 1.0)
    # a GEMM with few tiles is split over k as well, so padding matters only once compute does
    compute = flops * padding / (kernel["compute"] * kind.compute_share * gpu.peak_flops[kind.arithmetic])
    moved = n * k * kind.weight_bytes + rows * k * kind.activation_bytes + rows * n * 2.0
    others = moved - n * k * kind.weight_bytes
    memory = weights_s(gpu, kernel, kind, n * k) + others / (kernel["memory"] * gpu.memory_bandwidth_bytes_per_s)
    extra = np.zeros_like(rows)
    if kind.quantised:
        extra = kernel.get("quantise_t0_s", 0.0) + rows * k * (2.0 + kind.activation_bytes) / (
            kernel["quantise"] * gpu.memory_bandwidth_bytes_per_s
        )
    return _time(kernel["t0_s"] + extra, compute, memory, kernel["p"], flops, moved)


def l2_miss(gpu: Gpu, moved: Floats, share: float) -> Floats:
    """Part of ``moved`` bytes that a kernel reads from memory, although it or the kernel before has just moved them:
    none while they fit in ``share`` of the L2, all of them well above it."""
    filled = moved / (share * gpu.l2_bytes)
    result: Floats = 1.0 - 1.0 / (1.0 + filled**8.0)
    return result


def stream_time(gpu: Gpu, kernel: Mapping[str, float], moved: ArrayLike, launches: float = 1.0) -> Time:
    """A memory-bound pass (norm, activation, sampling) of ``moved`` bytes. Parameters: t0_s, memory; l2_share,
    cached_bytes_per_sm_s: bytes that fit in so much of the L2 lie there, where the kernel before left them, and each
    processor moves so many a second. Profiles that were calibrated before these two go by memory alone."""
    size = np.asarray(moved, dtype=np.float64)
    memory = size / (kernel["memory"] * gpu.memory_bandwidth_bytes_per_s)
    if "l2_share" in kernel:
        cached = size / (kernel["cached_bytes_per_sm_s"] * gpu.sms)
        miss = l2_miss(gpu, size, kernel["l2_share"])
        memory = miss * memory + (1.0 - miss) * cached
    return _time(kernel["t0_s"] * launches, 0.0 * memory, memory, 1.0, 0.0, size)


@dataclass(frozen=True)
class AttentionShape:
    """Heads of one GPU. ``qk_dim`` and ``v_dim`` are those the kernel multiplies; ``kv_bytes`` of one token, one
    layer (K and V, or the latent)."""

    heads: float
    kv_heads: float
    qk_dim: float
    v_dim: float
    kv_bytes: float
    arithmetic: str = "bf16"


#: Query tokens of one tile of prefill attention.
QUERY_TILE = 128.0
#: Head width the efficiencies of attention are stated for.
HEAD_DIM = 128.0


@dataclass(frozen=True)
class Chunks:
    """Query tokens of one prefill attention kernel: all ``new`` ones, the query-key ``pairs`` of all, tokens of K and V
    ``attended`` (read), and those of the pairs whose key was computed in an earlier step."""

    new: ArrayLike
    pairs: ArrayLike
    attended: ArrayLike
    past_pairs: ArrayLike = 0.0


def prefill_attention_time(gpu: Gpu, kernel: Mapping[str, float], shape: AttentionShape, work: Chunks) -> Time:
    """Causal attention of one launch. Parameters: t0_s, compute, memory, p, wave, dim (narrow heads reach
    ``(head_dim / 128)^dim`` of the efficiency), past (efficiency over earlier tokens as a fraction of that over a
    chunk's own)."""
    q, kv = np.asarray(work.new, dtype=np.float64), np.asarray(work.attended, dtype=np.float64)
    past, pairs = np.asarray(work.past_pairs, dtype=np.float64), np.asarray(work.pairs, dtype=np.float64)
    per_pair = 2.0 * shape.heads * (shape.qk_dim + shape.v_dim)
    flops = per_pair * pairs
    moved = q * shape.heads * (shape.qk_dim + shape.v_dim) * 2.0 + (kv + q) * shape.kv_bytes
    padding = smooth_padding(q / QUERY_TILE * shape.heads, gpu.sms, kernel["wave"])
    width = np.minimum(np.asarray(shape.v_dim) / HEAD_DIM, 1.0) ** kernel["dim"]
    paged = pairs + past * (1.0 / kernel["past"] - 1.0)
    compute = per_pair * paged * padding / (kernel["compute"] * width * gpu.peak_flops[shape.arithmetic])
    memory = moved / (kernel["memory"] * gpu.memory_bandwidth_bytes_per_s)
    return _time(kernel["t0_s"], compute, memory, kernel["p"], flops, moved)


def decode_attention_time(
    gpu: Gpu, kernel: Mapping[str, float], shape: AttentionShape, batch: tuple[ArrayLike, ArrayLike], *, warm: bool
) -> Time:
    """One query token for each of ``batch[0]`` sequences over ``batch[1]`` tokens each.

    Parameters: t0_s, compute, memory, p; fill: work comes in pieces of ``split_tokens``, and fewer than ``fill`` a
    processor do not saturate memory; unit_s: what each sequence and KV head costs a processor; l2_share, l2_speed:
    ``warm`` data (a benchmark's loop on one cache) that fit in L2 are read that much faster. In an engine they are
    cold: everything else of a step has passed through L2 since. That makes bandwidth smaller, but not what pieces too
    few to ask for all of it wait for: they keep the time that was measured.
    """
    n, kv = np.asarray(batch[0], dtype=np.float64), np.asarray(batch[1], dtype=np.float64)
    flops = 2.0 * shape.heads * (shape.qk_dim + shape.v_dim) * n * kv
    moved = n * kv * shape.kv_bytes + n * shape.heads * (shape.qk_dim + shape.v_dim) * 2.0
    units = n * shape.kv_heads
    pieces = units * np.maximum(kv / kernel["split_tokens"], 1.0)
    starved = kernel["fill"] * gpu.sms / pieces
    miss = l2_miss(gpu, moved, kernel["l2_share"])
    loop = miss + (1.0 - miss) / kernel["l2_speed"]
    compute = flops / (kernel["compute"] * gpu.peak_flops[shape.arithmetic])
    compute = compute + kernel["unit_s"] * units / gpu.sms
    slower = (1.0 + (starved if warm else loop * starved) ** 2.0) ** 0.5
    memory = moved * slower / (kernel["memory"] * gpu.memory_bandwidth_bytes_per_s)
    if warm:
        memory = memory * loop
    return _time(kernel["t0_s"], compute, memory, kernel["p"], flops, moved)


@dataclass(frozen=True)
class MoeShape:
    """Experts of one GPU. ``width`` is the expert's share on this GPU; ``matrices`` 3 with a gate, else 2."""

    hidden: float
    width: float
    experts: float
    local_experts: float
    top_k: float
    matrices: float = 3.0


#: Popularities over which ``active_experts`` averages where experts are not equally popular.
POPULARITIES = 32


def active_experts(shape: MoeShape, tokens: ArrayLike, dealt: ArrayLike | None = None, skew: float = 0.0) -> Floats:
    """Distinct experts of this GPU that at least one token chooses.

    If choices are independent: ``local * (1 - (1 - top_k / experts)^tokens)``. ``skew``: popularities are lognormal,
    and this is the standard deviation of their logarithm. ``dealt``: tokens are dealt out in turn, as in the measured
    tables, over this fraction of the experts: none gets a second one before all of them have one.
    """
    t = np.asarray(tokens, dtype=np.float64)
    if dealt is not None:
        rows = t * shape.top_k * shape.local_experts / shape.experts
        turns: Floats = np.maximum(np.minimum(rows, shape.local_experts) * dealt, 1.0)
        return turns
    share = np.expand_dims(np.asarray(shape.top_k / np.asarray(shape.experts, dtype=np.float64)), -1)
    missed = (np.maximum(1.0 - popularities(skew) * share, 1e-12) ** np.expand_dims(t, -1)).mean(axis=-1)
    result: Floats = shape.local_experts * (1.0 - missed)
    return result


@lru_cache(maxsize=16)
def popularities(skew: float) -> Floats:
    """How often experts of equally large classes are chosen, over the mean."""
    if skew == 0.0:
        return np.ones(1)
    found = lognormal(POPULARITIES, skew)
    result: Floats = found / found.mean()
    return result


def lognormal(experts: int, skew: float) -> Floats:
    """Loads of experts, lognormal, the least popular first; ``skew``: standard deviation of their logarithm."""
    normal = NormalDist()
    return np.exp(skew * np.array([normal.inv_cdf((i + 0.5) / experts) for i in range(experts)]))


def moe_time(
    gpu: Gpu,
    kernel: Mapping[str, float],
    kind: GemmFormat,
    shape: MoeShape,
    work: tuple[ArrayLike, Floats],
    again_s_per_byte: Floats | float = 0.0,
) -> Time:
    """Fused experts: gate and up, activation, down. ``work``: tokens, and distinct experts they choose;
    ``again_s_per_byte``: seconds for each byte of these experts' weights, in all times that they are read once more.

    Parameters: t0_s, compute, memory, p; pad: rows that each active expert is padded by; activation: passes over this
    GPU's rows; global: passes over the rows of all experts (kernels that sort and sum all tokens, whoever owns their
    experts).
    """
    t, active = np.asarray(work[0], dtype=np.float64), work[1]
    everywhere = t * shape.top_k
    rows = everywhere * shape.local_experts / shape.experts
    per_row = 2.0 * shape.matrices * shape.hidden * shape.width
    reached = kernel["compute"] * kind.compute_share * gpu.peak_flops[kind.arithmetic]
    compute = (rows + active * kernel["pad"]) * per_row / reached
    numbers = active * shape.matrices * shape.hidden * shape.width
    weights = numbers * kind.weight_bytes
    own = rows * (3.0 * shape.hidden + shape.matrices * shape.width) * 2.0 + t * shape.hidden * 4.0
    others = kernel["activation"] * own + kernel["global"] * everywhere * shape.hidden * 2.0
    memory = weights_s(gpu, kernel, kind, numbers) + others / (kernel["memory"] * gpu.memory_bandwidth_bytes_per_s)
    memory = memory + weights * again_s_per_byte
    return _time(kernel["t0_s"], compute, memory, kernel["p"], rows * per_row, weights + own)


def collective_time(
    bandwidth: float, kernel: Mapping[str, float], ranks: int, message: ArrayLike, share: float
) -> Time:
    """One collective over ``ranks`` GPUs; ``message`` bytes on each, ``share * message`` of which cross its link.

    Parameters: t0_s (+ t0_rank_s for each further rank), efficiency of the link, p.
    """
    size = np.asarray(message, dtype=np.float64)
    moved = size * share
    fixed = kernel["t0_s"] + kernel.get("t0_rank_s", 0.0) * (ranks - 1)
    return _time(fixed, 0.0 * moved, moved / (kernel["efficiency"] * bandwidth), 1.0, 0.0, moved)
