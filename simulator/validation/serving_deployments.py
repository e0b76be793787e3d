"""Facts of measured deployments that the table of runs leaves out, from what the benchmark publishes.

Source: https://github.com/SemiAnalysisAI/InferenceX, ``.github/configs/nvidia-master.yaml`` (search spaces),
``perf-changelog.yaml`` (which image ran with speculative decoding) and ``benchmarks/``, 2025-11 to 2026-03. These are
facts of a deployment, not fitted numbers.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

from simulator.models.precision import Parallel
from simulator.validation.serving_points import Group, Point

#: Images and days of TensorRT-LLM runs of DeepSeek-R1 with multi-token prediction (changelog entries 392, 632, 642);
#: an empty day: every run of that image.
MTP_RUNS = (("1.2.0rc6.post3", ""), ("1.1.0rc2.post2", "2026-01-14"))
#: Tokens and prompts that a step of Dynamo's context servers holds on each attention rank: TensorRT-LLM
#: ``max_num_tokens`` and ``max_batch_size`` by GPU, weights and prompt (ishandhanani/srt-slurm, ``recipes/trtllm``);
#: no limit of prompts where the recipe is not at hand.
CONTEXT_STEPS = {
    ("h100_sxm", "fp8", 1024): (2048, 2),
    ("h100_sxm", "fp8", 8192): (8224, 1),
    ("h200_sxm", "fp8", 1024): (8192, 8),
    ("h200_sxm", "fp8", 8192): (16640, 2),
    ("b200_sxm", "fp8", 1024): (16384, 16),
    ("b200_sxm", "fp8", 8192): (8320, 1),
}
CONTEXT_TOKENS = {1024: 8192, 8192: 16640}
#: GPUs of an engine of SGLang's low-latency recipes (ishandhanani/srt-slurm, ``recipes/gb200-*/*/low-latency``).
LOW_LATENCY_GPUS = 4
#: Attention ranks of a decode engine from which SGLang's recipes on GB200 use DeepEP.
DEEPEP_RANKS = 8
#: Day of the recipe (``recipes/b200-fp8/8k1k.yaml``) that followed the first ones of DeepSeek-R1 fp8 on B200.
B200_FP8_LATER = "2026-03"


def is_deepseek_on_trtllm(point: Point) -> bool:
    """Whether this is one of the benchmark's own runs of DeepSeek on TensorRT-LLM, not in pools."""
    return (point.backend, point.model, point.origin) == ("trtllm", "deepseek-v3", "inferencex") and point.mode == "agg"


def stated_or_published(point: Point) -> Point:
    """The run with the expert and attention data parallelism that its search space says, where the table is silent.

    Runs without a version are of 2025-11: their rows name tensor parallelism alone.
    """
    if point.backend == "sglang" and point.mode == "disagg":
        return replace(point, groups=_expert_parallel(point))
    if _has_whole_expert_prefill(point):
        return replace(point, groups=(_experts_not_apart(point.groups[0]), *point.groups[1:]))
    parallel = point.groups[0].parallel
    if point.version not in ("", "nan") or not is_deepseek_on_trtllm(point) or parallel.gpus > 8:
        return point
    if parallel.ep > 1 or parallel.dp > 1:
        return point
    gpus, clients = parallel.tp, point.concurrency
    long_prompt = point.input_tokens > 4096
    if point.system == "h200_sxm":
        spread, apart = True, long_prompt and clients >= 64
    elif long_prompt:
        spread, apart = gpus == 4 or clients > 32, clients > 32
    elif gpus == 4:
        spread, apart = clients > 32, clients >= 256
    else:
        spread, apart = clients > (8 if point.output_tokens < 4096 else 16), clients >= 256
    if not spread:
        return point
    found = Parallel(1, 1, gpus, gpus) if apart else Parallel(gpus, 1, 1, gpus)
    return replace(point, groups=(Group("colocated", 1, found),))


def _has_whole_expert_prefill(point: Point) -> bool:
    """TensorRT-LLM's pools of DeepSeek-R1 fp8 on B200 with prompts of 8,192 tokens: every recipe of theirs has
    ``moe_expert_parallel_size: 1`` in prefill (``recipes/trtllm/b200-fp8/8k1k``), which some rows list as 8."""
    pools = (point.backend, point.mode, point.origin) == ("trtllm", "disagg", "inferencex")
    return pools and (point.system, point.precision, point.input_tokens) == ("b200_sxm", "fp8", 8192)


def _experts_not_apart(group: Group) -> Group:
    return replace(group, parallel=replace(group.parallel, ep=1))


