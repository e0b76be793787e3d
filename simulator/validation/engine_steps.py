"""``simulate validate steps``: lone prompts, decode steps at a held batch, and prompts put into a running batch.

``sweep.csv`` beside ``workloads.csv``: stage, kind (prefill, decode, mixed, decode_beside_mixed), batch,
context_tokens, prefill_tokens, and the measured p50 (or mean) in milliseconds. A stage called ``BASE_mbtN`` or
``BASE_mbtNpc`` is stage ``BASE`` with ``max_num_batched_tokens`` N, and with prefix caching.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from simulator.cluster.assembly import assemble
from simulator.cluster.simulation import run_plan
from simulator.cluster.topology import load_topology
from simulator.cost.power import held_s, step_energy_s
from simulator.cost.table import decode_step_seconds, step_cost_record
from simulator.errors import InputError
from simulator.validation.tables import read_table, rows_of
from simulator.validation.workloads import NEEDED as STAGES_NEEDED
from simulator.validation.workloads import workload_topology
from simulator.workload.arrivals import Arrivals
from simulator.workload.trace import Trace

KINDS = ("prefill", "decode", "mixed", "decode_beside_mixed")
NEEDED = ("stage", "kind", "batch", "context_tokens", "prefill_tokens", "mean", "p50")
_VARIANT = re.compile(r"(.+)_mbt(\d+)(pc)?")
#: Tokens that the requests of a measured batch had made on average, and those they make beside an added prompt.
_HALFWAY, _RUNNING_OUTPUT = 22, 200
#: An added prompt comes after so many seconds of the batch, and in this many runs, at other moments of a step.
_SETTLED_S, _PHASES = 3.0, 4
#: Launches scatter: so many draws of each.
_DRAWS = 15


@dataclass(frozen=True)
class StepRow:
    """One row, measured and simulated, in milliseconds."""

    stage: str
    kind: str
    batch: int
    context_tokens: int
    prefill_tokens: int
    measured_ms: float
    simulated_ms: float

    @property
    def error_percent(self) -> float:
        """Simulated over measured, less one."""
        return 100.0 * (self.simulated_ms / self.measured_ms - 1.0)


@dataclass(frozen=True)
class StepsReport:
    """All rows; ``skipped``: stages that workloads.csv does not describe, with their number of rows."""

    rows: tuple[StepRow, ...]
    skipped: Mapping[str, int]

    def errors(self, kind: str | None = None) -> list[float]:
        """Absolute errors in per cent, of all rows or of one kind."""
        return [abs(row.error_percent) for row in self.rows if kind in (None, row.kind)]

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        found = {kind: self.errors(kind) for kind in (None, *KINDS)}
        table = {
            kind or "all": {"rows": len(off), "median_percent": float(np.median(off)), "worst_percent": max(off)}
            for kind, off in found.items()
            if off
        }
        rows = [{**vars(row), "error_percent": row.error_percent} for row in self.rows]
        return {"schema": 1, "absolute_error_percent": table, "skipped": dict(self.skipped), "rows": rows}


def validate_steps(folder: str | Path, *, overrides: tuple[str, ...] = ()) -> StepsReport:
    """Simulate every row of ``sweep.csv``. Raises InputError for a missing or malformed file."""
    place = Path(folder)
    stages = {str(row["stage"]): row for row in rows_of(read_table(place / "workloads.csv", STAGES_NEEDED))}
    rows: list[StepRow] = []
    skipped: dict[str, int] = {}
    plans: dict[str, Any] = {}
    for number, row in enumerate(rows_of(read_table(place / "sweep.csv", NEEDED)), 2):
        stage, kind = str(row["stage"]), str(row["kind"])
        if kind not in KINDS:
            raise InputError(f"{place / 'sweep.csv'}:{number}: kind: found '{kind}'; allowed: {', '.join(KINDS)}")
        settings = settings_of(stage, stages)
        if settings is None:
            skipped[stage] = skipped.get(stage, 0) + 1
            continue
        if stage not in plans:
            plans[stage] = assemble(load_topology(workload_topology(settings, f"{place}: {stage}", place), overrides))
        measured = row["mean"] if pd.isna(row["p50"]) else row["p50"]
        batch, context, prompt = (
            0 if pd.isna(row[name]) else int(row[name]) for name in ("batch", "context_tokens", "prefill_tokens")
        )
        found_ms = 1e3 * _seconds(plans[stage], kind, batch, context, prompt)
        rows.append(StepRow(stage, kind, batch, context, prompt, float(measured), found_ms))
    return StepsReport(tuple(rows), skipped)


def settings_of(stage: str, stages: Mapping[str, Mapping[str, Any]]) -> dict[str, Any] | None:
    """The stage's engine; a variant's is its base's with what its name says."""
    if stage in stages:
        return dict(stages[stage])
    found = _VARIANT.fullmatch(stage)
    if found is None or found[1] not in stages:
        return None
    changed = {"stage": stage, "max_num_batched_tokens": int(found[2]), "prefix_caching": bool(found[3])}
    return {**stages[found[1]], **changed}


def _seconds(plan: Any, kind: str, batch: int, context: int, prompt: int) -> float:
    if kind in ("decode", "decode_beside_mixed"):
        cost = step_cost_record(plan.workers[0].step_cost)
        summed = batch * (context + _HALFWAY)
        alone_s = decode_step_seconds(cost, batch, summed)
        return float(held_s(cost, alone_s, step_energy_s(cost, batch, batch, summed, 0.0, 0)))
    if kind == "prefill":
        trace = Trace.from_columns([0.0], [prompt], [2])
        return float(np.median([_first_token_s(plan, trace, seed) for seed in range(_DRAWS)]))
    # seeds of their own: a host keeps its pace for longer than a decode step
    runs = [(phase / _PHASES, _DRAWS * phase + draw) for phase in range(_PHASES) for draw in range(_DRAWS)]
    return float(np.median([_added(plan, batch, context, prompt, phase, seed) for phase, seed in runs]))


def _added(plan: Any, batch: int, context: int, prompt: int, phase: float, seed: int) -> float:
    """TTFT of a prompt that joins a batch under way, ``phase`` of a decode step later than another."""
    cost = step_cost_record(plan.workers[0].step_cost)
    step_s = float(decode_step_seconds(cost, batch, batch * context))
    # long enough for the batch's own prompts to be done, whatever their length
    settled = _SETTLED_S + batch * context / 20_000 + phase * step_s
    output = _RUNNING_OUTPUT + int(settled / step_s)
    inputs, outputs = np.full(batch + 1, context), np.full(batch + 1, output)
    inputs[-1], outputs[-1] = prompt, 2
    return _first_token_s(plan, Trace.from_columns(np.r_[np.zeros(batch), settled], inputs, outputs), seed)


def _first_token_s(plan: Any, trace: Trace, seed: int) -> float:
    record = run_plan(plan, trace, Arrivals(), seed=seed).record
    return float(record.first_token_s[-1] - record.arrival_s[-1])
