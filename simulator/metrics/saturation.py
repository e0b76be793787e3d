"""Does the queue grow to the end? Then latencies tell how long the trace is, not how good the cluster is."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np

from simulator.cluster.result import COMPLETED, UNFINISHED, Floats, RunResult

#: Fewer requests than this cannot show a trend.
FEWEST = 40


def is_saturated(run: RunResult) -> bool:
    """True when requests keep coming faster than they get their first token until the last one has arrived.

    A run that says so itself is believed. Closed loops cannot saturate in this sense: a client waits for its answer.
    """
    if run.saturated is not None:
        return run.saturated
    if run.arrivals.startswith(("closed", "at-once")):
        return False
    record = run.record
    waits = (record.state == COMPLETED) | (record.state == UNFINISHED)
    started_s = np.where(np.isnan(record.first_token_s), math.inf, record.first_token_s)
    return queue_grows(np.sort(record.arrival_s[waits]), np.sort(started_s[waits]))


def queue_grows(arrival_s: Floats, started_s: Floats) -> bool:
    """Judge a queue from sorted arrival and start times (infinite where never started).

    The queue is what has arrived and not started. It grows to the end when its mean rises from quarter to quarter of
    the arrival window, and over the second half it takes in more than twice the square root of the arrivals there,
    which is what chance alone (Poisson arrivals) explains.
    """
    if arrival_s.size < FEWEST or arrival_s[-1] <= arrival_s[0]:
        return False
    grid = np.linspace(arrival_s[0], arrival_s[-1], 401)
    arrived = np.searchsorted(arrival_s, grid, side="right")
    backlog = arrived - np.searchsorted(started_s, grid, side="right")
    quarters = [float(backlog[100 * q : 100 * (q + 1) + 1].mean()) for q in range(4)]
    rises = all(before < after for before, after in pairwise(quarters))
    growth = int(backlog[400] - backlog[200])
    return rises and growth > 2 * math.sqrt(int(arrived[400] - arrived[200]))
