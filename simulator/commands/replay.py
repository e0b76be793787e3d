"""The main job: offer a trace to topologies, compare, print and write the result."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from simulator.api import Comparison, Result, each
from simulator.cluster.limits import Limits
from simulator.cluster.topology import topology_names
from simulator.commands.options import RunOptions, command_of, json_target, parse_columns, parse_levels, parse_seconds
from simulator.commands.talk import Bar, Talk
from simulator.errors import InputError, RunInterruptedError
from simulator.files import dumps, output_file, output_folder, write_text
from simulator.metrics.slo import SLO
from simulator.planning.around import BUDGET
from simulator.report.terminal import print_report
from simulator.units import GB
from simulator.workload.arrivals import Arrivals, parse_arrivals
from simulator.workload.load import load_trace
from simulator.workload.trace import Trace


@dataclass(frozen=True)
class _Job:
    """The options, read."""

    arrivals: Arrivals
    slo: SLO
    warmup_s: float
    json: str | None
    load: Mapping[str, Any]
    timeline_start_s: float
    limits: Limits
    report_levels: tuple[float, ...] | None


def replay(trace: str, options: RunOptions) -> int:
    """Run the main job; returns the exit code. Raises InputError before anything is simulated or written."""
    job, talk = _read(options), Talk(options.quiet)
    offered = _load(trace, options, job)
    talk.notes(offered.notes)
    bar = talk.bar()
    runs = each(
        offered,
        options.topology,
        slo=job.slo,
        seed=options.seed,
        arrivals=job.arrivals,
        warmup_s=job.warmup_s,
        overrides=options.change,
        faults=options.faults,
        load=job.load,
        log_steps=options.timeline is not None,
        limits=job.limits,
        progress=bar.callback,
        tell=lambda text: talk.notes([text]),
    )
    results, interrupted = _simulate(runs, options.topology, talk, bar)
    if results:
        found = Comparison(tuple(results))
        _hand_over(found, job, options, talk, interrupted=interrupted)
        if options.report is not None:
            _report(found, (trace, options), job, talk, interrupted=interrupted)
    if interrupted:
        kept = f"{len(results)} of {len(options.topology)} topologies finished and kept"
        raise RunInterruptedError(f"interrupted; {kept if results else 'nothing was finished'}")
    return 0


def _read(options: RunOptions) -> _Job:
    """Everything that can be refused without looking at the trace."""
    if not options.topology:
        known = ", ".join(topology_names())
        raise InputError(f"--topology is missing; give a YAML file, one of {known}, or MODEL/GPU/1p1d, once or more")
    arrivals = parse_arrivals(options.arrivals)
    if arrivals.kind not in ("trace", "trace-raw") and options.rate_scale != 1.0:
        raise InputError(f"--rate-scale has no effect with --arrivals {arrivals}; leave one of them out")
    target = json_target(options.json)
    if target not in (None, "-"):
        output_file(str(target), "--json")
    for name in ("timeline", "report"):
        if getattr(options, name) is not None:
            output_file(getattr(options, name), f"--{name}")
    levels = parse_levels(options.report_rates)
    if options.report is None and (levels or options.report_budget != BUDGET):
        raise InputError("--report-rates and --report-budget have no effect without --report PAGE.html")
    if options.report_budget < 0:
        raise InputError(f"--report-budget: {options.report_budget}; allowed: whole numbers from 0")
    if options.timeline_start is not None and options.timeline is None:
        raise InputError("--timeline-start has no effect without --timeline FILE.json")
    if options.out is not None:
        output_folder(options.out)
    load: dict[str, Any] = {"rate_scale": options.rate_scale, "limit": options.limit}
    load |= {f"{name}_s": parse_seconds(getattr(options, name), f"--{name}") for name in ("start", "duration")}
    timeline_start = parse_seconds(options.timeline_start, "--timeline-start") or 0.0
    slo = SLO() if options.slo is None else SLO.parse(options.slo)
    return _Job(
        arrivals,
        slo,
        parse_seconds(options.warmup, "--warmup") or 0.0,
        target,
        load,
        timeline_start,
        _limits(options),
        levels,
    )


def _limits(options: RunOptions) -> Limits:
    memory = options.max_memory_gb
    return Limits(options.max_seconds, None if memory is None else memory * GB)


def _load(trace: str, options: RunOptions, job: _Job) -> Trace:
    return load_trace(
        trace,
        columns=parse_columns(options.columns),
        limit=options.limit,
        start_s=job.load["start_s"],
        duration_s=job.load["duration_s"],
        rate_scale=options.rate_scale,
        raw_arrivals=job.arrivals.kind == "trace-raw",
        seed=options.seed,
    )


def _simulate(runs: Iterator[Result], names: Sequence[str], talk: Talk, bar: Bar) -> tuple[list[Result], bool]:
    """The results, and whether Ctrl-C came before the last: what was finished is kept."""
    results: list[Result] = []
    try:
        for name in names:
            with bar.doing(name):
                results.append(next(runs))
            talk.notes(results[-1].run.trace.notes)
            talk.warnings(f"{results[-1].name}: {text}" for text in results[-1].entry["warnings"])
    except KeyboardInterrupt:
        return results, True
    return results, False


def _hand_over(found: Comparison, job: _Job, options: RunOptions, talk: Talk, *, interrupted: bool) -> None:
    """Write what was asked for; stdout gets the table, or the JSON where that was asked for with ``-``."""
    document = {**found.document, "interrupted": True} if interrupted else found.document
    if options.out is not None:
        paths = found.save(options.out, document)
        talk.notes([f"wrote {', '.join(path.name for path in paths)} to {options.out}"])
    if job.json not in (None, "-"):
        write_text(output_file(str(job.json), "--json"), dumps(document))
        talk.notes([f"wrote {job.json}"])
    if options.timeline is not None:
        note = found.timeline(options.timeline, job.timeline_start_s)
        talk.notes([f"wrote {options.timeline}" + (f"; {note}" if note else "")])
    if job.json == "-":
        sys.stdout.write(dumps(document))
    else:
        print_report(document, sys.stdout)
    sys.stdout.flush()


def _report(found: Comparison, asked: tuple[str, RunOptions], job: _Job, talk: Talk, *, interrupted: bool) -> None:
    """The page comes last: what it simulates besides must not hold up the result."""
    trace, options = asked
    assert options.report is not None
    bar = talk.bar()
    with bar.doing("report"):
        budget = 0 if interrupted else options.report_budget
        besides = found.around(budget=budget, levels=job.report_levels, progress=bar.callback)
    document = {**found.document, "interrupted": True} if interrupted else found.document
    found.report(options.report, besides, document=document, command=command_of(trace, options))
    talk.notes([f"wrote {options.report}"])
