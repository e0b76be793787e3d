"""Rebuilds measured serving runs and simulates them: topology, requests and clients of each."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from simulator.cluster.assembly import assemble
from simulator.cluster.plan import ClusterPlan, WorkerPlan
from simulator.cluster.simulation import run_plan
from simulator.cluster.topology import load_topology
from simulator.engine.engine import POLICIES
from simulator.errors import InputError, TopologyError
from simulator.models.precision import Parallel, Precision
from simulator.validation.serving_bounds import too_much
from simulator.validation.serving_deployments import (
    TOKENS_IN_STEP,
    chat_tokens,
    falls_out_of_step,
    stated_or_published,
    unstated_clients,
)
from simulator.validation.serving_points import Point
from simulator.validation.serving_recipes import recipe_of
from simulator.workload.arrivals import Arrivals
from simulator.workload.trace import Trace

#: Requests a run sends, as a multiple of its clients: ``--num-prompts`` of the benchmark's start scripts, and
#: ``--request-count`` of NVIDIA's runner (ai-dynamo/aiconfigurator ``eval/benchmarks/genai_perf_runner.py``).
REQUESTS_PER_CLIENT = 10
#: ``inferencex`` lengths are drawn evenly from this share of nominal up to nominal itself: ``--random-range-ratio 0.8``
#: of its client (SemiAnalysisAI/InferenceX issue 356: prompts and answers average 0.9 of what a run is named after).
SHORTEST = 0.8
#: Who moves the KV of a prompt: SGLang's prefill engines write it, the others' decode engines read it. All recipes of
#: SGLang's pools state NIXL, whose writes its scheduler sets up one after another until 2026-04 (sgl-project/sglang
#: pull 23967 reports 162 ms a transfer before, 41 ms after). 0.04 s and 60 ns for each token and layer are fits to
#: TTFT of its 26 pools, 0.044 s for a prompt of 1,024 tokens and 0.07 s for one of 8,192; between two H200 over NVLink
#: it is 1.7 ms (``sglang-0.5.6-http``), so what takes so long there is not known.
HANDOVERS: dict[str, dict[str, Any]] = {
    "vllm": {"mode": "pull"},
    "sglang": {"mode": "push", "setup_s": 0.04, "per_descriptor_s": 60e-9, "setup_in_turn": True},
    "trtllm": {"mode": "pull"},
}
#: GPUs of one NVLink domain of a rack, beyond which pools talk over their network cards.
RACK_GPUS = 72


@dataclass(frozen=True)
class Outcome:
    """One run, measured and simulated; the simulated fields are None where ``problem`` says why not."""

    point: Point
    ttft_mean_ms: float | None
    tpot_mean_ms: float | None
    problem: str | None = None
    notes: tuple[str, ...] = ()

    def error(self, metric: str) -> float:
        """Simulated over measured, less one."""
        found = getattr(self, f"{metric}_mean_ms")
        return float(found / getattr(self.point, f"{metric}_mean_ms") - 1.0)


def run_point(point: Point, profiles: Path | None = None) -> Outcome:
    """Simulate one run; ``profiles``: a folder with engine profiles to take in place of the shipped ones."""
    if point.output_tokens == 1:
        return Outcome(point, None, None, "answers of one token have no time per output token")
    impossible = unstated_clients(point) or too_much(point)
    if impossible is not None:
        return Outcome(point, None, None, impossible)
    try:
        plan, notes = fitting_plan_of(stated_or_published(point), profiles)
        trace = requests_of(point)
        found = run_plan(plan, trace, Arrivals("closed", clients=point.concurrency)).record
    except InputError as problem:
        return Outcome(point, None, None, str(problem))
    if not np.isfinite(found.first_token_s).any():
        return Outcome(point, None, None, "no request finished")
    ttft_s = float(np.nanmean(found.first_token_s - found.arrival_s))
    several = found.output_tokens > 1
    tpot = (found.last_token_s - found.first_token_s)[several] / (found.output_tokens[several] - 1)
    tpot_s = float(np.nanmean(tpot))
    return Outcome(point, ttft_s * 1e3, tpot_s * 1e3, None, notes)


def requests_of(point: Point) -> Trace:
    """The requests of one run, drawn from a seed of its own."""
    count = REQUESTS_PER_CLIENT * point.concurrency
    draw = np.random.default_rng(zlib.crc32(point.point.encode()))
    lengths = []
    for nominal in (point.input_tokens, point.output_tokens):
        if point.origin == "inferencex":
            lengths.append(draw.integers(int(nominal * SHORTEST), nominal + 1, count))
        else:
            lengths.append(np.full(count, nominal))
    inputs, outputs = (np.maximum(x, 1) for x in lengths)
    inputs = inputs + chat_tokens(point)
    # the clients ask for exactly so many tokens, and most never stop earlier (--ignore-eos)
    asked = outputs
    if falls_out_of_step(point):
        outputs = np.minimum(draw.geometric(1.0 / TOKENS_IN_STEP, count) + 1, outputs)
    return Trace.from_columns(
        np.zeros(count), inputs, outputs, max_output_tokens=asked, name=point.point, source=point.point
    )


def plan_of(point: Point, profiles: Path | None = None) -> tuple[ClusterPlan, tuple[str, ...]]:
    """The run's deployment worked out, with notes on what stands in for something else."""
    plan = assemble(load_topology(topology_of(point, profiles)))
    notes: list[str] = []
    workers = tuple(_runnable(worker, notes) for worker in plan.workers)
    return replace(plan, workers=workers), tuple(dict.fromkeys(notes))


