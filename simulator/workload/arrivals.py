"""How a trace is offered to the cluster: at its own times, at drawn ones, by clients that wait, or all at once."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from simulator.errors import InputError, unknown
from simulator.workload.distributions import gaps_gamma, stream
from simulator.workload.trace import Trace

#: Parameters of each kind, in the order they are written after a colon.
KINDS: dict[str, tuple[str, ...]] = {
    "trace": (),
    "trace-raw": (),
    "poisson": ("RATE",),
    "gamma": ("RATE", "CV"),
    "closed": ("N",),
    "at-once": (),
}
MAX_RATE_PER_S = 1e6
#: A gamma burstier than this has shape 10^-4: nearly all gaps are zero, and one holds the rest.
MAX_CV = 100.0
MAX_CLIENTS = 10_000_000


@dataclass(frozen=True)
class Arrivals:
    """``kind`` is a key of ``KINDS``; ``rate_per_s`` (requests/s) and ``cv`` where drawn, ``clients`` where closed."""

    kind: str = "trace"
    rate_per_s: float | None = None
    cv: float | None = None
    clients: int | None = None

    def __str__(self) -> str:
        known = {"RATE": self.rate_per_s, "CV": self.cv, "N": self.clients}
        return ":".join([self.kind, *(f"{known[name]:.10g}" for name in KINDS[self.kind])])


def parse_arrivals(text: str, place: str = "--arrivals") -> Arrivals:
    """``trace``, ``trace-raw``, ``poisson:RATE``, ``gamma:RATE:CV``, ``closed:N`` or ``at-once``.

    Raises ``InputError`` of one line that begins with ``place``.
    """
    kind, *values = str(text).strip().split(":")
    if kind not in KINDS:
        raise InputError(unknown(place, "arrivals", kind, [":".join([k, *p]) for k, p in KINDS.items()]))
    names = KINDS[kind]
    if len(values) != len(names):
        raise InputError(f"{place}: '{text}' has {len(values)} numbers; allowed: {':'.join([kind, *names])}")
    given = dict(zip(names, values, strict=True))
    rate = _number(place, text, "RATE", given, MAX_RATE_PER_S)
    cv = 1.0 if kind == "poisson" else _number(place, text, "CV", given, MAX_CV)
    clients = _number(place, text, "N", given, MAX_CLIENTS)
    if clients is not None and clients != int(clients):
        raise InputError(f"{place}: '{text}': N is {given['N']}; allowed: whole numbers 1 to {MAX_CLIENTS:,}")
    return Arrivals(kind, rate, cv, None if clients is None else int(clients))


def _number(place: str, text: str, name: str, given: dict[str, str], most: float) -> float | None:
    if name not in given:
        return None
    try:
        value = float(given[name])
    except ValueError:
        value = math.nan
    if not 0 < value <= most or "_" in given[name]:
        raise InputError(f"{place}: '{text}': {name} is '{given[name]}'; allowed: numbers above 0 up to {most:g}")
    return value


def apply_arrivals(trace: Trace, arrivals: Arrivals, seed: int = 0) -> Trace:
    """The trace with the arrivals asked for; lengths, prefixes and sessions stay, and so does the seed's outcome.

    ``closed`` and ``at-once`` set every arrival to 0 (closed: the load source then sends as clients get free).
    ``poisson`` and ``gamma`` draw gaps of mean 1/rate. Later turns of a session follow their think time, so only the
    starts of sessions are drawn, at rate x (starts / requests): the requests per second are those asked for. Their
    nominal times move with their session, and rows are put in order again.
    """
    if arrivals.kind in ("trace", "trace-raw"):
        return trace
    if arrivals.kind in ("closed", "at-once"):
        return trace.with_(arrival_s=np.zeros(len(trace)))
    assert arrivals.rate_per_s is not None
    later = trace.follows_session()
    starts = np.flatnonzero(~later)
    rng = stream(seed, 0xA331)
    rate = arrivals.rate_per_s * len(starts) / len(trace)
    drawn = np.cumsum(gaps_gamma(rng, len(starts), arrivals.cv or 1.0)) / rate
    note = f"arrivals drawn: {arrivals}, seed {seed}"
    if not later.any():
        return trace.with_(arrival_s=drawn, notes=(*trace.notes, note))
    note += f"; {len(starts)} session starts at {rate:.4g}/s, later turns follow their think_s"
    moved = trace.arrival_s + _shift(trace, starts, drawn - trace.arrival_s[starts])
    order = np.argsort(moved, kind="stable")  # stable, and one shift a session: its turns stay in order
    return trace.with_(notes=(*trace.notes, note)).select(order, moved[order])


def _shift(trace: Trace, starts: NDArray[np.int64], moves_s: NDArray[np.float64]) -> NDArray[np.float64]:
    """Seconds by which each request moves: those of its session's first request."""
    assert trace.session is not None
    shift = np.zeros(len(trace))
    shift[starts] = moves_s
    first_of = np.zeros(len(trace.session_names or ()), np.int64)
    inside = starts[trace.session[starts] >= 0]
    first_of[trace.session[inside]] = inside
    members = trace.session >= 0
    shift[members] = shift[first_of[trace.session[members]]]
    return shift
