"""Many runs: expanded from a spec, done side by side, kept on disk, handed back as one tidy table."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

import simulator
from simulator.errors import InputError, RunInterruptedError
from simulator.files import dumps, output_file, replacing, write_text
from simulator.metrics.confidence import t_interval
from simulator.metrics.summary import flat_entry
from simulator.planning.runs import Outcome
from simulator.planning.store import Store
from simulator.planning.sweep_spec import Planned, Sweep, plan_runs, read_sweep, shown
from simulator.planning.traces import TraceSource, trace_digest
from simulator.planning.workforce import Workforce, outcomes
from simulator.workload.trace import Trace

SCHEMA = 1
#: Figures whose mean over seeds is told with an interval.
AVERAGED = (
    *("slo_attainment", "goodput_requests_per_s", "request_throughput_per_s", "output_tokens_per_s"),
    *(f"{latency}_{spread}_s" for latency in ("ttft", "tpot", "e2e") for spread in ("mean", "p50", "p99")),
    *("usd_per_million_tokens", "joules_per_token"),
)
#: Called with runs done and runs in all.
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class SweepRun:
    """One finished run: what varied, and the figures, or why there are none."""

    point: Mapping[str, Any]
    topology: str
    seed: int
    outcome: Outcome


@dataclass(frozen=True, repr=False)
class SweepResult:
    """A finished sweep, runs in the order of the spec. ``found`` of the runs were in the store already."""

    name: str
    axes: tuple[str, ...]
    runs: tuple[SweepRun, ...]
    found: int = 0

    @cached_property
    def table(self) -> pd.DataFrame:
        """One row a run: topology, seed, the axes, the figures (``ttft_p99_s``), or the ``problem``."""
        return pd.DataFrame([self._row(run) for run in self.runs])

    def _row(self, run: SweepRun) -> dict[str, Any]:
        axes = {axis: shown(run.point.get(axis)) for axis in self.axes if axis not in ("topology", "seed")}
        figures = {} if run.outcome.entry is None else flat_entry(run.outcome.entry)
        figures.pop("name", None)
        return {"topology": run.topology, "seed": run.seed, **axes, **figures, "problem": run.outcome.problem}

    @cached_property
    def groups(self) -> list[dict[str, Any]]:
        """The runs that differ by their seed alone, averaged: mean and 95 % interval of each figure of ``AVERAGED``."""
        gathered: dict[str, list[SweepRun]] = {}
        for run in self.runs:
            point = {axis: value for axis, value in run.point.items() if axis != "seed"}
            gathered.setdefault(dumps({"topology": run.topology, **point}), []).append(run)
        found = []
        for members in gathered.values():
            rows = [flat_entry(run.outcome.entry) for run in members if run.outcome.entry is not None]
            point = {axis: value for axis, value in members[0].point.items() if axis not in ("seed", "topology")}
            intervals = {
                name: t_interval([row[name] for row in rows if row.get(name) is not None]).to_dict()
                for name in AVERAGED
                if any(row.get(name) is not None for row in rows)
            }
            found.append({"topology": members[0].topology, "point": point, "runs": len(rows), **intervals})
        return found

    @cached_property
    def document(self) -> dict[str, Any]:
        """The result as plain values, for JSON."""
        return {
            "schema": SCHEMA,
            "simulator": simulator.__version__,
            "name": self.name,
            "axes": list(self.axes),
            "runs": [
                {
                    "point": dict(run.point),
                    "topology": run.topology,
                    "seed": run.seed,
                    "problem": run.outcome.problem,
                    "result": run.outcome.entry,
                }
                for run in self.runs
            ],
            "groups": self.groups,
        }

    def to_json(self, path: str | os.PathLike[str] | None = None) -> str:
        """The document as text; also written to ``path`` when given."""
        text = dumps(self.document)
        if path is not None:
            write_text(output_file(path, "path"), text)
        return text

    def to_csv(self, path: str | os.PathLike[str]) -> None:
        """Write the table as CSV."""
        write_text(output_file(path, "--csv"), self.table.to_csv(index=False, lineterminator="\n"))

    def to_parquet(self, path: str | os.PathLike[str]) -> None:
        """Write the table as Parquet."""
        with replacing(output_file(path, "--out")) as temporary:
            self.table.to_parquet(temporary, index=False)

    def __repr__(self) -> str:
        return f"SweepResult({self.name!r}, {len(self.runs)} runs over {', '.join(self.axes) or 'nothing'})"


def sweep(
    spec: str | os.PathLike[str] | Mapping[str, Any],
    *,
    jobs: int = 1,
    executor: str | None = None,
    store: str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
) -> SweepResult:
    """Do every run of ``spec`` (a YAML file, or its values; see docs/planning.md).

    ``jobs``: processes (0: one a core). ``executor``: ``dask:tcp://host:8786`` for a Dask cluster. ``store``: a folder
    that keeps finished runs; those that are there are not done again, and a sweep that was stopped goes on. The order
    and number of processes do not show in the result. ``progress`` is called with runs done and runs in all.

    Raises InputError before the first run; RunInterruptedError on Ctrl-C, with what is done kept in the store.
    """
    read = read_sweep(spec if isinstance(spec, Mapping) else Path(spec))
    workforce = Workforce.parse(executor, jobs)
    planned, traces = _load(plan_runs(read), read)
    return _collect(read, planned, _do(planned, traces, workforce, None if store is None else Store(store), progress))


def _load(planned: Sequence[Planned], read: Sweep) -> tuple[list[Planned], dict[str, Trace]]:
    """Load every trace once; the runs with their traces' digests, and the traces by digest."""
    loaded: dict[TraceSource, tuple[str, Trace]] = {}
    for one in planned:
        if one.source not in loaded:
            try:
                trace = one.source.load()
            except InputError as problem:
                raise InputError(f"{read.place}: {problem}") from None
            loaded[one.source] = (trace_digest(trace), trace)
    named = [dataclasses.replace(p, run=dataclasses.replace(p.run, trace=loaded[p.source][0])) for p in planned]
    return named, dict(loaded.values())


