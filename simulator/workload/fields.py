"""The fields of a trace file: what each may hold, checked fast on whole columns, or value by value to find an error."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from simulator.errors import TraceError
from simulator.workload.checks import MAX_TOKENS

#: Kinds of value. number: seconds; time: date and time of day; length: tokens; count: from 0; whole: any sign.
NUMBER, TIME, LENGTH, COUNT, WHOLE, TEXT, HASHES = "number", "time", "length", "count", "whole", "text", "hashes"

#: Native fields and their kinds; the first three must be there.
FIELDS = {
    "arrival_s": NUMBER,
    "input_tokens": LENGTH,
    "output_tokens": LENGTH,
    "request_id": TEXT,
    "max_output_tokens": LENGTH,
    "hash_ids": HASHES,
    "block_tokens": LENGTH,
    "session_id": TEXT,
    "turn": COUNT,
    "think_s": NUMBER,
    "tenant": TEXT,
    "priority": WHOLE,
}
REQUIRED = ("arrival_s", "input_tokens", "output_tokens")

_INT64_MAX = 2**63 - 1
_TIME = re.compile(r"(\d{4}-\d\d-\d\d)[ T](\d\d:\d\d:\d\d)(?:\.(\d{1,9}))?(Z|[+-]\d\d:?\d\d)?")
_RANGES = {LENGTH: (1, MAX_TOKENS), COUNT: (0, MAX_TOKENS), WHOLE: (-_INT64_MAX, _INT64_MAX)}
_ALLOWED = {
    NUMBER: "a finite number of seconds from 0",
    TIME: "a date and time as 2023-11-16 18:17:03.98",
    LENGTH: f"a whole number from {{least}} to {MAX_TOKENS:,}",
    COUNT: "a whole number from 0",
    WHOLE: "a whole number",
    TEXT: "text or a whole number",
    HASHES: "a list of whole numbers from 0 below 2^63",
}


@dataclass(frozen=True)
class Rule:
    """What one field of one format may hold: ``least`` is the smallest length (public logs hold zeros)."""

    native: str
    source: str
    kind: str
    required: bool
    least: int = 1

    @property
    def allowed(self) -> str:
        return _ALLOWED[self.kind].format(least=self.least)


@dataclass(frozen=True)
class Hashes:
    """A column of lists of ids, stored end to end, with the length of each."""

    values: NDArray[np.int64]
    counts: NDArray[np.int64]


#: A column of a block: numbers (NaN or -1: absent), names (null: absent) or lists of ids.
Column: TypeAlias = Any


def shown(value: object) -> str:
    """A value as it stands in the file, short enough for one line."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    text = f"'{value}'" if isinstance(value, str) else str(value) if not isinstance(value, int) else _digits(value)
    text = "".join(c if c.isprintable() else "?" for c in text)
    return text if len(text) <= 60 else text[:57] + "..."


def _digits(value: int) -> str:
    return str(value) if abs(value) < 10**50 else "a number of more than 50 digits"


def fast_column(rule: Rule, data: pa.ChunkedArray) -> Column | None:
    """The column as arrays when every value is in order, otherwise ``None``: then ``slow_column`` finds the culprit."""
    if rule.required and data.null_count:
        return None
    if rule.kind == HASHES:
        return _fast_hashes(data)
    if rule.kind == TEXT:
        return _fast_text(data)
    if rule.kind == TIME:
        return data.cast(pa.timestamp("ns")).to_numpy().astype(np.int64) if pa.types.is_timestamp(data.type) else None
    if rule.kind == NUMBER:
        if not (pa.types.is_floating(data.type) or pa.types.is_integer(data.type) or pa.types.is_null(data.type)):
            return None
        numbers: NDArray[np.float64] = data.cast(pa.float64()).to_numpy()
        fine = np.isfinite(numbers) & (numbers >= 0)
        return numbers if fine.sum() + data.null_count == len(numbers) else None
    return _fast_whole(rule, data)


def _fast_whole(rule: Rule, data: pa.ChunkedArray) -> Column | None:
    if not (pa.types.is_integer(data.type) or pa.types.is_null(data.type)):
        return None
    least, most = _least(rule), _RANGES[rule.kind][1]
    try:
        present: NDArray[np.int64] = data.drop_null().cast(pa.int64()).to_numpy()
    except pa.ArrowInvalid:
        return None
    if len(present) and (present.min() < least or present.max() > most):
        return None
    whole: NDArray[np.int64] = pc.fill_null(data.cast(pa.int64()), absent(rule)).to_numpy()
    return whole


