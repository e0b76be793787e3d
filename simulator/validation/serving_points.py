"""Measured serving runs as rows: reads the table, says what each run was, and why a run cannot be rebuilt."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from simulator.errors import InputError
from simulator.models.catalogue import load_model
from simulator.models.precision import Parallel
from simulator.validation.tables import read_table, rows_of

#: Columns that a table must have; those of the two pools are needed where ``mode`` is disagg.
NEEDED = (
    "point",
    "backend",
    "backend_version",
    "model",
    "system",
    "precision",
    "mode",
    "isl",
    "osl",
    "concurrency",
    "tp_size",
    "pp_size",
    "attention_dp_size",
    "moe_tp_size",
    "moe_ep_size",
    "origin",
    "ttft_mean_ms",
    "tpot_mean_ms",
)
#: Columns kept as they are written.
TEXTS = ("point", "backend", "backend_version", "model", "system", "precision", "origin", "measured")
POOL_NEEDED = ("num_workers", "tp_size", "pp_size", "attention_dp_size", "moe_tp_size", "moe_ep_size")
#: Names of the models that can be rebuilt, as far as they begin so.
MODELS = {
    "meta-llama/Llama-3.1-8B": "llama-3.1-8b",
    "meta-llama/Llama-3.1-70B": "llama-3.1-70b",
    "meta-llama/Llama-3.1-405B": "llama-3.1-405b",
    "Qwen/Qwen3-32B": "qwen3-32b",
    "Qwen/Qwen3-235B-A22B": "qwen3-235b-a22b",
    "openai/gpt-oss-120b": "gpt-oss-120b",
    "deepseek-ai/DeepSeek-V3": "deepseek-v3",
    "deepseek-ai/DeepSeek-R1": "deepseek-v3",
}
SYSTEMS = ("h100_sxm", "h200_sxm", "b200_sxm", "gb200")
BACKENDS = ("vllm", "sglang", "trtllm")


@dataclass(frozen=True)
class Group:
    """Like engines of one run."""

    role: str
    workers: int
    parallel: Parallel

    @property
    def gpus(self) -> int:
        """GPUs of all its engines."""
        return self.workers * self.parallel.gpus


@dataclass(frozen=True)
class Point:
    """One measured run. Times in milliseconds, lengths in tokens; ``groups``: one colocated, or prefill and decode."""

    point: str
    backend: str
    version: str
    model: str
    system: str
    precision: str
    mode: str
    origin: str
    quality: str
    input_tokens: int
    output_tokens: int
    concurrency: int
    groups: tuple[Group, ...]
    ttft_mean_ms: float
    tpot_mean_ms: float
    measured: str = ""
    """Day of the run, where the table says."""

    @property
    def deployment(self) -> tuple[object, ...]:
        """What runs share that differ in load alone."""
        return (self.backend, self.version, self.model, self.system, self.precision, self.mode, self.groups)

    @property
    def load(self) -> str:
        """Prompt and output lengths and clients, coarsely: for tables by group."""
        shape = f"{_round_length(self.input_tokens)}/{_round_length(self.output_tokens)}"
        clients = next(
            name
            for most, name in ((8, "<=8"), (32, "9-32"), (128, "33-128"), (1e9, ">128"))
            if self.concurrency <= most
        )
        return f"{shape} x {clients}"


def _round_length(tokens: int) -> str:
    return "short" if tokens < 768 else "1k" if tokens < 3000 else "8k"


@dataclass(frozen=True)
class Table:
    """The runs that can be rebuilt, and how many cannot, by reason."""

    points: tuple[Point, ...]
    skipped: Mapping[str, int]


def load_points(path: str | Path) -> Table:
    """Read a table of serving runs. Raises InputError (one line) for anything that cannot be read."""
    path = Path(path)
    table = read_table(path, NEEDED, texts=TEXTS)
    if (table["mode"] == "disagg").any():
        for name in (f"{role}_{key}" for role in ("prefill", "decode") for key in POOL_NEEDED):
            if name not in table.columns:
                raise InputError(f"{path}: column '{name}' is missing; disaggregated runs need it")
    points: list[Point] = []
    skipped: dict[str, int] = {}
    for number, row in enumerate(rows_of(table), start=2):
        reason = _unsupported(row)
        if reason is None:
            points.append(_point(row, f"{path}: row {number}"))
        else:
            skipped[reason] = skipped.get(reason, 0) + 1
    return Table(tuple(points), skipped)


def model_name(name: str) -> str | None:
    """The catalogue's name of a table's model; None where it is not one that is rebuilt."""
    return next((ours for theirs, ours in MODELS.items() if name.startswith(theirs)), None)


def _unsupported(row: Mapping[str, Any]) -> str | None:
    if model_name(str(row["model"])) is None:
        return f"model {row['model']}"
    if row["system"] not in SYSTEMS:
        return f"GPU {row['system']}"
    if row["backend"] not in BACKENDS:
        return f"engine {row['backend']}"
    return None


def _point(row: Mapping[str, Any], place: str) -> Point:
    if row["mode"] not in ("agg", "disagg"):
        raise InputError(f"{place}: mode '{row['mode']}' is not allowed; allowed: agg, disagg")
    model = str(model_name(str(row["model"])))
    experts = load_model(model).moe_layers > 0
    if row["mode"] == "agg":
        groups: tuple[Group, ...] = (Group("colocated", 1, _parallel(row, "", place, experts)),)
    else:
        groups = tuple(
            Group(role, _whole(row, f"{role}_num_workers", place), _parallel(row, f"{role}_", place, experts))
            for role in ("prefill", "decode")
        )
    return Point(
        point=str(row["point"]),
        backend=str(row["backend"]),
        version=_text(row, "backend_version"),
        model=model,
        system=str(row["system"]),
        precision=str(row["precision"]),
        mode=str(row["mode"]),
        origin=str(row["origin"]),
        quality=str(row.get("quality", "ok")),
        input_tokens=_whole(row, "isl", place),
        output_tokens=_whole(row, "osl", place),
        concurrency=_whole(row, "concurrency", place),
        groups=groups,
        ttft_mean_ms=_time(row, "ttft_mean_ms", place),
        tpot_mean_ms=_time(row, "tpot_mean_ms", place),
        measured=_text(row, "measured"),
    )


def _text(row: Mapping[str, Any], name: str) -> str:
    value = row.get(name, "")
    return value if isinstance(value, str) else ""


def _number(row: Mapping[str, Any], name: str, place: str) -> float:
    try:
        value = float(row[name])
    except (TypeError, ValueError):
        value = math.nan
    return value if math.isfinite(value) else math.nan


def _whole(row: Mapping[str, Any], name: str, place: str, absent: int | None = None) -> int:
    value = _number(row, name, place)
    if math.isnan(value) and absent is not None:
        return absent
    if math.isnan(value) or value < 1 or value != int(value):
        raise InputError(f"{place}: {name} is '{row[name]}'; allowed: whole numbers of 1 or more")
    return int(value)


def _time(row: Mapping[str, Any], name: str, place: str) -> float:
    value = _number(row, name, place)
    if not value > 0:
        raise InputError(f"{place}: {name} is '{row[name]}'; allowed: numbers above 0")
    return value


def _parallel(row: Mapping[str, Any], prefix: str, place: str, experts: bool) -> Parallel:
    """Degrees as the models room counts them: attention data parallelism beside tensor parallelism, not inside it; and
    what is stated of experts only where the model has any (tools fill these columns for dense models as well)."""
    tp, pp = _whole(row, f"{prefix}tp_size", place), _whole(row, f"{prefix}pp_size", place, 1)
    dp = _whole(row, f"{prefix}attention_dp_size", place, 1)
    expert_tp, expert_ep = (_whole(row, f"{prefix}moe_{kind}_size", place, 1) for kind in ("tp", "ep"))
    experts_on = expert_tp * expert_ep
    if dp > 1 and tp % dp == 0 and tp == experts_on:
        tp //= dp  # tp names all GPUs, and attention is split over them by data
    return Parallel(tp, pp, dp, tp * dp if experts and expert_ep > 1 and tp * dp > 1 else 1)