def context_step(point: Point) -> tuple[int | None, int | None]:
    """Tokens and prompts that a step of Dynamo's context servers holds on each attention rank, as far as is known."""
    found = CONTEXT_STEPS.get((point.system, point.precision, point.input_tokens))
    return found or (CONTEXT_TOKENS.get(point.input_tokens), None)


def _expert_parallel(point: Point) -> tuple[Group, ...]:
    """SGLang's pools with attention data parallelism spread their experts over the same GPUs (DEP).

    Not the low-latency ones on GB200, whose engines are all of four GPUs: their recipes are tensor-parallel with
    ``enable-dp-attention: false``, though rows list four attention ranks.
    """
    low_latency = point.system == "gb200" and all(g.parallel.gpus == LOW_LATENCY_GPUS for g in point.groups)
    found = []
    for group in point.groups:
        p = group.parallel
        if low_latency and p.ep == 1:
            p = replace(p, tp=p.tp * p.dp, dp=1)
        elif p.dp > 1 and point.system == "gb200":
            p = replace(p, ep=p.tp * p.dp)
        found.append(replace(group, parallel=p))
    return tuple(found)


def draft_tokens(point: Point) -> int:
    """Tokens of multi-token prediction that a step drafts: three, one with attention data parallelism, or none."""
    if not is_deepseek_on_trtllm(point):
        return 0
    if not any(point.version == image and point.measured.startswith(day) for image, day in MTP_RUNS):
        return 0
    return 1 if point.groups[0].parallel.dp > 1 else 3


def expert_backend(point: Point, role: str) -> str:
    """TensorRT-LLM's ``moe_config.backend``, as the start scripts choose it."""
    if point.origin != "inferencex":
        return "AUTO"
    if point.model == "gpt-oss-120b":
        return "TRITON" if point.system == "h200_sxm" else "TRTLLM"
    if point.model != "deepseek-v3":
        return "AUTO"
    if point.system in ("h100_sxm", "h200_sxm"):
        return "CUTLASS"
    apart = next(group.parallel.dp > 1 for group in point.groups if group.role == role)
    if point.precision == "fp4":
        return "CUTLASS" if apart else "TRTLLM"
    if _has_whole_expert_prefill(point):
        return "TRTLLM"
    old = point.mode == "agg" and point.version.startswith("1.1")
    return "DEEPGEMM" if apart or old else "TRTLLM"


def decode_slots(point: Point) -> int | None:
    """``max_batch_size`` of a Dynamo generation server of TensorRT-LLM; None where it is more than the clients.

    Published by name (``..._gen6_tep8_batch64_...`` in recipes of ishandhanani/srt-slurm), with client counts a little
    above the slots. Where the recipe is not at hand (GB200 fp8, H100): the power of two below the clients of an engine,
    which holds for every recipe that is.
    """
    group = point.groups[-1]
    if (point.backend, point.mode, point.origin) != ("trtllm", "disagg", "inferencex") or group.parallel.dp > 1:
        return None
    each = point.concurrency / group.workers
    below = 1 << max(math.ceil(math.log2(max(each, 1.0))) - 1, 0)
    long_answer = point.output_tokens > 4096
    if point.system == "h100_sxm" or (point.system, point.precision) == ("gb200", "fp8"):
        return below
    if point.system == "gb200":
        if long_answer:
            return 1 << int(math.log2(max(each, 1.0)))
        if point.version.startswith("0.5"):
            return 32 if point.input_tokens > 4096 else 128
        return 16 if point.input_tokens > 4096 else 32
    return 64 if (point.system, point.precision) == ("b200_sxm", "fp4") and each > 32 else None


#: Requests under way that the script of gpt-oss-120b on H100 let its client have in 2025-12, whatever the run.
CLIENT_LIMIT = 512


def unstated_clients(point: Point) -> str | None:
    """Why a row does not say how many clients its run had, or None.

    ``benchmarks/gptoss_fp4_h100_*.sh`` of 2025-12 starts the server with ``--max-num-seqs $CONC`` and sends ten times
    $CONC requests, but with ``--max-concurrency 512``: the table holds that 512, and one run for each deployment, whose
    $CONC was anything from 4 to 64. (Requests all at once, a tenth of them served at a time, wait 4.1 times as long as
    they are served: so do those of all six rows, at TPOTs of 4 to 64 sequences.)
    """
    found = (point.backend, point.model, point.system, point.concurrency) == (
        "vllm",
        "gpt-oss-120b",
        "h100_sxm",
        CLIENT_LIMIT,
    )
    if not (found and point.measured.startswith("2025-12")):
        return None
    return "512 is what the client let through; how many requests the server took is not stated"


def sequences_at_once(point: Point) -> int:
    """vLLM's ``max_num_seqs`` in the benchmark's own runs."""
    return 512 if point.system in ("b200_sxm", "gb200") else point.concurrency


