"""``simulate validate serving`` and ``simulate validate workloads``: the simulator against measured runs."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median, quantiles
from typing import Any

from simulator.commands.options import json_target
from simulator.errors import InputError
from simulator.files import dumps, output_file, write_text
from simulator.report.terminal import plain_table, show_table
from simulator.validation.engine_steps import KINDS, StepsReport, validate_steps
from simulator.validation.error_table import build_error_table
from simulator.validation.serving import GroupErrors, ServingReport, validate_serving
from simulator.validation.serving_runs import Outcome
from simulator.validation.workloads import METRICS, STATISTICS, WorkloadsReport, validate_workloads

WORST = 5


def serving(file: str, *, sample: int | None, seed: int, jobs: int, json: str | None) -> int:
    """Measured closed-loop serving runs. Raises InputError for a file that cannot be read."""
    target = _target(json)
    _at_least_one({"--sample": sample, "--jobs": jobs})
    report = validate_serving(file, sample=sample, seed=seed, jobs=jobs, progress=_count)
    _hand_over(report.to_dict(), target)
    if target != "-":
        _print_serving(report)
    return 0


def _at_least_one(options: Mapping[str, int | None]) -> None:
    for name, value in options.items():
        if value is not None and value < 1:
            raise InputError(f"{name}: {value} is not allowed; allowed: whole numbers of 1 or more")


def workloads(folder: str, *, change: Sequence[str], draws: int, json: str | None) -> int:
    """Measured workloads, request by request. Raises InputError for a folder that cannot be read."""
    target = _target(json)
    _at_least_one({"--draws": draws})
    report = validate_workloads(folder, overrides=tuple(change), draws=draws)
    _hand_over(report.to_dict(), target)
    if target != "-":
        _print_workloads(report)
    return 0


def engine_steps(folder: str, *, change: Sequence[str], json: str | None) -> int:
    """Single steps and lone prompts. Raises InputError for a folder that cannot be read."""
    target = _target(json)
    report = validate_steps(folder, overrides=tuple(change))
    _hand_over(report.to_dict(), target)
    if target != "-":
        _print_steps(report)
    return 0


def errors(rows: str, *, workloads: str | None, out: str | None) -> int:
    """The table of model errors as YAML. Raises InputError for files that cannot be read."""
    target = None if out is None else output_file(out, "--out")
    text = build_error_table(Path(rows), None if workloads is None else Path(workloads))
    if target is None:
        sys.stdout.write(text)
    else:
        write_text(target, text)
    return 0


def _target(json: str | None) -> str | None:
    target = json_target(json)
    if target not in (None, "-"):
        output_file(str(target), "--json")
    return None if target is None else str(target)


def _hand_over(document: dict[str, Any], target: str | None) -> None:
    if target == "-":
        sys.stdout.write(dumps(document))
    elif target is not None:
        write_text(output_file(target, "--json"), dumps(document))


def _count(done: int, of: int) -> None:
    """Progress on a terminal; it vanishes in a pipe."""
    if sys.stderr.isatty():
        end = "\n" if done == of else ""
        print(f"\r{done} of {of} runs", end=end, file=sys.stderr, flush=True)


def _print_serving(report: ServingReport) -> None:
    from rich.console import Console
    from rich.text import Text

    console = Console(file=sys.stdout, highlight=False, emoji=False)
    table = plain_table()
    table.add_column("absolute error, %", no_wrap=True)
    for name in ("runs", "TTFT mean", "median", "bias", "TPOT mean", "median", "bias"):
        table.add_column(name, justify="right", no_wrap=True)
    _add(table, "all runs", report.overall())
    grouping = ""
    for group in report.groups():
        if group.grouping != grouping:
            grouping = group.grouping
            note = "" if grouping == "quality" else " (quality ok)"
            table.add_row(Text(f"by {grouping}{note}", style="bold"))
        _add(table, f"  {group.group}", group)
    show_table(console, table)
    for metric in METRICS:
        console.print(Text(f"furthest off in {metric.upper()}:"))
        for outcome in report.worst(metric, WORST):
            console.print(Text(f"  {_run(outcome)}: {_pair(outcome, metric)}"), soft_wrap=True)
    for reason, number in sorted(report.skipped.items(), key=lambda item: -item[1]):
        console.print(Text(f"skipped {number}: {reason}"), soft_wrap=True)
    for note in sorted({note for outcome in report.done for note in outcome.notes}):
        console.print(Text(note), soft_wrap=True)


def _add(table: Any, name: str, errors: GroupErrors) -> None:
    figures = [
        f"{getattr(errors, f'{metric}_{kind}_percent'):+.1f}"
        if kind == "bias"
        else f"{getattr(errors, f'{metric}_{kind}_percent'):.1f}"
        for metric in METRICS
        for kind in ("mape", "median_ape", "bias")
    ]
    table.add_row(name, str(errors.points), *figures)


def _run(outcome: Outcome) -> str:
    point = outcome.point
    shape = f"{point.input_tokens}/{point.output_tokens}, {point.concurrency} clients"
    return f"{point.point} {point.backend} {point.model} {point.system} {point.precision} {point.mode} {shape}"


def _pair(outcome: Outcome, metric: str) -> str:
    measured, found = getattr(outcome.point, f"{metric}_mean_ms"), getattr(outcome, f"{metric}_mean_ms")
    return f"measured {measured:.1f} ms, simulated {found:.1f} ms ({100 * outcome.error(metric):+.0f} %)"


def _print_workloads(report: WorkloadsReport) -> None:
    from rich.console import Console

    table = plain_table()
    table.add_column("simulated ms (error)", no_wrap=True)
    columns = [(metric, statistic) for metric in METRICS for statistic in STATISTICS]
    names = [f"{metric.upper()} {statistic}" for metric, statistic in columns]
    for name in names:
        table.add_column(name, justify="right", no_wrap=True)
    for result in report.results:
        cells = {
            f"{f.metric.upper()} {f.statistic}": f"{f.simulated_ms:.1f} ({f.error_percent:+.1f} %)"
            for f in result.figures
        }
        table.add_row(result.name, *(cells.get(name, "") for name in names))
    table.add_row("mean absolute error", *(f"{report.mean_error_percent(*column):.1f} %" for column in columns))
    scatter = [report.mean_scatter_percent(*column) for column in columns]
    if any(one > 0.0 for one in scatter):
        table.add_row("one run scatters by", *(f"{one:.1f} %" for one in scatter))
    show_table(Console(file=sys.stdout, highlight=False, emoji=False), table)


def _print_steps(report: StepsReport) -> None:
    from rich.console import Console
    from rich.text import Text

    console = Console(file=sys.stdout, highlight=False, emoji=False)
    table = plain_table()
    table.add_column("absolute error, %", no_wrap=True)
    for name in ("rows", "median", "90th", "worst"):
        table.add_column(name, justify="right", no_wrap=True)
    for kind in (None, *KINDS):
        off = report.errors(kind)
        if off:
            ninth = quantiles(off, n=10)[8] if len(off) > 1 else off[0]
            cells = [f"{value:.1f}" for value in (median(off), ninth, max(off))]
            table.add_row("all rows" if kind is None else f"  {kind.replace('_', ' ')}", str(len(off)), *cells)
    show_table(console, table)
    console.print(Text("furthest off:"))
    for row in sorted(report.rows, key=lambda row: -abs(row.error_percent))[:WORST]:
        shape = f"batch {row.batch}, context {row.context_tokens}, prompt {row.prefill_tokens}"
        figures = f"measured {row.measured_ms:.2f} ms, simulated {row.simulated_ms:.2f} ms ({row.error_percent:+.1f} %)"
        console.print(Text(f"  {row.stage} {row.kind.replace('_', ' ')}, {shape}: {figures}"), soft_wrap=True)
    for stage, count in report.skipped.items():
        console.print(Text(f"skipped {count} rows of {stage}: workloads.csv does not describe it"), soft_wrap=True)
