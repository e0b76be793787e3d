"""How far forecasts were off where they could be checked, and whether a configuration is like any that was checked.

The table (``hardware_profiles/validation/model_error.yaml``) is built from residuals of measured serving runs
(``simulate validate errors``). An interval holds its stated share of measured runs, also of deployments that had no
part in its making.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from pydantic import Field

from simulator.cluster.profiles import load_profile
from simulator.cluster.result import RunResult
from simulator.cost.kernels import kernels_of
from simulator.errors import InputError
from simulator.hardware.profiles import load_gpu
from simulator.models.accounting import parameters
from simulator.models.catalogue import load_model
from simulator.models.model import Model
from simulator.resources import shipped
from simulator.schema import Schema, check, read_yaml

FILE = "model_error.yaml"
METRICS = ("ttft", "tpot", "e2e")
SPREADS = ("mean", "p50", "p90", "p95", "p99")
ANY = "any"
#: Requests in flight at an engine, up to which it counts as idle, and as loaded; saturated beyond.
IDLE, LOADED = 8.0, 128.0
#: Beyond this factor outside the measured range a number is said to be far from it.
REACH = 2.0


class Cell(Schema):
    """One regime. ``*_percent``: half width of the interval, relative; ``*_covered``: share of the runs of deployments
    left out of the fit that it holds."""

    engine: str
    mode: str
    load: str
    profile: str
    ttft_percent: float = Field(ge=0)
    tpot_percent: float = Field(ge=0)
    e2e_percent: float = Field(ge=0)
    ttft_covered: float = Field(ge=0, le=1)
    tpot_covered: float = Field(ge=0, le=1)
    e2e_covered: float = Field(ge=0, le=1)
    runs: int = Field(ge=1)
    deployments: int = Field(ge=1)

    @property
    def key(self) -> tuple[str, str, str, str]:
        """What it is looked up by."""
        return self.engine, self.mode, self.load, self.profile


class Hull(Schema):
    """What was measured: names, and smallest and largest numbers."""

    engines: list[str]
    gpus: list[str]
    models: list[str]
    parameters: dict[str, tuple[float, float]]
    input_tokens: tuple[float, float]
    output_tokens: tuple[float, float]
    in_flight: tuple[float, float]


class ErrorTable(Schema):
    """``share``: of the measured runs that an interval of a mean holds; ``extra_percent``: what a percentile's error
    has beyond that of the mean, added as squares."""

    source: str
    share: float = Field(gt=0, lt=1)
    extra_percent: dict[str, dict[str, float]]
    hull: Hull
    cells: list[Cell]

    def find(self, engine: str, mode: str, load: str, profile: str) -> Cell:
        """The cell of the regime, or the nearest that has enough runs."""
        cells = {cell.key: cell for cell in self.cells}
        wanted = (
            (engine, mode, load, profile),
            (engine, mode, ANY, profile),
            (ANY, mode, load, profile),
            (ANY, mode, ANY, profile),
            (ANY, ANY, ANY, profile),
            (ANY, ANY, ANY, ANY),
        )
        return next(cells[key] for key in wanted if key in cells)


@lru_cache(maxsize=4)
def load_error_table(path: Path | None = None) -> ErrorTable | None:
    """The shipped table, or the one at ``path``; None where there is none. Raises InputError for a malformed one."""
    file = path or shipped("hardware_profiles") / "validation" / FILE
    if not file.is_file():
        return None
    return check(ErrorTable, read_yaml(file, InputError), str(file), InputError)


def kind_of(model: Model) -> str:
    """``mla``, ``moe`` or ``dense``."""
    return "mla" if model.mla is not None else "moe" if model.moe_layers else "dense"


def load_of(in_flight: float, saturated: bool) -> str:
    """``idle``, ``loaded`` or ``saturated``."""
    if saturated or in_flight > LOADED:
        return "saturated"
    return "idle" if in_flight <= IDLE else "loaded"


def model_error(run: RunResult, entry: Mapping[str, Any]) -> dict[str, Any] | None:
    """The model's error of each latency of ``entry`` in per cent, the regime it is from, and what lies outside
    everything measured. None for a topology whose step time is given, and where nothing completed."""
    table = load_error_table()
    mean_s, rate = entry["e2e_s"]["mean"], entry["request_throughput_per_s"]
    if table is None or not run.topology.modelled or mean_s is None or not rate:
        return None
    pools = [pool for pool in run.pools if pool.role != "prefill"]
    in_flight = rate * mean_s / max(sum(pool.workers for pool in pools), 1)
    gpus = sorted({pool.gpu for pool in run.pools})
    engine = load_profile(run.topology.engine).family.name
    derived = [gpu for gpu in gpus if kernels_of(load_gpu(gpu)).derived_from is not None]
    mode = "disaggregated" if any(pool.role == "prefill" for pool in run.pools) else "colocated"
    regime = (engine, mode, load_of(in_flight, bool(entry["saturated"])), "derived" if derived else "measured")
    cell = table.find(*regime)
    lengths = {"input": run.record.input_tokens, "output": run.record.output_tokens}
    means = {name: float(values.mean()) for name, values in lengths.items()}
    outside = _names(table.hull, engine, gpus, run.topology.model) + _numbers(table.hull, means, in_flight)
    return {
        "share": table.share,
        "regime": dict(zip(("engine", "mode", "load", "profile"), regime, strict=True)),
        "taken_from": dict(zip(("engine", "mode", "load", "profile"), cell.key, strict=True)),
        "runs": cell.runs,
        "deployments": cell.deployments,
        **{
            f"{metric}_percent": {
                name: math.hypot(getattr(cell, f"{metric}_percent"), table.extra_percent[metric][name])
                for name in SPREADS
            }
            for metric in METRICS
        },
        "outside": outside,
    }


def _names(hull: Hull, engine: str, gpus: list[str], name: str) -> list[str]:
    found = [] if engine in hull.engines else [f"engine {engine}"]
    found += [f"GPU {gpu}" for gpu in gpus if gpu not in hull.gpus]
    if name not in hull.models:
        model = load_model(name)
        low, high = hull.parameters.get(kind_of(model), (0.0, 0.0))
        if not low / REACH <= parameters(model) <= high * REACH:
            found.append(f"model {name}")
    return found


def _numbers(hull: Hull, means: Mapping[str, float], in_flight: float) -> list[str]:
    found = []
    for label, value, (low, high) in (
        ("prompts", means["input"], hull.input_tokens),
        ("outputs", means["output"], hull.output_tokens),
    ):
        if not low / REACH <= value <= high * REACH:
            found.append(f"{label} of {value:,.0f} tokens (measured: {low:,.0f} to {high:,.0f})")
    if in_flight > hull.in_flight[1] * REACH:
        found.append(f"{in_flight:,.0f} requests in flight an engine (measured: up to {hull.in_flight[1]:,.0f})")
    return found
