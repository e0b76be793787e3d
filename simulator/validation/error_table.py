"""``simulate validate errors``: from residuals of measured serving runs to the table of model errors.

A deployment is one model on one kind of engine, GPU and split. Every deployment weighs the same, however many loads it
was measured at. An interval is the smallest quantile (of ``LEVELS``) of the others' residuals that holds ``SHARE`` of
the runs of a deployment left out, on average over deployments.
"""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from simulator.cost.kernels import kernels_of
from simulator.errors import InputError
from simulator.hardware.profiles import load_gpu
from simulator.metrics.model_error import ANY, METRICS, SPREADS, kind_of, load_error_table, load_of
from simulator.models.accounting import parameters
from simulator.models.catalogue import load_model

#: Share of measured runs that an interval shall hold.
SHARE = 0.8
#: Quantiles that are tried for it.
LEVELS = (0.8, 0.85, 0.9, 0.95, 1.0)
#: A regime of its own needs so many runs, of so many deployments.
LEAST_RUNS, LEAST_DEPLOYMENTS = 10, 3
#: Half width that holds four fifths of normal errors, over their mean size.
WITHIN_SHARE = 1.6
FAMILY = {"trtllm": "tensorrt-llm"}
_NEEDED = ("backend", "model", "system", "mode", "isl", "osl", "concurrency", "engines", "ttft_mean_ms")


@dataclass(frozen=True)
class Residual:
    """One run: its regime and deployment, and ``|log(simulated / measured)|`` of each metric's mean."""

    regime: tuple[str, str, str, str]
    deployment: str
    off: Mapping[str, float]


def build_error_table(rows: Path, workloads: Path | None = None) -> str:
    """The table as YAML from the JSON of ``simulate validate serving``; ``workloads``: that of ``validate workloads``,
    whose percentiles say how much more percentiles are off (else those of the shipped table are kept).

    Raises InputError for a file that cannot be read or holds no usable run.
    """
    found = [row for row in _json(rows).get("rows", []) if not row.get("problem") and row.get("quality") == "ok"]
    if not found:
        raise InputError(f"{rows}: no simulated run of quality ok; give the JSON of 'simulate validate serving'")
    for number, row in enumerate(found, 1):
        for name in _NEEDED:
            if name not in row:
                raise InputError(f"{rows}: row {number}: '{name}' is missing")
    residuals = [_residual(row) for row in found]
    document = {
        "source": f"{len(found)} runs of quality ok of the aiconfigurator 0.12.0 serving sample, "
        f"{len({one.deployment for one in residuals})} deployments; built by 'simulate validate errors'",
        "share": SHARE,
        "extra_percent": _extra(workloads),
        "hull": _hull(found),
        "cells": _cells(residuals),
    }
    head = "# Half widths in per cent of intervals that hold the stated share of measured runs: docs/model_error.md.\n"
    return head + yaml.safe_dump(document, sort_keys=False, width=160, default_flow_style=None)


def _json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as problem:
        raise InputError(f"{path}: not JSON: {problem}") from None
    if not isinstance(found, dict):
        raise InputError(f"{path}: a JSON object is expected, found {type(found).__name__}")
    return found


def _workers(row: Mapping[str, Any]) -> int:
    """Engines that decode: the first word of the last group."""
    return int(str(row["engines"][-1]).split()[0])


def _residual(row: Mapping[str, Any]) -> Residual:
    derived = kernels_of(load_gpu(row["system"])).derived_from is not None
    mode = "disaggregated" if row["mode"] == "disagg" else "colocated"
    load = load_of(row["concurrency"] / _workers(row), saturated=False)
    family = FAMILY.get(row["backend"], row["backend"])
    names = ("backend", "model", "system", "precision", "mode")
    deployment = " ".join([*(str(row.get(name)) for name in names), *map(str, row["engines"])])
    seconds = {}
    for kind in ("", "simulated_"):
        ttft, tpot = row[f"{kind}ttft_mean_ms"], row[f"{kind}tpot_mean_ms"]
        seconds[kind] = {"ttft": ttft, "tpot": tpot, "e2e": ttft + tpot * (row["osl"] - 1)}
    off = {metric: abs(math.log(seconds["simulated_"][metric] / seconds[""][metric])) for metric in METRICS}
    return Residual((family, mode, load, "derived" if derived else "measured"), deployment, off)


