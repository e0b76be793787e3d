"""Exact scheduler cases: what a real engine's scheduler did in virtual time, as a folder.

``case.json`` (settings), ``trace.jsonl.gz`` (requests), ``expected.csv.gz`` (token times, cached tokens, preemptions)
and, where there, ``steps.jsonl.gz`` (the first steps: who got how many tokens).
"""

from __future__ import annotations

import csv
import gzip
import json
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from simulator.errors import InputError, unknown
from simulator.workload.trace import Trace

_LIMIT_BYTES = 256 * 2**20

VLLM_SETTINGS = {
    "max_model_len": int,
    "max_num_seqs": int,
    "max_num_batched_tokens": int,
    "block_size": int,
    "num_blocks": int,
    "prefix_caching": bool,
    "async_scheduling": bool,
}
SGLANG_SETTINGS = {
    "context_length": int,
    "max_total_num_tokens": int,
    "max_running_requests": int,
    "chunked_prefill_size": int,
    "max_prefill_tokens": int,
    "schedule_policy": str,
    "schedule_conservativeness": float,
    "mixed_chunk": bool,
    "disable_radix_cache": bool,
    "page_size": int,
    "overlap": bool,
    "ignore_eos": bool,
}
_ENGINES = {"vllm": VLLM_SETTINGS, "sglang": SGLANG_SETTINGS}
_COMMON = ("engine", "step_time", "disaggregated", "transfer", "decode", "comment", "description", "name")
_STEP_TIME = ("base_s", "per_token_s", "per_context_token_s")


@dataclass(frozen=True)
class Case:
    """One case, read and checked. ``limits``: what each client allows, where that is more than the length."""

    name: str
    path: Path
    engine: str
    settings: dict[str, Any]
    decode_settings: dict[str, Any] | None
    step_time: dict[str, float]
    transfer: dict[str, float]
    trace: Trace
    expected: dict[str, NDArray[np.float64]]
    steps: list[dict[str, Any]]


def load_case(folder: Path) -> Case:
    """Read a case folder; an ``InputError`` of one line names the file and what is wrong with it."""
    if not folder.is_dir():
        raise InputError(f"{folder}: no such case folder")
    settings = _settings(folder / "case.json")
    engine = settings["engine"]
    trace = _trace(folder / "trace.jsonl.gz")
    expected = _expected(folder / "expected.csv.gz", len(trace), engine)
    steps_path = folder / "steps.jsonl.gz"
    steps = [row for _, row in _json_lines(steps_path)] if steps_path.exists() else []
    own = {key: settings[key] for key in _ENGINES[engine]}
    decode = None
    if settings.get("disaggregated"):
        decode = {**own, **settings.get("decode", {})}
    order = order_of([float(row["arrival_s"]) for _, row in _json_lines(folder / "trace.jsonl.gz")])
    place = {int(row): i for i, row in enumerate(order)}
    for step in steps:
        step["tokens"] = {place[int(row)]: int(n) for row, n in step["tokens"].items()}
    return Case(
        folder.name,
        folder,
        engine,
        own,
        decode,
        {key: float(settings["step_time"].get(key, 0.0)) for key in _STEP_TIME},
        {key: float(settings.get("transfer", {}).get(key, 0.0)) for key in ("setup_s", "per_block_s")},
        trace,
        {name: values[order] for name, values in expected.items()},
        steps,
    )


def order_of(arrivals: list[float]) -> NDArray[np.int64]:
    """Rows in order of arrival; those of one moment in the file's order."""
    return np.argsort(arrivals, kind="stable")


def _text(path: Path) -> str:
    if not path.is_file():
        raise InputError(f"{path}: no such file; a case folder holds case.json, trace.jsonl.gz and expected.csv.gz")
    try:
        if path.suffix == ".gz":
            with gzip.open(path, "rb") as file:
                data = file.read(_LIMIT_BYTES + 1)
        else:
            data = path.read_bytes()
        if len(data) > _LIMIT_BYTES:
            raise InputError(f"{path}: more than {_LIMIT_BYTES:,} bytes")
        return data.decode("utf-8")
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read: {error}") from None