def fitting_plan_of(point: Point, profiles: Path | None = None) -> tuple[ClusterPlan, tuple[str, ...]]:
    """As ``plan_of``; a run whose weights cannot lie on the GPUs it states is planned on twice as many, and says so."""
    try:
        return plan_of(point, profiles)
    except TopologyError as problem:
        if "does not fit" not in str(problem):
            raise
    groups = tuple(replace(group, parallel=_doubled(group.parallel)) for group in point.groups)
    plan, notes = plan_of(replace(point, groups=groups), profiles)
    return plan, (*notes, "weights do not fit the GPUs stated; simulated with twice the tensor parallelism")


def _doubled(parallel: Parallel) -> Parallel:
    tp = 2 * parallel.tp
    return Parallel(tp, parallel.pp, parallel.dp, tp * parallel.dp if parallel.ep > 1 else 1)


def topology_of(point: Point, profiles: Path | None = None) -> dict[str, Any]:
    """The run as a topology."""
    recipes = [recipe_of(point, group.role) for group in point.groups]
    profile = recipes[0].profile
    values: dict[str, Any] = {
        "name": point.point,
        "model": point.model,
        "precision": _precision(recipes[0].precision),
        "engine": {"profile": profile if profiles is None else str(profiles / f"{profile}.yaml")},
        "pools": [
            {
                "name": group.role,
                "role": group.role,
                "gpu": point.system,
                "workers": group.workers,
                "parallel": _parallel(group.parallel),
                "engine": recipe.settings,
            }
            for group, recipe in zip(point.groups, recipes, strict=True)
        ],
    }
    if point.mode == "disagg":
        inside = point.system == "gb200" and sum(group.gpus for group in point.groups) <= RACK_GPUS
        values["network"] = {"kind": "nvlink"} if inside else {"kind": "rdma"}
        values["kv_transfer"] = HANDOVERS[point.backend]
        # decode engines of these runs make up to 240,000 tokens a second, which leave in bundles (``stream-interval:
        # 50`` of the recipes for throughput), not one by one
        values["frontend"] = {"token_s": 0.0}
        values["routing"] = {"prefill": "round_robin", "decode": "round_robin"}  # Dynamo's default
    return values


def _precision(precision: Precision) -> dict[str, Any]:
    return {name: value for name, value in vars(precision).items() if value is not None}


def _parallel(parallel: Parallel) -> dict[str, int]:
    return {name: value for name, value in vars(parallel).items() if value > 1}


def _runnable(worker: WorkerPlan, notes: list[str]) -> WorkerPlan:
    """The worker as it is, or under vLLM's rules while its own policy is not there."""
    if worker.policy in POLICIES:
        return worker
    notes.append(f"policy {worker.policy} is not there; vllm-v1 stands in")
    settings: Mapping[str, Any] = {
        "async_scheduling": True,
        "max_num_seqs": worker.max_sequences,
        "max_num_batched_tokens": worker.max_step_tokens,
        "block_size": worker.block_size,
        "max_model_len": worker.max_context,
        "prefix_caching": False,
    }
    return replace(worker, policy="vllm-v1", settings=settings)
