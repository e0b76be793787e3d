"""The options of the main job, and how their texts are read. Light to import: ``--help`` waits for it."""

from __future__ import annotations

import math
import shlex
from dataclasses import dataclass, fields
from typing import Annotated, Any

from cyclopts import Parameter

from simulator.errors import InputError
from simulator.units import parse_duration

_LIST: dict[str, Any] = {"negative": (), "show_default": False}


@dataclass(frozen=True)
class RunOptions:
    """Everything but the trace; see ``docs/output.md`` for what comes back."""

    topology: Annotated[
        tuple[str, ...],
        Parameter(help="a YAML file, a shipped name, or MODEL/GPU/1p1d; once for each topology to compare", **_LIST),
    ] = ()
    arrivals: Annotated[
        str,
        Parameter(help="trace, trace-raw, poisson:RATE, gamma:RATE:CV, closed:N or at-once"),
    ] = "trace"
    slo: Annotated[
        str | None,
        Parameter(
            help="latency targets with units, as ttft=2s,tpot=50ms (also e2e, itl_p99); a tenant's: ;gold:ttft=1s"
        ),
    ] = None
    rate_scale: Annotated[float, Parameter(help="play the trace this much faster: gaps are divided by it")] = 1.0
    limit: Annotated[int | None, Parameter(help="only the first N requests")] = None
    start: Annotated[str | None, Parameter(help="leave out what arrives in the trace's first S seconds")] = None
    duration: Annotated[str | None, Parameter(help="only what arrives within S seconds from the start")] = None
    warmup: Annotated[str | None, Parameter(help="simulate the first S seconds, but do not count them")] = None
    seed: Annotated[int, Parameter(help="of everything drawn at random")] = 0
    change: Annotated[
        tuple[str, ...],
        Parameter(name="--set", help="change the topologies: path.to.key=value; may be repeated", **_LIST),
    ] = ()
    faults: Annotated[
        str | None, Parameter(help="a YAML file of faults: what fails, and what is done then (docs/faults.md)")
    ] = None
    columns: Annotated[
        str | None,
        Parameter(help="columns of an unknown CSV: arrival_s=NAME,input_tokens=NAME,output_tokens=NAME"),
    ] = None
    out: Annotated[
        str | None, Parameter(help="folder for result.json, requests.parquet and pictures (made where missing)")
    ] = None
    json: Annotated[
        str | None, Parameter(help="write the result as JSON to a file, or - for stdout", allow_leading_hyphen=True)
    ] = None
    report: Annotated[
        str | None, Parameter(help="write the result as one HTML page with charts, which works offline")
    ] = None
    report_rates: Annotated[
        str | None,
        Parameter(help="rates the report tries, as 2,4,8 (requests/s; clients with closed:N), in place of its own"),
    ] = None
    report_budget: Annotated[
        int, Parameter(help="requests the report simulates besides, for other rates and prompt lengths; 0: none")
    ] = 60_000
    timeline: Annotated[
        str | None, Parameter(help="write every batch, transfer and request as a timeline for ui.perfetto.dev (JSON)")
    ] = None
    timeline_start: Annotated[str | None, Parameter(help="leave out of the timeline what ends before S seconds")] = None
    max_seconds: Annotated[
        float | None, Parameter(help="stop a run after so many seconds of computing; what was simulated is told")
    ] = None
    max_memory_gb: Annotated[float | None, Parameter(help="stop a run when the process has more memory than this")] = (
        None
    )
    quiet: Annotated[bool, Parameter(help="no progress, notes or warnings on stderr", negative=())] = False


def parse_seconds(text: str | None, option: str) -> float | None:
    """Seconds of ``30``, ``30s`` or ``5min``; a bare number is in seconds, as the option's help says."""
    if text is None:
        return None
    try:
        seconds = float(text)
    except ValueError:
        return parse_duration(text, option)
    if not (math.isfinite(seconds) and seconds >= 0):
        raise InputError(f"{option}: '{text}'; allowed: seconds from 0")
    return seconds


def parse_columns(text: str | None) -> dict[str, str] | None:
    """``a=b,c=d`` as a mapping."""
    if text is None:
        return None
    found: dict[str, str] = {}
    for part in text.split(","):
        native, equals, name = (piece.strip() for piece in part.partition("="))
        if not (native and equals and name):
            raise InputError(f"--columns: '{part.strip()}' is not FIELD=COLUMN; write arrival_s=t,input_tokens=in,...")
        if native in found:
            raise InputError(f"--columns: '{native}' is given twice")
        found[native] = name
    return found


def json_target(text: str | None, option: str = "--json") -> str | None:
    """The file to write, or ``-``; a word that is an option itself is a forgotten file name."""
    if text is not None and text.startswith("-") and text != "-":
        raise InputError(f"{option}: '{text}' is an option; give a file name, or - for stdout")
    return text


def parse_levels(text: str | None, option: str = "--report-rates") -> tuple[float, ...] | None:
    """``2,4,8`` as numbers above 0."""
    if text is None:
        return None
    found = []
    for part in text.split(","):
        try:
            value = float(part)
        except ValueError:
            value = math.nan
        if not 0 < value <= 1e6:
            raise InputError(f"{option}: '{part.strip()}'; allowed: numbers above 0 up to 1e+06, as 2,4,8")
        found.append(value)
    return tuple(found)


def command_of(trace: str, options: RunOptions) -> str:
    """The command line that these options stand for, without those that only say where to write."""
    words = ["simulate", trace]
    for field in fields(options):
        value = getattr(options, field.name)
        if value == field.default or field.name in ("out", "json", "report", "timeline", "timeline_start", "quiet"):
            continue
        name = "--set" if field.name == "change" else f"--{field.name.replace('_', '-')}"
        for one in value if isinstance(value, tuple) else (value,):
            words += [name, str(one)]
    return shlex.join(words)
