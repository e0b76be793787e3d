"""Simulate from Python: plain values in, plain tables out, no global state."""

from __future__ import annotations

import copy
import dataclasses
import os
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from simulator.cluster.assembly import assemble
from simulator.cluster.faults.read import with_faults
from simulator.cluster.limits import Limits
from simulator.cluster.plan import ClusterPlan
from simulator.cluster.result import REJECTED, RunResult
from simulator.cluster.run import RunOptions
from simulator.cluster.simulation import COMPILING, ready, run_plan
from simulator.cluster.steps import MOST_ENTRIES
from simulator.cluster.topology import Topology, load_topology
from simulator.errors import InputError
from simulator.files import dumps, output_file, replacing, write_text
from simulator.metrics.frame import requests_frame
from simulator.metrics.slo import SLO
from simulator.metrics.summary import Entry, flat_entry, summarise
from simulator.planning.around import BUDGET, Around, around
from simulator.report.document import Document, distinct_names, document, trace_entry
from simulator.report.output import write_results
from simulator.report.terminal import render
from simulator.workload.arrivals import Arrivals, apply_arrivals, parse_arrivals
from simulator.workload.load import load_trace
from simulator.workload.trace import Trace

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TraceLike = Trace | str | os.PathLike[str] | pd.DataFrame
TopologyLike = Topology | str | os.PathLike[str] | Mapping[str, Any]
SloLike = SLO | str | Mapping[str, object] | None
#: Called with the share of the work that is done, 0 to 1.
Progress = Callable[[float], None]


@dataclasses.dataclass(frozen=True)
class Terms:
    """What a run is judged by. ``load`` tells more of what was offered, for the result's ``trace``; ``overrides`` what
    was changed in the topology; ``log_steps``: every batch is kept, for a timeline; ``limits``: of each run."""

    slo: SLO = dataclasses.field(default_factory=SLO)
    seed: int = 0
    warmup_s: float = 0.0
    load: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    overrides: tuple[str, ...] = ()
    log_steps: bool = False
    limits: Limits = dataclasses.field(default_factory=Limits)


