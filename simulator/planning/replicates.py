"""Replications: pieces of a trace at one request a second, so that every topology and every rate meets the same draws.

Common random numbers: piece i holds the same requests in the same order with the same gaps, scaled by the rate. What
differs between two topologies is then the topologies, and little of it is luck.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from simulator.errors import InputError
from simulator.metrics.slo import SLO
from simulator.planning.runs import Outcome, Run
from simulator.planning.traces import trace_digest
from simulator.planning.workforce import Workforce, outcomes
from simulator.workload.arrivals import Arrivals
from simulator.workload.distributions import gaps_gamma, stream
from simulator.workload.trace import Trace

#: Share of a piece's arrivals that only warms the cluster up.
WARMUP_SHARE = 0.15
_DRAW = 0x91EC  # stream of the replications' draws
#: A piece put together from stretches has about this many.
_STRETCHES = 12


@dataclass(frozen=True)
class Scores:
    """A topology at one rate, one value a replication: share of requests within all targets, 0 where the queue grew
    to the end of the piece (it would reach 0 in time). ``entries`` are the figures."""

    rate: float
    attainment: tuple[float, ...]
    entries: tuple[dict[str, Any], ...]

    @property
    def mean(self) -> float:
        """Mean over the replications."""
        return float(np.mean(self.attainment))

    def figure(self, *keys: str) -> float | None:
        """Mean over replications of a figure of the entries, those without it left out."""
        found = []
        for entry in self.entries:
            value: Any = entry
            for key in keys:
                value = value[key]
            if value is not None:
                found.append(float(value))
        return float(np.mean(found)) if found else None


class MisfitError(InputError):
    """A topology that cannot be worked out, or that no request fits."""


@dataclass(frozen=True)
class Bench:
    """What topologies are tried on: pieces (mean rate 1 a second), targets, and the share of requests to meet them."""

    pieces: tuple[Trace, ...]
    slo: SLO
    attainment: float
    workforce: Workforce

    @cached_property
    def _by_digest(self) -> dict[str, Trace]:
        return {trace_digest(piece): piece for piece in self.pieces}

    @cached_property
    def _digests(self) -> tuple[str, ...]:
        return tuple(trace_digest(piece) for piece in self.pieces)

    @property
    def requests(self) -> int:
        """Requests of the longest piece."""
        return max(len(piece) for piece in self.pieces)

    def cut(self, count: int, requests: int) -> Bench:
        """The first ``count`` pieces, each with its first ``requests`` requests."""
        return replace(self, pieces=tuple(_head(piece, requests) for piece in self.pieces[:count]))

    def scores(self, topology: str, rate: float) -> Scores:
        """Every replication at ``rate`` requests a second. Raises MisfitError."""
        runs = [
            Run(
                trace=digest,
                topology=topology,
                rate_scale=rate,
                warmup_s=WARMUP_SHARE * float(piece.arrival_s[-1]) / rate,
                slo=tuple(self.slo.targets().items()),
            )
            for digest, piece in zip(self._digests, self.pieces, strict=True)
        ]
        found: dict[int, Outcome] = dict(outcomes(runs, self._by_digest, self.workforce))
        entries = []
        for index in range(len(runs)):
            outcome = found[index]
            if outcome.entry is None:
                raise MisfitError(outcome.problem or "no figures")
            entries.append(outcome.entry)
        shares = tuple(0.0 if entry["saturated"] else float(entry["slo_attainment"]) for entry in entries)
        return Scores(rate, shares, tuple(entries))


def _head(piece: Trace, requests: int) -> Trace:
    return piece if len(piece) <= requests else piece.select(slice(0, requests))


def linked(trace: Trace) -> bool:
    """Whether requests share prefixes or sessions, so that they cannot be drawn one by one."""
    return trace.hash_ids is not None or trace.session is not None


def pieces_of(trace: Trace, arrivals: Arrivals, count: int, requests: int, seed: int) -> tuple[Trace, ...]:
    """``count`` pieces of ``requests`` requests at a mean rate of one a second.

    With drawn arrivals (poisson, gamma), piece i draws its gaps, and its requests too (with replacement). With the
    trace's own arrivals, pieces are stretches of it, one after the other; where it is too short for that, each is put
    together from short stretches drawn at random, gaps included. Requests that share prefixes or sessions are only
    ever taken as stretches, which overlap where the trace is too short.
    """
    requests = min(requests, len(trace))
    drawn = arrivals.kind in ("poisson", "gamma")
    if not drawn and arrivals.kind not in ("trace", "trace-raw"):
        raise InputError(f"arrivals: '{arrivals}' has no rate to search over; allowed: trace, poisson, gamma:CV")
    if not drawn and trace.span_s <= 0:
        raise InputError(f"{trace.source}: its requests arrive all at once, so it has no rate; use arrivals: poisson")
    pieces = []
    for index in range(count):
        rng = stream(seed, _DRAW + index)
        rows = _rows(trace, rng, (index, count, requests), drawn)
        gaps_s = gaps_gamma(rng, requests, arrivals.cv or 1.0) if drawn else _own_gaps(trace, rows)
        pieces.append(trace.select(rows, np.cumsum(gaps_s)))
    return tuple(pieces)


def _rows(trace: Trace, rng: np.random.Generator, which: tuple[int, int, int], drawn: bool) -> NDArray[np.int64]:
    index, count, requests = which
    if linked(trace) or (not drawn and count * requests <= len(trace)):
        first = round(index * (len(trace) - requests) / max(count - 1, 1))
        return np.arange(first, first + requests)
    if drawn:
        return rng.integers(0, len(trace), requests)
    length = max(requests // _STRETCHES, 1)
    starts = rng.integers(0, len(trace) - length + 1, -(-requests // length))
    rows: NDArray[np.int64] = (starts[:, None] + np.arange(length)).ravel()[:requests]
    return rows


def _own_gaps(trace: Trace, rows: NDArray[np.int64]) -> NDArray[np.float64]:
    """Gaps before the requests ``rows``, as they were in the trace, stretched to a mean of one second."""
    gaps_s = np.diff(trace.arrival_s, prepend=trace.arrival_s[0])[rows]
    gaps_s[0] = 0.0
    total = float(gaps_s.sum())
    if total <= 0:
        raise InputError(f"{trace.source}: many requests arrive at one moment; use arrivals: poisson")
    return gaps_s * ((len(rows) - 1) / total)
