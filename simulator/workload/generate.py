"""Makes traces from stated statistics: arrivals, lengths, how they go together, shared prefixes, sessions of turns."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from simulator.errors import TraceError
from simulator.workload.distributions import gaps_gamma, linked_uniforms, stream
from simulator.workload.spec import ArrivalSpec, Diurnal, PrefixSpec, SessionSpec, TraceSpec, read_spec
from simulator.workload.trace import Trace, dense_codes

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

#: Mean session lengths simulated before time 0, so that the trace begins with sessions already under way.
_WARM_UP_SESSIONS = 3.0
_GRID_POINTS = 20_001
_NO_PREFIX = -1


@dataclass
class _Rows:
    """Requests being made, one row each: when, how long, whose, with which prefix."""

    arrival_s: FloatArray
    inputs: IntArray
    outputs: IntArray
    session: IntArray
    turn: IntArray
    think_s: FloatArray
    prefix: IntArray

    def take(self, index: IntArray) -> _Rows:
        return _Rows(**{name: column[index] for name, column in vars(self).items()})


def generate_trace(
    spec: TraceSpec | Mapping[str, Any] | str | os.PathLike[str],
    *,
    seed: int | None = None,
    requests: int | None = None,
) -> Trace:
    """A trace with the statistics of ``spec`` (a mapping, a YAML file or a ``TraceSpec``); see ``docs/traces.md``.

    ``seed`` and ``requests`` override the spec's. The same spec and seed give the same trace. Raises ``TraceError``
    for a spec that cannot be met.
    """
    wanted = read_spec(spec)
    changes = {n: v for n, v in (("seed", seed), ("requests", requests)) if v is not None}
    if changes:
        wanted = read_spec({**wanted.model_dump(), **changes})
    rows = _single(wanted) if wanted.sessions is None else _in_sessions(wanted, wanted.sessions)
    optional: dict[str, Any] = {}
    if wanted.prefixes is not None:
        optional = _blocks(rows, wanted, wanted.prefixes)
    if wanted.sessions is not None:
        session, names = dense_codes(rows.session, [""] * (int(rows.session.max()) + 1))
        names = tuple(f"s{i}" for i in range(len(names)))
        optional.update(session=session, session_names=names, turn=rows.turn, think_s=rows.think_s)
    if wanted.max_output_tokens is not None:
        optional["max_output_tokens"] = np.full(len(rows.inputs), wanted.max_output_tokens, np.int64)
    note = f"generated from spec '{wanted.name}', seed {wanted.seed}"
    if wanted.source:
        note += f"; statistics: {' '.join(wanted.source.split())}"
    return Trace.from_columns(
        # A microsecond is finer than any log, and keeps the written file small.
        np.round(rows.arrival_s, 6),
        rows.inputs,
        rows.outputs,
        name=wanted.name,
        source="generated",
        notes=(note,),
        **optional,
    )


def _rng(spec: TraceSpec, purpose: int) -> np.random.Generator:
    """One stream of numbers a purpose, so that a change of one statistic leaves the others' draws as they were."""
    return stream(spec.seed, 0x6E4, purpose)


def _times(spec: ArrivalSpec, rng: np.random.Generator, count: int, scale: float, from_s: float) -> FloatArray:
    """``count`` arrival times from ``from_s`` on, at ``scale`` times the spec's rate."""
    if spec.gaps_s is not None:
        gaps = spec.gaps_s.at(rng.random(count)) / scale
    else:
        gaps = gaps_gamma(rng, count, spec.cv) / (spec.mean_rate_per_s() * scale)
    steady = np.cumsum(gaps)
    return from_s + (steady if spec.diurnal is None else _warp(steady, spec.diurnal, from_s))


