"""``simulate validate scheduler``: the engines of this package against exact cases of real schedulers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from simulator.cluster.plan import ClusterPlan, KvTransferPlan, Route, WorkerPlan
from simulator.cluster.run import Cluster, RunOptions
from simulator.cluster.schema import PoolPart, RoutingPart, Topology
from simulator.cost.table import affine_cost
from simulator.kv.content import OUTPUT_CONTENT
from simulator.models.precision import Parallel
from simulator.network.compression import Compression
from simulator.network.fabric import Network
from simulator.validation.cases import Case, load_case
from simulator.workload.arrivals import Arrivals

#: Largest difference of a token time that still counts as exact, in seconds.
TOLERANCE_S = 1e-6


#: What every output token of the cases is: vLLM's are 7, as prompt tokens of hash id 7 are; SGLang's are in no prompt.
OUTPUT_TOKEN = {"vllm": 7, "sglang": OUTPUT_CONTENT}


@dataclass(frozen=True)
class CaseResult:
    """One case compared. ``max_error_s``: largest of the errors in first token, last token and sum of token times."""

    name: str
    engine: str
    requests: int
    first_token_error_s: float
    last_token_error_s: float
    token_sum_error_s: float
    max_error_s: float
    preemption_mismatches: int
    cache_mismatches: int
    ok: bool
    first_difference: str | None = None


@dataclass(frozen=True)
class SchedulerReport:
    """All cases, and whether every one is exact."""

    cases: tuple[CaseResult, ...]

    @property
    def ok(self) -> bool:
        """Whether every case is exact."""
        return all(case.ok for case in self.cases)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {"cases": [asdict(case) for case in self.cases], "ok": self.ok}


def validate(folders: Sequence[str | Path], *, steps: bool = False) -> SchedulerReport:
    """Run the cases in ``folders`` (a folder of case folders counts as all of them); ``steps``: find where they part.

    Raises ``InputError`` for a folder with a missing or malformed file, or a setting the engine does not know.
    """
    cases = [load_case(folder) for given in folders for folder in _expand(Path(given))]
    return SchedulerReport(tuple(compare(case, steps=steps) for case in cases))


def _expand(folder: Path) -> list[Path]:
    if folder.is_dir() and not (folder / "case.json").exists():
        inside = sorted(path.parent for path in folder.glob("*/case.json"))
        if inside:
            return inside
    return [folder]


def run_case(case: Case, *, logging: bool = False, macro: bool = True) -> Cluster:
    """The cluster after the case has run through it."""
    options = RunOptions(logging=logging, macro=macro, one_output_content=OUTPUT_TOKEN[case.engine])
    cluster = Cluster(case_plan(case), case.trace, Arrivals(), options)
    cluster.run()
    return cluster


def case_plan(case: Case) -> ClusterPlan:
    """One engine, or a pair joined by reads of a stated time."""
    roles = ["colocated"] if case.decode_settings is None else ["prefill", "decode"]
    workers = tuple(_worker(case, i, role) for i, role in enumerate(roles))
    transfer = None
    if case.decode_settings is not None:
        route = Route(case.transfer["setup_s"], case.transfer["per_block_s"], 0.0, 0.0)
        transfer = KvTransferPlan("pull", True, {(0, 1): route}, Network(), Compression("none", 1.0), 1)
    pools = [PoolPart(name=role, role=role) for role in roles]  # type: ignore[arg-type]
    routing = RoutingPart(prefill="round_robin", decode="round_robin", colocated="round_robin")
    return ClusterPlan(Topology(name=case.name, pools=pools, routing=routing), workers, transfer)


def _worker(case: Case, index: int, role: str) -> WorkerPlan:
    settings = case.decode_settings if role == "decode" and case.decode_settings else case.settings
    if case.engine == "vllm":
        # the cases come from a build for CPUs, which frees blocks at once; builds for GPUs wait for the batch in flight
        settings = {**settings, "defer_block_frees": False}
        policy, blocks, block_size = "vllm-v1", settings["num_blocks"] - 1, settings["block_size"]
        names = ("max_num_batched_tokens", "max_num_seqs", "max_model_len")
    else:
        block_size = settings["page_size"]
        policy, blocks = "sglang", settings["max_total_num_tokens"] // block_size
        names = ("max_prefill_tokens", "max_running_requests", "context_length")
    tokens, sequences, context = (settings[name] for name in names)
    time = case.step_time
    cost = affine_cost(time["base_s"], time["per_token_s"], time["per_context_token_s"])
    return WorkerPlan(
        index=index,
        name=f"{role}-0",
        pool=role,
        role=role,  # type: ignore[arg-type]
        gpu=None,
        parallel=Parallel(),
        policy=policy,
        settings=settings,
        max_step_tokens=tokens,
        max_sequences=sequences,
        max_context=context,
        block_size=block_size,
        kv_blocks=blocks,
        kv_bytes_per_block=0.0,
        step_cost=cost,
        frontend_before_s=0.0,
        frontend_after_s=0.0,
    )


def compare(case: Case, *, steps: bool = False) -> CaseResult:
    """Run one case and compare it with what the real engine did."""
    cluster = run_case(case, logging=steps)
    desk, expected = cluster.desk, case.expected
    errors = {
        name: _largest(getattr(desk, name) - expected[name])
        for name in ("first_token_s", "last_token_s", "token_sum_s")
    }
    worst = float(np.max(list(errors.values())))
    preemptions = int(np.sum(desk.preemptions != expected["preemptions"]))
    caches = int(np.sum(desk.cached_tokens != expected["cached_tokens"]))
    ok = worst <= TOLERANCE_S and preemptions == 0 and caches == 0
    return CaseResult(
        case.name,
        case.engine,
        len(case.trace),
        errors["first_token_s"],
        errors["last_token_s"],
        errors["token_sum_s"],
        worst,
        preemptions,
        caches,
        ok,
        first_difference(case, cluster) if steps else None,
    )


def _largest(differences: np.ndarray[Any, Any]) -> float:
    """Largest absolute value; infinite where a token never came."""
    sizes = np.abs(differences)
    return float(np.where(np.isnan(sizes), np.inf, sizes).max())


def first_difference(case: Case, cluster: Cluster) -> str | None:
    """The first step in which the engines differ, in words; None if the noted steps agree or none are there."""
    if not case.steps:
        return None
    mine: dict[str, list[tuple[float, float, dict[int, int]]]] = {}
    for worker, plan in zip(cluster.workers, cluster.plan.workers, strict=True):
        starts, ends, first, rows, tokens = worker.engine.step_log()
        bounds = [*first.tolist(), len(rows)]
        batches = []
        for i in range(len(starts)):
            inside = slice(bounds[i], bounds[i + 1])
            entries = zip(rows[inside].tolist(), tokens[inside].tolist(), strict=True)
            batches.append((float(starts[i]), float(ends[i]), {row: n for row, n in entries if n > 0}))
        mine[plan.role] = batches
    seen: dict[str, int] = {}
    for step in case.steps:
        role = step.get("engine", "colocated")
        at = seen.get(role, 0)
        seen[role] = at + 1
        theirs = step["tokens"]
        if at >= len(mine[role]):
            return f"{role} step {at}: expected at {step['start_s']:.6f} s, not there"
        start, end, entries_here = mine[role][at]
        where = f"{role} step {at} (starts {step['start_s']:.6f} s)"
        if entries_here != theirs:
            off = sorted(set(theirs.items()) ^ set(entries_here.items()))[:4]
            counts = f"expected {len(theirs)} requests, found {len(entries_here)}"
            return f"{where}: request, tokens that differ: {off}; {counts}"
        if abs(start - step["start_s"]) > TOLERANCE_S or abs(end - step["end_s"]) > TOLERANCE_S:
            return f"{where}: expected {step['start_s']:.9f} to {step['end_s']:.9f} s, found {start:.9f} to {end:.9f} s"
    return None
