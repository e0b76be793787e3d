"""``simulate generate`` and ``simulate convert``: write traces."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from simulator.commands.options import parse_columns, parse_seconds
from simulator.commands.talk import Talk
from simulator.workload.generate import generate_trace
from simulator.workload.load import load_trace
from simulator.workload.trace import Trace, describe
from simulator.workload.write import write_trace


def generate(spec: str, out: str, *, seed: int | None, requests: int | None) -> int:
    """Make a trace from a spec and write it."""
    return _write(generate_trace(spec, seed=seed, requests=requests), out)


def convert(
    trace: str, out: str, *, columns: str | None, raw_arrivals: bool, seed: int, window: Mapping[str, Any]
) -> int:
    """Read a trace of any known format and write it as a native one."""
    read = load_trace(
        trace,
        columns=parse_columns(columns),
        limit=window["limit"],
        start_s=parse_seconds(window["start"], "--start"),
        duration_s=parse_seconds(window["duration"], "--duration"),
        rate_scale=window["rate_scale"],
        raw_arrivals=raw_arrivals,
        seed=seed,
    )
    return _write(read, out)


def _write(trace: Trace, out: str) -> int:
    Talk().notes(trace.notes)
    print(f"{write_trace(trace, out)}: {describe(trace.stats())}")
    return 0