def _warp(steady_s: FloatArray, day: Diurnal, from_s: float) -> FloatArray:
    """Times whose rate follows the day: the inverse of the integral of 1 + a cos(2 pi (t - peak) / period)."""
    reach = float(steady_s[-1]) + day.period_s  # the integral stays within one period of the line
    points = max(_GRID_POINTS, math.ceil(200 * reach / day.period_s))
    if points > 5_000_000:
        raise TraceError(f"spec: arrivals.diurnal.period_s {day.period_s:g} is too short for {reach:g} s of arrivals")
    t = np.linspace(0.0, reach, points)
    turn = 2 * np.pi / day.period_s
    swing = np.sin(turn * (t + from_s - day.peak_s)) - np.sin(turn * (from_s - day.peak_s))
    return np.interp(steady_s, t + day.amplitude / turn * swing, t)


def _outputs(spec: TraceSpec, u: FloatArray) -> IntArray:
    """Lengths of answers, cut where the client cuts them."""
    tokens = spec.output_tokens.tokens(u)
    return tokens if spec.max_output_tokens is None else np.minimum(tokens, spec.max_output_tokens)


def _single(spec: TraceSpec) -> _Rows:
    """Requests that have nothing to do with one another, but for their prefix."""
    count = spec.requests
    u_in, u_out = linked_uniforms(_rng(spec, 1), count, spec.rank_correlation)
    return _Rows(
        _times(spec.arrivals, _rng(spec, 0), count, 1.0, 0.0),
        spec.input_tokens.tokens(u_in),
        _outputs(spec, u_out),
        np.arange(count, dtype=np.int64),
        np.zeros(count, np.int64),
        np.full(count, np.nan),
        _draw_prefixes(spec, count),
    )


def _in_sessions(spec: TraceSpec, sessions: SessionSpec) -> _Rows:
    """Requests of sessions, some already under way at time 0: those enter with their history in the prompt."""
    length_s, turns = _session_size(spec, sessions)
    warm_s = _WARM_UP_SESSIONS * length_s
    pace = spec.arrivals.mean_rate_per_s()
    starts = math.ceil((spec.requests / pace + warm_s) * pace / turns * 1.2) + 20
    for _ in range(30):
        rows = _grow(spec, sessions, starts, turns, warm_s)
        rows = rows.take(np.flatnonzero(rows.arrival_s >= 0))
        if len(rows.inputs) >= spec.requests:
            break
        starts = math.ceil(starts * 1.5)
    else:
        raise TraceError(f"spec: {spec.requests:,} requests cannot be made of these sessions")
    rows = rows.take(np.argsort(rows.arrival_s, kind="stable")[: spec.requests])
    first_turn = np.full(int(rows.session.max()) + 1, np.iinfo(np.int64).max)
    np.minimum.at(first_turn, rows.session, rows.turn)
    rows.turn = rows.turn - first_turn[rows.session]
    rows.think_s = np.where(rows.turn == 0, np.nan, rows.think_s)
    return rows


def _session_size(spec: TraceSpec, sessions: SessionSpec) -> tuple[float, float]:
    """Mean seconds and mean turns of a session, from a thousand tried ones (the longest prompts end some early)."""
    tried = _grow(spec, sessions, 1000, 1.0, 0.0)
    begins = np.full(1000, np.inf)
    ends = np.zeros(1000)
    np.minimum.at(begins, tried.session, tried.arrival_s)
    np.maximum.at(ends, tried.session, tried.arrival_s)
    return float((ends - begins).mean()), len(tried.inputs) / 1000


