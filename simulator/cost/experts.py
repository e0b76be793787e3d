"""Expert parallelism of many GPUs: how unevenly experts load them, and experts computed by grouped GEMMs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike, NDArray

from simulator.cost.roofline import Floats, GemmFormat, MoeShape, Time, lognormal, p_norm
from simulator.hardware.gpu import Gpu
from simulator.models.model import Model
from simulator.models.precision import Parallel, share

Whole = NDArray[np.int64]

#: Placements of experts that an imbalance is averaged over: as many as DeepSeek-V3 has layers with experts.
LAYERS = 58
BF16 = 2.0
#: Kernel of experts whose weights need no widening, in ``mxfp4_padding`` of an engine profile.
NATIVE = "native"
#: Tokens of a step up to which Triton's fused experts cut an expert's rows into tiles of so many, for shapes that
#: nobody tuned (vLLM 0.25.1, as measured/h200_sxm_vllm/experts.csv lists them), and rows of a tile beyond.
TILES = ((32, 16), (96, 32), (512, 64))
LARGEST_TILE = 128

#: The tables' even choices fill their tiles to the last row; by chance every other expert needs one more. Measured for
#: random choices (measured/h200_sxm_vllm/experts.csv, Qwen3-30B in bf16 and Qwen3-235B in fp8 at TP 2 and 4, 1,024 to
#: 8,192 tokens): so much of what the tables' skewed rows take longer (0.56 with tuned tiles, 0.68 with the default;
#: a kernel of our own: 0.6 to 0.7 with one and two tiles an expert, then 0.9 to 1, h200_vllm_repeats/experts_even.csv).
BY_CHANCE, CHANCE_TILE = 0.6, 64.0


@dataclass(frozen=True)
class ExpertParallelism:
    """How an engine spreads routed experts over its GPUs.

    ``grouped``: experts are computed by grouped GEMMs (DeepGEMM) on rows that were sent to their GPU; otherwise by the
    fused kernels of the measured tables. ``micro_batches``: 2 where one half of a batch computes while the other is
    under way to or from its experts. ``redundant``: copies of busy experts, on slots of their own. ``placement``: even
    (every GPU gets the same rows), static (experts in order), balanced (busy experts are copied, and experts dealt out
    by load). ``skew``: standard deviation of the logarithm of an expert's load; 0 if all are chosen alike. ``drift``:
    the same, of an expert's load in one batch about the load its placement was made for.
    """

    grouped: bool = False
    micro_batches: int = 1
    redundant: int = 0
    placement: str = "even"
    skew: float = 0.0
    drift: float = 0.0

    def load(self, experts: int, gpus: int, rows: ArrayLike) -> Floats:
        """Rows of the busiest GPU over the mean: what experts' popularity does, and chance among few ``rows`` a GPU.

        The largest of ``gpus`` sums of ``rows`` draws lies ``sqrt(2 ln(gpus) / rows)`` above the mean.
        """
        n = np.maximum(np.asarray(rows, dtype=np.float64), 1.0)
        if self.placement == "even" or gpus == 1:
            return np.ones(n.shape)
        chance = 1.0 + np.sqrt(2.0 * np.log(gpus) / n)
        balanced = self.placement == "balanced"
        found: Floats = imbalance(self, experts, gpus) * chance if balanced or self.skew else chance
        return found


@lru_cache(maxsize=256)
def imbalance(spread: ExpertParallelism, experts: int, gpus: int) -> float:
    """Load of the busiest GPU over the mean, averaged over layers that draw experts' places and drift anew.

    Loads are lognormal. A balanced placement follows EPLB (https://github.com/deepseek-ai/EPLB): each further slot goes
    to the expert with the most load a copy, then copies are dealt out, the heaviest first, to the GPU with the least
    load that has a slot left.
    """
    load = lognormal(experts, spread.skew)
    draw = np.random.default_rng(0)
    balanced = _dealt_out(load, gpus, spread.redundant) if spread.placement == "balanced" else None
    edges = np.linspace(0, experts, gpus + 1).round().astype(np.int64)[:-1]
    found = []
    for _ in range(LAYERS):
        now = load * np.exp(spread.drift * draw.standard_normal(experts))
        if balanced is None:
            held = np.add.reduceat(draw.permutation(now), edges)
        else:
            expert, place, part = balanced
            held = np.bincount(place, now[expert] * part, gpus)
        found.append(held.max() / held.mean())
    return float(np.mean(found))


def expert_shape(
    model: Model, parallel: Parallel, multiples: Sequence[tuple[str, int, int]] = (), kernel: str = ""
) -> MoeShape:
    """Experts of one GPU, laid out by ``kernel``."""
    assert model.moe is not None
    moe, gpus, whole = model.moe, parallel.expert_gpus, parallel.ep > 1
    hidden, width = padded(multiples, kernel, (model.hidden, moe.expert_ffn if whole else share(moe.expert_ffn, gpus)))
    local = moe.experts / gpus if whole else moe.experts
    return MoeShape(hidden, width, moe.experts, local, moe.top_k, 3.0 if model.gated else 2.0)


def padded(multiples: Sequence[tuple[str, int, int]], kernel: str, shape: tuple[int, int]) -> tuple[int, int]:
    """Hidden size and width of experts as ``kernel`` lays them out. ``multiples``: of both, by kernel."""
    for name, *each in multiples:
        if name == kernel:
            hidden, width = (-(-n // multiple) * multiple for n, multiple in zip(shape, each, strict=True))
            return hidden, width
    return shape


def _dealt_out(load: Floats, gpus: int, redundant: int) -> tuple[Whole, Whole, Floats]:
    """Copies of experts after copying and dealing out: which expert, on which GPU, with which part of its load."""
    copies: Whole = np.ones(load.size, np.int64)
    slots = -(-(load.size + redundant) // gpus)
    for _ in range(slots * gpus - load.size):
        copies[np.argmax(load / copies)] += 1
    expert = np.repeat(np.arange(load.size), copies)
    part = 1.0 / copies[expert]
    place: Whole = np.zeros(expert.size, np.int64)
    held, room = np.zeros(gpus), np.full(gpus, slots)
    for piece in np.argsort(-load[expert] * part, kind="stable"):
        place[piece] = np.argmin(np.where(room > 0, held, np.inf))
        held[place[piece]] += load[expert[piece]] * part[piece]
        room[place[piece]] -= 1
    return expert.astype(np.int64), place, part


def further_tiles(tokens: ArrayLike) -> Floats:
    """Tiles beside the first into which an expert's rows are cut where each of ``tokens`` chooses it. Each of them
    reads the expert's weights once more, from the GPU's second-level cache."""
    t = np.asarray(tokens, dtype=np.float64)
    rows = np.select([t <= most for most, _ in TILES], [float(rows) for _, rows in TILES], float(LARGEST_TILE))
    result: Floats = np.maximum(np.ceil(t / rows) - 1.0, 0.0)
    return result


def by_chance(shape: MoeShape, tokens: ArrayLike) -> Floats:
    """How far experts that are chosen by chance alone are on the way from choices that give every expert equally many
    rows to skewed ones: ``BY_CHANCE`` once an expert's share fills a tile, and nothing while it fills half of one."""
    rows = np.asarray(tokens, dtype=np.float64) * shape.top_k / shape.experts
    result: Floats = BY_CHANCE * np.clip(2.0 * rows / CHANCE_TILE - 1.0, 0.0, 1.0)
    return result


def aligned_rows(shape: MoeShape, tokens: ArrayLike, block: int) -> Floats:
    """Rows of a grouped layout whose experts begin at multiples of ``block``, sized without knowing how many rows each
    expert has: all choices of ``tokens``, and ``block - 1`` rows of padding for every expert here (vLLM,
    ``fused_moe/deep_gemm_utils.py``, compute_aligned_M)."""
    rows = np.asarray(tokens, dtype=np.float64) * shape.top_k + shape.local_experts * (block - 1)
    result: Floats = np.ceil(rows / block) * block
    return result


@dataclass(frozen=True)
class GroupedWork:
    """Rows that grouped GEMMs compute, padding included; of these, rows that tokens chose, which alone are permuted and
    summed up; and experts whose weights are read."""

    rows: Floats
    chosen: Floats
    experts: Floats


def aligned_work(shape: MoeShape, tokens: ArrayLike, block: int) -> GroupedWork:
    """A grouped layout of ``aligned_rows``: every block of it is multiplied, so that the weights of all experts are
    read, whichever the tokens chose. TPOT of Qwen3-235B (block fp8, H200; aiconfigurator 0.12.0 serving sample) is as
    long with 7 clients as with 16, and half as long on twice the GPUs."""
    rows = aligned_rows(shape, tokens, block)
    chosen = np.asarray(tokens, dtype=np.float64) * shape.top_k * shape.local_experts / shape.experts
    return GroupedWork(rows, chosen, np.full(rows.shape, shape.local_experts))


def grouped_experts_time(
    gpu: Gpu, kernel: Mapping[str, float], kind: GemmFormat, shape: MoeShape, work: GroupedWork
) -> Time:
    """Grouped GEMMs (gate and up, then down) over the rows of one GPU.

    Parameters: t0_s, compute, memory, p; passes: rows are permuted before, quantised between and summed up after, as a
    multiple of the bytes these steps need at least; stream: bandwidth fraction of such a pass.
    """
    rows, chosen, active = (np.asarray(x, dtype=np.float64) for x in (work.rows, work.chosen, work.experts))
    per_row = 2.0 * shape.matrices * shape.hidden * shape.width
    numbers = active * shape.matrices * shape.hidden * shape.width
    flops, weights = rows * per_row, numbers * kind.weight_bytes
    compute = flops / (kernel["compute"] * kind.compute_share * gpu.peak_flops[kind.arithmetic])
    read = weights / (kernel["memory"] * gpu.memory_bandwidth_bytes_per_s)
    inner, outer = shape.width * (shape.matrices - 1.0), shape.hidden
    # permuted (read, write), gate and up written and read, quantised written and read, result written and read
    passed = chosen * 2.0 * outer * (kind.activation_bytes + BF16)
    passed = passed + rows * 2.0 * (inner * BF16 + shape.width * kind.activation_bytes)
    moved = kernel["passes"] * passed / (kernel["stream"] * gpu.memory_bandwidth_bytes_per_s)
    fixed = np.broadcast_to(np.asarray(kernel["t0_s"]), np.shape(compute)).astype(np.float64)
    seconds = fixed + p_norm(compute, read, kernel["p"]) + moved
    return Time(seconds, compute, read + moved, fixed, flops, weights + passed)


def fixed_time(seconds: float, counts: ArrayLike, each_s: float = 0.0) -> Time:
    """A time that no count changes, and ``each_s`` for each, in the shape of ``counts``."""
    whole = seconds + each_s * np.asarray(counts, dtype=np.float64)
    return Time(whole, 0.0 * whole, 0.0 * whole, whole, 0.0 * whole, 0.0 * whole)
