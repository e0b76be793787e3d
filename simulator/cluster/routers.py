"""Which worker of a pool takes a request. A router sees what a real one could: queues, memory, prompts; no output length.

To add one: a function ``(pool, request) -> position in the pool`` and a line in ``ROUTERS``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from simulator.engine.engine import Load


@dataclass(frozen=True)
class Asked:
    """A request as a router sees it."""

    row: int
    input_tokens: int
    session: int
    hash_ids: NDArray[np.int64]
    block_tokens: int


class Candidate(Protocol):
    """A worker as a router sees it."""

    @property
    def prefill_tokens_per_s(self) -> float:
        """Prompt tokens a second with full batches (from the cost model; a real router would have measured it)."""

    def load(self) -> Load:
        """Queue lengths and memory at this moment."""


@dataclass
class Pool:
    """The workers of one role, and what a router remembers between requests."""

    workers: list[Candidate]
    turn: int = 0
    session_home: dict[int, int] = field(default_factory=dict)
    block_home: dict[int, set[int]] = field(default_factory=dict)

    def loads(self) -> list[Load]:
        """Load of every worker now."""
        return [worker.load() for worker in self.workers]


Router = Callable[[Pool, Asked], int]


def _least(values: list[float]) -> int:
    """Position of the smallest value, the first of equals."""
    return min(range(len(values)), key=values.__getitem__)


def round_robin(pool: Pool, request: Asked) -> int:
    """One after the other."""
    pool.turn += 1
    return (pool.turn - 1) % len(pool.workers)


def least_requests(pool: Pool, request: Asked) -> int:
    """Fewest requests, running or waiting; among equals fewest pending prompt tokens."""
    return _least([load.requests + 1e-9 * load.pending_prompt_tokens for load in pool.loads()])


def least_pending_tokens(pool: Pool, request: Asked) -> int:
    """Fewest prompt tokens not yet computed; among equals fewest requests."""
    return _least([load.pending_prompt_tokens + 1e-6 * load.requests for load in pool.loads()])


def most_free_blocks(pool: Pool, request: Asked) -> int:
    """Most free KV blocks, less what the waiting requests will take; among equals fewest requests."""
    return _least([1e-6 * load.requests - load.free_blocks + load.waiting for load in pool.loads()])


def shortest_predicted_wait(pool: Pool, request: Asked) -> int:
    """Shortest time to work off the prompt tokens ahead, at each worker's own prefill rate."""
    waits = [
        load.pending_prompt_tokens / worker.prefill_tokens_per_s + 1e-9 * load.requests
        for worker, load in zip(pool.workers, pool.loads(), strict=True)
    ]
    return _least(waits)


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
    pending = [load.pending_prompt_tokens + 1e-6 * load.requests for load in pool.loads()]
    choice = _least(pending)
    holders: set[int] = set(range(len(pool.workers)))
    matched = 0
    best: set[int] = set()
    for block in request.hash_ids.tolist():
        holders = holders & pool.block_home.get(block, set())
        if not holders:
            break
        best = holders
        matched += 1
    if matched:
        nearest = min(best, key=pending.__getitem__)
        spared = matched * request.block_tokens
        if pending[nearest] <= _BALANCE * pending[choice] + spared:
            choice = nearest
    for block in request.hash_ids.tolist():
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