@dataclass
class _Done:
    """Outcomes by key, and how many of the runs were in the store."""

    outcomes: dict[str, Outcome]
    keys: list[str]
    found: int = 0


def _do(
    planned: Sequence[Planned],
    traces: Mapping[str, Trace],
    workforce: Workforce,
    store: Store | None,
    progress: Progress | None,
) -> _Done:
    done = _Done({}, [one.run.key() for one in planned])
    wanted = {key: one.run for key, one in zip(done.keys, planned, strict=True)}
    for key in wanted:
        kept = None if store is None else store.get(key)
        if kept is not None:
            done.outcomes[key] = kept
    done.found = len(done.outcomes)
    left = [key for key in wanted if key not in done.outcomes]
    try:
        for count, (index, outcome) in enumerate(outcomes([wanted[key] for key in left], traces, workforce), 1):
            done.outcomes[left[index]] = outcome
            if store is not None:
                store.put(left[index], wanted[left[index]], outcome)
            if progress is not None:
                progress(count, len(left))
    except KeyboardInterrupt:
        kept_text = f"{len(done.outcomes)} of {len(wanted)} runs are kept; the same command goes on from there"
        raise RunInterruptedError(f"interrupted; {kept_text if store else 'nothing is kept'}") from None
    return done


def _collect(read: Sweep, planned: Sequence[Planned], done: _Done) -> SweepResult:
    runs = tuple(
        SweepRun(one.point, one.topology.name, one.run.seed, done.outcomes[key])
        for key, one in zip(done.keys, planned, strict=True)
    )
    if all(run.outcome.problem is not None for run in runs):
        raise InputError(f"{read.place}: no run could be done: {runs[0].outcome.problem}")
    name = read.spec.name or (Path(read.place).stem if read.place != "sweep" else "sweep")
    return SweepResult(name, tuple(read.axes), runs, done.found)
