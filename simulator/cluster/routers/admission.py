"""Early rejection: whether a request is turned away at once because a target would be missed.

Mooncake (FAST 2025, section 6): rejecting at arrival by the load of both pools saves the prefill of requests that
would be rejected before decoding; going by the decode load *predicted* for when the prompt will be done keeps the two
pools from swinging against each other.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable

from simulator.cluster.routers.base import WAITING, Asked, Decision, Front
from simulator.cluster.routers.mooncake import decode_choice, held, queue_s
from simulator.cluster.schema import AdmissionPart
from simulator.units import parse_duration

Admission = Callable[[Front, Asked, Decision], str | None]


def early(front: Front, request: Asked, decision: Decision) -> str | None:
    """Predicted TTFT with the queue as it is, predicted token time with the decoding requests as they are now."""
    return _reason(front, predicted_ttft_s(front, request, decision), predicted_tpot_s(front, request, decision))


def predicted(front: Front, request: Asked, decision: Decision) -> str | None:
    """The same, with the decoding requests there will be once the prompt is done.

    Requests whose prompts will be done by then are added, those that will have decoded for ``decode_s`` are taken off;
    the pool is taken as evenly loaded.
    """
    ttft_s = predicted_ttft_s(front, request, decision)
    now = predicted_tpot_s(front, request, decision)
    pool = front.second if front.second.workers else front.entry
    running = float(pool.requests().sum())
    if not running or front.admission is None:
        return _reason(front, ttft_s, now)
    then = request.now_s + ttft_s
    leaving = bisect_right(front.decode_ends_s, then) - bisect_right(front.decode_ends_s, request.now_s)
    coming = front.entry.ledger.done_within(ttft_s, request.now_s) if front.second.workers else 0
    growth = max(running + coming - leaving, 0.0) / running
    return _reason(front, ttft_s, now * growth)


def queue(front: Front, request: Asked, decision: Decision) -> str | None:
    """Overload: every worker that could take the request has its queue full (as gateways answer 429 or 529)."""
    most = front.admission.max_waiting if front.admission is not None else None
    if most is None or not front.entry.workers or front.entry.look(request.now_s)[:, WAITING].min() < most:
        return None
    return f"turned away: {most} requests wait at every worker"


def predicted_ttft_s(front: Front, request: Asked, decision: Decision) -> float:
    """The router's own prediction, or queue and prompt of the chosen worker."""
    if decision.ttft_s == decision.ttft_s:
        return decision.ttft_s
    pool = front.entry
    position = next((i for i, worker in enumerate(pool.workers) if worker.index == decision.first), None)
    if position is None:
        return 0.0
    cached = held(front, request, position, int(pool.device_tokens(request)[position]), reach=decision.reach)
    return queue_s(pool, position, request.now_s) + pool.prompt_s(position, request.input_tokens, cached)


def predicted_tpot_s(front: Front, request: Asked, decision: Decision) -> float:
    """The router's own prediction, or that of the best worker that decodes."""
    if decision.tpot_s == decision.tpot_s:
        return decision.tpot_s
    if front.second.workers:
        return decode_choice(front, request)[1]
    front.entry.look(request.now_s)
    position = next(i for i, worker in enumerate(front.entry.workers) if worker.index == decision.first)
    return front.entry.tpot_s(position, request.input_tokens)


def _reason(front: Front, ttft_s: float, tpot_s: float) -> str | None:
    targets = front.admission or AdmissionPart(kind="early")
    for name, seconds, target in (("TTFT", ttft_s, targets.ttft), ("TPOT", tpot_s, targets.tpot)):
        if target is not None and seconds > parse_duration(target, f"admission.{name.lower()}"):
            return f"turned away: predicted {name} above {target}"
    return None