def _grow(spec: TraceSpec, sessions: SessionSpec, count: int, turns_each: float, warm_s: float) -> _Rows:
    """All turns of ``count`` sessions, turn by turn over all sessions at once."""
    rng = _rng(spec, 2)
    active = np.arange(count, dtype=np.int64)
    wanted = sessions.turns.tokens(rng.random(count))
    now_s = _times(spec.arrivals, _rng(spec, 0), count, 1 / turns_each, -warm_s)
    u_in, u_out = linked_uniforms(_rng(spec, 1), count, spec.rank_correlation)
    inputs = np.minimum(spec.input_tokens.tokens(u_in), sessions.max_input_tokens)
    outputs = _outputs(spec, u_out)
    think_s = np.full(count, np.nan)
    prefix = _draw_prefixes(spec, count)
    parts: list[_Rows] = []
    turn = 0
    while len(active):
        turns = np.full(len(active), turn, np.int64)
        parts.append(_Rows(now_s, inputs, outputs, active, turns, think_s, prefix[active]))
        turn += 1
        u_new, u_out = linked_uniforms(rng, len(active), spec.rank_correlation)
        grown = inputs + outputs + sessions.new_tokens.tokens(u_new)
        think_s = np.round(sessions.think_s.at(rng.random(len(active))), 6)
        goes_on = np.flatnonzero((wanted[active] > turn) & (grown <= sessions.max_input_tokens))
        now_s = (now_s + outputs * sessions.seconds_per_output_token + think_s)[goes_on]
        active, inputs, think_s = active[goes_on], grown[goes_on], think_s[goes_on]
        outputs = _outputs(spec, u_out)[goes_on]
    return _Rows(**{n: np.concatenate([getattr(p, n) for p in parts]) for n in vars(parts[0])})


def _draw_prefixes(spec: TraceSpec, count: int) -> IntArray:
    """Which prefix each request or session has, or none."""
    if spec.prefixes is None:
        return np.full(count, _NO_PREFIX, np.int64)
    rng = _rng(spec, 3)
    weights = np.arange(1, spec.prefixes.count + 1, dtype=float) ** -spec.prefixes.zipf
    chosen = np.searchsorted(np.cumsum(weights) / weights.sum(), rng.random(count), side="right")
    chosen = np.minimum(chosen, spec.prefixes.count - 1)
    return np.where(rng.random(count) < spec.prefixes.share, chosen, _NO_PREFIX).astype(np.int64)


def _blocks(rows: _Rows, spec: TraceSpec, prefixes: PrefixSpec) -> dict[str, Any]:
    """Block ids: the same for the common beginning, for a shared prefix, and for the history of a session.

    A block only partly filled by a prompt holds other tokens once the session goes on, so it always gets its own id.
    """
    size = prefixes.block_tokens
    lengths = prefixes.tokens.tokens(_rng(spec, 4).random(prefixes.count))
    lengths = np.maximum(lengths, prefixes.common_tokens)
    counts = -(-rows.inputs // size)
    offsets = np.concatenate(([0], np.cumsum(counts)))
    row = np.repeat(np.arange(len(counts)), counts)
    block = np.arange(offsets[-1]) - offsets[row]
    shared = np.where(rows.prefix == _NO_PREFIX, 0, np.minimum(lengths[rows.prefix], rows.inputs) // size)
    common = np.minimum(shared, prefixes.common_tokens // size)
    most = np.zeros(int(rows.session.max()) + 1, np.int64)
    np.maximum.at(most, rows.session, counts)
    prefix_base = np.concatenate(([0], np.cumsum(lengths // size)[:-1])) + prefixes.common_tokens // size
    session_base = int(prefix_base[-1] + lengths[-1] // size) + np.concatenate(([0], np.cumsum(most)[:-1]))
    fresh = int(session_base[-1] + most[-1]) + np.arange(len(row))
    ids = session_base[rows.session[row]] + block
    ids = np.where(block < shared[row], prefix_base[rows.prefix[row]] + block, ids)
    ids = np.where(block < common[row], block, ids)
    ids = np.where((block + 1) * size > rows.inputs[row], fresh, ids)
    _, first, inverse = np.unique(ids, return_index=True, return_inverse=True)
    rank = np.empty(len(first), np.int64)
    rank[np.argsort(first)] = np.arange(len(first))
    return {"hash_ids": rank[inverse], "hash_offsets": offsets, "block_tokens": size}
