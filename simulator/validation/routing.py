"""Whether all sequences of a measured run chose the same experts while decoding.

Under random weights greedy sequences may all repeat one token, and so choose the same experts. That is a property of
the run, not of its model. ``workloads.csv`` may state it (column ``decode_routing``: independent or identical); else
the stage's decode steps in ``sweep.csv`` tell, where there are any, else what is known of the shipped machine with this
GPU (``hardware_profiles/hosts``).
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from simulator.cluster.assembly import assemble
from simulator.cluster.topology import load_topology
from simulator.cost.table import decode_step_seconds, step_cost_record
from simulator.errors import InputError, unknown
from simulator.models.catalogue import load_model
from simulator.validation.machines import routes_alike
from simulator.validation.tables import read_table

#: Engine profiles of the two.
PROFILES = {"independent": "vllm-0.25", "identical": "vllm-0.25-one-token"}
COLUMN = "decode_routing"
_NEEDED = ("stage", "kind", "batch", "context_tokens", "p50")


def profile_of(row: Mapping[str, Any], gpu: str, folder: Path, place: str) -> str:
    """The engine profile of a run: by what its row states, else by what its stage's decode steps say."""
    if not pd.isna(row.get("engine_profile")):
        return str(row["engine_profile"])
    stated = row.get(COLUMN)
    if not pd.isna(stated):
        if str(stated) not in PROFILES:
            raise InputError(unknown(f"{place}: {COLUMN}", "routing", stated, PROFILES))
        return PROFILES[str(stated)]
    return PROFILES[measured_routing(folder / "sweep.csv", str(row["stage"]), str(row["model"]), gpu)]


@lru_cache(maxsize=32)
def measured_routing(sweep: Path, stage: str, model: str, gpu: str) -> str:
    """``identical`` or ``independent``, whichever the measured steps of several sequences are nearer to; without any,
    what is known of the machine; independent for models without experts."""
    if not load_model(model).moe_layers:
        return "independent"
    steps = _decode_steps(sweep, stage)
    if steps is None:
        return "identical" if routes_alike(model, gpu) else "independent"
    off = {name: _error(steps, model, profile, gpu) for name, profile in PROFILES.items()}
    return min(off, key=lambda name: off[name])


def _decode_steps(sweep: Path, stage: str) -> pd.DataFrame | None:
    """Measured decode steps of several sequences; None where there are none."""
    if not sweep.is_file():
        return None
    table = read_table(sweep, _NEEDED)
    steps = table[(table["stage"] == stage) & (table["kind"] == "decode") & (table["batch"] > 1)]
    return None if steps.empty else steps


def _error(steps: pd.DataFrame, model: str, profile: str, gpu: str) -> float:
    """Mean absolute relative error of decode steps under an engine profile."""
    pools = [{"name": "engine", "role": "colocated", "gpu": gpu}]
    engine = {"profile": profile, "max_model_len": int(steps["context_tokens"].max()) * 2}
    plan = assemble(load_topology({"name": profile, "model": model, "engine": engine, "pools": pools}))
    cost = step_cost_record(plan.workers[0].step_cost)
    rows = zip(steps["batch"], steps["context_tokens"], steps["p50"], strict=True)
    off = [abs(np.log(1e3 * decode_step_seconds(cost, int(n), int(n) * int(context)) / ms)) for n, context, ms in rows]
    return float(np.mean(off))
