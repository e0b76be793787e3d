"""How the measured deployments were started: settings that the benchmark publishes in its start scripts.

``inferencex`` runs: https://github.com/SemiAnalysisAI/InferenceX, ``benchmarks/`` (one script a model, precision and
GPU), as of 2025-12 to 2026-03. ``nvidia`` runs state no script: engines at their defaults. These are facts of a
deployment, not fitted numbers.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

from simulator.cluster.profiles import load_profile
from simulator.cluster.settings import Value
from simulator.models.precision import Precision
from simulator.validation.serving_deployments import (
    ONE_PROMPT_TOKENS,
    UNQUANTISED_STATIC,
    context_step,
    decode_slots,
    draft_tokens,
    expert_backend,
    falls_out_of_step,
    has_piecewise_graphs,
    in_vllm_sweep,
    is_deepep,
    is_deepseek_on_trtllm,
    is_first_script,
    sequences_at_once,
    serves_one_prompt,
    sglang_pool,
    trtllm_slots,
)
from simulator.validation.serving_points import Point

#: Engine profiles by backend, with the newest version each is for; the last is for all that are newer.
PROFILES = {
    "vllm": (((0, 13), "vllm-0.12"), ((0, 24), "vllm-0.19"), (None, "vllm-0.25-http")),
    "sglang": ((None, "sglang"),),
    "trtllm": (((1, 0), "tensorrt-llm-1.0"), ((1, 1), "tensorrt-llm-1.1"), (None, "tensorrt-llm")),
}
#: Where a table names no version: what was current when the runs were made.
UNSTATED = {"vllm": "vllm-0.19", "sglang": "sglang", "trtllm": "tensorrt-llm"}
#: vLLM as the benchmark ran it until its configurations left image vllm/vllm-openai:v0.10.2 (``.github/configs/
#: master.yaml``; rows without a version); as the Llama runs on B200 were started, all of that time (cudagraph_mode
#: FULL_DECODE_ONLY); and what its gpt-oss runs on B200 add to a profile (fuse_allreduce_rms).
OLD_VLLM, OLD_VLLM_UNTIL = "vllm-0.10", "2025-12"
DECODE_GRAPHS, FUSED_NORMS = "vllm-0.10-decode-graphs", "-fused-norms"
#: SGLang on B200 where a table names no version, by the day of the run: the benchmark's image until 2025-11 was
#: lmsysorg/sglang:v0.5.3rc1-cu129-b200.
COLD_BUILDS = (("2025-11-15", "sglang-0.5.3-b200"), ("~", "sglang-0.5.5-b200"))
#: SGLang with DeepEP, as the recipes of 2025-12 and later start it: no two-batch overlap.
WIDE_EXPERTS = "sglang-deepep-0.5"
#: TensorRT-LLM as the benchmark's runs of DeepSeek-R1 of 2025-11 had it, which state no version.
FIRST_TRTLLM = "tensorrt-llm-1.1-first"
#: TensorRT-LLM whose kernels begin before the one before them has ended, as srt-slurm's recipes of its pools ask for.
DEPENDENT_LAUNCH = "tensorrt-llm-dependent-launch"
#: TensorRT-LLM whose steps with prompts run as piecewise CUDA graphs.
PIECEWISE = "tensorrt-llm-piecewise"
#: Multi-token prediction of DeepSeek-R1 on the benchmark's text. Acceptance: fit to TPOT of its runs with three drafts
#: and with one (the one layer, trained for the next token, drafts the further ones as well); a draft takes one layer of
#: 61 and the head.
MTP = {"speculative_acceptance": 0.62, "speculative_acceptance_decay": 0.5, "speculative_draft_cost": 0.035}


@dataclass(frozen=True)
class Recipe:
    """Engine profile, settings under the engine's names, and number formats."""

    profile: str
    precision: Precision
    settings: dict[str, Value] = field(default_factory=dict)


def recipe_of(point: Point, role: str) -> Recipe:
    """How this run's engines were started."""
    profile = _profile(point)
    family = load_profile(profile).family
    settings = {"vllm": _vllm, "sglang": _sglang, "trtllm": _trtllm}[point.backend](point, role)
    settings[family.context] = _longest(point)
    return Recipe(profile, _precision(point), settings)


def _longest(point: Point) -> int:
    """Longest request of the run, with the room that the scripts add."""
    return int(1.2 * (point.input_tokens + point.output_tokens)) + 200


def _profile(point: Point) -> str:
    """The engine profile of a run's version."""
    blackwell = point.system in ("b200_sxm", "gb200")
    if is_deepep(point):
        return WIDE_EXPERTS
    version = _numbers(point.version)[:2]
    if point.backend == "vllm" and point.origin == "inferencex":
        return _benchmarks_vllm(point, version, blackwell)
    if has_piecewise_graphs(point):
        return PIECEWISE
    if not version and point.backend == "sglang" and point.system == "b200_sxm":
        return next(name for before, name in COLD_BUILDS if point.measured < before)
    if not version:
        return FIRST_TRTLLM if is_deepseek_on_trtllm(point) else UNSTATED[point.backend]
    if point.origin == "inferencex" and point.mode == "disagg":
        return _of_pools(point)
    return _of_version(point, version)


