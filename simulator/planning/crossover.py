"""Where does disaggregation pay? Colocated against disaggregated over request rate and prompt length."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from simulator.cluster.plan import ClusterPlan
from simulator.metrics.summary import Entry, per_gpu
from simulator.planning.offer import Offer, Plans, Progress

#: Multiples of the trace's prompt lengths, and of a rate near which the clusters give in.
PROMPTS = (0.25, 0.5, 1.0, 2.0, 4.0)
RATES = (0.1, 0.2, 0.35, 0.5, 0.7, 1.0, 1.4, 2.0, 2.8)
#: Requests of one run.
FEWEST, MOST = 60, 500
#: Good requests per GPU closer than this (relative) are a tie: short runs tell no more.
TIE = 0.03
#: Below this attainment a cluster does not do the job at all.
LOST = 0.1


@dataclass(frozen=True)
class Cell:
    """One load and what became of it on both clusters; None where a cluster could run nothing."""

    prompt_tokens: float
    rate_requests_per_s: float
    colocated: Entry | None
    disaggregated: Entry | None

    @property
    def ratio(self) -> float | None:
        """Good requests per GPU, disaggregated over colocated; None where neither meets the targets."""
        a, b = _good_per_gpu(self.disaggregated), _good_per_gpu(self.colocated)
        if max(_attained(self.disaggregated), _attained(self.colocated)) < LOST:
            return None
        return a / b if b > 0 else float("inf")

    @property
    def gain(self) -> float:
        """Share of requests that disaggregation serves well and colocation does not (negative: the other way round).

        Shares are per GPU of the smaller cluster: twice the GPUs must serve twice as many to be level.
        """
        fewest = min((entry["gpus"] for entry in (self.colocated, self.disaggregated) if entry), default=1)
        return (_good_per_gpu(self.disaggregated) - _good_per_gpu(self.colocated)) * fewest

    @property
    def winner(self) -> str:
        """``colocated``, ``disaggregated``, ``tie`` or ``neither``."""
        ratio = self.ratio
        if ratio is None:
            return "neither"
        if abs(ratio - 1) <= TIE:
            return "tie"
        return "disaggregated" if ratio > 1 else "colocated"


@dataclass(frozen=True)
class Crossover:
    """The map: cells row by row (prompt length, then rate), the two topologies' names, requests of each run."""

    cells: tuple[Cell, ...]
    colocated: str
    disaggregated: str
    requests: int


def _good_per_gpu(entry: Entry | None) -> float:
    """Attainment over GPUs: both are offered the same requests, and a short run's length would blur a rate."""
    return 0.0 if entry is None else per_gpu(entry, "slo_attainment")


def _attained(entry: Entry | None) -> float:
    return 0.0 if entry is None else float(entry["slo_attainment"])


def is_disaggregated(plan: ClusterPlan) -> bool:
    """Whether prompts and tokens are served by pools of their own."""
    return bool(plan.of_role("decode"))


def rivals(plans: Plans, knees: Mapping[str, float | None]) -> tuple[str, str] | None:
    """The colocated and the disaggregated topology that hold the highest rate per GPU; None where a kind is missing."""

    def best(names: list[str]) -> str:
        return max(names, key=lambda name: (knees.get(name) or 0.0) / max(plans[name].gpus, 1))

    together = [name for name, plan in plans.items() if not is_disaggregated(plan)]
    apart = [name for name, plan in plans.items() if is_disaggregated(plan)]
    return (best(together), best(apart)) if together and apart else None


def crossover(
    offer: Offer,
    plans: Plans,
    pair: tuple[str, str],
    *,
    around: float | None = None,
    budget: int = 30_000,
    progress: Progress | None = None,
) -> Crossover | None:
    """The map for ``pair`` (colocated, disaggregated). None without targets or without a rate.

    ``around``: requests/s near which the clusters give in at the trace's own lengths (the offer's rate where not
    known). ``budget``: simulated requests in all, about.
    """
    cells = len(PROMPTS) * len(RATES)
    cut = offer.shortened(min(MOST, max(FEWEST, budget // (2 * cells))))
    given = cut.level
    if given is None or offer.closed or not offer.slo:
        return None
    found: list[Cell] = []
    for stretch in PROMPTS:
        stretched = cut.with_prompts(stretch)
        for share in RATES:
            turned = stretched.at(share * (around or given) / given)
            entries = [turned.run(plans[name]) for name in pair]
            found.append(Cell(float(turned.trace.input_tokens.mean()), turned.level or 0.0, *entries))
            if progress is not None:
                progress(len(found) / cells)
    return Crossover(tuple(found), *pair, len(cut.trace))
