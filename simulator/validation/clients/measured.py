"""One measured run, whatever client wrote it down: what was sent, when, and when tokens came."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from simulator.errors import InputError
from simulator.workload.trace import Trace

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

METRICS = ("ttft", "tpot", "e2e")
#: ``timed``: sent at known moments; ``closed``: so many clients, each with one request at a time; ``rate``: a Poisson
#: stream of which only the rate is known.
Load = Literal["timed", "closed", "rate"]


@dataclass(frozen=True)
class Measured:
    """Requests in order of sending: tokens, seconds to the first token (``ttft_s``) and to the last (``e2e_s``).

    ``sent_s``: moments of sending, the first at 0; all 0 where the client keeps none. ``clients``: of a closed loop.
    ``rate``: requests/s, of a stream whose moments are not known. ``at_engine``: times are the engine's own, without
    HTTP and tokenising. ``prefixes``: the trace whose prompts these are, where prompts begin alike.
    """

    name: str
    source: str
    client: str
    load: Load
    sent_s: Floats
    input_tokens: Ints
    output_tokens: Ints
    ttft_s: Floats
    e2e_s: Floats
    clients: int = 0
    rate: float = 0.0
    at_engine: bool = False
    prefixes: Trace | None = None
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.input_tokens)

    def latencies(self, metric: str) -> Floats:
        """Seconds of each request; TPOT only of those with two tokens or more: (last - first) / (tokens - 1)."""
        if metric == "ttft":
            return self.ttft_s
        if metric == "e2e":
            return self.e2e_s
        several = self.output_tokens > 1
        return (self.e2e_s - self.ttft_s)[several] / (self.output_tokens[several] - 1)

    def trace(self) -> Trace:
        """What to replay. Clients of benchmarks ask for exactly the tokens they get."""
        shared: dict[str, Any] = {}
        if self.prefixes is not None and self.prefixes.hash_ids is not None:
            same = self.prefixes
            shared = {"hash_ids": same.hash_ids, "hash_offsets": same.hash_offsets, "block_tokens": same.block_tokens}
        return Trace.from_columns(
            self.sent_s,
            self.input_tokens,
            self.output_tokens,
            max_output_tokens=self.output_tokens,
            name=self.name,
            source=self.source,
            **shared,
        )

    def with_prefixes(self, trace: Trace) -> Measured:
        """The same run, its prompts those of ``trace`` in order of sending. Raises InputError where lengths differ."""
        if trace.hash_ids is None:
            raise InputError(f"{trace.source}: has no prefix blocks (hash_ids)")
        if len(trace) != len(self):
            raise InputError(f"{trace.source}: {len(trace):,} requests, {self.source} has {len(self):,}")
        other = np.flatnonzero(trace.input_tokens != self.input_tokens)
        if other.size:
            i = int(other[0])
            raise InputError(
                f"{trace.source}: request {i + 1} has {trace.input_tokens[i]} prompt tokens, "
                f"in {self.source} it has {self.input_tokens[i]}"
            )
        return replace(self, prefixes=trace)


@dataclass(frozen=True)
class Columns:
    """The lists of a file before they are checked, one entry a request."""

    input_tokens: list[object]
    output_tokens: list[object]
    ttft_s: list[object]
    e2e_s: list[object]
    sent_s: list[object] | None = None


def measured_of(place: str, columns: Columns, *, name: str, client: str, load: Load, **more: object) -> Measured:
    """Checked columns as a run, in order of sending. Raises InputError for what cannot be true."""
    count = len(columns.input_tokens)
    numbers = {
        field: _numbers(place, field, getattr(columns, field), count)
        for field in ("input_tokens", "output_tokens", "ttft_s", "e2e_s")
    }
    if count == 0:
        raise InputError(f"{place}: holds no request that succeeded")
    _check(place, numbers)
    sent = np.zeros(count) if columns.sent_s is None else _numbers(place, "sent_s", columns.sent_s, count)
    order = np.argsort(sent, kind="stable")
    return Measured(
        name=name,
        source=place,
        client=client,
        load=load,
        sent_s=(sent - sent.min())[order],
        input_tokens=numbers["input_tokens"].astype(np.int64)[order],
        output_tokens=numbers["output_tokens"].astype(np.int64)[order],
        ttft_s=numbers["ttft_s"][order],
        e2e_s=numbers["e2e_s"][order],
        **more,  # type: ignore[arg-type]
    )


def _numbers(place: str, field: str, values: list[object], count: int) -> Floats:
    if len(values) != count:
        raise InputError(f"{place}: {field}: {len(values)} values for {count} requests")
    for i, value in enumerate(values):
        if isinstance(value, bool) or not isinstance(value, int | float) or not np.isfinite(value):
            raise InputError(f"{place}: request {i + 1}: {field}: found {value!r}; a number is expected")
    return np.array(values, dtype=np.float64)


def _check(place: str, numbers: dict[str, Floats]) -> None:
    for field in ("input_tokens", "output_tokens"):
        low = np.flatnonzero((numbers[field] < 1) | (numbers[field] != np.floor(numbers[field])))
        if low.size:
            found = numbers[field][low[0]]
            raise InputError(f"{place}: request {low[0] + 1}: {field}: found {found:g}; allowed: whole numbers from 1")
    early = np.flatnonzero((numbers["ttft_s"] < 0) | (numbers["e2e_s"] < numbers["ttft_s"] - 1e-6))
    if early.size:
        ttft, e2e = (numbers[field][early[0]] for field in ("ttft_s", "e2e_s"))
        raise InputError(
            f"{place}: request {early[0] + 1}: first token after {ttft:g} s, last after {e2e:g} s; "
            "allowed: 0 or more, and the last not before the first"
        )
