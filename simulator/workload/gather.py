"""Columns of a trace while it is read, and the steps that make a ``Trace`` of them."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from simulator.errors import TraceError
from simulator.workload.blocks import Batch
from simulator.workload.checks import MAX_REQUESTS, check_columns
from simulator.workload.fields import TIME, Hashes
from simulator.workload.formats import Format, check_extra
from simulator.workload.sources import display_name
from simulator.workload.trace import ABSENT, DEFAULT_BLOCK_TOKENS, Trace, dense_codes, take_rows
from simulator.workload.window import Window, bin_width_s, spread_bins

#: An arrival beyond three years is a date written as seconds since 1970, not the age of a trace.
_EPOCH_S = 1e8
#: A reader that needs no more stops this long after the window, so that a last bin or left-out rows do not matter.
_MARGIN_S = 3600.0


@dataclass
class Gathered:
    """Columns as they grow, block by block."""

    file: Path
    chosen: Format
    parts: dict[str, list[tuple[int, Any]]] = field(default_factory=dict)
    lines: list[NDArray[np.int64]] = field(default_factory=list)
    extra: set[str] = field(default_factory=set)
    names: dict[str, dict[str, int]] = field(default_factory=dict)
    count: int = 0

    def add(self, batch: Batch) -> None:
        new = {name: line for name, line in batch.extra.items() if name not in self.extra}
        self.extra |= check_extra(new, self.chosen, str(self.file))
        for name, column in batch.columns.items():
            data = self._codes(name, column) if name in ("session_id", "tenant") else column
            self.parts.setdefault(name, []).append((self.count, data))
        self.lines.append(batch.lines)
        self.count += len(batch.lines)
        if self.count > MAX_REQUESTS:
            raise TraceError(f"{self.file}: more than {MAX_REQUESTS:,} requests; reading stopped")

    def _codes(self, name: str, column: Any) -> NDArray[np.int64]:
        """Codes of names; a name keeps its code from block to block."""
        known = self.names.setdefault(name, {})
        coded = column.dictionary_encode()
        table = [known.setdefault(text, len(known)) for text in coded.dictionary.to_pylist()]
        index = coded.indices.fill_null(len(table)).to_numpy(zero_copy_only=False)
        codes: NDArray[np.int64] = np.array([*table, ABSENT], dtype=np.int64)[index]
        return codes

    def covers(self, window: Window) -> bool:
        """Whether the rest of the file cannot add to the window. Zero rows may fall out later, so it counts double."""
        if window.start_s is None and window.limit is not None and self.count >= 2 * window.limit + 10_000:
            return True
        arrivals = self.parts.get("arrival_s")
        if arrivals is None or self.chosen.arrives == TIME or window.duration_s is None:
            return False
        first, last = arrivals[0][1][0], arrivals[-1][1][-1]
        reached = float(last - (first if self.chosen.log else 0)) * self.chosen.time_unit_s
        return reached > window.end_s + _MARGIN_S

    def take(self, name: str, missing: float = ABSENT) -> Any:
        """One column over all blocks, with ``missing`` where a block has none; ``None`` if no block has it."""
        parts = self.parts.pop(name, None)
        if parts is None:
            return None
        kind = parts[0][1].dtype
        whole = np.full(self.count, missing, dtype=kind)
        for at, data in parts:
            whole[at : at + len(data)] = data
        parts.clear()
        return whole

    def take_hashes(self) -> tuple[NDArray[np.int64] | None, NDArray[np.int64] | None]:
        parts: list[tuple[int, Hashes]] | None = self.parts.pop("hash_ids", None)
        if parts is None or not any(len(h.values) for _, h in parts):
            return None, None
        counts = np.zeros(self.count, np.int64)
        for at, data in parts:
            counts[at : at + len(data.counts)] = data.counts
        return np.concatenate([h.values for _, h in parts]), np.concatenate(([0], np.cumsum(counts)))

    def take_ids(self) -> tuple[str, ...] | None:
        parts: list[tuple[int, pa.Array]] | None = self.parts.pop("request_id", None)
        if parts is None:
            return None
        ids: list[str | None] = [None] * self.count
        for at, data in parts:
            ids[at : at + len(data)] = data.to_pylist()
        if all(i is None for i in ids):
            return None
        gap = ids.index(None) if None in ids else -1
        if gap >= 0:
            line = int(np.concatenate(self.lines)[gap])
            raise TraceError(f"{self.file}:{line}: field 'request_id' is missing, but other requests have one")
        return tuple(i for i in ids if i is not None)

    def finish(self, raw_arrivals: bool) -> Trace:
        """The whole trace, checked; messages name lines of the file."""
        notes: list[str] = []
        if self.count == 0:
            raise TraceError(f"{self.file}: holds no requests; at least one is needed")
        columns: dict[str, Any] = {n: self.take(n) for n in ("input_tokens", "output_tokens", "max_output_tokens")}
        columns["request_id"] = self.take_ids()
        columns["hash_ids"], columns["hash_offsets"] = self.take_hashes()
        columns["block_tokens"] = self._block_tokens()
        columns["arrival_s"] = self._arrivals(notes)
        self._sessions(columns, notes)
        columns["tenant"] = self.take("tenant")
        columns["tenant_names"] = tuple(self.names["tenant"]) if columns["tenant"] is not None else None
        columns["priority"] = self.take("priority", 0)
        if columns["max_output_tokens"] is None:
            columns["max_output_tokens"] = np.full(self.count, ABSENT, np.int64)
        lines = np.concatenate(self.lines)
        if self.chosen.log:
            columns, lines = self._drop_failures(columns, lines, notes)
        columns["source"] = str(self.file)
        self._start_at_zero(columns, notes)
        check_columns(columns, lambda row: f"{self.file}:{lines[row]}")
        if self.chosen.bins:
            columns["arrival_s"] = _unbin(columns["arrival_s"], raw_arrivals, notes)
        if self.extra:
            notes.append(f"fields not read: {', '.join(sorted(self.extra))}")
        if self.chosen.label != "native":
            notes.insert(0, f"read as {self.chosen.label} trace")
        return Trace(name=display_name(self.file), notes=tuple(notes), **columns)

    def _block_tokens(self) -> int:
        if self.chosen.block_tokens is not None:
            return self.chosen.block_tokens
        column = self.take("block_tokens", ABSENT)
        if column is None:
            return DEFAULT_BLOCK_TOKENS
        said = np.unique(np.where(column == ABSENT, DEFAULT_BLOCK_TOKENS, column))
        if len(said) > 1:
            row = int(np.argmax(column != column[0]))
            line = int(np.concatenate(self.lines)[row])
            raise TraceError(
                f"{self.file}:{line}: field 'block_tokens' changes from {said[0]} to {said[1]}; one size is allowed"
            )
        return int(said[0])

    def _arrivals(self, notes: list[str]) -> NDArray[np.float64]:
        if self.chosen.arrives is None:
            notes.append("has no arrival times: all requests arrive at 0 unless --arrivals says otherwise")
            return np.zeros(self.count)
        raw = self.take("arrival_s")
        if self.chosen.arrives == TIME:
            seconds: NDArray[np.float64] = (raw - raw.min()) / 1e9
        else:
            seconds = raw * self.chosen.time_unit_s if self.chosen.time_unit_s != 1.0 else raw
        return seconds

    def _start_at_zero(self, columns: dict[str, Any], notes: list[str]) -> None:
        """Logs begin at 0, and so do arrivals written as seconds since 1970."""
        arrivals = columns["arrival_s"]
        if len(arrivals) == 0 or not np.isfinite(arrivals[0]):
            return
        if self.chosen.log or _EPOCH_S <= arrivals[0] < 1e10:
            if arrivals[0] >= _EPOCH_S:
                notes.append(f"arrivals begin at {arrivals[0]:.0f} s, taken for a date: the first one is made 0")
            columns["arrival_s"] = arrivals - arrivals.min()  # a first row that is not the earliest is found later

    def _sessions(self, columns: dict[str, Any], notes: list[str]) -> None:
        session, turn, think_s = self.take("session_id"), self.take("turn"), self.take("think_s", np.nan)
        if think_s is not None and np.isnan(think_s).all():
            think_s = None
        if session is not None and turn is None and think_s is not None:
            order = np.argsort(session, kind="stable")
            starts = np.flatnonzero(np.diff(session[order], prepend=session[order[0]] - 1))
            turn = np.empty(self.count, np.int64)
            turn[order] = np.arange(self.count) - np.repeat(starts, np.diff(np.append(starts, self.count)))
            notes.append("turns of a session are numbered in order of the file")
        columns.update(session=session, turn=turn, think_s=think_s)
        columns["session_names"] = tuple(self.names["session_id"]) if session is not None else None

    def _drop_failures(
        self, columns: dict[str, Any], lines: NDArray[np.int64], notes: list[str]
    ) -> tuple[dict[str, Any], NDArray[np.int64]]:
        empty_out, empty_in = columns["output_tokens"] == 0, columns["input_tokens"] == 0
        keep = np.flatnonzero(~(empty_out | empty_in))
        if len(keep) == self.count:
            return columns, lines
        if len(keep) == 0:
            raise TraceError(f"{self.file}: all {self.count:,} rows have 0 input or output tokens: nothing was served")
        for what, bad in (("output", empty_out), ("input", empty_in & ~empty_out)):
            if bad.any():
                example = f"line {lines[np.argmax(bad)]}"
                notes.append(
                    f"left out {int(bad.sum()):,} of {self.count:,} rows with 0 {what} tokens (first: {example})"
                )
        kept: dict[str, Any] = {
            n: c[keep] if isinstance(c, np.ndarray) and len(c) == self.count else c for n, c in columns.items()
        }
        if columns["hash_ids"] is not None:
            kept["hash_ids"], kept["hash_offsets"] = take_rows(columns["hash_ids"], columns["hash_offsets"], keep)
        if kept["session"] is not None:
            kept["session"], kept["session_names"] = dense_codes(kept["session"], kept["session_names"])
        return kept, lines[keep]


def _unbin(arrival_s: NDArray[np.float64], raw: bool, notes: list[str]) -> NDArray[np.float64]:
    width = bin_width_s(arrival_s)
    if width is None:
        return arrival_s
    share = len(arrival_s) / len(np.unique(arrival_s))
    found = f"time stamps come in bins of {width:.3g} s ({share:.1f} requests each)"
    if raw:
        notes.append(f"{found}, kept as they are")
        return arrival_s
    notes.append(f"{found}: spread evenly inside each bin; --arrivals trace-raw keeps them")
    return spread_bins(arrival_s, width)
