"""Whether the GPUs that a row states could have done what it measured at all."""

from __future__ import annotations

from simulator.hardware.profiles import load_gpu
from simulator.models.catalogue import load_model
from simulator.validation.serving_points import Point
from simulator.validation.serving_recipes import recipe_of

#: Of a linear layer's arithmetic, in the format that its GPU multiplies fastest.
FORMATS = ("bf16", "fp8", "nvfp4")


def too_much(point: Point) -> str | None:
    """Why a row cannot be what it states, or None.

    By Little's law its clients and times give its requests a second and how many of them decode at once. Their
    arithmetic (two operations a weight and token, no attention) may not exceed the datasheet peak of all GPUs, nor
    their KV cache (prompts alone) the memory of the decoding GPUs; MLA's latent lies on every tensor-parallel rank.
    """
    model, gpu = load_model(point.model), load_gpu(point.system)
    gpus = sum(group.gpus for group in point.groups)
    answer_s = point.tpot_mean_ms * (point.output_tokens - 1) / 1e3
    requests_per_s = point.concurrency / (point.ttft_mean_ms / 1e3 + answer_s)
    work = 2.0 * active_weights(point) * requests_per_s * point.input_tokens
    peak = max(gpu.peak_flops.get(kind, 0.0) for kind in FORMATS) * gpus
    if work > peak:
        return f"more arithmetic than the datasheet peak of the GPUs stated ({work / peak:.1f} times)"
    kv = recipe_of(point, point.groups[-1].role).precision.kv_cache
    parallel = point.groups[-1].parallel
    per_token = model.kv_layer_bytes_per_token(kv, parallel.tp) * sum(window == 0 for window in model.windows)
    held = requests_per_s * answer_s * point.input_tokens * per_token
    room = gpu.memory_bytes * parallel.dp * parallel.pp * point.groups[-1].workers
    return f"more KV cache than the GPUs stated hold ({held / room:.1f} times)" if held > room else None


def active_weights(point: Point) -> float:
    """Weights that one token is multiplied with, without embedding and head: a lower bound."""
    model = load_model(point.model)
    heads = model.q_heads * model.head_dim + 2 * model.kv_heads * model.head_dim
    attention = 0.0 if model.mla else model.hidden * (heads + model.q_heads * model.head_dim)
    matrices = 3 if model.gated else 2
    dense = model.dense_layers * matrices * model.hidden * model.ffn
    routed = 0.0
    if model.moe is not None:
        routed = model.moe_layers * matrices * model.hidden * model.moe.top_k * model.moe.expert_ffn
    return model.layers * attention + dense + routed
