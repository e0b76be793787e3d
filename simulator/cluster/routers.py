"""Which worker of a pool takes a request. A router sees what a real one could: queues, memory, prompts; never the
output length.

To add one: a function ``(pool, request) -> position in the pool`` and a line in ``ROUTERS``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from simulator.engine.engine import Engine, Survey

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Asked:
    """A request as a router sees it."""

    row: int
    input_tokens: int
    session: int
    hash_ids: NDArray[np.int64]
    block_tokens: int
    now_s: float


class Candidate(Protocol):
    """A worker as a router sees it."""

    @property
    def prefill_tokens_per_s(self) -> float:
        """Prompt tokens a second with full batches (from the cost model; a real router would have measured it)."""

    def pass_on(self) -> None:
        """Take the engine's news to the cluster."""

    @property
    def engine(self) -> Engine:
        """What the worker runs."""


RUNNING, WAITING, HOLDING, FREE_BLOCKS, BLOCKS, PENDING_TOKENS = range(6)


class Pool:
    """The workers of one role, and what a router remembers between requests."""

    def __init__(self, workers: Sequence[Candidate]) -> None:
        self.workers = list(workers)
        self._survey = Survey([worker.engine for worker in self.workers]) if self.workers else None
        self.gauges = self._survey.gauges if self._survey else np.zeros((0, 6))
        self.prefill_tokens_per_s = np.array([worker.prefill_tokens_per_s for worker in self.workers])
        self.turn = 0
        self.session_home: dict[int, int] = {}
        self.block_home: dict[int, set[int]] = {}

    def look(self, now: float) -> Floats:
        """Every worker's load at ``now``: workers x (running, waiting, holding, free, all blocks, pending tokens)."""
        if self._survey is not None:
            for i in self._survey.look(now):
                self.workers[i].pass_on()
        return self.gauges

    def requests(self) -> Floats:
        """Requests at each worker, as last looked at."""
        return self.gauges[:, RUNNING] + self.gauges[:, WAITING] + self.gauges[:, HOLDING]


Router = Callable[[Pool, Asked], int]


def _least(values: Floats) -> int:
    """Position of the smallest value, the first of equals."""
    return int(values.argmin())


def round_robin(pool: Pool, request: Asked) -> int:
    """One after the other."""
    pool.turn += 1
    return (pool.turn - 1) % len(pool.workers)


def least_requests(pool: Pool, request: Asked) -> int:
    """Fewest requests, running or waiting; among equals fewest pending prompt tokens."""
    gauges = pool.look(request.now_s)
    return _least(pool.requests() + 1e-9 * gauges[:, PENDING_TOKENS])


def least_pending_tokens(pool: Pool, request: Asked) -> int:
    """Fewest prompt tokens not yet computed; among equals fewest requests."""
    gauges = pool.look(request.now_s)
    return _least(gauges[:, PENDING_TOKENS] + 1e-6 * pool.requests())


def most_free_blocks(pool: Pool, request: Asked) -> int:
    """Most free KV blocks, less one for each waiting request; among equals fewest requests."""
    gauges = pool.look(request.now_s)
    return _least(gauges[:, WAITING] - gauges[:, FREE_BLOCKS] + 1e-6 * pool.requests())


def shortest_predicted_wait(pool: Pool, request: Asked) -> int:
    """Shortest time to work off the prompt tokens ahead, at each worker's own prefill rate."""
    gauges = pool.look(request.now_s)
    return _least(gauges[:, PENDING_TOKENS] / pool.prefill_tokens_per_s + 1e-9 * pool.requests())


def session_affinity(pool: Pool, request: Asked) -> int:
    """Turns of a session stay where it began; it begins where requests are fewest."""
    if request.session < 0:
        return least_requests(pool, request)
    if request.session not in pool.session_home:
        pool.session_home[request.session] = least_requests(pool, request)
    return pool.session_home[request.session]


#: A worker may have this many times the least pending tokens (and at least a prompt of slack) and still get a
#: request for its cached prefix; beyond, the load decides.
_BALANCE = 1.5


def prefix_aware(pool: Pool, request: Asked) -> int:
    """Longest prefix that the router has sent to a worker before, unless that worker has much more to do than others.

    The router knows what it sent where, not what has been evicted since.
    """
    gauges = pool.look(request.now_s)
    pending = gauges[:, PENDING_TOKENS] + 1e-6 * pool.requests()
    choice = _least(pending)
    holders: set[int] = set(range(len(pool.workers)))
    matched = 0
    best: set[int] = set()
    blocks = request.hash_ids.tolist()
    for block in blocks:
        holders = holders & pool.block_home.get(block, set())
        if not holders:
            break
        best = holders
        matched += 1
    if matched:
        nearest = min(sorted(best), key=pending.__getitem__)
        spared = matched * request.block_tokens
        if pending[nearest] <= _BALANCE * pending[choice] + spared:
            choice = nearest
    for block in blocks:
        pool.block_home.setdefault(block, set()).add(choice)
    return choice


ROUTERS: dict[str, Router] = {
    "round_robin": round_robin,
    "least_requests": least_requests,
    "least_pending_tokens": least_pending_tokens,
    "most_free_blocks": most_free_blocks,
    "shortest_predicted_wait": shortest_predicted_wait,
    "session_affinity": session_affinity,
    "prefix_aware": prefix_aware,
}