def absent(rule: Rule) -> int:
    """What stands for "no value" in a column of whole numbers."""
    return 0 if rule.native == "priority" else -1


def _fast_hashes(data: pa.ChunkedArray) -> Hashes | None:
    if pa.types.is_null(data.type):
        return Hashes(np.empty(0, np.int64), np.zeros(len(data), np.int64))
    if not (pa.types.is_list(data.type) or pa.types.is_large_list(data.type)):
        return None
    flat = pc.list_flatten(data)
    if flat.null_count or not (pa.types.is_integer(flat.type) or pa.types.is_null(flat.type)):
        return None
    try:
        values: NDArray[np.int64] = flat.cast(pa.int64()).to_numpy()
    except pa.ArrowInvalid:
        return None
    if len(values) and values.min() < 0:
        return None
    return Hashes(values, pc.fill_null(pc.list_value_length(data), 0).to_numpy().astype(np.int64))


def _fast_text(data: pa.ChunkedArray) -> pa.Array | None:
    plain = pa.types.is_string(data.type) or pa.types.is_large_string(data.type) or pa.types.is_integer(data.type)
    if not plain and not pa.types.is_null(data.type):
        return None
    return data.cast(pa.string()).combine_chunks()


def slow_column(rule: Rule, values: Sequence[Any], places: Sequence[str]) -> Column:
    """The column from Python values, one by one; the first that is not allowed raises ``TraceError`` with its place."""
    checked = [_value(rule, value, place) for value, place in zip(values, places, strict=True)]
    if rule.kind == TEXT:
        return pa.array(checked, pa.string())
    if rule.kind == HASHES:
        counts = np.array([len(ids) for ids in checked], dtype=np.int64)
        return Hashes(np.array([i for ids in checked for i in ids], dtype=np.int64), counts)
    return np.array(checked, dtype=np.float64 if rule.kind == NUMBER else np.int64)


def _value(rule: Rule, value: Any, place: str) -> Any:
    if value is None:
        if rule.required:
            raise TraceError(f"{place}: field '{rule.source}' is missing or null; allowed: {rule.allowed}")
        return {TEXT: None, HASHES: [], NUMBER: math.nan}.get(rule.kind, absent(rule))
    checked = _READ[rule.kind](rule, value)
    if checked is None:
        raise TraceError(f"{place}: field '{rule.source}' is {shown(value)}; allowed: {rule.allowed}")
    return checked


def _number(_rule: Rule, value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
        return None
    try:
        return float(value)
    except OverflowError:
        return None


def _least(rule: Rule) -> int:
    return rule.least if rule.kind == LENGTH else _RANGES[rule.kind][0]


def _whole(rule: Rule, value: Any) -> int | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    if isinstance(value, float) and (not math.isfinite(value) or value != int(value)):
        return None
    return int(value) if _least(rule) <= value <= _RANGES[rule.kind][1] else None


def _text(_rule: Rule, value: Any) -> str | None:
    if isinstance(value, bool) or not isinstance(value, str | int):
        return None
    return value if isinstance(value, str) else _digits(value)


def _hashes(_rule: Rule, value: Any) -> list[int] | None:
    if not isinstance(value, list):
        return None
    fine = all(isinstance(i, int) and not isinstance(i, bool) and 0 <= i <= _INT64_MAX for i in value)
    return value if fine else None


def _time(_rule: Rule, value: Any) -> int | None:
    return parse_time_ns(value) if isinstance(value, str) else None


def parse_time_ns(text: str) -> int | None:
    """Nanoseconds since 1970 of ``2023-11-16 18:17:03.9799600`` (UTC unless a zone follows); ``None`` otherwise."""
    match = _TIME.fullmatch(text.strip())
    if match is None:
        return None
    day, clock, fraction, zone = match.groups()
    try:
        moment = datetime.fromisoformat(f"{day}T{clock}{'+00:00' if zone in (None, 'Z') else zone}")
    except ValueError:
        return None
    seconds = (moment - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(seconds=1)
    nanoseconds = seconds * 10**9 + int((fraction or "0").ljust(9, "0"))
    return nanoseconds if abs(nanoseconds) <= _INT64_MAX else None


_READ = {NUMBER: _number, TIME: _time, LENGTH: _whole, COUNT: _whole, WHOLE: _whole, TEXT: _text, HASHES: _hashes}
