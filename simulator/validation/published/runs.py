"""Runs of whole clusters, as rows ask for them: lone requests, and the highest rate that meets a target."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from simulator.cluster.assembly import assemble
from simulator.cluster.plan import ClusterPlan
from simulator.cluster.result import COMPLETED, RunRecord, RunResult
from simulator.cluster.run import RunOptions
from simulator.cluster.simulation import run_plan
from simulator.cluster.topology import load_topology
from simulator.workload.arrivals import Arrivals
from simulator.workload.trace import Trace

Floats = NDArray[np.float64]
#: Requests of a run that looks for a rate, and how close two rates are when the search ends.
REQUESTS, CLOSE = 1500, 0.02


def plan_of(topology: Mapping[str, Any] | str) -> ClusterPlan:
    """A topology worked out."""
    return assemble(load_topology(topology))


def requests(count: int, inputs: int, outputs: int) -> Trace:
    """Like requests, whose prompts share nothing."""
    columns = (np.zeros(count), np.full(count, inputs), np.full(count, outputs))
    return Trace.from_columns(*columns, max_output_tokens=columns[2], name="published", source="published")


def alone(plan: ClusterPlan, inputs: int, outputs: int) -> RunResult:
    """A request with the cluster to itself, and another after it."""
    return run_plan(plan, requests(2, inputs, outputs), Arrivals("closed", clients=1))


def ttft_s(record: RunRecord) -> Floats:
    """Seconds to the first token."""
    found: Floats = record.first_token_s - record.arrival_s
    return found


def tpot_s(record: RunRecord) -> Floats:
    """Seconds a token after the first."""
    found: Floats = (record.last_token_s - record.first_token_s) / np.maximum(record.output_tokens - 1, 1)
    return found


def transfer_s(plan: ClusterPlan, blocks: int) -> float:
    """Seconds of a handover of ``blocks`` with the network to itself."""
    assert plan.transfer is not None
    route, network = plan.transfer.route(0, 1), plan.transfer.network
    alone_bytes_per_s = network.paths[0, 1].alone_bytes_per_s(network.links)
    return route.delay_s(blocks) + route.wire_bytes(blocks) / alone_bytes_per_s


def highest_rate(plan: ClusterPlan, trace: Trace, met: Callable[[RunRecord], bool], top: float) -> float:
    """The highest Poisson rate, in requests a second up to ``top``, at which a run meets its target."""
    low, high = top / 64.0, top
    while high / low > 1.0 + CLOSE:
        middle = float(np.sqrt(low * high))
        good = met(run_plan(plan, trace, Arrivals("poisson", rate_per_s=middle), seed=1).record)
        low, high = (middle, high) if good else (low, middle)
    return float(np.sqrt(low * high))


#: Every batch is written down, so that each token's time is known.
EVERY_BATCH = RunOptions(logging=True)


def completed(record: RunRecord) -> NDArray[np.bool_]:
    """Requests that were served to their end."""
    found: NDArray[np.bool_] = record.state == COMPLETED
    return found


def slowest_gaps_s(done: RunResult, share: float) -> Floats:
    """Mean of the slowest ``share`` of each request's token gaps, at least one gap; NaN below two tokens.

    Needs every batch (``EVERY_BATCH``), each of which makes one token of a request.
    """
    record = done.record
    batches = [np.repeat(steps.end_s, np.diff(np.append(steps.first, steps.row.size))) for steps in done.steps]
    made = np.concatenate([steps.tokens > 0 for steps in done.steps])
    row = np.concatenate([steps.row for steps in done.steps])[made]
    end = np.concatenate(batches)[made]
    order = np.lexsort((-end, row))  # the last batches of a request made its tokens, earlier ones computed its prompt
    row, end = row[order], end[order]
    _, start, count = np.unique(row, return_index=True, return_counts=True)
    token = np.arange(row.size) - np.repeat(start, count) < record.output_tokens[row]
    row, end = row[token], end[token]
    same = row[1:] == row[:-1]
    owner, gaps = row[1:][same], -np.diff(end)[same]
    order = np.lexsort((-gaps, owner))
    owner, gaps = owner[order], gaps[order]
    found, start, count = np.unique(owner, return_index=True, return_counts=True)
    wanted = np.maximum(np.ceil(share * count).astype(np.int64), 1)
    sums = np.concatenate([[0.0], np.cumsum(gaps)])
    slowest = np.full(len(record), np.nan)
    slowest[found] = (sums[start + wanted] - sums[start]) / wanted
    return slowest
