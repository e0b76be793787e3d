"""Mooncake's conductor: prefill by predicted TTFT with cached prefixes and their copying, decode by predicted TBT.

Algorithm 1 of Mooncake (FAST 2025, arXiv 2407.00079). An instance whose own prefix is not much shorter than the best
one computes the rest itself; one whose prefix is much shorter fetches the best one first, which is how hot blocks come
to be in several places.
"""

from __future__ import annotations

import math

from simulator.cluster.routers.base import Asked, Decision, Front, Pool

#: kvcache_balancing_threshold where the topology does not say; the paper gives no number.
_BALANCING_THRESHOLD = 2.0


def mooncake(front: Front, request: Asked) -> Decision:
    """Both instances at once; option ``kvcache_balancing_threshold``."""
    pool, now = front.entry, request.now_s
    pool.look(now)
    threshold = front.options.kvcache_balancing_threshold or _BALANCING_THRESHOLD
    device = pool.device_tokens(request).tolist()
    own = [held(front, request, i, device[i], reach=False) for i in range(len(pool.workers))]
    reachable = [held(front, request, i, device[i], reach=True) for i in range(len(pool.workers))]
    best_s, choice, fetching = math.inf, 0, False
    for i in range(len(pool.workers)):
        fetch = reachable[i] > threshold * own[i]
        prefix = reachable[i] if fetch else own[i]
        seconds = queue_s(pool, i, now) + pool.prompt_s(i, request.input_tokens, prefix)
        if fetch and front.below is not None:
            seconds += front.below.fetch_s(pool.workers[i].index, prefix - own[i])
        if seconds < best_s:
            best_s, choice, fetching = seconds, i, fetch
    second, tpot_s = decode_choice(front, request)
    return Decision(pool.workers[choice].index, second, reach=fetching, ttft_s=best_s, tpot_s=tpot_s)


def held(front: Front, request: Asked, position: int, device: int, *, reach: bool) -> int:
    """Leading prompt tokens that an instance holds itself, or can reach in all."""
    if front.below is None:
        return device
    return front.below.held(request, front.entry.workers[position].index, device, reach=reach)


def queue_s(pool: Pool, position: int, now: float) -> float:
    """Predicted seconds of the prompts queued at an instance."""
    return pool.ledger.queue_s(position, now)


def decode_choice(front: Front, request: Asked) -> tuple[int | None, float]:
    """The decoding instance with the shortest predicted step, and that time."""
    pool = front.second
    if not pool.workers:
        return None, float("nan")
    pool.look(request.now_s)
    steps = [pool.tpot_s(i, request.input_tokens) for i in range(len(pool.workers))]
    choice = min(range(len(steps)), key=steps.__getitem__)
    return pool.workers[choice].index, steps[choice]
