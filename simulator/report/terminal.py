"""The result as a table for people: topologies as columns, the best value of a row marked, the verdict below."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import IO, TYPE_CHECKING, Any

from simulator.metrics.slo import TARGETS
from simulator.metrics.summary import Entry
from simulator.metrics.wording import count, percent, rate, seconds, target
from simulator.report.rows import best_of_rows, rows

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

#: Prose is wrapped here where nobody says how wide the page is (a pipe, a file).
PROSE_WIDTH = 100
#: A topology's name is broken over lines beyond this.
_NAME_WIDTH = 20
_MARK = " *"


def render(document: Mapping[str, Any], *, width: int | None = None) -> str:
    """The whole report as plain text; never cut off, however narrow ``width`` is."""
    text = io.StringIO()
    print_report(document, text, width=width, plain=True)
    return text.getvalue()


def print_report(document: Mapping[str, Any], file: IO[str], *, width: int | None = None, plain: bool = False) -> None:
    """Print the report to ``file``: coloured where that is a terminal, plain text of full width where it is not."""
    from rich.console import Console
    from rich.text import Text

    terminal = False if plain else None
    console = Console(
        file=file, width=width, force_terminal=terminal, force_jupyter=False, highlight=False, emoji=False
    )
    page = width or (console.width if console.is_terminal else PROSE_WIDTH)
    _say(console, Text(headline(document), style="bold"), page)
    entries: Sequence[Entry] = document["topologies"]
    if not entries:
        return
    marked = {name: set(names) for name, names in best_of_rows(entries).items()}
    for group in _fitting(entries, page):
        console.print()
        show_table(console, _table(group, entries, marked))
    if len(entries) > 1:
        console.print(Text("* best of the row; values within 0.5 % share it", style="dim"), soft_wrap=True)
    for title, parts in _tenants(entries):
        console.print()
        console.print(Text(title, style="bold"), soft_wrap=True)
        show_table(console, parts)
    console.print()
    _say(console, Text(document["comparison"]["verdict"]), page)


def headline(document: Mapping[str, Any]) -> str:
    """Two lines: what was offered, and the targets."""
    trace, slo = document["trace"], document["slo"]
    offered = [f"{trace['name']}: {count(trace['requests'])} requests"]
    arrivals = trace.get("arrivals", "trace")
    if arrivals.startswith(("closed", "at-once")):
        offered.append(f"arrivals {arrivals}")
    elif trace["rate_requests_per_s"]:
        drawn = "" if arrivals.startswith("trace") else f" ({arrivals})"
        offered.append(f"{rate(trace['rate_requests_per_s'])} requests/s{drawn}")
    offered.append(
        f"input p50 {trace['input_tokens']['p50']:,.0f}, output p50 {trace['output_tokens']['p50']:,.0f} tokens"
    )
    if trace.get("warmup_s"):
        offered.append(f"the first {target(trace['warmup_s'])} not counted")
    wanted = [f"{label} {target(slo[f'{key}_s'])}" for key, label in TARGETS.items() if slo[f"{key}_s"] is not None]
    for tenant, own in slo.get("tenants", {}).items():
        held = [f"{label} {target(own[f'{key}_s'])}" for key, label in TARGETS.items() if own[f"{key}_s"] is not None]
        wanted.append(f"{tenant}: {' and '.join(held)}")
    return ", ".join(offered) + "\n" + (f"targets: {', '.join(wanted)}" if wanted else "no targets (--slo)")


def _say(console: Console, text: Any, page: int) -> None:
    """Prose, wrapped at the page's width but never cut."""
    for line in text.wrap(console, max(page, 20)):
        line.rstrip()
        console.print(line, soft_wrap=True)


def show_table(console: Console, table: Table) -> None:
    """A table at its own width: a pipe has no edge to cut it at."""
    from rich.measure import Measurement

    page = console.width
    needed = Measurement.get(console, console.options.update(width=10_000), table).maximum
    console.width = max(page, needed)  # rich would cut the table to the page
    console.print(table, width=max(needed, 1), soft_wrap=needed > page)
    console.width = page


def _fitting(entries: Sequence[Entry], page: int) -> Iterator[list[int]]:
    """Groups of topologies (by place) whose columns fit the page side by side; at least one a group."""
    table = rows(entries)
    label = max(len(row.label) for row in table) + 2
    group: list[int] = []
    used = label
    for place, entry in enumerate(entries):
        cells = max(len(line) for row in table for line in row.cell(entry).split("\n"))
        width = max(cells + len(_MARK), min(len(entry["name"]), _NAME_WIDTH)) + 2
        if group and used + width > page:
            yield group
            group, used = [], label
        group.append(place)
        used += width
    yield group


def _table(group: Sequence[int], entries: Sequence[Entry], marked: Mapping[str, set[str]]) -> Table:
    from rich.text import Text

    table = plain_table()
    table.add_column("", no_wrap=True)
    for place in group:
        name = entries[place]["name"]
        table.add_column(Text("\n".join(textwrap.wrap(name, _NAME_WIDTH)), style="bold"), justify="right", no_wrap=True)
    for row in rows(entries):
        if row.opens and table.row_count:
            table.add_section()
        cells = []
        for place in group:
            is_best = entries[place]["name"] in marked.get(row.metric, ())
            lines = row.cell(entries[place]).split("\n")
            text = "\n".join(line + (_MARK if is_best else " " * len(_MARK)) for line in lines)
            cells.append(Text(text, style="bold green" if is_best else ""))
        table.add_row(Text(row.label), *cells)
    return table


def plain_table() -> Table:
    """An empty table in the house's style: a rule under the heading, two blanks between columns."""
    from rich import box
    from rich.table import Table

    return Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0), header_style="")


def _tenants(entries: Sequence[Entry]) -> Iterator[tuple[str, Table]]:
    for entry in entries:
        if "tenants" not in entry:
            continue
        table = plain_table()
        for name in ("tenant", "requests", "completed", "meet targets", "TTFT p50", "TTFT p99", "TPOT p50", "TPOT p99"):
            table.add_column(name, justify="left" if name == "tenant" else "right", no_wrap=True)
        for name, figures in entry["tenants"].items():
            latencies = [seconds(figures[f"{key}_s"][spread]) for key in ("ttft", "tpot") for spread in ("p50", "p99")]
            table.add_row(
                name,
                count(figures["requests"]),
                count(figures["completed"]),
                percent(figures["slo_attainment"]),
                *latencies,
            )
        yield f"{entry['name']} by tenant", table
