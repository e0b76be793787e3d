"""Draws up what to measure from the catalogue of models: their projections, heads and experts at TP degrees."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from simulator.calibration.measure.plan import ModelShape, Plan, StepCase
from simulator.models.catalogue import load_model
from simulator.models.model import Model

#: Models and tensor-parallel degrees whose shapes are measured, the most telling first.
DEGREES: tuple[tuple[str, tuple[int, ...]], ...] = (
    ("llama-3.1-8b", (1, 2, 4)),
    ("qwen3-30b-a3b", (1, 2)),
    ("llama-3.1-70b", (2, 4, 8)),
    ("qwen3-32b", (1, 2, 4)),
    ("mixtral-8x7b", (1, 2)),
    ("gpt-oss-20b", (1,)),
    ("qwen3-8b", (1,)),
    ("qwen2.5-7b", (1,)),
    ("qwen2.5-72b", (4, 8)),
    ("qwen3-235b-a22b", (4, 8)),
    ("llama-2-7b", (1,)),
    ("deepseek-v2-lite", (1,)),
)
#: Models of which whole steps are measured.
STEP_MODELS = ("llama-3.1-8b", "qwen3-30b-a3b")
GEMM_ROWS = (1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048, 4096, 8192)
FP8_ROWS = (1, 4, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192)
LONE_PROMPTS = (16, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)
BATCHED_PROMPTS = ((2, 1024), (4, 128), (4, 512), (4, 2048), (16, 128), (16, 512), (64, 128))
CHUNKS, PASTS = (16, 128, 512, 2048, 8192), (512, 2048, 8192, 32768)
BATCHES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
CONTEXTS = (128, 512, 1024, 2048, 4096, 8192, 32768, 131072)
#: Around the ends of tiles of 64 and 128 rows, and the rows of steps that lie between the others.
STEP_ROWS = (
    *(72, 80, 100, 112, 129, 160, 224, 288, 320, 352, 416, 448, 480, 544, 576, 608, 640, 672, 704, 832, 896),
    *(960, 1088, 1152, 1280, 1408, 1664, 1792, 2176, 2560, 3072, 6144),
)
#: Decoding reads one token more than was computed; kernels read blocks of 64 to 176.
STEP_CONTEXTS = (129, 160, 256, 257, 384, 513, 576, 640, 701, 768, 896, 1025, 1088, 1152, 1280, 1501, 1536, 2049, 3072)
STEP_BATCHES = (24, 40, 48, 80, 96, 100, 112, 160, 192, 224)
STEP_EXPERT_TOKENS = (24, 48, 96, 160, 192, 320, 384, 544, 640, 768, 1280, 1536)
#: Lone prompts, and how much of them vLLM computes in a step by default.
PROMPTS, PROMPT_BUDGET = (512, 2048, 8192, 30000), 8192
ELEMENT_TOKENS = (1, 4, 16, 64, 256, 512, 1024, 2048, 4096, 8192)
KIB, MIB, GIB = 2**10, 2**20, 2**30


def shape_of(model: Model) -> ModelShape:
    """The model as the measuring program sees it. MLA models give their experts alone."""
    moe = model.moe
    return ModelShape(
        model.name,
        model.layers,
        model.hidden,
        model.q_heads,
        model.kv_heads,
        model.head_dim,
        model.ffn,
        model.vocab,
        *((moe.experts, moe.top_k, moe.expert_ffn) if moe is not None else (0, 0, 0)),
    )


def _ranks() -> Iterable[tuple[Model, int]]:
    for name, degrees in DEGREES:
        for tp in degrees:
            yield load_model(name), tp


def _gemms() -> tuple[tuple[int, int], ...]:
    found: dict[tuple[int, int], None] = {}
    for model, tp in _ranks():
        if model.mla is not None:
            continue
        q, kv = model.q_heads // tp * model.head_dim, model.kv_heads_per_rank(tp) * model.head_dim
        pairs = [(q + 2 * kv, model.hidden), (model.hidden, q)]
        if model.moe is None:
            ffn = model.ffn // tp
            pairs += [(2 * ffn, model.hidden), (model.hidden, ffn)]
        else:
            pairs += [(model.moe.experts, model.hidden)]
        pairs.append((model.vocab // tp, model.hidden))
        found |= dict.fromkeys(pairs)
    return tuple(found)


def _heads() -> tuple[tuple[int, int, int], ...]:
    return tuple(
        dict.fromkeys((m.q_heads // tp, m.kv_heads_per_rank(tp), m.head_dim) for m, tp in _ranks() if m.mla is None)
    )


def _experts() -> tuple[tuple[int, int, int, int], ...]:
    found = [(m.hidden, m.moe.expert_ffn // tp, m.moe.experts, m.moe.top_k) for m, tp in _ranks() if m.moe is not None]
    return tuple(dict.fromkeys(found))


def _steps() -> tuple[StepCase, ...]:
    decode = [
        (32, 1024),
        (1, 1024),
        (8, 1024),
        (64, 2048),
        (128, 1024),
        (256, 1024),
        (16, 8192),
        (48, 1500),
        (100, 700),
    ]
    mixed = [(0, 0, 2048, 0), (32, 1024, 512, 0), (32, 1024, 2016, 0), (64, 1024, 1984, 4096), (128, 512, 384, 2048)]
    lone = [(0, 0, 512, 0), (0, 0, 8192, 0)]
    # between the counts that kernels are measured at
    lone += [(24, 900, 700, 0), (80, 3000, 1200, 1024), (40, 600, 280, 512), (16, 2000, 900, 8192)]
    return tuple(StepCase(*d) for d in decode) + tuple(StepCase(*m) for m in (*mixed, *lone))


def step_plan() -> Plan:
    """What whole steps are made of, and nothing else, at more counts: ships as ``plan_steps.json``."""
    plan = catalogue_plan()
    shapes = tuple(dict.fromkeys(shape for model in plan.models for shape in model.gemms()))
    heads = tuple(dict.fromkeys((m.q_heads, m.kv_heads, m.head_dim) for m in plan.models))
    experts = tuple((m.hidden, m.expert_ffn, m.experts, m.top_k) for m in plan.models if m.experts)
    return replace(
        plan,
        gemm_shapes=shapes,
        attention_heads=heads,
        moe_shapes=experts,
        decode_batches=tuple(sorted({*plan.decode_batches, *STEP_BATCHES})),
        moe_tokens=tuple(sorted({*plan.moe_tokens, *STEP_EXPERT_TOKENS})),
        moe_skews=(0.0,),
    )


def catalogue_plan() -> Plan:
    """The plan that ships as ``hardware_profiles/measured/plan.json``."""
    copies = [(16 * KIB, 1024), (32 * KIB, 16), (32 * KIB, 128), (32 * KIB, 1024), (64 * KIB, 1), (64 * KIB, 128)]
    copies += [(64 * KIB, 1024), (256 * KIB, 1), (256 * KIB, 16), (256 * KIB, 256), (MIB, 1), (MIB, 16), (MIB, 128)]
    copies += [(2 * MIB, 16), (2 * MIB, 64), (16 * MIB, 1), (16 * MIB, 8), (256 * MIB, 1)]
    chunks = [(1, n, 0) for n in LONE_PROMPTS] + [(b, n, 0) for b, n in BATCHED_PROMPTS]
    return Plan(
        models=tuple(shape_of(load_model(name)) for name in STEP_MODELS),
        gemm_shapes=_gemms(),
        gemm_rows=GEMM_ROWS,
        fp8_rows=FP8_ROWS,
        attention_heads=_heads(),
        prefill_chunks=tuple(chunks + [(1, n, p) for n in CHUNKS for p in PASTS]),
        decode_batches=BATCHES,
        decode_contexts=CONTEXTS,
        decode_tokens=2**20,
        moe_shapes=_experts(),
        moe_tokens=(1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192),
        moe_skews=(0.0, 1.2),
        element_tokens=ELEMENT_TOKENS,
        steps=_steps(),
        step_rows=STEP_ROWS,
        step_contexts=(*STEP_CONTEXTS, 8193),
        prompts=PROMPTS,
        prompt_budget=PROMPT_BUDGET,
        copy_blocks=tuple(copies),
        stream_bytes=(MIB, 16 * MIB, 64 * MIB, 256 * MIB, GIB, 4 * GIB),
        peak_size=8192,
        peer_bytes=tuple(4**i * 4 * KIB for i in range(9)),
        collective_bytes=tuple(4**i * 4 * KIB for i in range(9)),
    )
