"""What lies around a run: latency against rate, and where disaggregation pays, within a stated budget."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from simulator.cluster.result import RunResult
from simulator.metrics.slo import SLO
from simulator.planning.crossover import Crossover, crossover, rivals
from simulator.planning.offer import Offer, Plans, Progress
from simulator.planning.rate_curve import RateCurve, rate_curve
from simulator.workload.arrivals import parse_arrivals

#: Requests simulated for both together: some seconds.
BUDGET = 60_000


@dataclass(frozen=True)
class Around:
    """``curve``: None where there is no rate to change. ``map``: None without targets, a rate, or both kinds of
    topology."""

    curve: RateCurve | None = None
    map: Crossover | None = None


def around(
    run: RunResult,
    plans: Plans,
    slo: SLO,
    warmup_s: float = 0.0,
    *,
    budget: int = BUDGET,
    levels: Sequence[float] | None = None,
    progress: Progress | None = None,
) -> Around:
    """Both, for the load of ``run`` on all ``plans``; nothing with a budget of 0. ``levels`` as for ``rate_curve``."""
    if budget <= 0 or not plans:
        return Around()
    offer = Offer(run.trace, parse_arrivals(run.arrivals), slo, run.seed, warmup_s)
    curve = rate_curve(offer, plans, budget=budget // 2, levels=levels, progress=_part(progress, 0.0))
    if curve is None:
        return Around()
    knees = {name: curve.knee(name) for name in plans}
    pair = rivals(plans, knees)
    if pair is None:
        return Around(curve)
    centre = max((knee for knee in knees.values() if knee), default=curve.given)
    return Around(
        curve, crossover(offer, plans, pair, around=centre, budget=budget // 2, progress=_part(progress, 0.5))
    )


def _part(progress: Progress | None, start: float) -> Progress | None:
    """The half of a whole that begins at ``start``."""
    return None if progress is None else lambda share: progress(start + share / 2)