@dataclasses.dataclass(frozen=True, repr=False)
class Comparison:
    """One trace offered to several topologies on the same terms."""

    results: tuple[Result, ...]

    @property
    def terms(self) -> Terms:
        """Targets, seed and warm-up: those of every result."""
        return self.results[0].terms

    def __getitem__(self, name: str) -> Result:
        """The result of the topology called ``name``; KeyError where there is none."""
        for result in self.results:
            if result.name == name:
                return result
        raise KeyError(f"no topology '{name}'; there are {', '.join(result.name for result in self.results)}")

    @cached_property
    def document(self) -> Document:
        """The result JSON (schema 1) as plain values."""
        terms, run = self.terms, self.results[0].run
        load = {"arrivals": run.arrivals, **terms.load, "warmup_s": float(terms.warmup_s)}
        entries = [result.entry for result in self.results]
        return document(trace_entry(run.trace, load), entries, terms.slo, terms.seed, terms.overrides)

    @property
    def verdict(self) -> str:
        """What the figures say, in a few sentences."""
        return str(self.document["comparison"]["verdict"])

    @property
    def requests(self) -> pd.DataFrame:
        """One row a request and topology; the first column says which topology."""
        frames = []
        for result in self.results:
            frame = result.requests.copy()
            frame.insert(0, "topology", result.name)
            frames.append(frame)
        return pd.concat(frames, ignore_index=True)

    def summary(self) -> pd.DataFrame:
        """One row a topology, its figures as columns (``ttft_p99_s``, ``goodput_requests_per_s``)."""
        return pd.DataFrame([flat_entry(result.entry) for result in self.results]).set_index("name")

    def plot(self, path: str | os.PathLike[str] | None = None) -> Figure:
        """TTFT and TPOT distributions of all topologies; also written to ``path`` (.png, .pdf, .svg) when given."""
        from simulator.report.pictures import heading_of, latency_figure

        heading = heading_of(self.document["trace"], [entry["model"] for entry in self.document["topologies"]])
        runs = [result.run for result in self.results]
        figure = latency_figure(runs, self.document["topologies"], self.terms.slo, self.terms.warmup_s, heading)
        if path is not None:
            with replacing(output_file(path, "path")) as temporary:
                figure.savefig(temporary)
        return figure

    def to_json(self, path: str | os.PathLike[str] | None = None) -> str:
        """The result JSON as text; also written to ``path`` when given."""
        text = dumps(self.document)
        if path is not None:
            write_text(output_file(path, "path"), text)
        return text

    def around(
        self, *, budget: int = BUDGET, levels: Sequence[float] | None = None, progress: Progress | None = None
    ) -> Around:
        """Latency against rate (``curve``) and where disaggregation pays (``map``), in about ``budget`` requests.

        ``levels``: rates to try (requests/s; clients in a closed loop) in place of those found here.
        """
        plans = {result.name: result.plan for result in self.results if result.plan is not None}
        terms, first = self.terms, self.results[0].run
        return around(first, plans, terms.slo, terms.warmup_s, budget=budget, levels=levels, progress=progress)

    def report(
        self,
        path: str | os.PathLike[str],
        around: Around | None = None,
        *,
        document: Document | None = None,
        command: str = "",
    ) -> None:
        """Write the result as one HTML page that works offline; ``around`` is made with its defaults when not given.

        ``document`` stands in for the result JSON where more is to be said in it; ``command`` is shown on the page.
        """
        from simulator.report.page.material import Material
        from simulator.report.page.page import write_page

        file = output_file(path, "path")
        plans = {result.name: result.plan for result in self.results if result.plan is not None}
        runs, terms = [result.run for result in self.results], self.terms
        besides = self.around() if around is None else around
        write_page(file, Material(document or self.document, runs, plans, terms.slo, terms.warmup_s, besides, command))

    def timeline(self, path: str | os.PathLike[str], start_s: float = 0.0) -> str:
        """Write the runs (made with ``log_steps=True``) as a timeline for Perfetto, from ``start_s`` on.

        Returns what part of the run is in it, in words; empty where it is all.
        """
        from simulator.report.timeline import write_timeline

        if not self.terms.log_steps:
            raise InputError("timeline: the steps of this run were not kept; simulate with log_steps=True")
        return write_timeline(output_file(path, "path"), [result.run for result in self.results], start_s).note

    def save(self, folder: str | os.PathLike[str], document: Document | None = None) -> list[Path]:
        """Write ``requests.parquet``, ``result.json`` and the pictures into ``folder``; returns their paths.

        ``document`` stands in for the result JSON where more is to be said in it.
        """
        terms, runs = self.terms, [result.run for result in self.results]
        frames = ((result.name, requests_frame(result.run, terms.slo, terms.warmup_s)) for result in self.results)
        return write_results(folder, document or self.document, runs, frames, slo=terms.slo, warmup_s=terms.warmup_s)

    def __repr__(self) -> str:
        return render(self.document).rstrip("\n")


@dataclasses.dataclass(frozen=True, repr=False)
class Result:
    """One trace offered to one topology: ``run`` holds the columns as they were simulated, ``plan`` the cluster."""

    run: RunResult
    terms: Terms = dataclasses.field(default_factory=Terms)
    plan: ClusterPlan | None = None

    @property
    def name(self) -> str:
        """The topology's name."""
        return self.run.topology.name

    @cached_property
    def entry(self) -> Entry:
        """The figures, computed once; ``summary`` hands out copies."""
        return summarise(self.run, self.terms.slo, self.terms.warmup_s)

    @cached_property
    def requests(self) -> pd.DataFrame:
        """One row a request: times in seconds, parts of TTFT, workers, cached tokens, preemptions, state, reason."""
        return requests_frame(self.run, self.terms.slo, self.terms.warmup_s)

    def summary(self) -> Entry:
        """The figures of the run as plain values: the topology's entry in the result JSON."""
        return copy.deepcopy(self.entry)

    @cached_property
    def _alone(self) -> Comparison:
        return Comparison((self,))

    def plot(self, path: str | os.PathLike[str] | None = None) -> Figure:
        """TTFT and TPOT distributions; also written to ``path`` (.png, .pdf, .svg) when given."""
        return self._alone.plot(path)

    def to_json(self, path: str | os.PathLike[str] | None = None) -> str:
        """The result JSON as text; also written to ``path`` when given."""
        return self._alone.to_json(path)

    def save(self, folder: str | os.PathLike[str]) -> list[Path]:
        """Write ``requests.parquet``, ``result.json`` and the pictures into ``folder``; returns their paths."""
        return self._alone.save(folder)

    def __repr__(self) -> str:
        return repr(self._alone)


