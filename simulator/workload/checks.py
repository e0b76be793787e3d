"""The rules a trace must keep, checked on whole columns; every breach is one line that names the row or file line."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from simulator.errors import TraceError

#: No prompt or answer is longer than this; a larger number is a mistake in the file.
MAX_TOKENS = 10**9
#: More than three centuries: an arrival beyond this is in another unit, or broken.
MAX_ARRIVAL_S = 1e10
#: Requests in one trace.
MAX_REQUESTS = 50_000_000

Place = Callable[[int], str]
Columns = Mapping[str, Any]

_COLUMNS = ("input_tokens", "output_tokens", "max_output_tokens", "session", "turn", "think_s", "tenant", "priority")


def check_columns(columns: Columns, place: Place) -> None:
    """Raise ``TraceError`` where the columns of a trace contradict one another or hold impossible values.

    ``columns`` maps the field names of ``Trace`` to arrays; ``place(row)`` says where a row comes from, for messages.
    """
    source = str(columns.get("source", "trace"))
    count = len(columns["arrival_s"])
    if count == 0:
        raise TraceError(f"{source}: holds no requests; at least one is needed")
    if count > MAX_REQUESTS:
        raise TraceError(f"{source}: holds {count:,} requests; at most {MAX_REQUESTS:,} are allowed")
    for name in _COLUMNS:
        if columns[name] is not None and len(columns[name]) != count:
            raise TraceError(f"{source}: column '{name}' has {len(columns[name])} values for {count} requests")
    _check_arrivals(columns["arrival_s"], place)
    for name in ("input_tokens", "output_tokens"):
        _check_range(name, columns[name], 1, MAX_TOKENS, place)
    _check_limits(columns, place)
    _check_ids(columns["request_id"], count, source, place)
    _check_hashes(columns, source, place)
    _check_sessions(columns, source, place)
    _check_codes("tenant", columns["tenant"], columns["tenant_names"], source)


def _first(bad: NDArray[np.bool_]) -> int:
    """Row of the first breach, or -1."""
    return int(np.argmax(bad)) if bad.any() else -1


def _check_arrivals(arrival_s: NDArray[np.float64], place: Place) -> None:
    row = _first(~((arrival_s >= 0) & (arrival_s <= MAX_ARRIVAL_S)))
    if row >= 0:
        hint = "; is it in milliseconds?" if arrival_s[row] > MAX_ARRIVAL_S else ""
        raise TraceError(
            f"{place(row)}: field 'arrival_s' is {arrival_s[row]:g}; allowed: 0 to {MAX_ARRIVAL_S:g} seconds{hint}"
        )
    row = _first(np.diff(arrival_s) < 0)
    if row >= 0:
        raise TraceError(
            f"{place(row + 1)}: field 'arrival_s' is {arrival_s[row + 1]:.10g}, before the {arrival_s[row]:.10g} of "
            f"{place(row)}; arrivals must not go back"
        )


def _check_range(name: str, values: NDArray[np.int64], least: int, most: int, place: Place) -> None:
    row = _first((values < least) | (values > most))
    if row >= 0:
        raise TraceError(f"{place(row)}: field '{name}' is {values[row]}; allowed: whole numbers {least} to {most:,}")


def _check_limits(columns: Columns, place: Place) -> None:
    allowed, outputs = columns["max_output_tokens"], columns["output_tokens"]
    present = allowed != -1
    row = _first(present & ((allowed < 1) | (allowed > MAX_TOKENS)))
    if row >= 0:
        raise TraceError(
            f"{place(row)}: field 'max_output_tokens' is {allowed[row]}; allowed: whole numbers 1 to {MAX_TOKENS:,}"
        )
    row = _first(present & (allowed < outputs))
    if row >= 0:
        raise TraceError(
            f"{place(row)}: field 'output_tokens' is {outputs[row]}, more than the client's 'max_output_tokens' of "
            f"{allowed[row]}"
        )


def _check_ids(ids: tuple[str, ...] | None, count: int, source: str, place: Place) -> None:
    if ids is None:
        return
    if len(ids) != count:
        raise TraceError(f"{source}: column 'request_id' has {len(ids)} values for {count} requests")
    if len(set(ids)) == count:
        return
    seen: dict[str, int] = {}
    for row, name in enumerate(ids):
        if name in seen:
            raise TraceError(f"{place(row)}: field 'request_id' is '{name}', already used at {place(seen[name])}")
        seen[name] = row


def _check_hashes(columns: Columns, source: str, place: Place) -> None:
    ids, offsets, block_tokens = columns["hash_ids"], columns["hash_offsets"], columns["block_tokens"]
    if isinstance(block_tokens, bool) or not isinstance(block_tokens, int) or not 1 <= block_tokens <= MAX_TOKENS:
        raise TraceError(f"{source}: 'block_tokens' is {block_tokens!r}; allowed: whole numbers 1 to {MAX_TOKENS:,}")
    if ids is None and offsets is None:
        return
    inputs = columns["input_tokens"]
    if ids is None or offsets is None:
        raise TraceError(f"{source}: 'hash_ids' and 'hash_offsets' go together")
    if len(offsets) != len(inputs) + 1 or offsets[0] != 0 or offsets[-1] != len(ids) or (np.diff(offsets) < 0).any():
        raise TraceError(f"{source}: 'hash_offsets' must rise from 0 to {len(ids)} in {len(inputs) + 1} values")
    counts = np.diff(offsets)
    needed = -(-inputs // block_tokens)
    row = _first((counts != needed) & (counts != 0))
    if row >= 0:
        raise TraceError(
            f"{place(row)}: field 'hash_ids' has {counts[row]} ids, but {inputs[row]} input tokens are {needed[row]} "
            f"blocks of {block_tokens} tokens"
        )
    worst = _first(ids < 0)
    if worst >= 0:
        row = int(np.searchsorted(offsets, worst, side="right")) - 1
        raise TraceError(f"{place(row)}: field 'hash_ids' holds {ids[worst]}; allowed: whole numbers from 0")


def _check_codes(name: str, codes: NDArray[np.int64] | None, names: tuple[str, ...] | None, source: str) -> None:
    if (codes is None) != (names is None):
        raise TraceError(f"{source}: '{name}' and '{name}_names' go together")
    if codes is not None and names is not None and len(codes) and not -1 <= codes.min() <= codes.max() < len(names):
        raise TraceError(f"{source}: '{name}' holds codes outside -1 to {len(names) - 1}")


def _check_sessions(columns: Columns, source: str, place: Place) -> None:
    session, turn, think_s = columns["session"], columns["turn"], columns["think_s"]
    _check_codes("session", session, columns["session_names"], source)
    for name in ("turn", "think_s"):
        if columns[name] is not None and session is None:
            raise TraceError(f"{source}: field '{name}' needs 'session_id', which is missing")
    if think_s is not None:
        row = _first(~np.isnan(think_s) & ~((think_s >= 0) & (think_s <= MAX_ARRIVAL_S)))
        if row >= 0:
            raise TraceError(f"{place(row)}: field 'think_s' is {think_s[row]:g}; allowed: 0 to {MAX_ARRIVAL_S:g} s")
        if turn is None:
            raise TraceError(f"{source}: field 'think_s' needs 'turn', which is missing")
    if turn is None:
        return
    order = np.argsort(session, kind="stable")
    same = (np.diff(session[order]) == 0) & (session[order][1:] >= 0)
    at = _first(same & (np.diff(turn[order]) <= 0))
    if at >= 0:
        row, before = int(order[at + 1]), int(order[at])
        raise TraceError(
            f"{place(row)}: field 'turn' is {turn[row]}, not after turn {turn[before]} of the same session at "
            f"{place(before)}; turns of a session must rise"
        )
    row = _first((session >= 0) & (turn < 0))
    if row >= 0:
        raise TraceError(f"{place(row)}: field 'turn' is missing or negative; allowed: whole numbers from 0")
