"""Routers that go by load alone: queues, memory, predicted times."""

from __future__ import annotations

import numpy as np

from simulator.cluster.routers.base import FREE_BLOCKS, PENDING_TOKENS, WAITING, Asked, Pool, least


def round_robin(pool: Pool, request: Asked) -> int:
    """One after the other."""
    pool.turn += 1
    return (pool.turn - 1) % len(pool.workers)


def least_requests(pool: Pool, request: Asked) -> int:
    """Fewest requests, running or waiting; among equals fewest pending prompt tokens.

    DistServe's choice of a decoding instance (OSDI 2024, section 4.3: the least loaded).
    """
    gauges = pool.look(request.now_s)
    return least(pool.requests() + 1e-9 * gauges[:, PENDING_TOKENS])


def shortest_queue(pool: Pool, request: Asked) -> int:
    """Fewest waiting requests; among equals fewest in all, then fewest pending prompt tokens.

    DistServe's choice of a prefill instance (OSDI 2024, section 4.3: the shortest queue).
    """
    gauges = pool.look(request.now_s)
    return least(gauges[:, WAITING] + 1e-5 * pool.requests() + 1e-12 * gauges[:, PENDING_TOKENS])


def least_pending_tokens(pool: Pool, request: Asked) -> int:
    """Fewest prompt tokens not yet computed; among equals fewest requests."""
    gauges = pool.look(request.now_s)
    return least(gauges[:, PENDING_TOKENS] + 1e-6 * pool.requests())


def most_free_blocks(pool: Pool, request: Asked) -> int:
    """Most free KV blocks, less one for each waiting request; among equals fewest requests."""
    gauges = pool.look(request.now_s)
    return least(gauges[:, WAITING] - gauges[:, FREE_BLOCKS] + 1e-6 * pool.requests())


def shortest_predicted_wait(pool: Pool, request: Asked) -> int:
    """Shortest time to work off the prompt tokens ahead, at each worker's own prefill rate."""
    gauges = pool.look(request.now_s)
    return least(gauges[:, PENDING_TOKENS] / pool.prefill_tokens_per_s + 1e-9 * pool.requests())


def least_predicted_tpot(pool: Pool, request: Asked) -> int:
    """Shortest predicted decode step with the request among the worker's; among equals most free blocks."""
    gauges = pool.look(request.now_s)
    steps = [pool.tpot_s(i, request.input_tokens) for i in range(len(pool.workers))]
    return least(np.array(steps) - 1e-15 * gauges[:, FREE_BLOCKS])