def _settings(path: Path) -> dict[str, Any]:
    try:
        settings = json.loads(_text(path))
    except (json.JSONDecodeError, RecursionError) as error:
        raise InputError(f"{path}: not JSON: {error}") from None
    if not isinstance(settings, dict):
        raise InputError(f"{path}: an object of settings is expected, found {type(settings).__name__}")
    engine = settings.get("engine", "vllm")
    if engine not in _ENGINES:
        raise InputError(unknown(f"{path}: engine", "engine", engine, _ENGINES))
    settings["engine"] = engine
    allowed = _ENGINES[engine]
    for key in settings:
        if key not in allowed and key not in _COMMON:
            raise InputError(unknown(str(path), "setting", key, [*allowed, *_COMMON]))
    for key, kind in allowed.items():
        _check(path, key, settings, kind)
    for key in settings.get("decode", {}):
        if key not in allowed:
            raise InputError(unknown(f"{path}: decode", "setting", key, allowed))
        _check(path, key, settings["decode"], allowed[key])
    _check_times(path, settings)
    return settings


def _check(path: Path, key: str, settings: dict[str, Any], kind: type) -> None:
    if key not in settings:
        raise InputError(f"{path}: setting '{key}' is missing")
    value = settings[key]
    fits = isinstance(value, bool) if kind is bool else isinstance(value, kind) and not isinstance(value, bool)
    if kind is float:
        fits = isinstance(value, int | float) and not isinstance(value, bool)
    if not fits:
        raise InputError(f"{path}: {key}: found {value!r}; allowed: {kind.__name__}")
    if kind is int and value <= 0 and not (key == "chunked_prefill_size" and value == -1):
        raise InputError(f"{path}: {key}: found {value}; allowed: 1 or more")


def _check_times(path: Path, settings: dict[str, Any]) -> None:
    for group, keys in (("step_time", _STEP_TIME), ("transfer", ("setup_s", "per_block_s"))):
        found = settings.get(group, {} if group == "transfer" else None)
        if not isinstance(found, dict):
            raise InputError(f"{path}: {group}: an object of {', '.join(keys)} is expected")
        for key, value in found.items():
            if key not in keys:
                raise InputError(unknown(f"{path}: {group}", "key", key, keys))
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1e9:
                raise InputError(f"{path}: {group}.{key}: found {value!r}; allowed: seconds, 0 or more")


def _json_lines(path: Path) -> Iterable[tuple[int, dict[str, Any]]]:
    for number, line in enumerate(_text(path).splitlines(), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (json.JSONDecodeError, RecursionError):
            raise InputError(f"{path}:{number}: not a JSON object: {line[:60]!r}") from None
        if not isinstance(row, dict):
            raise InputError(f"{path}:{number}: not a JSON object: {line[:60]!r}")
        yield number, row


def _trace(path: Path) -> Trace:
    rows = []
    for number, row in _json_lines(path):
        for key in ("arrival_s", "input_length", "output_length"):
            value = row.get(key)
            if isinstance(value, bool) or not isinstance(value, int | float) or value != value:  # noqa: PLR0124
                raise InputError(f"{path}:{number}: {key}: found {value!r}; a number is expected")
        rows.append(row)
    if not rows:
        raise InputError(f"{path}: holds no request")
    rows = [rows[i] for i in order_of([float(row["arrival_s"]) for row in rows])]
    ids = [row.get("hash_ids") or [] for row in rows]
    shared: dict[str, Any] = {}
    if any(ids):
        shared["hash_ids"] = np.array([h for i in ids for h in i], np.int64)
        shared["hash_offsets"] = np.concatenate([[0], np.cumsum([len(i) for i in ids])]).astype(np.int64)
    return Trace.from_columns(
        [float(row["arrival_s"]) for row in rows],
        [int(row["input_length"]) for row in rows],
        [int(row["output_length"]) for row in rows],
        max_output_tokens=[int(row.get("max_new_tokens", row["output_length"])) for row in rows],
        name=path.parent.name,
        source=str(path),
        **shared,
    )


def _expected(path: Path, rows: int, engine: str) -> dict[str, NDArray[np.float64]]:
    table = list(csv.DictReader(_text(path).splitlines()))
    again = "preemptions" if engine == "vllm" else "retractions"
    columns = {}
    for key in ("first_token_s", "last_token_s", "token_sum_s", "cached_tokens", again):
        try:
            columns[key] = np.array([float(row[key]) for row in table])
        except (KeyError, TypeError, ValueError):
            raise InputError(f"{path}: column '{key}' is missing or holds something that is no number") from None
    columns["preemptions"] = columns.pop(again)
    if len(table) != rows:
        raise InputError(f"{path}: {len(table)} rows for {rows} requests of the trace")
    return columns
