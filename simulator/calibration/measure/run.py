"""Goes through the groups, writes rows as they come, and takes up again where a killed run left off."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from simulator.calibration.measure import attention, copies, elements, gemm, layer, machine, moe, peers, trace
from simulator.calibration.measure.cases import CASE_S, Group
from simulator.calibration.measure.ops import Ops
from simulator.calibration.measure.plan import Plan
from simulator.calibration.measure.store import Store

#: In this order: what everything else leans on comes first.
GROUPS = (
    machine.MACHINE,
    layer.STEPS,
    gemm.GEMM_BF16,
    attention.PREFILL,
    attention.DECODE,
    attention.MIXED,
    elements.ELEMENTS,
    copies.COPIES,
    moe.EXPERTS,
    attention.DENSE,
    gemm.GEMM_FP8,
    layer.LAYERS,
    peers.PEERS,
    peers.INTERFERENCE,
    layer.LEFT_OUT,
    trace.TRACE,
    machine.POWER,
)
#: The group of what takes several processes.
RANKS = "ranks"


@dataclass(frozen=True)
class Budget:
    """Seconds a group may take, and the whole run."""

    group_s: float
    total_s: float


def measure(
    ops: Ops, plan: Plan, store: Store, budget: Budget, tell: Callable[[str], None], names: Iterable[str]
) -> None:
    """Measure the groups ``names`` (all if empty) that are not in the store yet."""
    chosen = [g for g in GROUPS if g.name in set(names)] or ([] if RANKS in set(names) else list(GROUPS))
    end = time.monotonic() + budget.total_s
    for group in chosen:
        left = min(budget.group_s, end - time.monotonic())
        tell(_group(ops, plan, group, store, left))
    if not set(names) or RANKS in set(names):
        tell(_ranks(ops, plan, store))


def _group(ops: Ops, plan: Plan, group: Group, store: Store, seconds: float) -> str:
    start = time.monotonic()
    cases = [case for case in group.cases(plan, ops) if not store.done(group.name, case)]
    before, done, failed = ops.state(), 0, 0
    for case in cases:
        if time.monotonic() - start > seconds:
            break
        try:
            values = _one(plan, ops, group, case)
        except Exception as e:  # a kernel that a GPU or library lacks must not end the run
            values, failed = (
                {"error": f"{type(e).__name__}: {str(e).splitlines()[0][:200] if str(e) else ''}"},
                failed + 1,
            )
        store.add(group.name, case, values)
        ops.finish()
        done += 1
    took = time.monotonic() - start
    if cases:
        about = {"seconds": took, "before": before, "after": ops.state(), "measured": done, "left": len(cases) - done}
        store.add("group", {"name": group.name, "at": len(store.rows)}, about)
    lost = f", {failed} failed" if failed else ""
    return f"{group.name}: {done} of {len(cases)} cases in {took:.0f} s{lost}"


def _ranks(ops: Ops, plan: Plan, store: Store) -> str:
    """What takes several processes: all of it at once, unless it is there already."""
    if any(row["group"] in ("collectives", "tp_step") for row in store.rows):
        return f"{RANKS}: there already"
    rows = ops.ranks(plan)
    for row in rows:
        values = {name: value for name, value in row.items() if name not in ("group", "case")}
        store.add(str(row["group"]), row["case"], values)  # type: ignore[arg-type]
    return f"{RANKS}: {len(rows)} cases"


def _one(plan: Plan, ops: Ops, group: Group, case: dict[str, object]) -> dict[str, object]:
    work = group.prepare(plan, ops, case)
    if group.measure is not None:
        return group.measure(ops, work, case)
    return {name: value for name, value in asdict(ops.time(work, CASE_S)).items() if value is not None}


def store_at(folder: Path) -> Store:
    """The rows of a run in ``folder``."""
    return Store(folder / "rows.jsonl")
