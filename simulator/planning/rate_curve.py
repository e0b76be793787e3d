"""Latency against rate: the same requests slower and faster, up to where each cluster gives in."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from simulator.metrics.summary import Entry
from simulator.planning.offer import Offer, Plans, Progress

#: Multiples of the rate asked for that are always tried, and those tried until every cluster has given in.
ALWAYS = (0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0)
FASTER = (3.0, 4.0, 6.0, 8.0)
SLOWER = (0.125, 0.0625)
#: With targets a cluster has given in where fewer requests meet them; without, where its queue grows to the end.
KNEE_ATTAINMENT = 0.9
#: Requests of one run: fewer tell nothing of tails, more take long.
FEWEST, MOST = 150, 2_000


@dataclass(frozen=True)
class RatePoint:
    """One run: ``level`` requests/s (clients, where the loop is closed); ``figures`` None where nothing could run."""

    topology: str
    level: float
    figures: Entry | None


@dataclass(frozen=True)
class RateCurve:
    """Every topology at the same levels, in order; ``requests`` of each run. ``given``: the level asked for."""

    points: tuple[RatePoint, ...]
    requests: int
    given: float
    closed: bool
    has_targets: bool

    def of(self, topology: str) -> list[RatePoint]:
        """The points of one topology, by level."""
        return sorted((p for p in self.points if p.topology == topology), key=lambda p: p.level)

    def knee(self, topology: str) -> float | None:
        """The level at which the cluster gives in; None where it does not within the levels tried.

        Between the last level held and the first one lost: where attainment crosses 90 % on a straight line (with
        targets), else the last level held. 0 where even the lowest is lost.
        """
        points = self.of(topology)
        if gave_in(points[0], self.has_targets):
            return 0.0
        for held, lost in pairwise(points):
            if gave_in(lost, self.has_targets):
                return _crossing(held, lost) if self.has_targets else held.level
        return None


def gave_in(point: RatePoint, has_targets: bool) -> bool:
    """Whether a cluster is past its knee."""
    if point.figures is None:
        return True
    if has_targets:
        return bool(point.figures["slo_attainment"] < KNEE_ATTAINMENT)
    return bool(point.figures["saturated"])


def _crossing(held: RatePoint, lost: RatePoint) -> float:
    assert held.figures is not None
    before = held.figures["slo_attainment"]
    after = 0.0 if lost.figures is None else lost.figures["slo_attainment"]
    share = (before - KNEE_ATTAINMENT) / (before - after)
    return float(held.level + share * (lost.level - held.level))


def rate_curve(
    offer: Offer,
    plans: Plans,
    *,
    budget: int = 30_000,
    levels: Sequence[float] | None = None,
    progress: Progress | None = None,
) -> RateCurve | None:
    """Runs of the first requests of ``offer`` at several rates; None where there is no rate to change.

    ``budget``: simulated requests in all, about. ``levels`` (requests/s, or clients) instead of those found here.
    """
    runs = len(plans) * (len(levels) if levels else len(ALWAYS) + 3)
    cut = offer.shortened(min(MOST, max(FEWEST, budget // runs)))
    given = cut.level
    if given is None:
        return None
    points: list[RatePoint] = []

    def try_at(times: float) -> list[RatePoint]:
        turned = cut.at(times)
        level = turned.level or 0.0
        found = [RatePoint(name, level, turned.run(plan)) for name, plan in plans.items()]
        points.extend(found)
        if progress is not None:
            progress(min(len(points) / runs, 1.0))
        return found

    if levels:
        for level in sorted(levels):
            try_at(level / given)
    else:
        _search(try_at, bool(offer.slo), further=not offer.closed or bool(offer.slo))
    distinct = {(p.topology, p.level): p for p in points}  # few clients: multiples may round to the same number
    return RateCurve(tuple(distinct.values()), len(cut.trace), given, offer.closed, bool(offer.slo))


def _search(try_at: Callable[[float], list[RatePoint]], has_targets: bool, further: bool) -> None:
    """Try what is always tried, then ``further`` up and down until every cluster has given in and none has."""
    tried = {times: try_at(times) for times in ALWAYS}
    for times in FASTER if further else ():
        if all(gave_in(point, has_targets) for point in tried[max(tried)]):
            break
        tried[times] = try_at(times)
    for times in SLOWER:
        if not any(gave_in(point, has_targets) for point in tried[min(tried)]):
            break
        tried[times] = try_at(times)
