"""GuideLLM ``benchmarks.json``: a list of benchmarks, each with its requests; seconds and milliseconds by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from simulator.errors import InputError
from simulator.validation.clients.measured import Columns, Measured, measured_of
from simulator.validation.clients.vllm_bench import failures


def recognises(row: dict[str, Any]) -> bool:
    """By names only this client uses together."""
    runs = row.get("benchmarks")
    return isinstance(runs, list) and bool(runs) and isinstance(runs[0], dict) and "requests" in runs[0]


def read(place: str, rows: list[dict[str, Any]], path: Path) -> Measured:
    """The file's only benchmark. Raises InputError where it holds several: they ran at different loads."""
    runs = rows[0]["benchmarks"]
    if len(runs) > 1:
        raise InputError(f"{place}: holds {len(runs)} benchmarks of different loads; write one a file")
    run = runs[0]
    groups = run["requests"] if isinstance(run["requests"], dict) else {}
    done = groups.get("successful")
    if not isinstance(done, list):
        raise InputError(f"{place}: benchmarks[0].requests.successful is missing; keep the requests in the output")
    lost = sum(len(groups.get(kind) or []) for kind in ("errored", "incomplete"))
    strategy = run.get("config", {}).get("strategy", {})
    clients = _clients(strategy)
    columns = Columns(
        [_of(place, i, row, "prompt_tokens") for i, row in enumerate(done)],
        [_of(place, i, row, "output_tokens") for i, row in enumerate(done)],
        [_seconds(_of(place, i, row, "time_to_first_token_ms")) for i, row in enumerate(done)],
        [_of(place, i, row, "request_latency") for i, row in enumerate(done)],
        [_of(place, i, row, "request_start_time") for i, row in enumerate(done)],
    )
    return measured_of(
        place,
        columns,
        name=path.parent.name if path.name.startswith("benchmarks") else path.name.split(".")[0],
        client="GuideLLM",
        load="closed" if clients else "timed",
        clients=clients,
        notes=failures(lost),
    )


def _clients(strategy: object) -> int:
    """Clients of a closed loop: strategies ``synchronous`` (one) and ``concurrent`` (``streams``)."""
    if not isinstance(strategy, dict):
        return 0
    kind = strategy.get("type_", strategy.get("kind"))
    if kind == "synchronous":
        return 1
    streams = strategy.get("streams", strategy.get("max_concurrency"))
    return streams if kind == "concurrent" and isinstance(streams, int) and streams > 0 else 0


def _of(place: str, number: int, row: object, name: str) -> object:
    if not isinstance(row, dict) or name not in row:
        raise InputError(f"{place}: benchmarks[0].requests.successful[{number}]: '{name}' is missing")
    return row[name]


def _seconds(value: object) -> object:
    return value / 1e3 if isinstance(value, int | float) and not isinstance(value, bool) else value
