"""``simulate plan``: which cluster, and whether disaggregation pays."""

from __future__ import annotations

import sys
import textwrap
from dataclasses import dataclass
from typing import Annotated, Any

from cyclopts import Parameter

from simulator.commands.options import json_target
from simulator.commands.talk import Talk

#: Pruned candidates that are printed; all are in the JSON.
_SHOWN_PRUNED = 8
_PROSE_WIDTH = 100


@dataclass(frozen=True)
class PlanOptions:
    """Everything but the spec; see ``docs/planning.md``."""

    jobs: Annotated[int, Parameter(help="processes on this machine; 0: one a core")] = 0
    executor: Annotated[str | None, Parameter(help="local, or dask:tcp://HOST:8786")] = None
    out: Annotated[str | None, Parameter(help="folder for plan.json and the files that start the cluster")] = None
    json: Annotated[
        str | None, Parameter(help="write the result as JSON to a file, or - for stdout", allow_leading_hyphen=True)
    ] = None
    quiet: Annotated[bool, Parameter(help="nothing on stderr", negative=())] = False


def plan(spec: str, options: PlanOptions) -> int:
    """Answer the spec, print and write what was asked for; returns the exit code."""
    from simulator.files import output_file, output_folder
    from simulator.planning.plan import plan as make_plan

    target = json_target(options.json)
    if target not in (None, "-"):
        output_file(str(target), "--json")
    if options.out is not None:
        output_folder(options.out)
    talk = Talk(options.quiet)
    with talk.saying("trying") as said:
        found = make_plan(spec, jobs=options.jobs, executor=options.executor, said=said)
    talk.warnings(found.document["warnings"])
    if target not in (None, "-"):
        found.to_json(str(target))
        talk.notes([f"wrote {target}"])
    if options.out is not None:
        paths = found.save(options.out)
        talk.notes([f"wrote {', '.join(path.name for path in paths)} to {options.out}"])
    if target == "-":
        sys.stdout.write(found.to_json())
    else:
        _print(found)
    sys.stdout.flush()
    return 0


def _print(found: Any) -> None:
    from rich.console import Console
    from rich.text import Text

    from simulator.report.terminal import show_table

    document = found.document
    console = Console(file=sys.stdout, highlight=False, emoji=False)
    width = min(console.width, _PROSE_WIDTH) if console.is_terminal else _PROSE_WIDTH
    console.print(Text(textwrap.fill(found.verdict, width)), soft_wrap=True)
    console.print()
    show_table(console, _candidates(document))
    console.print(Text("* on the Pareto front of price against TTFT and TPOT (p99)", style="dim"), soft_wrap=True)
    if document["sensitivity"]:
        console.print()
        console.print(Text("What if (disaggregated over colocated; above 1 it pays):", style="bold"), soft_wrap=True)
        show_table(console, _sensitivity(document))
    if document["pruned"]:
        console.print()
        console.print(Text("Left out:", style="bold"), soft_wrap=True)
        for row in document["pruned"][:_SHOWN_PRUNED]:
            console.print(Text(f"  {row['candidate']}: {row['reason']}"), soft_wrap=True)
        more = len(document["pruned"]) - _SHOWN_PRUNED
        if more > 0:
            console.print(Text(f"  and {more} more (--json has them)"), soft_wrap=True)
    for name, text in found.launch.items():
        console.print()
        console.print(Text(f"{name}:", style="bold"), soft_wrap=True)
        console.print(Text(text.rstrip()), soft_wrap=True)


def _candidates(document: dict[str, Any]) -> Any:
    from simulator.metrics.wording import percent, rate, seconds
    from simulator.report.terminal import plain_table

    table = plain_table()
    table.add_column("cluster", no_wrap=True)
    for name in ("GPUs", "USD/h", "requests/s", "95 % interval", "in target", "TTFT p99", "TPOT p99", "USD/M tokens"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in document["candidates"]:
        interval = row["interval"]
        table.add_row(
            row["name"] + (" *" if row["pareto"] else ""),
            str(row["gpus"]),
            rate(row["usd_per_hour"]),
            rate(row["max_rate_requests_per_s"]),
            "–" if interval is None else f"{rate(interval[0])} to {rate(interval[1])}",
            percent(row["attainment"]),
            seconds(row["ttft_p99_s"]),
            seconds(row["tpot_p99_s"]),
            rate(row["usd_per_million_tokens"]),
        )
    return table


def _sensitivity(document: dict[str, Any]) -> Any:
    from simulator.metrics.wording import rate
    from simulator.report.terminal import plain_table

    table = plain_table()
    table.add_column("what", no_wrap=True)
    for name in ("times", "colocated", "disaggregated", "", "ratio"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in document["sensitivity"]:
        shown = [rate(row["colocated"]), rate(row["disaggregated"]), row["unit"], rate(row["ratio"])]
        table.add_row(row["factor"].replace("_", " "), f"{row['times']:g}", *shown)
    return table
