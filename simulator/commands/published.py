"""``simulate validate published``: figures that systems' authors published against what is simulated."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from simulator.commands.options import json_target
from simulator.commands.talk import Talk
from simulator.files import dumps, output_file, write_text
from simulator.metrics.wording import figures
from simulator.report.terminal import plain_table, show_table
from simulator.validation.published import Check, PublishedReport, validate_published


def published(only: Sequence[str], *, json: str | None) -> int:
    """Print the table, or write it as JSON; exit code 1 where a figure is missed. Raises InputError."""
    target = json_target(json)
    if target not in (None, "-"):
        output_file(str(target), "--json")
    with Talk().counting("figures") as count:
        report = validate_published(only, progress=count)
    text = dumps({"schema": 1, **report.to_dict()})
    if target == "-":
        sys.stdout.write(text)
        return 0 if report.ok else 1
    if target is not None:
        write_text(output_file(str(target), "--json"), text)
    _print(report)
    return 0 if report.ok else 1


def _print(report: PublishedReport) -> None:
    from rich.console import Console
    from rich.text import Text

    console = Console(file=sys.stdout, highlight=False, emoji=False)
    table = plain_table()
    table.add_column("figure", no_wrap=True)
    table.add_column("kind", no_wrap=True)
    for name in ("published", "simulated", "unit", "error", "allowed", ""):
        table.add_column(name, justify="left" if name == "unit" else "right", no_wrap=True)
    for check in report.checks:
        table.add_row(*_cells(check))
    show_table(console, table)
    missed = [check for check in report.checks if check.ok is False]
    if missed:
        console.print(Text("missed:", style="bold red"))
    for check in missed:
        why = f"; {check.row.note}" if check.row.note else ""
        console.print(Text(f"  {check.row.id}: {check.row.setup}{why}"), soft_wrap=True)
    for reason in dict.fromkeys(check.skipped for check in report.checks if check.skipped):
        number = sum(check.skipped == reason for check in report.checks)
        console.print(Text(f"skipped {number}: {reason}"), soft_wrap=True)
    for kind in ("predicted", "fitted"):
        met, missing, skipped = report.counted(kind)
        left = f", {skipped} skipped" if skipped else ""
        console.print(Text(f"{kind}: {met} of {met + missing} within their tolerance{left}"))


def _cells(check: Check) -> list[Any]:
    from rich.text import Text

    row, unit = check.row, "points" if check.row.in_points else "%"
    outcome = {
        True: Text("ok", style="green"),
        False: Text("missed", style="bold red"),
        None: Text("skipped", style="yellow"),
    }[check.ok]
    simulated = "" if check.simulated is None else figures(check.simulated)
    error = "" if check.error is None else f"{check.error:+.1f} {unit}"
    allowed = f"{row.tolerance:g} {unit}"
    return [row.id, row.kind, figures(row.published), simulated, row.unit, error, allowed, outcome]
