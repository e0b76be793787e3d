"""``simulate validate``: the simulator against what real systems did."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence

from simulator.commands.options import json_target
from simulator.errors import InputError
from simulator.files import dumps, output_file, write_text
from simulator.metrics.wording import count
from simulator.metrics.wording import target as target_text
from simulator.report.terminal import plain_table, show_table
from simulator.validation.scheduler import TOLERANCE_S, SchedulerReport, validate


def scheduler(folders: Sequence[str], *, steps: bool, json: str | None) -> int:
    """Exact cases of engines' schedulers; exit code 1 where one differs."""
    target = json_target(json)
    if not folders:
        raise InputError("validate scheduler: name at least one folder of cases")
    if target not in (None, "-"):
        output_file(str(target), "--json")
    report = validate(list(folders), steps=steps)
    text = dumps({"schema": 1, **report.to_dict()})
    if target not in (None, "-"):
        write_text(output_file(str(target), "--json"), text)
    if target == "-":
        sys.stdout.write(text)
    else:
        _print(report)
    return 0 if report.ok else 1


def _print(report: SchedulerReport) -> None:
    from rich.console import Console
    from rich.text import Text

    table = plain_table()
    table.add_column("case", no_wrap=True)
    table.add_column("engine", no_wrap=True)
    for name in ("requests", "largest error", "preemptions", "cache", ""):
        table.add_column(name, justify="right", no_wrap=True)
    for case in report.cases:
        off = [
            f"{count(number)} differ" if number else "same"
            for number in (case.preemption_mismatches, case.cache_mismatches)
        ]
        outcome = Text("exact", style="green") if case.ok else Text("differs", style="bold red")
        table.add_row(case.name, case.engine, count(case.requests), _error(case.max_error_s), *off, outcome)
    console = Console(file=sys.stdout, highlight=False, emoji=False)
    show_table(console, table)
    for case in report.cases:
        if case.first_difference:
            console.print(Text(f"{case.name}: {case.first_difference}"), soft_wrap=True)
    exact = sum(case.ok for case in report.cases)
    console.print(Text(f"{exact} of {len(report.cases)} cases exact (token times within {target_text(TOLERANCE_S)})"))


def _error(value: float) -> str:
    return f"{value:.1e} s" if math.isfinite(value) else "no answer"
