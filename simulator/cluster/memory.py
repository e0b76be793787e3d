"""Where an engine's GPU memory goes, and how many KV blocks are left: the sum each engine does when it starts."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from simulator.cluster.profiles import EngineProfile
from simulator.cluster.settings import Family, Value
from simulator.errors import TopologyError, unknown
from simulator.hardware.gpu import Gpu
from simulator.models.accounting import stage_weight_bytes
from simulator.models.model import Model
from simulator.models.precision import Parallel, Precision
from simulator.units import GB, GIB, MIB

_BF16_BYTES = 2


@dataclass(frozen=True)
class MemoryRules:
    """Numbers of an engine's memory sum that no datasheet has; each with its source in the engine profile.

    ``bytes_per_logit``: live bytes per logit while sampling (bf16 and fp32 copies, sorted values, their indices).
    ``runtime_bytes``: library workspaces. ``graph_bytes_per_layer``: CUDA graphs. ``communicator_bytes``: buffers of
    collectives, where an engine has more than one GPU.
    """

    bytes_per_logit: float
    runtime_bytes: float
    graph_bytes_per_layer: float
    communicator_bytes: float


def kv_windows(profile: EngineProfile, model: Model) -> tuple[int, ...]:
    """Tokens each layer keeps, 0 for all: some engines do not free what has left a sliding window."""
    return (0,) * model.layers if profile.memory.get("whole_windows") else model.windows


@dataclass(frozen=True)
class MemorySum:
    """Bytes on one GPU (of the pipeline stage that has the least room for KV)."""

    gpu: str
    total: float
    usable: float
    weights: float
    activations: float
    runtime: float
    kv: float
    kv_per_block: float

    @property
    def needed(self) -> float:
        """Bytes without which the engine does not start: everything but KV, and one block."""
        return self.weights + self.activations + self.runtime + self.kv_per_block

    @property
    def blocks(self) -> int:
        """Whole KV blocks that fit; the engine's own spare one is not taken off."""
        return max(0, math.floor(self.kv / self.kv_per_block))


def memory_rules(profile: EngineProfile) -> MemoryRules:
    """The profile's ``memory`` numbers, checked."""
    place = f"{profile.source}: memory"
    names = list(MemoryRules.__dataclass_fields__)
    for key in profile.memory:
        if key not in (*names, "whole_windows", "sources"):
            raise TopologyError(unknown(place, "key", key, (*names, "whole_windows")))
    sources = profile.memory.get("sources", {})
    for name in names:
        if name not in profile.memory:
            raise TopologyError(f"{place}: key '{name}' is missing")
        if name not in sources:
            raise TopologyError(f"{place}: key 'sources.{name}' is missing; say where {name} comes from")
    return MemoryRules(**{name: float(profile.memory[name]) for name in names})


def activation_bytes(model: Model, parallel: Parallel, step_tokens: int, sequences: int, rules: MemoryRules) -> float:
    """Peak of what one step holds on a GPU: its widest layer over all tokens, or the logits while sampling.

    A dense MLP holds the residual, the gate-and-up product and the activated product; a fused mixture of experts
    holds, for each token and chosen expert, the wider of the two products and the activated one, and its input and
    output beside the residual; logits are gathered on every rank.
    """
    ranks = parallel.tp
    residual = model.hidden * _BF16_BYTES
    gate = 2 if model.gated else 1
    per_token = 2.0 * residual
    if model.moe is None or model.moe.first_dense_layers:
        per_token = max(per_token, residual + (gate + 1) * model.ffn / ranks * _BF16_BYTES)
    if model.moe is not None:
        width = model.moe.expert_ffn / (1 if parallel.ep > 1 else ranks)
        widest = max(gate * width, model.hidden) + width
        per_token = max(per_token, 3 * residual + model.moe.top_k * widest * _BF16_BYTES)
    sampling = sequences * model.vocab * rules.bytes_per_logit
    return max(step_tokens * per_token, sampling + 2.0 * step_tokens * residual)