#: Tokens that Qwen3's chat template puts around a prompt: <|im_start|>user and a newline before it, <|im_end|>, a
#: newline, <|im_start|>assistant and a newline after it; Llama-3.1's adds a system message with two dates. NVIDIA's
#: runs ask the chat endpoint (aiconfigurator, ``eval/benchmarks/genai_perf_runner.py``).
CHAT_TOKENS = {"qwen3-32b": 8, "qwen3-235b-a22b": 8, "llama-3.1-8b": 35, "llama-3.1-70b": 35}
#: Lengths of the sweep's prompts are multiples of it.
SWEEP_TOKENS = 1024


def in_vllm_sweep(point: Point) -> bool:
    """Whether a run is of NVIDIA's sweep of vLLM (prompts of 1,024, 2,048, 4,096 tokens, clients in powers of two).

    Its steps hold a prompt and a token for each client, so that of a prompt with its chat template a few tokens are
    left for the next step: TTFT is three steps' time with 8 clients, at 1,024 and 4,096 tokens alike, whatever the
    answers' length. Inferred from the runs, not published: the generator's later rule leaves room for 1,500 tokens
    more, the arguments that it writes for vLLM 0.12.0 state no limit at all. The runs that fill the KV memory wait as
    if its sequences were vLLM's own 1,024: 9, 9, 15 and 29 % too short with them, 17, 16, 22 and 60 % with one for each
    client.
    """
    own = (point.backend, point.mode) == ("vllm", "agg") and point.origin != "inferencex"
    return own and point.input_tokens % SWEEP_TOKENS == 0


def chat_tokens(point: Point) -> int:
    """Tokens of a prompt beyond its nominal length, where steps are so full of prompts that they decide.

    SGLang's chunks of 8,192 tokens would hold eight prompts of 1,024, four of 2,048 and two of 4,096: with the template
    the last of them waits for the next step, as TTFT of Qwen3-32B with 16 clients shows.
    """
    own_sglang = point.backend == "sglang" and point.origin != "inferencex"
    return CHAT_TOKENS.get(point.model, 0) if own_sglang or in_vllm_sweep(point) else 0


def is_first_script(point: Point) -> bool:
    """Whether a run of DeepSeek-R1 on TensorRT-LLM is of the time (2025-11, rows without a version) when the scripts
    gave a step room for one prompt and a token for each client (``MAX_NUM_TOKENS`` of ``dsr1_fp4_b200_trt_slurm.sh``);
    at least 8,192 tokens came later."""
    return is_deepseek_on_trtllm(point) and not point.version


def trtllm_slots(point: Point) -> int:
    """``max_batch_size`` of NVIDIA's own runs: one for each client.

    The unquantised runs of 1.0.0rc3 served one fewer: their TTFT is longer by an answer's time over (clients - 1), at
    8 to 64 clients, whatever the GPUs and lengths. Inferred from the runs, not published.
    """
    spare = point.precision == "unstated" and point.version.startswith("1.0.0rc3")
    return max(point.concurrency - 1, 1) if spare else point.concurrency


#: Tokens of a step of NVIDIA's own runs of TensorRT-LLM 1.0.0rc3, unless one prompt and a token for each client are
#: more: two prompts of 1,024 tokens never shared a step. Their TTFT is in proportion to the prompt from 1,024 to 4,096
#: tokens, and is three of the steps that their throughput at two answer lengths implies. Inferred from the runs, not
#: published (the generator's rules of 2026 leave room for 1,500 tokens beside a prompt).
ONE_PROMPT_TOKENS = 2048


def serves_one_prompt(point: Point) -> bool:
    """Whether a run is one of those of ``ONE_PROMPT_TOKENS``."""
    return point.mode == "agg" and point.origin != "inferencex" and point.version.startswith("1.0.0rc3")


def has_piecewise_graphs(point: Point) -> bool:
    """Whether steps with prompts ran as piecewise CUDA graphs (``torch_compile_config`` of the scripts of 2026-01)."""
    if not (is_deepseek_on_trtllm(point) and point.version.startswith("1.2")) or point.groups[0].parallel.dp > 1:
        return False
    clients, shape = point.concurrency, (point.input_tokens, point.output_tokens)
    if draft_tokens(point) == 0:
        if point.precision == "fp4":
            return shape == (1024, 1024) and clients == 64 and point.groups[0].parallel.ep > 1
        return clients >= (128 if shape == (1024, 8192) else 64)
    if point.precision == "fp4":
        return (shape == (1024, 1024) and clients in (32, 64, 128)) or (shape == (1024, 8192) and clients == 64)
    return clients > {(1024, 1024): 4, (1024, 8192): 8}.get(shape, 16)