def _quantile(groups: Sequence[Sequence[float]], level: float) -> float:
    """Weighted quantile: every group weighs the same."""
    values = np.concatenate([np.asarray(group) for group in groups])
    weights = np.concatenate([np.full(len(group), 1.0 / len(group)) for group in groups])
    order = np.argsort(values)
    share = np.cumsum(weights[order]) / weights.sum()
    return float(values[order][min(int(np.searchsorted(share, level - 1e-12)), len(values) - 1)])


def _covered(groups: Sequence[Sequence[float]], level: float) -> float:
    """Share of a left-out deployment's runs within the quantile of the others, mean over deployments."""
    shares = []
    for i, own in enumerate(groups):
        limit = _quantile([group for j, group in enumerate(groups) if j != i], level)
        shares.append(float(np.mean(np.asarray(own) <= limit)))
    return float(np.mean(shares))


def interval(groups: Sequence[Sequence[float]]) -> tuple[float, float]:
    """Half width in per cent and the share of left-out runs it holds."""
    covered = 0.0
    for level in LEVELS:
        covered = _covered(groups, level)
        if covered >= SHARE:
            break
    return 100.0 * (math.exp(_quantile(groups, level)) - 1.0), covered


def _cells(residuals: Sequence[Residual]) -> list[dict[str, Any]]:
    """A cell for each regime, and for each that leaves some of it open, if enough was measured."""
    members: dict[tuple[str, str, str, str], list[Residual]] = defaultdict(list)
    for one in residuals:
        engine, mode, load, profile = one.regime
        for key in {
            one.regime,
            (engine, mode, ANY, profile),
            (ANY, mode, load, profile),
            (ANY, mode, ANY, profile),
            (ANY, ANY, ANY, profile),
            (ANY, ANY, ANY, ANY),
        }:
            members[key].append(one)
    cells = []
    for key in sorted(members):
        by_deployment: dict[str, list[Residual]] = defaultdict(list)
        for one in members[key]:
            by_deployment[one.deployment].append(one)
        enough = len(members[key]) >= LEAST_RUNS and len(by_deployment) >= LEAST_DEPLOYMENTS
        if not enough and key != (ANY, ANY, ANY, ANY):
            continue
        cell: dict[str, Any] = dict(zip(("engine", "mode", "load", "profile"), key, strict=True))
        for metric in METRICS:
            width, covered = interval([[one.off[metric] for one in group] for group in by_deployment.values()])
            cell[f"{metric}_percent"], cell[f"{metric}_covered"] = round(width, 1), round(covered, 3)
        cells.append(cell | {"runs": len(members[key]), "deployments": len(by_deployment)})
    return cells


def _hull(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    def ends(values: Sequence[float]) -> list[float]:
        return [float(min(values)), float(max(values))]

    models = sorted({str(row["model"]) for row in rows})
    sizes: dict[str, list[float]] = defaultdict(list)
    for name in models:
        model = load_model(name)
        sizes[kind_of(model)].append(float(parameters(model)))
    return {
        "engines": sorted({FAMILY.get(row["backend"], row["backend"]) for row in rows}),
        "gpus": sorted({str(row["system"]) for row in rows}),
        "models": models,
        "parameters": {kind: ends(values) for kind, values in sorted(sizes.items())},
        "input_tokens": ends([row["isl"] for row in rows]),
        "output_tokens": ends([row["osl"] for row in rows]),
        "in_flight": ends([row["concurrency"] / _workers(row) for row in rows]),
    }


def _extra(workloads: Path | None) -> dict[str, dict[str, float]]:
    """What the errors of percentiles have beyond that of the mean, in per cent, for the same share of runs."""
    if workloads is None:
        shipped = load_error_table()
        return {m: dict.fromkeys(SPREADS, 0.0) for m in METRICS} if shipped is None else dict(shipped.extra_percent)
    means = _json(workloads).get("mean_absolute_error_percent", {})
    found: dict[str, dict[str, float]] = {}
    for metric in ("ttft", "tpot"):
        errors = means.get(metric)
        if not isinstance(errors, dict) or not {"mean", "p50", "p90", "p99"} <= set(errors):
            raise InputError(f"{workloads}: mean_absolute_error_percent.{metric} needs mean, p50, p90 and p99")
        more = {
            name: round(WITHIN_SHARE * math.sqrt(max(errors[name] ** 2 - errors["mean"] ** 2, 0.0)), 1)
            for name in ("p50", "p90", "p99")
        }
        found[metric] = {"mean": 0.0, **more, "p95": round((more["p90"] + more["p99"]) / 2, 1)}
    found["e2e"] = {name: max(found["ttft"][name], found["tpot"][name]) for name in SPREADS}
    return found
