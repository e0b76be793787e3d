"""Which trace a run is offered: named by file and window or by the spec it is generated from; loaded once, known by
its content."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from simulator.errors import InputError
from simulator.resources import shipped
from simulator.schema import read_yaml
from simulator.units import parse_duration
from simulator.workload.generate import generate_trace
from simulator.workload.load import load_trace
from simulator.workload.servegen import is_servegen
from simulator.workload.sources import find_trace
from simulator.workload.trace import Trace

#: Fields of a run that say which requests are offered; ``trace.PATH`` changes a key of a generated trace's spec.
TRACE_FIELDS = ("trace", "limit", "start", "duration", "columns")
_SPEC_SUFFIXES = (".yaml", ".yml")


@dataclass(frozen=True)
class TraceSource:
    """A trace as a spec names it. ``path``: a file or a shipped name, or a YAML spec to generate it from, whose keys
    ``changes`` (JSON text) replaces. Equal sources are loaded once."""

    path: str
    limit: int | None = None
    start_s: float | None = None
    duration_s: float | None = None
    rate_scale: float = 1.0
    raw_arrivals: bool = False
    columns: tuple[tuple[str, str], ...] = ()
    changes: str = "{}"

    def load(self) -> Trace:
        """Read or generate it. Raises TraceError."""
        if Path(self.path).suffix in _SPEC_SUFFIXES:
            spec = _changed(read_yaml(Path(self.path)), json.loads(self.changes))
            if self.limit is not None:
                spec["requests"] = self.limit
            return generate_trace(spec)
        return load_trace(
            self.path,
            columns=dict(self.columns) or None,
            limit=self.limit,
            start_s=self.start_s,
            duration_s=self.duration_s,
            rate_scale=self.rate_scale,
            raw_arrivals=self.raw_arrivals,
        )


def trace_source(values: Mapping[str, Any], folder: Path, place: str) -> tuple[TraceSource, float]:
    """The source that run values (``TRACE_FIELDS``, ``trace.PATH``, ``arrivals``, ``rate_scale``) name, and the rate
    scale that is left to apply: ServeGen's rates are scaled as it is read, other traces when they are offered."""
    path = beside(folder, str(values["trace"]), place)
    changes = {key.removeprefix("trace."): value for key, value in values.items() if key.startswith("trace.")}
    generated = Path(path).suffix in _SPEC_SUFFIXES
    window = [key for key in ("start", "duration", "columns") if values.get(key) is not None]
    if changes and not generated:
        raise InputError(f"{place}: trace.{next(iter(changes))}: {path} is not a spec (YAML) of a generated trace")
    if generated and window:
        raise InputError(f"{place}: {window[0]}: a generated trace has no window; change its spec (trace.requests)")
    scale = _scale(values.get("rate_scale"), f"{place}: rate_scale")
    early = not generated and is_servegen(find_trace(path))
    source = TraceSource(
        path=path,
        limit=values.get("limit"),
        start_s=seconds_of(values.get("start"), f"{place}: start"),
        duration_s=seconds_of(values.get("duration"), f"{place}: duration"),
        rate_scale=scale if early else 1.0,
        raw_arrivals=values.get("arrivals") == "trace-raw",
        columns=tuple(sorted((values.get("columns") or {}).items())),
        changes=json.dumps(changes, sort_keys=True),
    )
    return source, 1.0 if early else scale


def _scale(value: object, place: str) -> float:
    """A factor above 0; 1 where none is given."""
    if value is None:
        return 1.0
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise InputError(f"{place}: found {value!r}; allowed: a number above 0")
    return float(value)


def beside(folder: Path, name: str, place: str) -> str:
    """A path as written in a spec: relative to the spec's ``folder`` where such a file is, else a name as it is."""
    if not name:
        raise InputError(f"{place}: an empty name")
    found = folder / name
    if found.exists():
        return os.fspath(found)
    generated = shipped("traces") / "specs" / name
    return os.fspath(generated) if generated.is_file() else name


def seconds_of(value: object, place: str) -> float | None:
    """Seconds of ``30`` (seconds), ``30s`` or ``5min``."""
    if value is None:
        return None
    if isinstance(value, int | float) and not isinstance(value, bool):
        if not 0 <= value < float("inf"):
            raise InputError(f"{place}: {value!r}; allowed: seconds from 0")
        return float(value)
    return parse_duration(str(value), place)


def _changed(spec: dict[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    for path, value in changes.items():
        *parents, last = path.split(".")
        at = spec
        for key in parents:
            at = at.setdefault(key, {})
            if not isinstance(at, dict):
                raise InputError(f"trace.{path}: '{key}' is not a mapping in the trace's spec")
        at[last] = value
    return spec


def trace_digest(trace: Trace) -> str:
    """SHA-256 of what a simulation can see of a trace: its columns; its name, file and notes do not count."""
    digest = hashlib.sha256()
    for field in fields(trace):
        if field.name in ("name", "source", "notes"):
            continue
        value = getattr(trace, field.name)
        digest.update(f"{field.name}:".encode())
        if isinstance(value, np.ndarray):
            digest.update(f"{value.dtype.str}{value.shape}".encode())
            digest.update(np.ascontiguousarray(value).tobytes())
        else:
            digest.update(repr(value).encode())
    return digest.hexdigest()