def simulate(
    trace: TraceLike,
    topology: TopologyLike,
    *,
    slo: SloLike = None,
    seed: int = 0,
    arrivals: str | Arrivals = "trace",
    warmup_s: float = 0.0,
    overrides: Iterable[str] = (),
    faults: str | None = None,
    log_steps: bool = False,
    limits: Limits | None = None,
    progress: Progress | None = None,
) -> Result:
    """Offer ``trace`` to ``topology`` and tell when each token came.

    ``trace``: a path, the name of a shipped trace, a Trace, or a DataFrame with the native columns. ``topology``: a
    path, a shipped name, a mapping, or a Topology; ``overrides`` change it (``path.to.key=value``). ``slo``: targets,
    as ``"ttft=2s,tpot=50ms"`` or ``SLO(ttft_s=2)``. ``arrivals``: ``trace``, ``poisson:4``, ``gamma:4:2``,
    ``closed:16`` or ``at-once``. ``warmup_s`` is simulated, not counted. ``faults``: a file of them (docs/faults.md).
    ``log_steps``: keep every batch, for ``timeline``. ``limits``: stop after so much time or memory, with what was
    simulated by then. Same arguments, same result, to the byte (unless a limit is reached).

    Raises InputError (TraceError, TopologyError) for anything that cannot be used, before the clock starts.
    """
    options: dict[str, Any] = {"slo": slo, "seed": seed, "arrivals": arrivals, "warmup_s": warmup_s}
    options |= {"overrides": overrides, "faults": faults, "log_steps": log_steps, "limits": limits}
    return next(each(trace, [topology], progress=progress, **options))


def compare(
    trace: TraceLike,
    topologies: Sequence[TopologyLike],
    *,
    slo: SloLike = None,
    seed: int = 0,
    arrivals: str | Arrivals = "trace",
    warmup_s: float = 0.0,
    overrides: Iterable[str] = (),
    faults: str | None = None,
    log_steps: bool = False,
    limits: Limits | None = None,
    progress: Progress | None = None,
) -> Comparison:
    """Offer the same requests at the same times to several topologies; arguments as for ``simulate``."""
    if isinstance(topologies, str | os.PathLike | Mapping | Topology):
        raise InputError("compare: topologies is a list; write compare(trace, [one, another])")
    if not topologies:
        raise InputError("compare: the list of topologies is empty; give one or more")
    options: dict[str, Any] = {"slo": slo, "seed": seed, "arrivals": arrivals, "warmup_s": warmup_s}
    options |= {"overrides": overrides, "faults": faults, "log_steps": log_steps, "limits": limits}
    return Comparison(tuple(each(trace, topologies, progress=progress, **options)))


def each(
    trace: TraceLike,
    topologies: Sequence[TopologyLike],
    *,
    slo: SloLike = None,
    seed: int = 0,
    arrivals: str | Arrivals = "trace",
    warmup_s: float = 0.0,
    overrides: Iterable[str] = (),
    faults: str | None = None,
    load: Mapping[str, Any] | None = None,
    log_steps: bool = False,
    limits: Limits | None = None,
    progress: Progress | None = None,
    tell: Callable[[str], None] | None = None,
) -> Iterator[Result]:
    """The results one by one, as they are finished. All input is read and checked before the first run starts.

    ``tell`` is called with a line for people, where there is one; without it, the line goes to stderr.
    """
    targets, overrides = SLO.of(slo), tuple(overrides)
    _check_plain(seed, warmup_s)
    how = arrivals if isinstance(arrivals, Arrivals) else parse_arrivals(arrivals, "arrivals")
    loaded = [load_topology(_plain_path(topology), overrides) for topology in topologies]
    loaded = [topology if faults is None else with_faults(topology, faults) for topology in loaded]
    names = distinct_names([topology.name for topology in loaded])
    loaded = [t if t.name == n else load_topology(t, name=n) for t, n in zip(loaded, names, strict=True)]
    plans = [assemble(topology) for topology in loaded]
    read = _trace(trace, how)
    _check_warmup(apply_arrivals(read, how, seed), how, warmup_s)
    if log_steps:
        _check_steps(read)
    runs = _runs(
        read,
        plans,
        how,
        Terms(targets, seed, float(warmup_s), load or {}, overrides, log_steps, limits or Limits()),
        progress,
    )
    return runs if all(ready(plan) for plan in plans) else _after_a_word(runs, tell or _to_stderr)


