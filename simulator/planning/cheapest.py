"""The cheapest cluster that carries a rate, from GPUs with prices: lower bounds, then the corner of what is enough."""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from simulator.errors import InputError
from simulator.planning.bounds import SLACK, Work, workers_rate
from simulator.planning.candidates import Candidate, Unit, colocated, disaggregated
from simulator.planning.plan_spec import PlanSpec
from simulator.planning.replicates import Bench, MisfitError, Scores

#: A quick try has this many replications and this share of the requests; it rules out only what misses by the margin.
QUICK_REPLICATIONS, QUICK_SHARE, QUICK_FEWEST, QUICK_MARGIN = 2, 0.4, 200, 0.12
#: Engines "to spare" on the other side, as a multiple of what its rooflines ask for.
_SPARE = 3
_MOST_ENGINES = 4096

#: Price, label, prefill and decode engines, and their kinds.
Corner = tuple[float, str, int, int, Unit, Unit]


@dataclass(frozen=True)
class Tried:
    """A cluster tried at the rate with all replications."""

    candidate: Candidate
    scores: Scores
    meets: bool

    @property
    def usd_per_hour(self) -> float:
        """Its price."""
        assert self.candidate.usd_per_hour is not None
        return self.candidate.usd_per_hour


@dataclass
class Hunt:
    """The state of a search: what was tried, what was ruled out and why."""

    spec: PlanSpec
    bench: Bench
    work: Work
    rate: float
    said: Callable[[str], None]
    tried: dict[str, Tried] = field(default_factory=dict)
    quick: dict[str, bool] = field(default_factory=dict)
    pruned: list[dict[str, object]] = field(default_factory=list)

    def passes_quickly(self, candidate: Candidate) -> bool:
        """Whether short pieces do not rule it out."""
        if candidate.name not in self.quick:
            self.said(candidate.name)
            requests = max(int(self.bench.requests * QUICK_SHARE), QUICK_FEWEST)
            short = self.bench.cut(QUICK_REPLICATIONS, requests)
            try:
                mean = short.scores(candidate.text, self.rate).mean
            except MisfitError:
                mean = 0.0
            self.quick[candidate.name] = mean >= self.bench.attainment - QUICK_MARGIN
        return self.quick[candidate.name]

    def meets(self, candidate: Candidate) -> bool:
        """Whether it carries the rate: shorter pieces first, then all."""
        if not self.passes_quickly(candidate):
            return False
        if candidate.name not in self.tried:
            self.said(candidate.name)
            scores = self.bench.scores(candidate.text, self.rate)
            self.tried[candidate.name] = Tried(candidate, scores, scores.mean >= self.bench.attainment)
        return self.tried[candidate.name].meets

    def rule_out(self, name: str, reason: str) -> None:
        """Write down who was not looked at further."""
        self.pruned.append({"candidate": name, "reason": reason})

    def alone(self, unit: Unit, role: str) -> float:
        """The most requests a second that the rooflines of one engine in this role allow."""
        if role == "colocated":
            plan = colocated(self.spec, unit, 1).plan()
        else:
            plan = disaggregated(self.spec, unit, 1, unit, 1).plan()
        return workers_rate(tuple(worker for worker in plan.workers if worker.role == role), self.work)

    def least(self, unit: Unit, role: str) -> int:
        """Engines that the rooflines ask for."""
        alone = self.alone(unit, role)
        return max(1, math.ceil(self.rate / (alone * SLACK))) if math.isfinite(alone) else 1

    def room(self, *counts: tuple[Unit, int]) -> bool:
        """Whether there are that many GPUs."""
        used: dict[str, int] = {}
        for unit, count in counts:
            used[unit.gpu] = used.get(unit.gpu, 0) + unit.gpus * count
        offers = self.spec.gpus or {}
        return all(n <= (offers[gpu].max or offers[gpu].count or _MOST_ENGINES) for gpu, n in used.items())


def hunt_colocated(hunt: Hunt, engines: Sequence[Unit]) -> Candidate | None:
    """The cheapest cluster of colocated engines of one kind."""
    best: Candidate | None = None
    least = {unit: hunt.least(unit, "colocated") for unit in engines}
    for unit in sorted(engines, key=lambda unit: (_price(unit, least[unit]), unit.label)):
        start, label = least[unit], f"colocated {unit.label}"
        if best is not None and _price(unit, start) >= (best.usd_per_hour or 0.0):
            hunt.rule_out(label, _too_dear(start, unit, best))
            continue

        def enough(count: int, unit: Unit = unit) -> bool:
            return hunt.meets(colocated(hunt.spec, unit, count))

        count = _fewest(enough, start, _reach(hunt, unit, start, best))
        if count is None:
            hunt.rule_out(label, f"{start} engines or more miss the targets, as far as GPUs and a lower price allow")
            continue
        found = colocated(hunt.spec, unit, count)
        if best is None or (found.usd_per_hour or 0.0) < (best.usd_per_hour or 0.0):
            best = found
    return best


