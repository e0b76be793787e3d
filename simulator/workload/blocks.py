"""Blocks of lines, JSON or CSV, turned into columns: a compiled parser first, a careful one where that fails."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.json as pa_json
from numpy.typing import NDArray

from simulator.errors import TraceError, nearest
from simulator.workload.fields import (
    COUNT,
    HASHES,
    LENGTH,
    NUMBER,
    TEXT,
    TIME,
    WHOLE,
    Column,
    Rule,
    fast_column,
    slow_column,
)
from simulator.workload.formats import KNOWN, misspelt
from simulator.workload.sources import LineBlock

_ARROW_TYPES = {
    NUMBER: pa.float64(),
    TIME: pa.timestamp("ns"),
    LENGTH: pa.int64(),
    COUNT: pa.int64(),
    WHOLE: pa.int64(),
    HASHES: pa.list_(pa.int64()),
}
DELIMITERS = (",", "\t", ";")
_JSON_KEY = re.compile(rb'"([^"\\]+)"\s*:')
_BLANK_STARTS = (b"\n\n", b"\n\r", b"\n ", b"\n\t")


@dataclass(frozen=True)
class Batch:
    """Some rows as columns by native field name, with the line (or row) each came from.

    ``extra``: fields of the file that are not read, and the line where each appears first.
    """

    columns: dict[str, Column]
    lines: NDArray[np.int64]
    extra: dict[str, int] = field(default_factory=dict)


def json_batch(block: LineBlock, rules: list[Rule], source: str) -> Batch | None:
    """Rows of a block of JSON lines; ``None`` for a block of blank lines."""
    lines = _line_numbers(block)
    if len(lines) == 0:
        return None
    for unread in ("infer", "ignore"):
        table = _parse_json(block, rules, unread)
        if table is not None and table.num_rows == len(lines):
            batch = _from_table(table, rules, lines)
            if batch is not None and (unread == "infer" or _note_unread(block, rules, batch)):
                return batch
    return _slow_batch(list(_json_rows(block, source)), rules, source)


def _note_unread(block: LineBlock, rules: list[Rule], batch: Batch) -> bool:
    """Name the fields a parse skipped, those of nested objects too; False if one looks like a misspelt native field."""
    known = {r.source for r in rules}
    strange = {key.decode() for key in set(_JSON_KEY.findall(block.data))} - known
    batch.extra.update(dict.fromkeys(strange, block.first_line))
    return not any(misspelt(name) for name in strange)


def _parse_json(block: LineBlock, rules: list[Rule], unread: str) -> pa.Table | None:
    """Columns by a compiled parser. ``unread`` fields are parsed too (infer), or skipped (ignore) where their values
    are of several types, which a column cannot hold; names are then taken for text."""
    types = [(r.source, _ARROW_TYPES.get(r.kind, pa.string())) for r in rules]
    schema = pa.schema([t for t, r in zip(types, rules, strict=True) if r.kind != TEXT or unread == "ignore"])
    try:
        return pa_json.read_json(
            pa.BufferReader(block.data),
            read_options=pa_json.ReadOptions(use_threads=False, block_size=len(block.data) + 1),
            parse_options=pa_json.ParseOptions(explicit_schema=schema, unexpected_field_behavior=unread),
        )
    except pa.ArrowException:
        return None


def _from_table(table: pa.Table, rules: list[Rule], lines: NDArray[np.int64]) -> Batch | None:
    columns: dict[str, Column] = {}
    have = set(table.column_names)
    for rule in rules:
        if rule.source not in have:
            if rule.required:
                return None
            continue
        data = table.column(rule.source)
        if data.null_count == len(data) and not rule.required:
            continue
        column = fast_column(rule, data)
        if column is None:
            return None
        columns[rule.native] = column
    strange = have - {r.source for r in rules}
    return Batch(columns, lines, {n: int(lines[np.argmax(table.column(n).is_valid().to_numpy())]) for n in strange})


def _slow_batch(rows: list[tuple[int, dict[str, Any]]], rules: list[Rule], source: str) -> Batch:
    """Python values, row by row: where something is wrong this finds the first line and field and says so."""
    places = [f"{source}:{line}" for line, _ in rows]
    known = {r.source for r in rules}
    extra: dict[str, int] = {}
    for place, (line, row) in zip(places, rows, strict=True):
        strange = row.keys() - known
        for name in strange:
            extra.setdefault(name, line)
        for rule in rules:
            if rule.required and rule.source not in row:
                raise TraceError(f"{place}: field '{rule.source}' is missing{nearest(rule.source, strange)}")
    present = [r for r in rules if r.required or any(row.get(r.source) is not None for _, row in rows)]
    columns = {r.native: slow_column(r, [row.get(r.source) for _, row in rows], places) for r in present}
    return Batch(columns, np.array([line for line, _ in rows], dtype=np.int64), extra)


def _line_numbers(block: LineBlock) -> NDArray[np.int64]:
    """Numbers of the lines of a block that are not blank."""
    numbers = np.arange(block.first_line, block.first_line + block.lines, dtype=np.int64)
    if not block.data[:1].isspace() and not any(pair in block.data for pair in _BLANK_STARTS):
        return numbers
    return numbers[[bool(line.strip()) for line in block.data.split(b"\n")[:-1]]]


def _json_rows(block: LineBlock, source: str) -> Iterator[tuple[int, dict[str, Any]]]:
    for offset, line in enumerate(block.data.split(b"\n")[:-1]):
        if line.strip():
            yield block.first_line + offset, json_object(line, f"{source}:{block.first_line + offset}")


def json_object(line: bytes, place: str) -> dict[str, Any]:
    """One JSON object of one line."""
    try:
        value = json.loads(line, object_pairs_hook=lambda pairs: _pairs(pairs, place))
    except json.JSONDecodeError as error:
        raise TraceError(f"{place}: not valid JSON: {error.msg} at column {error.colno}") from None
    except (RecursionError, ValueError):
        raise TraceError(f"{place}: not usable JSON: nested too deep, or a number of too many digits") from None
    if isinstance(value, list):
        raise TraceError(f"{place}: holds a JSON list; write one object a line")
    if not isinstance(value, dict):
        raise TraceError(f"{place}: holds {str(value)[:40]!r}; allowed: one JSON object a line")
    return value


def _pairs(pairs: Iterable[tuple[str, Any]], place: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise TraceError(f"{place}: field '{key}' is given twice; once is allowed")
        found[key] = value
    return found


def csv_header(block: LineBlock, source: str) -> tuple[list[str], str, LineBlock]:
    """Column names, the delimiter, and the block without its header (and blank lines before it)."""
    lines = _line_numbers(block)
    at = int(lines[0]) - block.first_line
    parts = block.data.split(b"\n", at + 1)
    header = parts[at].decode().strip("\r")
    delimiter = max(DELIMITERS, key=header.count)
    try:
        names = [name.strip() for name in next(csv.reader([header], delimiter=delimiter, strict=True))]
    except (csv.Error, StopIteration):
        raise TraceError(f"{source}:{lines[0]}: not a CSV header, and not JSON; known: {KNOWN}") from None
    return names, delimiter, LineBlock(int(lines[0]) + 1, parts[at + 1] if len(parts) > at + 1 else b"")


def csv_batch(block: LineBlock, rules: list[Rule], source: str, header: list[str], delimiter: str) -> Batch | None:
    """Rows of a block of CSV lines (values do not hold newlines); ``None`` for a block of blank lines."""
    lines = _line_numbers(block)
    if len(lines) == 0:
        return None
    table = _parse_csv(block, rules, header, delimiter)
    if table is not None and table.num_rows == len(lines):
        batch = _from_table(table, rules, lines)
        if batch is not None:
            return batch
    return _slow_batch(list(_csv_rows(block, rules, source, header, delimiter)), rules, source)


def _parse_csv(block: LineBlock, rules: list[Rule], header: list[str], delimiter: str) -> pa.Table | None:
    types = {r.source: _ARROW_TYPES.get(r.kind, pa.string()) for r in rules}
    try:
        return pa_csv.read_csv(
            pa.BufferReader(block.data),
            read_options=pa_csv.ReadOptions(use_threads=False, block_size=len(block.data) + 1, column_names=header),
            parse_options=pa_csv.ParseOptions(delimiter=delimiter),
            convert_options=pa_csv.ConvertOptions(
                column_types=types,
                include_columns=list(types),
                null_values=[""],
                strings_can_be_null=True,
            ),
        )
    except pa.ArrowException:
        return None


def _csv_rows(
    block: LineBlock, rules: list[Rule], source: str, header: list[str], delimiter: str
) -> Iterator[tuple[int, dict[str, Any]]]:
    kinds = {r.source: r.kind for r in rules}
    for offset, line in enumerate(block.data.decode().split("\n")[:-1]):
        number = block.first_line + offset
        if not line.strip():
            continue
        try:
            values = next(csv.reader([line.rstrip("\r")], delimiter=delimiter, strict=True))
        except (csv.Error, StopIteration):
            raise TraceError(f"{source}:{number}: not a CSV line; is a quotation mark left open?") from None
        if len(values) != len(header):
            raise TraceError(f"{source}:{number}: has {len(values)} values, but the header names {len(header)}")
        yield number, {n: csv_value(v, kinds[n]) for n, v in zip(header, values, strict=True) if n in kinds}


def csv_value(text: str, kind: str) -> Any:
    """A CSV value as the number it spells; text stays text, and nothing becomes ``None``."""
    text = text.strip()
    if text == "":
        return None
    if kind in (TEXT, TIME):
        return text
    if "_" in text or not text.isascii():  # Python reads 1_000 as a number; files do not write it
        return text
    for read in (int, float):
        try:
            return read(text)
        except ValueError:
            continue
    return text
