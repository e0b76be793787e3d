"""A run as a timeline for Perfetto (https://ui.perfetto.dev): the Chrome trace event format, JSON.

Each worker is a process: its batches are slices, KV caches that arrive are slices on tracks of their own, with arrows
from the batch that finished the prompt and to the batch that decoded first; memory and queue are counters. Requests
are nested asynchronous slices, one for each phase, under a process of their own. Times are microseconds of the run's
clock. Format: "Trace Event Format", Google, 2016.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import simulator
from simulator.cluster.result import RunResult, WorkerSeries
from simulator.cluster.steps import BatchSums, Moments, WorkerSteps, batch_sums
from simulator.files import replacing
from simulator.metrics.wording import target

Event = dict[str, Any]
Floats = NDArray[np.float64]

#: Events of a file: some 50 MB, which the viewer still opens with ease.
MOST_EVENTS = 300_000
#: Process numbers of a topology's workers begin at a multiple of this; 0 of it are the requests.
_PROCESSES = 10_000
_BATCHES, _FIRST_LANE = 1, 10
#: About how many events one request makes: its phases' begins and ends, a transfer, two arrows.
_PER_REQUEST = 18


@dataclass(frozen=True)
class Window:
    """The part of a run that is written: [start, end) in seconds; ``cut``: there was more."""

    start_s: float
    end_s: float
    cut: bool

    def holds(self, start_s: Floats, end_s: Floats) -> NDArray[np.bool_]:
        """Which intervals touch it."""
        return (start_s < self.end_s) & (end_s >= self.start_s)

    @property
    def note(self) -> str:
        """What is shown, in words; empty where it is everything."""
        if not self.cut:
            return ""
        return f"the timeline shows {target(self.start_s)} to {target(round(self.end_s, 6))} of the run"


def window_of(runs: Sequence[RunResult], start_s: float = 0.0, most_events: int = MOST_EVENTS) -> Window:
    """From ``start_s`` on, as much as ``most_events`` allow."""
    moments, weights = [np.empty(0)], [np.empty(0)]
    for run in runs:
        for steps in run.steps:
            moments.append(steps.end_s)
            weights.append(np.ones(len(steps)))
        for series in run.series:
            moments.append(series.time_s)
            weights.append(np.full(series.time_s.size, 2.0))
        arrived = run.record.arrival_s[~np.isnan(run.record.arrival_s)]
        moments.append(arrived)
        weights.append(np.full(arrived.size, float(_PER_REQUEST)))
    at, weight = np.concatenate(moments), np.concatenate(weights)
    order = np.argsort(at, kind="stable")
    at, weight = at[order], weight[order]
    late = at >= start_s
    total = np.cumsum(weight[late])
    last = float(at[-1]) if at.size else start_s
    if total.size == 0 or total[-1] <= most_events:
        return Window(start_s, np.nextafter(last, np.inf), start_s > 0)
    return Window(start_s, float(at[late][np.searchsorted(total, most_events)]), True)


def write_timeline(path: Path, runs: Sequence[RunResult], start_s: float = 0.0) -> Window:
    """Write the runs (made with their steps kept) to ``path``, one event a line; returns what is in it."""
    window = window_of(runs, start_s)
    about = {"program": f"pd-simulator {simulator.__version__}", "note": window.note or "the whole run"}
    with replacing(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        file.write('{"displayTimeUnit": "ms", "otherData": ' + json.dumps(about) + ', "traceEvents": [\n')
        for number, event in enumerate(timeline_events(runs, window)):
            file.write((",\n" if number else "") + json.dumps(event, ensure_ascii=False, separators=(",", ":")))
        file.write("\n]}\n")
    return window


def timeline_events(runs: Sequence[RunResult], window: Window) -> Iterator[Event]:
    """All events of the window, a topology after the other."""
    for number, run in enumerate(runs):
        yield from _Writer(run, number * _PROCESSES, window, several=len(runs) > 1).events()


def _us(seconds: float) -> float:
    return round(float(seconds) * 1e6, 3)


class _Writer:
    """The events of one run."""

    def __init__(self, run: RunResult, base: int, window: Window, *, several: bool) -> None:
        self._run, self._base, self._window = run, base, window
        self._prefix = f"{run.topology.name}: " if several else ""
        self._requests = self._rows()

    def _rows(self) -> list[int]:
        record = self._run.record
        end = np.where(np.isnan(record.last_token_s), record.arrival_s, record.last_token_s)
        return [int(row) for row in np.flatnonzero(self._window.holds(record.arrival_s, end))]

    def events(self) -> Iterator[Event]:
        yield from self._heads()
        for number, steps in enumerate(self._run.steps):
            yield from self._batches(number, steps)
        for number, series in enumerate(self._run.series):
            yield from self._counters(number, series)
        for row in self._requests:
            yield from self._request(row)
        yield from self._transfers()

    def _process(self, worker: int) -> int:
        return self._base + 1 + worker

    def _heads(self) -> Iterator[Event]:
        yield _meta("process_name", self._base, name=f"{self._prefix}requests")
        yield _meta("process_sort_index", self._base, sort_index=self._base + _PROCESSES - 1)
        for number, series in enumerate(self._run.series):
            pid = self._process(number)
            role = "" if series.role in series.name else f" ({series.role})"
            gpu = f", {series.gpu}" if series.gpu else ""
            yield _meta("process_name", pid, name=f"{self._prefix}{series.name}{role}{gpu}")
            yield _meta("process_sort_index", pid, sort_index=pid)
            yield _meta("thread_name", pid, _BATCHES, name="batches")

    def _batches(self, worker: int, steps: WorkerSteps) -> Iterator[Event]:
        moments = self._moments
        sums = batch_sums(steps, worker, self._run.record.prefill_worker, moments.prefill_end_s)
        for i in np.flatnonzero(self._window.holds(steps.start_s, steps.end_s)):
            yield {
                "ph": "X", "cat": "batch", "name": _kind(sums, int(i)), "pid": self._process(worker), "tid": _BATCHES,
                "ts": _us(steps.start_s[i]), "dur": _us(steps.end_s[i] - steps.start_s[i]),
                "args": {
                    "sequences": int(sums.sequences[i]), "prompt tokens": int(sums.prompt_tokens[i]),
                    "decode tokens": int(sums.decode_tokens[i]), "preempted": int(sums.preempted[i]), "batch": int(i),
                },
            }  # fmt: skip

    def _counters(self, worker: int, series: WorkerSeries) -> Iterator[Event]:
        pid = self._process(worker)
        for i in np.flatnonzero(self._window.holds(series.time_s, series.time_s)):
            at = _us(series.time_s[i])
            queue = {"running": int(series.running[i]), "waiting": int(series.waiting[i])}
            kv = {"%": round(100 * float(series.kv_fraction[i]), 3)}
            yield {"ph": "C", "name": "requests", "pid": pid, "ts": at, "args": queue}
            yield {"ph": "C", "name": "KV blocks in use", "pid": pid, "ts": at, "args": kv}

    @property
    def _moments(self) -> Moments:
        assert self._run.moments is not None, "made with its steps kept"
        return self._run.moments

    def _phases(self, row: int) -> Iterator[tuple[str, float, float]]:
        """Name, start and end of what the request went through; what did not happen is left out."""
        record, moments = self._run.record, self._moments
        marks = [("", float(record.arrival_s[row]))]
        marks += [
            (name, float(column[row]))
            for name, column in (
                ("queue", moments.prefill_start_s),
                ("prefill", moments.prefill_end_s),
                ("wait for transfer", moments.kv_start_s),
                ("KV transfer", moments.kv_end_s),
                ("first token", record.first_token_s),
                ("decode", record.last_token_s),
            )
            if not np.isnan(column[row])
        ]
        reached = marks[0][1]
        for name, end in marks[1:]:
            if end > reached:  # KV sent layer by layer is hidden behind the prefill
                yield name, reached, end
                reached = end

    def _request(self, row: int) -> Iterator[Event]:
        record = self._run.record
        names = self._run.trace.request_id
        label = f"request {names[row] if names is not None else row}"
        told: Mapping[str, Any] = {
            "input tokens": int(record.input_tokens[row]),
            "output tokens": int(record.output_tokens[row]),
            "cached tokens": int(record.cached_tokens[row]),
            "preemptions": int(record.preemptions[row]),
            "row": row,
        }
        phases = list(self._phases(row))
        end = phases[-1][2] if phases else float(record.arrival_s[row])
        same = {"cat": "request", "id": self._base + row, "pid": self._base, "tid": 0}
        yield {"ph": "b", "name": label, "ts": _us(record.arrival_s[row]), "args": told, **same}
        for name, start, stop in phases:
            yield {"ph": "b", "name": name, "ts": _us(start), **same}
            yield {"ph": "e", "name": name, "ts": _us(stop), **same}
        yield {"ph": "e", "name": label, "ts": _us(end), **same}

    def _transfers(self) -> Iterator[Event]:
        """KV caches that arrive at a worker, as many tracks as there are at once, with arrows from and to batches."""
        record, moments = self._run.record, self._moments
        moved = np.flatnonzero(~np.isnan(moments.kv_end_s))
        shown = self._window.holds(moments.kv_start_s[moved], moments.kv_end_s[moved])
        rows = moved[shown]
        rows = rows[np.argsort(moments.kv_start_s[rows], kind="stable")]
        lanes: dict[int, list[float]] = {}
        for row in rows.tolist():
            src, dst = int(record.prefill_worker[row]), int(record.decode_worker[row])
            start, end = float(moments.kv_start_s[row]), float(moments.kv_end_s[row])
            lane, fresh = _lane(lanes.setdefault(dst, []), start, end)
            pid, tid = self._process(dst), _FIRST_LANE + lane
            if fresh:
                yield _meta("thread_name", pid, tid, name=f"KV in {lane + 1}")
            told = {"from": self._run.series[src].name, "bytes": float(moments.kv_bytes[row]), "row": row}
            yield {
                "ph": "X", "cat": "kv", "name": "KV transfer", "pid": pid, "tid": tid,
                "ts": _us(start), "dur": _us(end - start), "args": told,
            }  # fmt: skip
            yield from self._arrow(2 * (self._base + row), self._last_batch(src, row), (pid, tid, start))
            yield from self._arrow(2 * (self._base + row) + 1, (pid, tid, start), self._first_batch(dst, row, end))

    def _last_batch(self, worker: int, row: int) -> tuple[int, int, float] | None:
        """A moment inside the batch that finished the row's prompt."""
        steps, at = self._run.steps[worker], self._moments.prefill_end_s[row]
        i = int(np.searchsorted(steps.end_s, at - 1e-9))
        return None if i == len(steps) else self._inside(worker, steps, i)

    def _first_batch(self, worker: int, row: int, after_s: float) -> tuple[int, int, float] | None:
        """A moment inside the first batch at the decode worker that has the row."""
        steps = self._run.steps[worker]
        i = int(np.searchsorted(steps.start_s, after_s - 1e-9))
        sizes = np.append(steps.first, steps.row.size)
        while i < len(steps):
            if row in steps.row[sizes[i] : sizes[i + 1]]:
                return self._inside(worker, steps, i)
            i += 1
        return None

    def _inside(self, worker: int, steps: WorkerSteps, i: int) -> tuple[int, int, float] | None:
        if not self._window.holds(steps.start_s[i : i + 1], steps.end_s[i : i + 1])[0]:
            return None
        return self._process(worker), _BATCHES, float(steps.start_s[i])

    def _arrow(
        self, number: int, start: tuple[int, int, float] | None, end: tuple[int, int, float] | None
    ) -> Iterator[Event]:
        if start is None or end is None:
            return
        for phase, (pid, tid, at) in (("s", start), ("f", end)):
            bound = {"bp": "e"} if phase == "f" else {}
            yield {"ph": phase, "cat": "kv", "name": "KV", "id": number, "pid": pid, "tid": tid, "ts": _us(at), **bound}


def _kind(sums: BatchSums, i: int) -> str:
    if not sums.prompt_tokens[i]:
        return "decode" if sums.sequences[i] else "preempt"
    return "mixed" if sums.decode_tokens[i] else "prefill"


def _lane(ends: list[float], start_s: float, end_s: float) -> tuple[int, bool]:
    """The first track that is free at ``start_s``, and whether it is a new one."""
    for lane, busy_until in enumerate(ends):
        if busy_until <= start_s:
            ends[lane] = end_s
            return lane, False
    ends.append(end_s)
    return len(ends) - 1, True


def _meta(what: str, pid: int, tid: int = 0, **args: object) -> Event:
    return {"ph": "M", "name": what, "pid": pid, "tid": tid, "ts": 0, "args": args}
