"""AIPerf ``profile_export.jsonl``: one JSON object a request, in order of completion, units said in the file."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

from simulator.errors import InputError, unknown
from simulator.validation.clients.measured import Columns, Measured, measured_of
from simulator.validation.clients.vllm_bench import failures

_SECONDS = {"s": 1.0, "sec": 1.0, "ms": 1e-3, "us": 1e-6, "ns": 1e-9}
_SUMMARY = "profile_export_aiperf.json"
_ENDINGS = ("", ".gz")


def recognises(row: dict[str, Any]) -> bool:
    """By names only this client uses together."""
    meta = row.get("metadata")
    return isinstance(meta, dict) and "request_start_ns" in meta and ("metrics" in row or "error" in row)


def read(place: str, rows: list[dict[str, Any]], path: Path) -> Measured:
    """Requests at the moments they were sent; a closed loop where the summary beside the file says so."""
    done = [row for row in rows if not row.get("error") and not row["metadata"].get("was_cancelled")]
    done = [row for row in done if row["metadata"].get("benchmark_phase", "profiling") == "profiling"]
    columns = Columns(
        [_value(place, i, row, "input_sequence_length") for i, row in enumerate(done)],
        [_value(place, i, row, "output_sequence_length") for i, row in enumerate(done)],
        [_seconds(place, i, row, "time_to_first_token") for i, row in enumerate(done)],
        [_seconds(place, i, row, "request_latency") for i, row in enumerate(done)],
        [_start_s(row) for row in done],
    )
    clients = _clients(path)
    return measured_of(
        place,
        columns,
        name=path.parent.name if path.name.startswith("profile_export") else path.name.split(".")[0],
        client="AIPerf",
        load="closed" if clients else "timed",
        clients=clients,
        notes=failures(len(rows) - len(done)),
    )


def _start_s(row: dict[str, Any]) -> object:
    start = row["metadata"].get("request_start_ns")
    return start / 1e9 if isinstance(start, int | float) and not isinstance(start, bool) else start


def _metric(place: str, number: int, row: dict[str, Any], name: str) -> dict[str, Any]:
    found = row.get("metrics", {}).get(name)
    if not isinstance(found, dict) or "value" not in found:
        raise InputError(f"{place}: request {number + 1}: metrics.{name} is missing (streaming has to be on)")
    return found


def _value(place: str, number: int, row: dict[str, Any], name: str) -> object:
    return _metric(place, number, row, name)["value"]


def _seconds(place: str, number: int, row: dict[str, Any], name: str) -> object:
    found = _metric(place, number, row, name)
    unit = found.get("unit")
    if unit not in _SECONDS:
        raise InputError(unknown(f"{place}: metrics.{name}", "unit", unit, _SECONDS))
    value = found["value"]
    return value * _SECONDS[unit] if isinstance(value, int | float) else value


def _clients(path: Path) -> int:
    """Clients of a closed loop, from the summary that AIPerf writes beside its records; 0 where there is none."""
    for ending in _ENDINGS:
        summary = path.parent / f"{_SUMMARY}{ending}"
        if summary.is_file():
            try:
                data = summary.read_bytes()
                phases = json.loads(gzip.decompress(data) if ending else data)["input_config"]["phases"]
            except (OSError, ValueError, KeyError, TypeError):
                return 0
            return _closed(phases[-1]) if phases and isinstance(phases[-1], dict) else 0
    return 0


def _closed(phase: dict[str, Any]) -> int:
    clients = phase.get("concurrency")
    open_loop = phase.get("rate") or phase.get("type") in ("poisson", "gamma", "constant", "trace", "fixed_schedule")
    return clients if isinstance(clients, int) and clients > 0 and not open_loop else 0