@dataclass(frozen=True)
class Demand:
    """What an engine has to hold: the model as it is split, the sizes of its steps and of its KV blocks."""

    model: Model
    precision: Precision
    parallel: Parallel
    step_tokens: int
    sequences: int
    longest: int
    block_tokens: int
    windows: tuple[int, ...]

    def kv_bytes_per_token(self, stage: range) -> float:
        """KV bytes of one stage's layers per token of the longest request, on one GPU.

        A layer with a sliding window keeps the window and the step's own tokens, as vLLM's block manager reserves.
        """
        longest = max(self.longest, self.block_tokens)
        windows = (self.windows[layer] for layer in stage)
        held = sum(min(longest, window - 1 + self.step_tokens) if window else longest for window in windows)
        return held / longest * self.model.kv_layer_bytes_per_token(self.precision.kv_cache, self.parallel.tp)


def memory_sum(gpu: Gpu, profile: EngineProfile, settings: Mapping[str, Value], demand: Demand) -> MemorySum:
    """The memory sum of the stage with the least room for KV."""
    rules = memory_rules(profile)
    model, parallel = demand.model, demand.parallel
    total = float(gpu.memory_bytes)
    activations = activation_bytes(model, parallel, demand.step_tokens, demand.sequences, rules)
    weights = stage_weight_bytes(model, demand.precision, parallel)
    sums = []
    for stage, stage_weights in zip(model.stage_layers(parallel.pp), weights, strict=True):
        graphs = 0.0 if settings.get("enforce_eager") else rules.graph_bytes_per_layer * len(stage)
        runtime = rules.runtime_bytes + graphs + (rules.communicator_bytes if parallel.gpus > 1 else 0.0)
        per_block = demand.kv_bytes_per_token(stage) * demand.block_tokens
        usable, kv = _kv_budget(
            total, stage_weights, activations + runtime, profile.family, settings, parallel=parallel
        )
        sums.append(MemorySum(gpu.name, total, usable, stage_weights, activations, runtime, kv, per_block))
    return min(sums, key=lambda s: s.kv / s.kv_per_block)


def _kv_budget(
    total: float, weights: float, other: float, family: Family, settings: Mapping[str, Value], *, parallel: Parallel
) -> tuple[float, float]:
    """What the engine may use, and what of it is KV."""
    fraction = float(settings[family.memory_fraction])
    if family.name == "sglang":
        usable = total * (fraction or _sglang_fraction(total, settings, parallel))
        return usable, usable - weights
    if family.name == "tensorrt-llm":
        return total, fraction * (total - weights - other)
    return fraction * total, fraction * total - weights - other


def _sglang_fraction(total: float, settings: Mapping[str, Value], parallel: Parallel) -> float:
    """SGLang's own rule for ``mem_fraction_static`` (python/sglang/srt/server_args.py, 0.5): room for metadata,
    for the activations of a prefill chunk, for CUDA graphs, for collectives and for attention data parallelism;
    10 GiB or more on big GPUs."""
    chunk = int(settings["chunked_prefill_size"])
    chunk = int(settings["max_prefill_tokens"]) if chunk < 0 else chunk
    graph_sequences = 512 if parallel.tp >= 4 or total >= 160 * GIB else 256
    reserved = 512 * MIB + 1.5 * MIB * max(chunk, 2048) + 2 * MIB * graph_sequences
    reserved += parallel.tp * parallel.pp / 8 * GIB
    if parallel.dp > 1:
        reserved += (4.5 if graph_sequences > 300 else 3.0) * MIB * graph_sequences * parallel.dp
    if total > 60 * GIB:
        reserved = max(reserved, 10 * GIB)
    return round((total - reserved) / total, 3)


def refuse(found: MemorySum, demand: Demand, gpus: int, fits_at: int | None) -> str:
    """One line for a model that does not fit: needed, there, short by, and what would help."""
    advice = f"smallest tp that fits is {fits_at}" if fits_at else "no tp fits: use a bigger GPU, fewer bits, or pp"
    parts = (
        f"{found.weights / GB:.2f} weights, {found.activations / GB:.2f} activations, {found.runtime / GB:.2f} runtime"
    )
    return (
        f"{demand.model.name} does not fit: needs {found.needed / GB:.2f} GB per GPU on {gpus} GPU{'s' * (gpus > 1)} "
        f"({parts}, one KV block), {found.gpu} offers {found.usable / GB:.2f} GB, "
        f"short by {_short(found)} bytes; {advice}"
    )


def _short(found: MemorySum) -> int:
    return math.ceil(found.kv_per_block - found.kv)


def describe(found: MemorySum) -> dict[str, Any]:
    """Plain values, in bytes."""
    return {name: getattr(found, name) for name in MemorySum.__dataclass_fields__} | {"blocks": found.blocks}
