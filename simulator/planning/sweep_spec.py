"""What a sweep varies: the keys of its YAML, and the points they make, in order."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, model_validator

from simulator.cluster.topology import Topology, load_topology
from simulator.errors import InputError, unknown
from simulator.metrics.slo import SLO
from simulator.planning.runs import Run, topology_text
from simulator.planning.traces import TRACE_FIELDS, TraceSource, beside, seconds_of, trace_source
from simulator.schema import Schema, check, read_yaml
from simulator.workload.arrivals import parse_arrivals

#: Keys of a point that are no path into the topology.
RUN_FIELDS = (*TRACE_FIELDS, "topology", "arrivals", "rate_scale", "seed", "slo", "warmup")
#: Beginnings of paths that lead into the trace's spec or the targets.
_PREFIXES = ("trace.", "slo.")
MOST_RUNS = 1_000_000

Point = dict[str, Any]


class SweepSpec(Schema):
    """A sweep as it is written. ``grid``: every combination; ``zip``: values that belong together, by place; ``runs``:
    points one by one. A key is a field of the run (``RUN_FIELDS``, ``slo.ttft``), a key of a generated trace's spec
    (``trace.input_tokens.mean``), or a path into the topology, pools by name."""

    name: str = ""
    trace: str | None = None
    topology: str | dict[str, Any] | None = None
    topologies: Annotated[list[str | dict[str, Any]], Field(min_length=1)] | None = None
    arrivals: str = "trace"
    rate_scale: Annotated[float, Field(gt=0)] = 1.0
    seed: Annotated[int, Field(ge=0)] = 0
    seeds: Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)] | None = None
    slo: str | dict[str, Any] | None = None
    warmup: str | float | None = None
    limit: Annotated[int, Field(ge=1)] | None = None
    start: str | float | None = None
    duration: str | float | None = None
    columns: dict[str, str] | None = None
    set: dict[str, Any] = Field(default_factory=dict)
    grid: dict[str, Annotated[list[Any], Field(min_length=1)]] = Field(default_factory=dict)
    zip: dict[str, Annotated[list[Any], Field(min_length=1)]] = Field(default_factory=dict)
    runs: Annotated[list[dict[str, Any]], Field(min_length=1)] | None = None

    @model_validator(mode="after")
    def _zip_is_square(self) -> SweepSpec:
        lengths = {key: len(values) for key, values in self.zip.items()}
        if len(set(lengths.values())) > 1:
            raise ValueError(f"lists of zip differ in length: {', '.join(f'{k} {n}' for k, n in lengths.items())}")
        if self.topology is not None and self.topologies is not None:
            raise ValueError("give topology or topologies, not both")
        return self


@dataclass(frozen=True)
class Planned:
    """One run of a sweep: what varies (``point``), the trace to load, and the run (its trace still unnamed)."""

    point: Point
    source: TraceSource
    topology: Topology
    run: Run


@dataclass(frozen=True)
class Sweep:
    """A sweep read: ``place`` names the file in messages, ``folder`` is what its paths are relative to."""

    spec: SweepSpec
    place: str
    folder: Path

    @property
    def axes(self) -> list[str]:
        """What varies, in the order of the file; ``topology`` and ``seed`` come first where they do."""
        named = [*self.spec.grid, *self.spec.zip, *(key for run in self.spec.runs or [] for key in run)]
        first = [name for name, given in (("topology", self.spec.topologies), ("seed", self.spec.seeds)) if given]
        return list(dict.fromkeys([*first, *named]))


def read_sweep(spec: str | Path | Mapping[str, Any]) -> Sweep:
    """Read a sweep from a file or from plain values. Raises InputError."""
    if isinstance(spec, Mapping):
        place, folder, values = "sweep", Path(), dict(spec)
    else:
        place, folder, values = str(spec), Path(spec).parent, read_yaml(Path(spec))
    sweep = Sweep(check(SweepSpec, values, place), place, folder)
    twice = [key for key in sweep.spec.grid if key in sweep.spec.zip or any(key in r for r in sweep.spec.runs or [])]
    if twice:
        raise InputError(f"{place}: '{twice[0]}' stands in grid and in zip or runs; leave it in one of them")
    return sweep


def points(sweep: Sweep) -> Iterator[Point]:
    """The points, in order: topologies, then grid (the last axis varies fastest), zip, runs, seeds."""
    spec = sweep.spec
    first = [{"topology": value} for value in spec.topologies or []] or [{}]
    grid = [dict(zip(spec.grid, values, strict=True)) for values in itertools.product(*spec.grid.values())]
    zipped = [dict(zip(spec.zip, values, strict=True)) for values in zip(*spec.zip.values(), strict=True)] or [{}]
    seeds = [{"seed": value} for value in spec.seeds or []] or [{}]
    count = len(first) * len(grid) * len(zipped) * len(spec.runs or [{}]) * len(seeds)
    if count > MOST_RUNS:
        raise InputError(f"{sweep.place}: {count:,} runs; at most {MOST_RUNS:,}")
    for parts in itertools.product(first, grid, zipped, spec.runs or [{}], seeds):
        yield {key: value for part in parts for key, value in part.items()}


def plan_runs(sweep: Sweep) -> list[Planned]:
    """Every run of the sweep, checked. Raises InputError that names the file and the axis."""
    spec = sweep.spec
    common = {key: getattr(spec, key) for key in RUN_FIELDS} | spec.set
    found = []
    for point in points(sweep):
        _check_keys(point, sweep.place)
        found.append(_planned(common | point, point, sweep))
    return found


def _check_keys(point: Point, place: str) -> None:
    for key in point:
        if key in ("grid", "zip", "runs", "set", "topologies", "seeds", "name"):
            raise InputError(f"{place}: '{key}' cannot be varied")


def _planned(values: Mapping[str, Any], point: Point, sweep: Sweep) -> Planned:
    place = sweep.place
    for key in ("trace", "topology"):
        if values.get(key) is None:
            raise InputError(f"{place}: key '{key}' is missing; give it, or vary it in grid, zip or runs")
    source, scale = trace_source(values, sweep.folder, place)
    topology = _topology(values, sweep)
    arrivals = parse_arrivals(str(values["arrivals"]), f"{place}: arrivals")
    if scale != 1.0 and arrivals.kind not in ("trace", "trace-raw"):
        raise InputError(f"{place}: rate_scale has no effect with arrivals {arrivals}; leave one of them out")
    run = Run(
        trace="",
        topology=topology_text(topology),
        arrivals=str(arrivals),
        rate_scale=_number(scale, "rate_scale", place),
        seed=_whole(values["seed"], "seed", place),
        warmup_s=seconds_of(values["warmup"], f"{place}: warmup") or 0.0,
        slo=tuple(_targets(values, place).targets().items()),
    )
    return Planned(point, source, topology, run)


def _targets(values: Mapping[str, Any], place: str) -> SLO:
    slo = SLO.of(values["slo"], f"{place}: slo")
    changes = {key.removeprefix("slo."): value for key, value in values.items() if key.startswith("slo.")}
    if not changes:
        return slo
    changed = SLO.from_mapping(changes, f"{place}: slo").targets()
    return slo.with_targets(changed)


def _topology(values: Mapping[str, Any], sweep: Sweep) -> Topology:
    base = values["topology"]
    paths = {key: value for key, value in values.items() if key not in RUN_FIELDS and not key.startswith(_PREFIXES)}
    return changed_topology(base, paths, sweep.folder, sweep.place)


def changed_topology(base: object, paths: Mapping[str, Any], folder: Path, place: str) -> Topology:
    """A topology by name, file or plain values, with values put in at dotted paths. Raises InputError."""
    if isinstance(base, str):
        base = beside(folder, base, f"{place}: topology")
    elif not isinstance(base, Mapping | Topology):
        raise InputError(f"{place}: topology: found {base!r}; allowed: a name, a file, or its values")
    try:
        return load_topology(base, [f"{path}={_text(value)}" for path, value in paths.items()])
    except InputError as problem:
        raise _explained(problem, paths, place) from None


def _explained(problem: InputError, paths: Mapping[str, Any], place: str) -> InputError:
    """The problem with the sweep's file in front; a first word that is neither field nor path is told as such."""
    text = str(problem)
    if not text.startswith("--set "):
        return InputError(f"{place}: {text}")
    path = text.removeprefix("--set ").split("=")[0]
    if path in paths and "." not in path and ": unknown key" in text:
        return InputError(unknown(place, "axis", path, [*RUN_FIELDS, "pools.NAME.workers", "network.kind"]))
    return InputError(f"{place}: {text.removeprefix('--set ')}")


def _text(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _number(value: object, key: str, place: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < float("inf"):
        raise InputError(f"{place}: {key}: found {value!r}; allowed: numbers above 0")
    return float(value)


def _whole(value: object, key: str, place: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise InputError(f"{place}: {key}: found {value!r}; allowed: whole numbers from 0")
    return value


def shown(value: object, names: Sequence[str] = ()) -> object:
    """A point's value for a table: plain values as they are, lists and mappings as JSON."""
    return value if value is None or isinstance(value, str | int | float | bool) else json.dumps(value)