def _after_a_word(runs: Iterator[Result], tell: Callable[[str], None]) -> Iterator[Result]:
    tell(COMPILING)
    yield from runs


def _to_stderr(text: str) -> None:
    print(text, file=sys.stderr)


def _runs(
    trace: Trace, plans: Sequence[ClusterPlan], arrivals: Arrivals, terms: Terms, progress: Progress | None
) -> Iterator[Result]:
    for plan in plans:
        done = run_cluster(plan, trace, arrivals, terms, progress)
        _check_something_fits(done)
        yield Result(dataclasses.replace(done, arrivals=str(arrivals)), terms, plan)


def run_cluster(
    plan: ClusterPlan, trace: Trace, arrivals: Arrivals, terms: Terms, progress: Progress | None
) -> RunResult:
    """The one place that starts a simulation."""
    promised = (part.targets() for part in plan.topology.tenants.values())
    gaps = terms.slo.needs_gaps or any("itl_p99" in targets for targets in promised)
    options = RunOptions(logging=terms.log_steps, slo_itl=gaps, progress=progress, limits=terms.limits)
    return run_plan(plan, trace, arrivals, seed=terms.seed, options=options)


def _check_steps(trace: Trace) -> None:
    """Every token of every request is written down for a timeline: refuse what would fill the memory."""
    tokens = int(trace.output_tokens.sum())
    if tokens > MOST_ENTRIES:
        raise InputError(
            f"timeline: {trace.source} asks for {tokens:,} tokens, and each is written down; allowed: up to "
            f"{MOST_ENTRIES:,}; take less of the trace (--limit, --duration)"
        )


def _plain_path(topology: TopologyLike) -> Topology | str | Mapping[str, Any]:
    return os.fspath(topology) if isinstance(topology, os.PathLike) else topology


def _check_plain(seed: object, warmup_s: object) -> None:
    if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
        raise InputError(f"seed: {seed!r}; allowed: whole numbers from 0")
    if isinstance(warmup_s, bool) or not isinstance(warmup_s, int | float) or not 0 <= warmup_s < float("inf"):
        raise InputError(f"warmup: {warmup_s!r}; allowed: seconds from 0")


def _check_warmup(trace: Trace, arrivals: Arrivals, warmup_s: float) -> None:
    """Where arrivals are known beforehand, a warm-up that swallows them all is refused beforehand."""
    if arrivals.kind != "closed" and warmup_s > trace.arrival_s[-1] and not trace.follows_session().any():
        last = float(trace.arrival_s[-1])
        raise InputError(f"warmup: {warmup_s:g} s leaves no request to count; the last one arrives at {last:.6g} s")


def _check_something_fits(run: RunResult) -> None:
    """A topology that rejects every request is bad input, not a result."""
    record = run.record
    if len(record) and (record.state == REJECTED).all():
        code = int(record.reason[0])
        why = run.record.reasons[code] if 0 <= code < len(record.reasons) else "no reason given"
        raise InputError(f"{run.topology.name}: none of the {len(record):,} requests can be served: {why}")


def _trace(trace: TraceLike, arrivals: Arrivals) -> Trace:
    if isinstance(trace, Trace):
        return trace
    raw = arrivals.kind == "trace-raw"
    if not isinstance(trace, pd.DataFrame):
        return load_trace(trace, raw_arrivals=raw)
    with tempfile.TemporaryDirectory() as folder:  # the readers' checks, for a table too
        path = Path(folder) / "DataFrame.parquet"
        trace.to_parquet(path, index=False)
        return load_trace(path, raw_arrivals=raw).with_(name="DataFrame", source="DataFrame")