def _benchmarks_vllm(point: Point, version: tuple[int, ...], blackwell: bool) -> str:
    """The profile of the benchmark's own runs of vLLM: all ask for asynchronous scheduling, complete since 0.11
    (vllm-project/vllm pull 23569)."""
    if blackwell and point.model.startswith("llama"):
        return DECODE_GRAPHS
    found = OLD_VLLM if not version and point.measured < OLD_VLLM_UNTIL else UNSTATED["vllm"]
    return found + (FUSED_NORMS if blackwell else "")


def _of_pools(point: Point) -> str:
    """The profile of pools behind Dynamo, whose version it is that the table states: the newest of the engine.

    All recipes of TensorRT-LLM's pools set ``TRTLLM_ENABLE_PDL``. Kernels of nvfp4 models on Blackwell take part since
    TensorRT-LLM 1.2 (NVIDIA/TensorRT-LLM pull 7977), which Dynamo 0.8 brings.
    """
    fp4 = point.backend == "trtllm" and point.precision == "fp4" and point.system in ("b200_sxm", "gb200")
    return DEPENDENT_LAUNCH if fp4 and _numbers(point.version) >= (0, 8) else PROFILES[point.backend][-1][1]


def _of_version(point: Point, version: tuple[int, ...]) -> str:
    return next(name for last, name in PROFILES[point.backend] if last is None or version <= last)


def _numbers(version: str) -> tuple[int, ...]:
    """The leading numbers of a version, as (0, 5, 6) of 0.5.6.post2; empty where there are none."""
    found = re.match(r"v?(\d+)\.(\d+)(?:\.(\d+))?", version)
    return tuple(int(part) for part in found.groups() if part is not None) if found else ()


def _precision(point: Point) -> Precision:
    """Formats of the checkpoints the scripts name, and of the KV cache they ask for."""
    kv = _kv_cache(point)
    if point.model == "gpt-oss-120b":
        # weights mxfp4, attention bf16; arithmetic of the experts: mxfp8 activations on Blackwell, bf16 on Hopper
        blackwell = point.system in ("b200_sxm", "gb200")
        return Precision("mxfp4", kv, activations="fp8" if blackwell else None)
    if point.precision == "fp8":
        block = point.model in ("deepseek-v3", "qwen3-235b-a22b", "qwen3-32b")
        return Precision("fp8_block" if block else "fp8", kv)
    if point.precision == "fp4":
        # nvidia/DeepSeek-R1-0528-FP4: the attention projections are not quantised
        attention = "bf16" if point.model == "deepseek-v3" else None
        return Precision("nvfp4", kv, attention_weights=attention)
    return Precision("int4" if point.precision == "int4" else "bf16", kv)


def _kv_cache(point: Point) -> str:
    if point.origin != "inferencex":
        # nvidia's fp8 checkpoints carry scales for an fp8 cache, and TensorRT-LLM takes it up
        return "fp8" if point.backend == "trtllm" and point.precision in ("fp8", "fp4") else "bf16"
    if point.backend == "vllm":
        return _vllm_kv_cache(point)
    if point.model == "gpt-oss-120b":
        return "fp8" if point.backend == "trtllm" and point.system == "b200_sxm" else "bf16"
    if point.backend == "sglang":
        return "fp8" if point.system in ("b200_sxm", "gb200") else "bf16"
    return "fp8"


def _vllm_kv_cache(point: Point) -> str:
    """``kv-cache-dtype`` of vLLM's scripts: fp8 for Llama, and for gpt-oss on Blackwell since 2025-12."""
    if point.model == "gpt-oss-120b":
        return "fp8" if point.system in ("b200_sxm", "gb200") and point.measured >= "2025-12" else "bf16"
    # one run on H100 queues for half a minute, as it does with bf16 alone
    return "fp8" if point.model.startswith("llama") and point.system != "h100_sxm" else "bf16"


def _vllm(point: Point, role: str) -> dict[str, Any]:
    if point.origin != "inferencex":
        own: dict[str, Any] = {
            "max_num_batched_tokens": _generated_tokens(point, role),
            "prefix_caching": False,
            "async_scheduling": _numbers(point.version) >= (0, 14),
        }
        # the sweep's KV memory is that of vLLM's own limit of 1,024 sequences, whose logits it sets aside
        return own if in_vllm_sweep(point) else own | {"max_num_seqs": point.concurrency}
    return {
        "max_num_batched_tokens": 8192,
        "prefix_caching": False,
        "max_num_seqs": sequences_at_once(point),
        "async_scheduling": True,
        # cuda-graph-sizes of the first scripts, max-cudagraph-capture-size of later ones; others have vLLM's default
        "max_cudagraph_capture_size": 2048 if point.model == "gpt-oss-120b" else 512,
    }