#: ``mem_fraction_static`` of NVIDIA's unquantised runs of SGLang, as a share of all of a GPU's memory: 0.8 of what is
#: free when the engine starts (some 78.4 of 79.2 GiB on an H100). Inferred from the runs, not published: on one GPU
#: (0.5.8) requests wait as with some 7,000 tokens of KV, on two (0.5.1) as with 260,000; SGLang's own rule gives three
#: times as many, and an eighth more.
UNQUANTISED_STATIC = 0.792
#: Tokens of answers after which, on average, a client of NVIDIA's first runs of SGLang (0.5.1, 2025-08) falls out of
#: step: its answer ends before the length asked for. Inferred from the runs, not published. The scheduler puts prompts
#: first and all answers are of one length, so clients that start together stay together: TTFT would not depend on that
#: length. It is 17 % shorter with answers of 512 tokens than with 128, and TPOT 9 % longer, at 16 to 128 clients and 2
#: to 8 GPUs alike. (Dynamo's worker of that time hands on that the end of a sequence is to be ignored for prompts that
#: its front end has tokenised alone: ``request_handlers/decode_handler.py``.)
TOKENS_IN_STEP = 30_000


def falls_out_of_step(point: Point) -> bool:
    """Whether answers of a run end early now and then, see ``TOKENS_IN_STEP``."""
    return point.backend == "sglang" and point.origin != "inferencex" and point.version.startswith("0.5.1")


def sglang_pool(point: Point, role: str) -> dict[str, Any]:
    """Settings of SGLang's pools of DeepSeek-R1, as the benchmark's recipes state them (ishandhanani/srt-slurm and
    NVIDIA/srt-slurm, ``recipes/gb200-*``, ``recipes/b200-*``, 2025-12 to 2026-03).

    Chunks and running requests of a recipe are those of all attention ranks; ``max_prefill_tokens`` is one rank's.
    """
    group = next(group for group in point.groups if group.role == role)
    if point.system == "gb200":
        return _gb200_pool(point, role, group.parallel.dp)
    ranks = group.parallel.dp
    if role == "decode":
        return {"mem_fraction_static": 0.75 if point.precision == "fp8" else 0.85}
    if point.precision == "fp4":
        chunk = 65536 if point.groups[-1].parallel.dp > 1 else 32768
        return {"chunked_prefill_size": chunk, "max_prefill_tokens": chunk * ranks, "mem_fraction_static": 0.85}
    if ranks == 1:
        return {"chunked_prefill_size": 32768, "max_prefill_tokens": 32768, "mem_fraction_static": 0.85}
    if point.measured >= B200_FP8_LATER:
        return {
            "chunked_prefill_size": 65536,
            "max_prefill_tokens": 8192 * ranks,
            "max_running_requests": 8,
            "mem_fraction_static": 0.6,
            "load_balance_method": "round_robin",
        }
    return {
        "chunked_prefill_size": 131072,
        "max_prefill_tokens": 16384 * ranks,
        "max_running_requests": 16,
        "mem_fraction_static": 0.6,
    }


def _gb200_pool(point: Point, role: str, ranks: int) -> dict[str, Any]:
    """The same on GB200: throughput with DeepEP, or low latency."""
    long_prompt = point.input_tokens > 4096
    if not is_deepep(point):
        found: dict[str, Any] = {"scheduler_recv_interval": 10, "mem_fraction_static": 0.95}
        chunk, held = (24576, 32768) if long_prompt else (8192, 8192)
        return found if role == "decode" else found | {"chunked_prefill_size": chunk, "max_total_tokens": held}
    if point.precision == "fp8":
        found = {"chunked_prefill_size": 131072, "max_prefill_tokens": 16384 * ranks, "mem_fraction_static": 0.8}
        # SGLANG_HACK_SEQ_BOOTSTRAP_ROOM of recipes/gb200-fp8/1k1k/ultra-tpt.yaml
        in_turn = not long_prompt and point.groups[-1].parallel.dp == DEEPEP_RANKS
        return found | ({"load_balance_method": "round_robin"} if in_turn else {})
    if role == "decode":
        return {"mem_fraction_static": 0.83}
    chunk = 131072 if long_prompt else 65536
    found = {"chunked_prefill_size": chunk, "max_prefill_tokens": chunk * ranks, "mem_fraction_static": 0.84}
    return found | {"max_total_tokens": 131072 * ranks, "expert_all_to_all": "all_gather"}


def is_deepep(point: Point) -> bool:
    """Whether a run's recipe sends tokens to experts by DeepEP: all of GB200 whose decode engines have eight attention
    ranks or more; with nvfp4 weights in decode alone."""
    pools = point.backend == "sglang" and point.system == "gb200" and point.mode == "disagg"
    return pools and point.groups[-1].parallel.dp >= DEEPEP_RANKS