def _reach(hunt: Hunt, unit: Unit, start: int, best: Candidate | None) -> int:
    """The largest number of engines worth trying: there are that many GPUs, and it is cheaper than the best."""
    most = start if hunt.room((unit, start)) else start - 1
    while most < _MOST_ENGINES and hunt.room((unit, most + 1)):
        most += 1
        if best is not None and _price(unit, most) >= (best.usd_per_hour or 0.0):
            return most - 1
        if most >= start + 8 * max(start, 8):
            break
    return most


def _fewest(enough: Callable[[int], bool], start: int, most: int) -> int | None:
    """The smallest number from ``start`` to ``most`` that is enough, if more is never worse; None where none is."""
    below, step, at = start - 1, 1, start
    while at <= most and not enough(at):
        below, at, step = at, at + step, 2 * step
    if at > most:
        if below >= most or not enough(most):
            return None
        at = most
    while at - below > 1:
        middle = (at + below) // 2
        below, at = (below, middle) if enough(middle) else (middle, at)
    return at


def hunt_disaggregated(hunt: Hunt, prefills: Sequence[Unit], decodes: Sequence[Unit]) -> Candidate | None:
    """The cheapest cluster of prefill and decode engines, each of one kind out of these.

    First the fewest engines of each kind for one side while the other side has engines to spare, of its strongest
    kind: no cluster with fewer can do. Then pairs of kinds by the price of that corner, one more engine on either side
    where a corner is not enough: the first that is enough is the cheapest.
    """
    engines = {"prefill": prefills, "decode": decodes}
    sides = {role: {unit: hunt.least(unit, role) for unit in kinds} for role, kinds in engines.items()}
    spare = {role: max(kinds, key=lambda unit: (hunt.alone(unit, role), unit.label)) for role, kinds in engines.items()}
    fewest = {role: _side(hunt, role, least, spare, sides) for role, least in sides.items()}
    heap: list[Corner] = []
    for prefill, decode in itertools.product(fewest["prefill"], fewest["decode"]):
        corner = (fewest["prefill"][prefill], fewest["decode"][decode])
        _push(heap, hunt, corner, prefill, decode)
    seen: set[str] = set()
    while heap:
        _, _, first, second, prefill, decode = heapq.heappop(heap)
        candidate = disaggregated(hunt.spec, prefill, first, decode, second)
        if candidate.name in seen:
            continue
        seen.add(candidate.name)
        if hunt.meets(candidate):
            _left_behind(hunt, heap, candidate)
            return candidate
        for more in ((first + 1, second), (first, second + 1)):
            _push(heap, hunt, more, prefill, decode)
    return None


def _side(
    hunt: Hunt, role: str, least: Mapping[Unit, int], spare: Mapping[str, Unit], sides: Mapping[str, Mapping[Unit, int]]
) -> dict[Unit, int]:
    """The fewest engines of each kind for one role, the other role having plenty."""
    other = "decode" if role == "prefill" else "prefill"
    plenty = _SPARE * sides[other][spare[other]]
    found: dict[Unit, int] = {}
    for unit in least:

        def enough(count: int, unit: Unit = unit) -> bool:
            if role == "prefill":
                return hunt.passes_quickly(disaggregated(hunt.spec, unit, count, spare[other], plenty))
            return hunt.passes_quickly(disaggregated(hunt.spec, spare[other], plenty, unit, count))

        count = _fewest(enough, least[unit], _reach(hunt, unit, least[unit], None))
        if count is None:
            hunt.rule_out(f"{role} {unit.label}", f"misses the targets with {plenty} {other} engines to spare")
        else:
            found[unit] = count
    return found


def _push(
    heap: list[Corner],
    hunt: Hunt,
    counts: tuple[int, int],
    prefill: Unit,
    decode: Unit,
) -> None:
    if hunt.room((prefill, counts[0]), (decode, counts[1])):
        price = _price(prefill, counts[0]) + _price(decode, counts[1])
        label = f"{prefill.label}+{decode.label}/{counts[0]}/{counts[1]}"
        heapq.heappush(heap, (price, label, *counts, prefill, decode))


def _left_behind(hunt: Hunt, heap: list[Corner], found: Candidate) -> None:
    """Say of each kind of cluster that was not tried what it would cost at least."""
    told: set[tuple[str, str]] = set()
    for price, _, prefills, decodes, prefill, decode in sorted(heap, key=lambda item: item[:2]):
        shape = (prefill.label, decode.label)
        if shape not in told:
            told.add(shape)
            reason = f"at least {prefills} + {decodes} engines, {price:.4g} USD/h; {found.usd_per_hour:.4g} is enough"
            hunt.rule_out(f"p {prefill.label} + d {decode.label}", reason)


def _price(unit: Unit, count: int) -> float:
    if unit.usd_per_hour is None:
        raise InputError(f"gpus.{unit.gpu}: key 'usd_per_hour' is missing, and its profile has no price")
    return unit.usd_per_hour * count


def _too_dear(least: int, unit: Unit, best: Candidate) -> str:
    price = f"{_price(unit, least):.4g} USD/h"
    return f"its rooflines ask for {least} engines, {price}; {best.name} is enough for {best.usd_per_hour:.4g}"