def _generated_tokens(point: Point, role: str) -> int:
    """Tokens of a step as NVIDIA's configuration generator sets them for its own runs (``aiconfigurator``,
    generator/rule_plugin/benchmark/*.rule)."""
    sequences = 0 if role == "prefill" else point.concurrency
    if in_vllm_sweep(point):
        return sequences + point.input_tokens
    return sequences if role == "decode" else sequences + point.input_tokens + 1500


def _sglang(point: Point, role: str) -> dict[str, Any]:
    found: dict[str, Any] = {"disable_radix_cache": True, "ignore_eos": True}
    found |= {"reserve_known_lengths": False, "prompts_within_budget": True}
    if point.origin != "inferencex":
        # the generator's command lines of these versions know no switch for the radix cache
        if point.precision == "unstated":
            found["mem_fraction_static"] = UNQUANTISED_STATIC
        return found | {
            "ignore_eos": not falls_out_of_step(point),
            "disable_radix_cache": False,
            "max_prefill_tokens": 16384,
            # enable_mixed_chunk came into the generator's rules after the runs of 0.5.1 (2025-08)
            "mixed_chunk": _numbers(point.version) >= (0, 5, 6),
            "max_running_requests": max(point.concurrency, 1),
        }
    if point.mode == "disagg":
        return found | sglang_pool(point, role)
    if point.system == "b200_sxm":
        found["scheduler_recv_interval"] = 30 if point.concurrency >= 16 else 10
    if point.system == "b200_sxm" and point.precision == "fp4":
        return found | {"chunked_prefill_size": 16384, "max_running_requests": 256, "mem_fraction_static": 0.85}
    both = point.input_tokens == point.output_tokens == 1024
    running = 128 if point.system == "b200_sxm" else 512 if both else 256
    return found | {
        "chunked_prefill_size": 32768,
        "max_prefill_tokens": 32768,
        "max_running_requests": running,
        "mem_fraction_static": 0.82,
    }


def _trtllm(point: Point, role: str) -> dict[str, Any]:
    """Prompts are never cut, so a step must hold the longest one, whatever the script works out.

    ``stream_interval`` of the scripts (10, 20) is left out: the first token goes out at once, and means do not change.
    """
    found: dict[str, Any] = {"enable_block_reuse": False, "moe_backend": expert_backend(point, role)}
    longest = point.input_tokens
    if point.origin != "inferencex":
        tokens = max(_generated_tokens(point, role), 1)
        if serves_one_prompt(point):
            tokens = max(point.concurrency + longest, ONE_PROMPT_TOKENS)
        least = tokens if role == "decode" else max(tokens, longest)
        return found | {"max_batch_size": trtllm_slots(point), "max_num_tokens": least}
    if point.mode == "disagg":
        if role == "prefill":
            most, prompts = context_step(point)
            seats = {} if prompts is None else {"max_batch_size": prompts}
            return found | {"max_num_tokens": most or longest} | seats
        slots = decode_slots(point)
        return found | ({} if slots is None else {"max_batch_size": slots})
    short = point.input_tokens == point.output_tokens == 1024
    if point.model.startswith("llama"):
        wait = short and point.groups[0].gpus < 8
        return found | {"max_num_tokens": 16384} | _batch_wait(wait, 20, 0.9)
    if point.model == "gpt-oss-120b":
        return found | {"max_num_tokens": 20000, "free_gpu_memory_fraction": 0.85}
    return found | _trtllm_deepseek(point, longest, short)


def _trtllm_deepseek(point: Point, longest: int, short: bool) -> dict[str, Any]:
    parallel, drafts = point.groups[0].parallel, draft_tokens(point)
    apart, hopper = parallel.dp > 1, point.system == "h200_sxm"
    batch = max(point.concurrency // (parallel.dp if drafts else 1), 1)
    tokens = -(-((1 + drafts) * batch + point.input_tokens + 64) // 64) * 64
    if drafts == 0 and not hopper and not is_first_script(point):
        tokens = max(tokens, 8192)
    found: dict[str, Any] = {
        "max_num_tokens": max(tokens, longest + (1 + drafts) * batch),
        "free_gpu_memory_fraction": 0.75 if hopper else 0.7 if apart and point.precision == "fp8" else 0.8,
    }
    if drafts:
        found |= {"max_batch_size": batch, "num_speculative_tokens": drafts} | MTP
    if apart:
        found |= {"attention_dp_enable_balance": True, "attention_dp_timeout_iters": 60}
    wait = short and not hopper and drafts == 0 and point.precision == "fp8" and point.concurrency >= 64
    return found | _batch_wait(wait and point.version.startswith("1.2"), 40, 0.8)


def _batch_wait(there: bool, steps: int, share: float) -> dict[str, Any]:
    """Prompts wait for company: so many steps at most, or until they fill this share of a step."""
    return {"batch_wait_timeout_iters": steps, "batch_wait_max_tokens_ratio": share} if there else {}
