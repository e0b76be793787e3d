"""Host times fitted again without the deployment they are judged on: cross-validation of the serving runs.

The profiles' fitted host times (``FITTED``) are multiplied by one factor an engine profile. For each deployment the
factor is chosen on all *other* deployments of its profile, and the error is taken on its own runs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from simulator.resources import shipped
from simulator.validation.serving import METRICS
from simulator.validation.serving_recipes import recipe_of
from simulator.validation.serving_runs import Outcome

#: Keys of an engine profile's costs that were fitted to serving runs.
FITTED = (
    "frontend_s",
    "frontend_prompt_token_s",
    "frontend_request_s",
    "frontend_token_s",
    "deliver_token_s",
    "step_gap_s",
    "seq_gap_s",
    "rank_gap_s",
    "mixed_gap_s",
    "eager_layer_s",
    "eager_moe_layer_s",
    "eager_mla_layer_s",
    "cold_prompt_s",
    "cold_past_s",
    "eager_block_gemm_s",
    "eager_gap_s",
)


def write_scaled(folder: Path, factor: float) -> Path:
    """All shipped engine profiles with their fitted host times multiplied, written to ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    for path in (shipped("hardware_profiles") / "engines").glob("*.yaml"):
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
        costs = values.get("costs") or {}
        for key in set(FITTED) & set(costs):
            costs[key] = float(costs[key]) * factor
        (folder / path.name).write_text(yaml.safe_dump(values), encoding="utf-8")
    return folder


@dataclass(frozen=True)
class Fold:
    """Median and mean absolute percentage errors over runs; of the held-out ones, and fitted on themselves."""

    name: str
    runs: int
    deployments: int
    fitted_percent: Mapping[str, tuple[float, float]]
    held_out_percent: Mapping[str, tuple[float, float]]


def profile_of(outcome: Outcome) -> str:
    """The engine profile that a run was simulated on."""
    return recipe_of(outcome.point, outcome.point.groups[0].role).profile


def cross_validated(by_factor: Mapping[float, Sequence[Outcome]]) -> list[Fold]:
    """One line a profile and one for all, from the outcomes of the same runs at each factor (1.0 is as shipped)."""
    factors = sorted(by_factor)
    first = by_factor[factors[0]]
    names = np.array([profile_of(outcome) for outcome in first])
    deployments = np.array([str(outcome.point.deployment) for outcome in first])
    errors = {
        metric: np.array([[abs(outcome.error(metric)) * 100.0 for outcome in by_factor[f]] for f in factors])
        for metric in METRICS
    }
    held = {metric: np.full(len(first), np.nan) for metric in METRICS}
    fitted = {metric: np.full(len(first), np.nan) for metric in METRICS}
    for name in np.unique(names):
        mine = names == name
        whole = _best(errors, mine)
        for deployment in np.unique(deployments[mine]):
            own = mine & (deployments == deployment)
            rest = mine & ~own
            chosen = _best(errors, rest) if rest.any() else factors.index(1.0)
            for metric in METRICS:
                held[metric][own] = errors[metric][chosen, own]
                fitted[metric][own] = errors[metric][whole, own]
    found = [_fold(str(name), names == name, deployments, fitted, held) for name in np.unique(names)]
    return [*found, _fold("all", np.ones(len(first), bool), deployments, fitted, held)]


def _best(errors: Mapping[str, Any], rows: Any) -> int:
    """The factor with the least sum of median errors; those of TPOT, half as large, count twice."""
    score = np.median(errors["ttft"][:, rows], axis=1) + 2.0 * np.median(errors["tpot"][:, rows], axis=1)
    return int(np.argmin(score))


def _fold(name: str, rows: Any, deployments: Any, fitted: Mapping[str, Any], held: Mapping[str, Any]) -> Fold:
    def both(values: Mapping[str, Any]) -> dict[str, tuple[float, float]]:
        return {m: (float(np.median(values[m][rows])), float(np.mean(values[m][rows]))) for m in METRICS}

    return Fold(name, int(rows.sum()), len(set(deployments[rows])), both(fitted), both(held))
