"""Which candidate carries the highest rate: bounds first, then short pieces, then all of them for those in front."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from simulator.errors import InputError
from simulator.planning.bounds import SLACK, Work, most_rate
from simulator.planning.candidates import Candidate
from simulator.planning.capacity import Capacity, find_capacity
from simulator.planning.replicates import Bench

#: Stages before the last: replications, share of the requests, how close the search goes, and by how much a candidate
#: may be behind the best and still go on.
STAGES = ((3, 0.25, 0.06, 0.20), (4, 0.5, 0.03, 0.08))
#: Requests of a short piece, at the least: 40 at 60 a second are all sent before the first has its answer, and a
#: cluster that carries 76 a second seemed to carry 44.
_FEWEST = 100
#: Share of the roofline that a first guess takes.
_GUESS = 0.5
#: Candidates that go to the last stage, at most.
_FINALISTS = 3


@dataclass(frozen=True)
class Trial:
    """A candidate and the rate it carries; ``bound``: the most its rooflines allow."""

    candidate: Candidate
    capacity: Capacity
    bound: float
    final: bool


@dataclass
class Race:
    """What came out: trials (the best first among the final ones), and who was left behind, and why."""

    trials: list[Trial] = field(default_factory=list)
    pruned: list[dict[str, object]] = field(default_factory=list)

    @property
    def best(self) -> Trial | None:
        """The finalist with the highest rate."""
        finals = [trial for trial in self.trials if trial.final]
        return max(finals, key=lambda trial: trial.capacity.rate, default=None)


def measure(bench: Bench, candidates: Sequence[Candidate], work: Work, said: Callable[[str], None]) -> Race:
    """The rate of every candidate, at full effort."""
    race = Race()
    for candidate in candidates:
        said(candidate.name)
        bound, _ = most_rate(candidate.plan(), work)
        capacity = find_capacity(bench, candidate.text, _first_guess(bound))
        race.trials.append(Trial(candidate, capacity, bound, final=True))
    return race


def run_race(bench: Bench, candidates: Sequence[Candidate], work: Work, said: Callable[[str], None]) -> Race:
    """Successive halving among candidates of one kind. What a roofline rules out is not run at all."""
    race = Race()
    bounds: dict[str, tuple[float, str]] = {}
    for candidate in candidates:
        try:
            bounds[candidate.name] = most_rate(candidate.plan(), work)
        except InputError as problem:
            race.pruned.append({"candidate": candidate.name, "reason": str(problem)})
    field_ = sorted((c for c in candidates if c.name in bounds), key=lambda c: -bounds[c.name][0])
    rates: dict[str, float] = {}
    for replications, share, close, margin in STAGES if len(field_) > _FINALISTS else ():
        short = bench.cut(replications, max(int(bench.requests * share), _FEWEST))
        rates = _stage(race, short, field_, bounds, (close, margin), rates, said)
        field_ = sorted((c for c in field_ if c.name in rates), key=lambda c: -rates[c.name])
    for candidate in field_[:_FINALISTS]:
        said(candidate.name)
        guess = rates.get(candidate.name) or _first_guess(bounds[candidate.name][0])
        capacity = find_capacity(bench, candidate.text, guess)
        race.trials.append(Trial(candidate, capacity, bounds[candidate.name][0], final=True))
    for candidate in field_[_FINALISTS:]:
        reason = f"carries {rates[candidate.name]:.4g} requests/s on shorter pieces, less than {_FINALISTS} others"
        race.pruned.append({"candidate": candidate.name, "reason": reason})
    race.trials.sort(key=lambda trial: -trial.capacity.rate)
    return race


def _first_guess(bound: float) -> float:
    return _GUESS * bound if 0 < bound < float("inf") else 1.0


def _stage(
    race: Race,
    bench: Bench,
    candidates: Sequence[Candidate],
    bounds: dict[str, tuple[float, str]],
    effort: tuple[float, float],
    before: dict[str, float],
    said: Callable[[str], None],
) -> dict[str, float]:
    """The rates of those that go on. A candidate that misses its targets at the best one's rate less the margin is out
    after one try."""
    close, margin = effort
    rates: dict[str, float] = {}
    best = 0.0
    for candidate in candidates:
        bound, phase = bounds[candidate.name]
        if bound * SLACK < best:
            reason = f"its rooflines allow {bound:.4g} requests/s ({phase}); {best:.4g} is carried elsewhere"
            race.pruned.append({"candidate": candidate.name, "reason": reason, "bound": bound})
            continue
        said(candidate.name)
        challenge = best * (1 - margin)
        if best > 0 and bench.scores(candidate.text, challenge).mean < bench.attainment:
            reason = f"misses the targets at {challenge:.4g} requests/s; {best:.4g} is carried elsewhere"
            race.pruned.append({"candidate": candidate.name, "reason": reason, "bound": bound})
            continue
        guess = max(challenge, before.get(candidate.name) or _first_guess(bound))
        rates[candidate.name] = find_capacity(bench, candidate.text, guess, close=close, sure=False).rate
        best = max(best, rates[candidate.name])
    for name in [name for name, rate in rates.items() if rate < best * (1 - margin)]:
        reason = f"carries {rates.pop(name):.4g} requests/s on shorter pieces; {best:.4g} is carried elsewhere"
        race.pruned.append({"candidate": name, "reason": reason, "bound": bounds[name][0]})
    return rates
