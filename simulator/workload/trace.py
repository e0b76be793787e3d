"""A request trace: what is asked of the cluster, one row a request, held as columns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from simulator.errors import TraceError, unknown
from simulator.workload.checks import check_columns

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

#: Tokens of one prefix block where a trace does not say: the block of the Mooncake traces (FAST'25, appendix A).
DEFAULT_BLOCK_TOKENS = 512

#: Stands in the integer columns for "absent".
ABSENT = -1

_PER_REQUEST = ("arrival_s", "input_tokens", "output_tokens", "max_output_tokens", "session", "turn", "think_s")
_FLOATS = ("arrival_s", "think_s")
_PERCENTILES = {"p50": 50.0, "p90": 90.0, "p99": 99.0}


@dataclass(frozen=True, eq=False)
class Trace:
    """Requests in order of arrival. Arrays are read-only and of length n unless said otherwise.

    ``arrival_s`` (float64, seconds, never falling, first at least 0); ``input_tokens`` and ``output_tokens``
    (int64, at least 1); ``max_output_tokens`` (int64, what the client allows, -1 where absent).
    ``hash_ids`` (int64[m]) and ``hash_offsets`` (int64[n+1]): row i owns
    ``hash_ids[hash_offsets[i]:hash_offsets[i+1]]``, one id for each started block of ``block_tokens`` prompt tokens,
    or none; equal ids mean an equal prefix.
    ``session`` holds codes into ``session_names`` (-1: none). Where ``turn`` is present a later turn is sent
    ``think_s`` seconds after the previous one ends, and its prompt begins with the previous prompt and output;
    its ``arrival_s`` is then only nominal. Without ``turn`` a session is no more than a label for routing.
    ``tenant`` holds codes into ``tenant_names``. ``notes`` say what a reader or generator did.

    Raises ``TraceError`` (one line, naming the row) when columns contradict these rules.
    """

    name: str
    source: str
    arrival_s: FloatArray
    input_tokens: IntArray
    output_tokens: IntArray
    max_output_tokens: IntArray
    request_id: tuple[str, ...] | None = None
    hash_ids: IntArray | None = None
    hash_offsets: IntArray | None = None
    block_tokens: int = DEFAULT_BLOCK_TOKENS
    session: IntArray | None = None
    session_names: tuple[str, ...] | None = None
    turn: IntArray | None = None
    think_s: FloatArray | None = None
    tenant: IntArray | None = None
    tenant_names: tuple[str, ...] | None = None
    priority: IntArray | None = None
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in (*_PER_REQUEST, "hash_ids", "hash_offsets", "tenant", "priority"):
            value = getattr(self, name)
            if value is not None:
                object.__setattr__(self, name, _column(self.source, name, value))
        check_columns(
            {f.name: getattr(self, f.name) for f in fields(self)}, lambda row: f"{self.source}: row {row + 1}"
        )

    @classmethod
    def from_columns(cls, arrival_s: Any, input_tokens: Any, output_tokens: Any, **optional: Any) -> Trace:
        """A trace from plain sequences; ``optional`` are further fields of ``Trace`` by name."""
        allowed = [f.name for f in fields(cls)]
        for name in optional:
            if name not in allowed:
                raise TraceError(unknown("trace", "column", name, allowed))
        count = len(arrival_s)
        given: dict[str, Any] = {
            "name": "trace",
            "source": "memory",
            "max_output_tokens": np.full(count, ABSENT, np.int64),
            **optional,
        }
        return cls(arrival_s=arrival_s, input_tokens=input_tokens, output_tokens=output_tokens, **given)

    def __len__(self) -> int:
        return len(self.arrival_s)

    def __repr__(self) -> str:
        return f"Trace({self.name!r}, {len(self)} requests over {self.span_s:.6g} s, from {self.source})"

    @property
    def span_s(self) -> float:
        """Seconds from the first to the last arrival."""
        return float(self.arrival_s[-1] - self.arrival_s[0])

    def hashes(self, row: int) -> IntArray:
        """Prefix block ids of one request; empty where it has none."""
        if self.hash_ids is None or self.hash_offsets is None:
            return np.empty(0, np.int64)
        return self.hash_ids[self.hash_offsets[row] : self.hash_offsets[row + 1]]

    def follows_session(self) -> NDArray[np.bool_]:
        """True for requests sent ``think_s`` after an earlier turn present in this trace ends; False for the others."""
        later = np.zeros(len(self), dtype=bool)
        if self.session is None or self.turn is None:
            return later
        order = np.argsort(self.session, kind="stable")
        same = (np.diff(self.session[order]) == 0) & (self.session[order][1:] >= 0)
        later[order[1:][same]] = True
        return later

    def with_(self, **changes: Any) -> Trace:
        """A copy with some fields replaced; an unknown name is a ``TraceError``."""
        allowed = [f.name for f in fields(self)]
        for name in changes:
            if name not in allowed:
                raise TraceError(unknown("trace", "column", name, allowed))
        return replace(self, **changes)

    def select(self, rows: slice | Sequence[int] | NDArray[Any], arrival_s: FloatArray | None = None) -> Trace:
        """The requests of a slice, a boolean mask or a list of row numbers, with their sessions and prefix blocks.

        ``arrival_s``: new arrivals of the selected requests, for a selection that changes their order.
        """
        index = self._index(rows)
        if len(index) == 0:
            raise TraceError(f"{self.source}: the selection leaves no requests of {len(self)}")
        taken: dict[str, Any] = {}
        whole = isinstance(rows, slice)
        for name in (*_PER_REQUEST, "tenant", "priority"):
            column = getattr(self, name)
            taken[name] = None if column is None else column[rows if whole else index]
        if arrival_s is not None:
            taken["arrival_s"] = arrival_s
        if self.request_id is not None:
            taken["request_id"] = tuple(self.request_id[i] for i in index)
        if self.hash_ids is not None and self.hash_offsets is not None:
            taken["hash_ids"], taken["hash_offsets"] = take_rows(self.hash_ids, self.hash_offsets, index)
        for codes, names in (("session", "session_names"), ("tenant", "tenant_names")):
            if taken[codes] is not None:
                taken[codes], taken[names] = dense_codes(taken[codes], getattr(self, names))
        return replace(self, **taken)

    def _index(self, rows: slice | Sequence[int] | NDArray[Any]) -> IntArray:
        if isinstance(rows, slice):
            return np.arange(len(self), dtype=np.int64)[rows]
        array = np.asarray(rows)
        if array.dtype == bool:
            if array.shape != (len(self),):
                raise TraceError(f"{self.source}: a mask of {array.size} values for {len(self)} requests")
            return np.flatnonzero(array)
        if array.size == 0:
            return np.empty(0, np.int64)
        if array.ndim != 1 or array.dtype.kind not in "iu" or array.min() < -len(self) or array.max() >= len(self):
            raise TraceError(f"{self.source}: rows must be a slice, a mask or row numbers below {len(self)}")
        return array.astype(np.int64) % len(self)

    def stats(self) -> dict[str, Any]:
        """Numbers that describe the trace: counts, rate, quantiles of lengths, repetition of prefixes, sessions."""
        gaps = np.diff(self.arrival_s)
        mean_gap = float(gaps.mean()) if len(gaps) else 0.0
        result: dict[str, Any] = {
            "requests": len(self),
            "span_s": self.span_s,
            "requests_per_s": len(gaps) / self.span_s if self.span_s > 0 else None,
            "interarrival_cv": float(gaps.std()) / mean_gap if mean_gap > 0 else None,
            "input_tokens": quantiles(self.input_tokens),
            "output_tokens": quantiles(self.output_tokens),
            "total_input_tokens": int(self.input_tokens.sum()),
            "total_output_tokens": int(self.output_tokens.sum()),
        }
        if self.hash_ids is not None:
            result["prefix"] = self._prefix_stats()
        if self.session is not None:
            inside = self.session[self.session >= 0]
            result["sessions"] = {
                "count": len(np.unique(inside)),
                "requests": len(inside),
                "longest": int(np.bincount(inside).max()) if len(inside) else 0,
                "later_turns": int(self.follows_session().sum()),
            }
        if self.tenant_names is not None:
            result["tenants"] = len(self.tenant_names)
        return result

    def _prefix_stats(self) -> dict[str, Any]:
        """What a prefix cache without limit would find: blocks and prompt tokens seen in an earlier request."""
        assert self.hash_ids is not None
        assert self.hash_offsets is not None
        counts = np.diff(self.hash_offsets)
        if len(self.hash_ids) == 0:
            return {"block_tokens": self.block_tokens, "blocks": 0, "unique_blocks": 0}
        tokens = np.full(len(self.hash_ids), self.block_tokens, np.int64)
        last = self.hash_offsets[1:][counts > 0] - 1
        tokens[last] = self.input_tokens[counts > 0] - (counts[counts > 0] - 1) * self.block_tokens
        repeated = np.ones(len(self.hash_ids), dtype=bool)
        unique, first = np.unique(self.hash_ids, return_index=True)
        repeated[first] = False
        return {
            "block_tokens": self.block_tokens,
            "blocks": len(self.hash_ids),
            "unique_blocks": len(unique),
            "repeated_block_ratio": float(repeated.mean()),
            "repeated_token_ratio": float(tokens[repeated].sum() / tokens.sum()),
        }


def quantiles(values: NDArray[Any]) -> dict[str, float]:
    """Mean, minimum, maximum and percentiles (linear interpolation) of a column."""
    found = {name: float(np.percentile(values, q)) for name, q in _PERCENTILES.items()}
    return {"mean": float(values.mean()), "min": float(values.min()), **found, "max": float(values.max())}


def take_rows(values: IntArray, offsets: IntArray, index: IntArray) -> tuple[IntArray, IntArray]:
    """The rows ``index`` of a column of lists stored end to end: their values, and where each begins."""
    counts = np.diff(offsets)[index]
    taken = np.concatenate(([0], np.cumsum(counts, dtype=np.int64)))
    if len(index) and (np.diff(index) == 1).all():
        return values[offsets[index[0]] : offsets[index[-1] + 1]], taken
    places = np.repeat(offsets[index] - taken[:-1], counts) + np.arange(taken[-1], dtype=np.int64)
    return values[places], taken


def dense_codes(codes: IntArray, names: Sequence[str]) -> tuple[IntArray, tuple[str, ...]]:
    """Codes without gaps for the names still in use, numbered in order of first appearance; -1 stays -1."""
    used, first = np.unique(codes[codes >= 0], return_index=True)
    used = used[np.argsort(first, kind="stable")]
    table = np.full(len(names) + 1, ABSENT, np.int64)
    table[used] = np.arange(len(used))
    return table[codes], tuple(names[i] for i in used)


def encode_names(names: Sequence[str | None]) -> tuple[IntArray, tuple[str, ...]]:
    """Codes of names in order of first appearance, and the names; ``None`` becomes -1."""
    known: dict[str, int] = {}
    codes = [ABSENT if name is None else known.setdefault(name, len(known)) for name in names]
    return np.array(codes, dtype=np.int64), tuple(known)


def same_requests(one: Trace, other: Trace, ignore: Sequence[str] = ("name", "source", "notes")) -> bool:
    """Whether two traces hold the same columns, bit for bit; names of the traces and notes do not count."""
    return all(_equal(getattr(one, f.name), getattr(other, f.name)) for f in fields(one) if f.name not in ignore)


def _equal(one: Any, other: Any) -> bool:
    if isinstance(one, np.ndarray) and isinstance(other, np.ndarray):
        return bool(np.array_equal(one, other, equal_nan=one.dtype.kind == "f"))
    return bool(type(one) is type(other) and one == other)


def _column(source: str, name: str, value: Any) -> NDArray[Any]:
    """A read-only view of a column in its own dtype; no silent rounding."""
    array = np.asarray(value)
    wanted = np.float64 if name in _FLOATS else np.int64
    if array.ndim != 1:
        raise TraceError(f"{source}: column '{name}' has {array.ndim} dimensions; 1 is allowed")
    if array.dtype != wanted:
        if array.size and (array.dtype.kind not in "iuf" or (wanted is np.int64 and array.dtype.kind == "f")):
            raise TraceError(f"{source}: column '{name}' holds {array.dtype}; allowed: {np.dtype(wanted)}")
        array = array.astype(wanted)
    view = array.view()
    view.setflags(write=False)
    return view


def describe(stats: Mapping[str, Any]) -> str:
    """One line of a trace's ``stats()``: requests, rate and median lengths."""
    rate = stats["requests_per_s"]
    pace = "all at once" if rate is None else f"{rate:.3g} requests/s"
    lengths = f"input p50 {stats['input_tokens']['p50']:.0f}, output p50 {stats['output_tokens']['p50']:.0f} tokens"
    return f"{stats['requests']:,} requests, {pace}, {lengths}"
