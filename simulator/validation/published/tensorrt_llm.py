"""TensorRT-LLM disaggregated: how far a whole deployment stays below its ideally matched halves."""

from __future__ import annotations

from collections.abc import Iterator
from math import ceil
from typing import Any

import numpy as np

from simulator.cluster.simulation import run_plan
from simulator.models.precision import Parallel, Precision
from simulator.validation.published import runs
from simulator.validation.published.rows import Row
from simulator.validation.published.steps import Engine
from simulator.workload.arrivals import Arrivals

SYSTEM = "tensorrt-llm"
SOURCE = "NVIDIA/TensorRT-LLM docs/source/blogs/tech_blog/blog5"
MODEL, GPU, PROFILE = "deepseek-v3", "gb200", "tensorrt-llm"
PRECISION = Precision("nvfp4", "fp8")
CONTEXT, GENERATION = Parallel(dp=4, ep=4), Parallel(dp=8, ep=8)
INPUTS, OUTPUTS = 8192, 256
#: Sequences that the generation server runs at once, and requests for each of them.
BATCH, ROUNDS = 512, 4
#: Published: 0 to 25 % below, drawn for many settings; the middle, and how far from it counts as met, in points.
BELOW, TOLERANCE = 0.125, 10.0


def rows() -> Iterator[Row]:
    """The one figure that is a number."""
    setup = (
        f"DeepSeek-R1 on GB200, {INPUTS} / {OUTPUTS}, context servers on 4 GPUs, a generation server on 8 with "
        f"{BATCH} requests: tokens/s/GPU below ideally matched servers"
    )
    yield Row(
        "tensorrt-llm-below-ideal", SYSTEM, SOURCE, setup, "predicted", "share", BELOW, TOLERANCE, _below,
        in_points=True,
    )  # fmt: skip


def _below() -> float:
    context_s, generation_s = _request_s()
    servers = context_s / generation_s
    ideal = OUTPUTS / generation_s / (servers * CONTEXT.gpus + GENERATION.gpus)
    return 1.0 - _measured(ceil(servers)) / ideal


def _request_s() -> tuple[float, float]:
    """Seconds of a context server, and of the generation server, for each request, both with full batches."""
    prompts = CONTEXT.dp
    context = Engine(MODEL, GPU, PROFILE, CONTEXT, PRECISION).prefill_s([(INPUTS, 0)] * prompts) / prompts
    step_s = Engine(MODEL, GPU, PROFILE, GENERATION, PRECISION).decode_s(BATCH, INPUTS + OUTPUTS / 2)
    return context, step_s * OUTPUTS / BATCH


def _measured(servers: int) -> float:
    """Output tokens a second and GPU of the whole, over the middle half of its requests."""
    plan = runs.plan_of(_topology(servers))
    clients = BATCH + 2 * servers * CONTEXT.dp
    done = run_plan(plan, runs.requests(ROUNDS * clients, INPUTS, OUTPUTS), Arrivals("closed", clients=clients)).record
    ends = np.sort(done.last_token_s)
    first, last = len(ends) // 4, 3 * len(ends) // 4
    return float((last - first) * OUTPUTS / (ends[last] - ends[first]) / plan.gpus)


def _topology(servers: int) -> dict[str, Any]:
    def pool(role: str, workers: int, parallel: Parallel, **engine: Any) -> dict[str, Any]:
        split = {"dp": parallel.dp, "ep": parallel.ep}
        return {"name": role, "role": role, "gpu": GPU, "workers": workers, "parallel": split, "engine": engine}

    return {
        "name": "tensorrt-llm",
        "model": MODEL,
        "precision": {"weights": PRECISION.weights, "kv_cache": PRECISION.kv_cache},
        "engine": {"profile": PROFILE, "enable_block_reuse": False},
        "pools": [
            pool("prefill", servers, CONTEXT, overlap_scheduler=False),
            pool("decode", 1, GENERATION, max_batch_size=BATCH // GENERATION.dp),
        ],
        "network": {"kind": "nvlink"},
        "max_output_tokens": OUTPUTS,
    }
