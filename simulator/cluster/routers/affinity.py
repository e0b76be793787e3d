"""Routers that send a request where its prefix is likely to be cached."""

from __future__ import annotations

from simulator.cluster.routers.base import PENDING_TOKENS, Asked, Pool, least
from simulator.cluster.routers.load import least_requests

#: A worker may have this many times the least pending tokens (and at least a prompt of slack) and still get a
#: request for its cached prefix; beyond, the load decides. ``balance`` in the topology replaces it.
_BALANCE = 1.5


def session_affinity(pool: Pool, request: Asked) -> int:
    """Turns of a session stay where it began; it begins where requests are fewest."""
    if request.session < 0:
        return least_requests(pool, request)
    if request.session not in pool.session_home:
        pool.session_home[request.session] = least_requests(pool, request)
    return pool.session_home[request.session]


def prefix_aware(pool: Pool, request: Asked) -> int:
    """Longest prefix that the router has sent to a worker before, unless that worker has much more to do than others.

    The router knows what it sent where, not what has been evicted since.
    """
    gauges = pool.look(request.now_s)
    pending = gauges[:, PENDING_TOKENS] + 1e-6 * pool.requests()
    choice = least(pending)
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
        if pending[nearest] <= (pool.options.balance or _BALANCE) * pending[choice] + spared:
            choice = nearest
    for block in blocks:
        pool.block_home.setdefault(block, set()).add(choice)
    return choice


def prefix_affinity(pool: Pool, request: Asked) -> int:
    """Longest prefix in the workers' own caches, as their events tell, unless that worker has much more to do.

    ``balance``: how many times the least pending tokens it may have (and what the prefix spares on top).
    """
    gauges = pool.look(request.now_s)
    pending = gauges[:, PENDING_TOKENS] + 1e-6 * pool.requests()
    choice = least(pending)
    found = pool.device_tokens(request)
    longest = int(found.max())
    if longest > 0:
        holders = [i for i, tokens in enumerate(found.tolist()) if tokens == longest]
        nearest = min(holders, key=pending.__getitem__)
        if pending[nearest] <= (pool.options.balance or _BALANCE) * pending[choice] + longest:
            choice = nearest
    return choice
