"""A random case put through the production engine, in the shape the steppers return."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from simulator.cluster.plan import ClusterPlan
from simulator.cluster.run import Cluster, RunOptions
from simulator.cost.table import StepCostTable
from simulator.validation.cases import SGLANG_SETTINGS, VLLM_SETTINGS, Case
from simulator.validation.scheduler import OUTPUT_TOKEN, case_plan
from simulator.workload.arrivals import Arrivals
from simulator.workload.trace import Trace

COLUMNS = ("first_token_s", "last_token_s", "token_sum_s")


def as_case(settings: dict[str, Any], requests: list[dict[str, Any]]) -> Case:
    """Settings in the form of case.json, and requests, as a Case without expectations."""
    engine = settings.get("engine", "vllm")
    known = VLLM_SETTINGS if engine == "vllm" else SGLANG_SETTINGS
    own = {key: settings[key] for key in known}
    decode = {**own, **settings.get("decode", {})} if settings.get("disaggregated") else None
    ids = [request.get("hash_ids") or [] for request in requests]
    shared: dict[str, Any] = {}
    if any(ids):
        shared["hash_ids"] = np.array([h for i in ids for h in i], np.int64)
        shared["hash_offsets"] = np.cumsum([0, *map(len, ids)]).astype(np.int64)
    trace = Trace.from_columns(
        [request["arrival_s"] for request in requests],
        [request["input_length"] for request in requests],
        [request["output_length"] for request in requests],
        max_output_tokens=[request.get("max_new_tokens", -1) for request in requests],
        **shared,
    )
    return Case(
        "random",
        Path("random"),
        engine,
        own,
        decode,
        settings["step_time"],
        settings.get("transfer", {"setup_s": 0.0, "per_block_s": 0.0}),
        trace,
        {},
        [],
    )


def run_engine(
    case: Case, *, macro: bool = True, told: bool = False, defer: bool = False, cost: StepCostTable | None = None
) -> Cluster:
    """The cluster after the case. ``told``: every finished request is news, as with closed-loop clients."""
    plan = case_plan(case)
    workers = tuple(
        dataclasses.replace(
            worker,
            settings={**worker.settings, "defer_block_frees": defer},
            step_cost=cost if cost is not None else worker.step_cost,
        )
        for worker in plan.workers
    )
    plan = ClusterPlan(plan.topology, workers, plan.transfer)
    options = RunOptions(macro=macro, one_output_content=OUTPUT_TOKEN[case.engine], tell_finished=told)
    cluster = Cluster(plan, case.trace, Arrivals(), options)
    cluster.run()
    return cluster


def assert_equal(cluster: Cluster, rows: list[dict[str, Any]], tolerance_s: float = 1e-9) -> None:
    """Every token time, cached token count and preemption count agrees with the stepper's rows."""
    desk = cluster.desk
    for name in COLUMNS:
        expected = np.array([float(row[name]) for row in rows])
        allowed = tolerance_s * (
            np.maximum(np.array([row["output_length"] for row in rows]), 1.0) if "sum" in name else 1
        )
        off = np.abs(getattr(desk, name) - expected) > allowed
        off |= np.isnan(getattr(desk, name))
        assert not off.any(), f"{name}: rows {np.flatnonzero(off)[:5]}"
    again = "preemptions" if "preemptions" in rows[0] else "retractions"
    assert desk.preemptions.tolist() == [row[again] for row in rows]
    assert desk.cached_tokens.tolist() == [row["cached_tokens"] for row in rows]


def assert_all_given_back(cluster: Cluster) -> None:
    """Every engine ends empty: all blocks free, nobody running, waiting or holding."""
    for worker in cluster.workers:
        load = worker.engine.load()
        assert (load.running, load.waiting, load.holding) == (0, 0, 0)
        assert load.free_blocks == load.blocks
        assert load.pending_prompt_tokens == 0
        assert 0 < worker.engine.totals().peak_blocks <= load.blocks
