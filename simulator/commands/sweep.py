"""``simulate sweep``: many runs from one spec."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from simulator.commands.options import json_target
from simulator.commands.talk import Talk

#: Columns of the printed table: figure, heading, how it is written.
_SHOWN = (
    ("slo_attainment", "meet targets", "percent"),
    ("goodput_requests_per_s", "good req/s", "rate"),
    ("output_tokens_per_s", "out tokens/s", "rate"),
    ("ttft_p50_s", "TTFT p50", "seconds"),
    ("ttft_p99_s", "TTFT p99", "seconds"),
    ("tpot_p50_s", "TPOT p50", "seconds"),
    ("tpot_p99_s", "TPOT p99", "seconds"),
    ("usd_per_million_tokens", "USD/M tokens", "rate"),
    ("joules_per_token", "J/token", "rate"),
)


@dataclass(frozen=True)
class SweepOptions:
    """Everything but the spec; see ``docs/planning.md``."""

    jobs: Annotated[int, Parameter(help="processes on this machine; 0: one a core")] = 1
    executor: Annotated[str | None, Parameter(help="local, or dask:tcp://HOST:8786")] = None
    store: Annotated[
        str | None, Parameter(help="folder that keeps finished runs (SPEC.runs beside the spec), or none")
    ] = None
    out: Annotated[str | None, Parameter(help="write the table as Parquet to a file")] = None
    csv: Annotated[str | None, Parameter(help="write the table as CSV to a file")] = None
    json: Annotated[
        str | None, Parameter(help="write the result as JSON to a file, or - for stdout", allow_leading_hyphen=True)
    ] = None
    quiet: Annotated[bool, Parameter(help="no progress or notes on stderr", negative=())] = False


def sweep(spec: str, options: SweepOptions) -> int:
    """Do the sweep, print its table and write what was asked for; returns the exit code."""
    from simulator.files import output_file
    from simulator.planning.sweep import sweep as run_sweep

    target = json_target(options.json)
    for path, option in ((options.out, "--out"), (options.csv, "--csv"), (_file(target), "--json")):
        if path is not None:
            output_file(path, option)
    talk = Talk(options.quiet)
    store = options.store or str(Path(spec).with_suffix(".runs"))
    with talk.counting("runs") as progress:
        found = run_sweep(
            spec,
            jobs=options.jobs,
            executor=options.executor,
            store=None if options.store == "none" else store,
            progress=progress,
        )
    if found.found:
        talk.notes([f"{found.found} of {len(found.runs)} runs were in {store}"])
    if options.out is not None:
        found.to_parquet(options.out)
    if options.csv is not None:
        found.to_csv(options.csv)
    if _file(target) is not None:
        found.to_json(target)
    talk.notes(f"wrote {path}" for path in (options.out, options.csv, _file(target)) if path is not None)
    if target == "-":
        sys.stdout.write(found.to_json())
    else:
        _print(found)
    sys.stdout.flush()
    return 0


def _file(target: str | None) -> str | None:
    return None if target == "-" else target


def _print(found: Any) -> None:
    from rich.console import Console

    from simulator.report.terminal import plain_table, show_table

    axes = [axis for axis in found.axes if axis not in ("topology", "seed")]
    seeded = "seed" in found.axes
    shown = [column for column in _SHOWN if any(_value(row, column[0]) is not None for row in found.groups)]
    table = plain_table()
    for name in ("topology", *axes):
        table.add_column(name, no_wrap=True)
    for _, heading, _ in shown:
        table.add_column(heading, justify="right", no_wrap=True)
    for cells in _rows(found.groups if seeded else _alone(found), axes, shown):
        table.add_row(*cells)
    console = Console(file=sys.stdout, highlight=False, emoji=False)
    show_table(console, table)
    if seeded:
        console.print(f"means over {len(found.runs) // max(len(found.groups), 1)} seeds, 95 % intervals")


def _alone(found: Any) -> list[dict[str, Any]]:
    """Each run as a group of its own."""
    rows = found.table.astype(object).where(found.table.notna(), None).to_dict("records")
    return [
        {**row, "point": dict(run.point), "problem": run.outcome.problem}
        for row, run in zip(rows, found.runs, strict=True)
    ]


def _value(row: dict[str, Any], name: str) -> float | None:
    value = row.get(name)
    return value["mean"] if isinstance(value, dict) else value


def _rows(
    rows: Sequence[dict[str, Any]], axes: Sequence[str], shown: Sequence[tuple[str, str, str]]
) -> list[list[str]]:
    from simulator.metrics import wording

    cells = []
    for row in rows:
        line = [row["topology"], *(_axis(row["point"].get(axis)) for axis in axes)]
        for name, _, how in shown:
            write, value = getattr(wording, how), row.get(name)
            if isinstance(value, dict):
                half = None if value["low"] is None else (value["high"] - value["low"]) / 2
                spread = "" if half is None or math.isnan(half) else f" ± {write(half)}"
                line.append(f"{write(value['mean'])}{spread}")
            else:
                line.append("–" if value is None else write(value))
        cells.append(line if not row.get("problem") else [*line[: 1 + len(axes)], row["problem"]])
    return cells


def _axis(value: object) -> str:
    from simulator.planning.sweep_spec import shown

    return "" if value is None else str(shown(value))
