"""Counting: parameters, bytes of weights on a GPU, bytes of KV cache. One list of tensors serves all three."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from simulator.errors import TopologyError, unknown
from simulator.models.precision import FP8_DS_MLA, KV_FORMATS, Parallel, Precision
from simulator.units import BYTES_PER_NUMBER

if TYPE_CHECKING:
    from simulator.models.model import Model

#: Kinds of tensor, by the format they are stored in.
ATTENTION, LINEAR, EXPERT, PLAIN = "attention", "linear", "expert", "plain"


@dataclass(frozen=True)
class Tensor:
    """``count`` numbers on one GPU; ``kind`` says which entry of a Precision stores them."""

    kind: str
    count: int


def _split(width: int, ranks: int) -> int:
    return -(-width // ranks)


def _gqa_tensors(model: Model, tp: int) -> Iterator[Tensor]:
    d, h, details = model.head_dim, model.hidden, model.details
    q, kv = _split(model.q_heads, tp) * d, model.kv_heads_per_rank(tp) * d
    yield Tensor(ATTENTION, h * (q + 2 * kv) + q * h)
    yield Tensor(PLAIN, details.qkv_bias * (q + 2 * kv) + details.out_bias * h)
    yield Tensor(PLAIN, details.qk_norm * 2 * d + details.sinks * _split(model.q_heads, tp))


def _mla_tensors(model: Model, tp: int) -> Iterator[Tensor]:
    mla = model.mla
    assert mla is not None
    h, heads = model.hidden, _split(model.q_heads, tp)
    q_out = heads * (mla.nope_dim + mla.rope_dim)
    down = h * (mla.kv_rank + mla.rope_dim) + h * mla.q_rank  # both compressions are copied on every rank
    q_up = (mla.q_rank or h) * q_out
    yield Tensor(ATTENTION, down + q_up + mla.kv_rank * heads * (mla.nope_dim + mla.v_dim) + heads * mla.v_dim * h)
    yield Tensor(PLAIN, mla.kv_rank + mla.q_rank)


def _mlp(hidden: int, width: int, *, gated: bool) -> int:
    return (3 if gated else 2) * hidden * width


def _moe_tensors(model: Model, parallel: Parallel) -> Iterator[Tensor]:
    moe = model.moe
    assert moe is not None
    h, details = model.hidden, model.details
    whole = parallel.ep > 1
    experts = _split(moe.experts, parallel.ep)
    width = moe.expert_ffn if whole else _split(moe.expert_ffn, parallel.expert_gpus)
    yield Tensor(EXPERT, experts * _mlp(h, width, gated=model.gated))
    yield Tensor(PLAIN, details.expert_bias * experts * ((2 if model.gated else 1) * width + h))
    yield Tensor(PLAIN, h * moe.experts + details.router_bias * moe.experts + details.shared_gate * h)
    yield Tensor(LINEAR, _mlp(h, _split(moe.shared_width, parallel.tp), gated=model.gated))


def layer_tensors(model: Model, layer: int, parallel: Parallel) -> Iterator[Tensor]:
    """Tensors of one layer on one GPU."""
    h, details = model.hidden, model.details
    yield Tensor(PLAIN, 2 * h * (2 if details.norm_bias else 1))
    yield from (_gqa_tensors(model, parallel.tp) if model.mla is None else _mla_tensors(model, parallel.tp))
    if model.is_moe_layer(layer):
        yield from _moe_tensors(model, parallel)
    else:
        width = _split(model.ffn, parallel.tp)
        yield Tensor(LINEAR, _mlp(h, width, gated=model.gated))
        yield Tensor(PLAIN, details.mlp_bias * ((2 if model.gated else 1) * width + h))


def _mtp_tensors(model: Model, parallel: Parallel) -> Iterator[Tensor]:
    """Each MTP module: a projection of two hidden states to one, three norms, one layer (arXiv 2412.19437, 2.2)."""
    for _ in range(model.mtp_layers):
        yield Tensor(LINEAR, 2 * model.hidden * model.hidden)
        yield Tensor(PLAIN, 3 * model.hidden)
        yield from layer_tensors(model, model.layers - 1, parallel)


def _embedding(model: Model, tp: int) -> int:
    norm = model.details.embedding_norm * 2 * model.hidden
    return (_split(model.vocab, tp) + model.details.positions) * model.hidden + norm


def stage_tensors(model: Model, stage: int, parallel: Parallel, *, mtp: bool = False) -> Iterator[Tensor]:
    """Tensors of one GPU of pipeline stage ``stage``: embedding on the first, final norm and head on the last."""
    last = stage == parallel.pp - 1
    if stage == 0:
        yield Tensor(PLAIN, _embedding(model, parallel.tp))
    for layer in stage_layers(model.layers, parallel.pp)[stage]:
        yield from layer_tensors(model, layer, parallel)
    if last:
        yield Tensor(PLAIN, model.hidden * (2 if model.details.norm_bias else 1))
        if not model.tie_embeddings or parallel.pp > 1:
            yield Tensor(PLAIN, _split(model.vocab, parallel.tp) * model.hidden)
        if mtp:
            yield from _mtp_tensors(model, parallel)


def parameters(model: Model) -> int:
    """All parameters but those of multi-token prediction."""
    return sum(t.count for t in stage_tensors(model, 0, Parallel()))


def active_parameters(model: Model, *, embedding: bool = True) -> int:
    """Parameters one token uses: top_k of the routed experts, all the rest."""
    total = parameters(model)
    if model.moe is not None:
        routed = sum(t.count for t in stage_tensors(model, 0, Parallel()) if t.kind == EXPERT)
        total -= routed - routed * model.moe.top_k // model.moe.experts
        if model.details.expert_bias:
            bias = model.moe_layers * ((2 if model.gated else 1) * model.moe.expert_ffn + model.hidden)
            total -= bias * (model.moe.experts - model.moe.top_k)
    return total if embedding or model.tie_embeddings else total - _embedding(model, 1)


def mtp_parameters(model: Model) -> int:
    """Parameters of the multi-token-prediction layers."""
    return sum(t.count for t in _mtp_tensors(model, Parallel()))


def stage_weight_bytes(
    model: Model, precision: Precision, parallel: Parallel, *, mtp: bool = False
) -> tuple[float, ...]:
    """Bytes of weights on one GPU of each pipeline stage."""
    bytes_of = {
        ATTENTION: BYTES_PER_NUMBER[precision.attention_weight_format],
        LINEAR: BYTES_PER_NUMBER[precision.linear_weight_format],
        EXPERT: BYTES_PER_NUMBER[precision.weights],
        PLAIN: BYTES_PER_NUMBER["fp32" if precision.weights == "fp32" else "bf16"],
    }
    return tuple(
        sum(t.count * bytes_of[t.kind] for t in stage_tensors(model, stage, parallel, mtp=mtp))
        for stage in range(parallel.pp)
    )


def weight_bytes(model: Model, precision: Precision, parallel: Parallel, *, mtp: bool = False) -> int:
    """Bytes of weights on the fullest GPU."""
    check_parallel(model, parallel)
    return math.ceil(max(stage_weight_bytes(model, precision, parallel, mtp=mtp)))


def stage_layers(layers: int, pp: int) -> tuple[range, ...]:
    """Layers of each stage, as even as can be. Left-over layers go to the stages before the last, latest first, for
    the last one also holds the head: the rule of vLLM's ``get_pp_indices``."""
    counts = [layers // pp] * pp
    for i in range(layers % pp):
        counts[-2 - i] += 1
    ends = [sum(counts[: i + 1]) for i in range(pp)]
    return tuple(range(end - count, end) for end, count in zip(ends, counts, strict=True))


def kv_layer_bytes_per_token(model: Model, kv_precision: str, tp: int) -> float:
    """Bytes of one token's K and V, or its latent, in one layer on one GPU. The latent is copied on every rank."""
    if kv_precision not in KV_FORMATS:
        raise TopologyError(unknown("precision.kv_cache", "format", kv_precision, KV_FORMATS))
    if kv_precision == FP8_DS_MLA:
        if model.mla is None:
            raise TopologyError(f"precision.kv_cache: {FP8_DS_MLA} stores a latent, and {model.name} has no MLA")
        # one byte a latent value, one fp32 scale for 128 of them, rotary part in bf16
        return model.mla.kv_rank * (1 + 4 / 128) + model.mla.rope_dim * BYTES_PER_NUMBER["bf16"]
    number_bytes = BYTES_PER_NUMBER[kv_precision]
    if model.mla is not None:
        return (model.mla.kv_rank + model.mla.rope_dim) * number_bytes
    return 2 * model.kv_heads_per_rank(tp) * model.head_dim * number_bytes


def kv_bytes_per_token(model: Model, kv_precision: str, tp: int, pp: int) -> float:
    """Bytes a further token adds on the fullest GPU when all windows are full."""
    full = max(sum(model.windows[i] == 0 for i in stage) for stage in stage_layers(model.layers, pp))
    return full * kv_layer_bytes_per_token(model, kv_precision, tp)


def kv_bytes(model: Model, context: int, kv_precision: str, tp: int, pp: int) -> float:
    """Bytes of KV of one sequence of ``context`` tokens on the fullest GPU."""
    held = max(
        sum(min(context, model.windows[i] or context) for i in stage) for stage in stage_layers(model.layers, pp)
    )
    return held * kv_layer_bytes_per_token(model, kv_precision, tp)


def problem(model: Model) -> str:
    """What is wrong with the shapes of a model, or an empty string."""
    if min(model.layers, model.hidden, model.q_heads, model.kv_heads, model.head_dim, model.vocab) < 1:
        return "layers, hidden, heads, head_dim and vocab must be 1 or more"
    if model.q_heads % model.kv_heads:
        return f"{model.q_heads} query heads are not a multiple of {model.kv_heads} KV heads"
    if len(model.windows) != model.layers:
        return f"{len(model.windows)} windows for {model.layers} layers"
    if model.ffn < 1 and model.dense_layers:
        return f"ffn is {model.ffn}, but {model.dense_layers} layers have a dense MLP"
    moe = model.moe
    if moe is not None:
        if not 1 <= moe.top_k <= moe.experts:
            return f"top_k {moe.top_k} of {moe.experts} experts"
        if moe.groups > moe.experts or moe.top_groups > moe.groups:
            return f"{moe.top_groups} of {moe.groups} groups of {moe.experts} experts"
    return ""


def allowed_tp(model: Model) -> list[int]:
    """Degrees that split the heads evenly: divisors of the query heads that divide, or are multiples of, KV heads."""
    kv = model.q_heads if model.mla is not None else model.kv_heads
    return [t for t in range(1, model.q_heads + 1) if model.q_heads % t == 0 and (kv % t == 0 or t % kv == 0)]


def check_parallel(model: Model, parallel: Parallel, place: str = "parallel") -> None:
    """Refuse a split the model has no room for."""
    allowed = allowed_tp(model)
    if parallel.tp not in allowed:
        heads = f"{model.q_heads} query heads" + ("" if model.mla else f" and {model.kv_heads} KV heads")
        shown = ", ".join(map(str, allowed))
        raise TopologyError(f"{place}.tp: {parallel.tp} does not split {model.name}'s {heads}; allowed: {shown}")
    if parallel.pp > model.layers:
        allowed_pp = f"allowed: 1 to {model.layers}"
        raise TopologyError(f"{place}.pp: {parallel.pp} stages for {model.name}'s {model.layers} layers; {allowed_pp}")
    if parallel.ep > 1 and model.moe is None:
        raise TopologyError(f"{place}.ep: {parallel.ep}, but {model.name} has no experts; allowed: 1")
