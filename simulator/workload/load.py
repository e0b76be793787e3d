"""Reads a trace of any known format into columns: recognise, read block by block, put in order, cut to the window."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path

from simulator.errors import TraceError
from simulator.workload import servegen
from simulator.workload.blocks import Batch, csv_batch, csv_header, csv_value, json_batch, json_object
from simulator.workload.fields import NUMBER, TIME, parse_time_ns
from simulator.workload.formats import Format, detect
from simulator.workload.gather import Gathered
from simulator.workload.parquet import parquet_batches
from simulator.workload.sources import PARQUET_MAGIC, LineBlock, find_trace, first_bytes, line_blocks
from simulator.workload.trace import Trace
from simulator.workload.window import Window


def load_trace(
    path: str | os.PathLike[str],
    *,
    columns: Mapping[str, str] | None = None,
    limit: int | None = None,
    start_s: float | None = None,
    duration_s: float | None = None,
    rate_scale: float = 1.0,
    raw_arrivals: bool = False,
    seed: int = 0,
) -> Trace:
    """Read a trace; the format is told from the content, see ``docs/traces.md``.

    ``path``: a file, a ServeGen folder, or the short name of a shipped trace (``chat``). ``columns`` maps native
    fields to the names in the file, for formats not known here. ``start_s`` and ``duration_s`` cut arrivals and make
    the start 0, then ``limit`` keeps the first requests, then ``rate_scale`` divides the gaps (for ServeGen it
    multiplies the clients' rates, which is the same before time is cut into windows). ``raw_arrivals`` keeps coarse
    time stamps as they are. ``seed`` matters for ServeGen only, whose files are statistics.

    Raises ``TraceError`` of one line naming file, line and field. What was done to the file is in ``Trace.notes``.
    """
    try:
        return _load(path, columns, Window(limit, start_s, duration_s, rate_scale), raw_arrivals, seed)
    except TraceError as error:
        line = "".join(c if c.isprintable() else "?" for c in str(error))  # names in a file may hold any character
        if line != str(error):
            raise TraceError(line) from None
        raise


def _load(
    path: str | os.PathLike[str], columns: Mapping[str, str] | None, window: Window, raw_arrivals: bool, seed: int
) -> Trace:
    file = find_trace(path)
    if servegen.is_servegen(file):
        if columns:
            raise TraceError(f"{file}: --columns does not apply to ServeGen data")
        return servegen.load(file, window, seed)
    chosen, batches = _open(file, columns)
    gathered = Gathered(file, chosen)
    for batch in batches:
        gathered.add(batch)
        if gathered.covers(window):
            break
    return window.apply(gathered.finish(raw_arrivals))


def _open(file: Path, columns: Mapping[str, str] | None) -> tuple[Format, Iterator[Batch]]:
    if first_bytes(file, 4) == PARQUET_MAGIC:
        return parquet_batches(file, columns)
    blocks = line_blocks(file)
    first = next(blocks, None)
    while first is not None and not first.data.strip():
        first = next(blocks, None)
    if first is None:
        raise TraceError(f"{file}: is empty; at least one request is needed")
    if first.data.lstrip()[:1] in (b"{", b"["):
        return _open_json(file, first, blocks, columns)
    return _open_csv(file, first, blocks, columns)


def _open_json(
    file: Path, first: LineBlock, blocks: Iterator[LineBlock], columns: Mapping[str, str] | None
) -> tuple[Format, Iterator[Batch]]:
    lines = first.data.split(b"\n")
    at = next(i for i, line in enumerate(lines) if line.strip())
    place = f"{file}:{first.first_line + at}"
    chosen = detect(list(json_object(lines[at], place)), place, columns, "JSON")
    rules = chosen.rules()

    def batches() -> Iterator[Batch]:
        for block in _chain(first, blocks):
            batch = json_batch(block, rules, str(file))
            if batch is not None:
                yield batch

    return chosen, batches()


def _open_csv(
    file: Path, first: LineBlock, blocks: Iterator[LineBlock], columns: Mapping[str, str] | None
) -> tuple[Format, Iterator[Batch]]:
    header, delimiter, rest = csv_header(first, str(file))
    chosen = detect(header, f"{file}:{rest.first_line - 1}", columns, "CSV")
    if chosen.label == "custom":
        chosen = _sniff_times(chosen, header, delimiter, rest)
    rules = chosen.rules()

    def batches() -> Iterator[Batch]:
        for block in _chain(rest, blocks):
            batch = csv_batch(block, rules, str(file), header, delimiter)
            if batch is not None:
                extra = dict.fromkeys(set(header) - {r.source for r in rules}, rest.first_line - 1)
                yield Batch(batch.columns, batch.lines, extra)

    return chosen, batches()


def _sniff_times(chosen: Format, header: list[str], delimiter: str, rest: LineBlock) -> Format:
    """Whether the arrivals of a CSV of unknown make are dates, by its first row."""
    row = next((line for line in rest.data.decode().split("\n") if line.strip()), "").strip("\r").split(delimiter)
    at = header.index(chosen.names["arrival_s"])
    value = csv_value(row[at].strip('"'), NUMBER) if at < len(row) else None
    dated = isinstance(value, str) and parse_time_ns(value) is not None
    return Format(**{**chosen.__dict__, "arrives": TIME, "log": True}) if dated else chosen


def _chain(first: LineBlock, rest: Iterator[LineBlock]) -> Iterator[LineBlock]:
    yield first
    yield from rest
