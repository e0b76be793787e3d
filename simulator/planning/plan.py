"""``plan``: which cluster, how much it carries, what it costs, and whether disaggregation pays."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

import simulator
from simulator.errors import InputError
from simulator.files import dumps, output_file, output_folder, write_text
from simulator.planning.answer import verdict
from simulator.planning.bounds import Work, most_rate, work_of
from simulator.planning.candidates import (
    COLOCATED,
    DISAGGREGATED,
    Candidate,
    colocated,
    disaggregated,
    given,
    splits,
    tuned,
    units,
)
from simulator.planning.capacity import Capacity, Ratio, find_capacity, ratio_of
from simulator.planning.cheapest import Hunt, hunt_colocated, hunt_disaggregated
from simulator.planning.launch import launch_files
from simulator.planning.plan_spec import Question, read_plan
from simulator.planning.race import Race, measure, run_race
from simulator.planning.replicates import Bench, MisfitError, Scores, linked, pieces_of
from simulator.planning.sensitivity import sensitivity
from simulator.planning.sweep_spec import changed_topology
from simulator.planning.workforce import Workforce

SCHEMA = 1
#: A piece is this many times as long as a request's time at its targets, within limits.
_PIECE_E2E, _FEWEST, _MOST = 6.0, 600, 4000
#: What a request is taken to last where a target is missing (only to size pieces).
_USUAL_TTFT_S, _USUAL_TPOT_S = 1.0, 0.05
#: Rates at which the cheapest clusters are looked for again.
_OTHER_RATES = (0.5, 2.0)

Said = Callable[[str], None]


@dataclass
class _Found:
    """What a search hands over: rows of candidates, the best of each kind with its capacity, what was pruned."""

    candidates: list[dict[str, Any]] = field(default_factory=list)
    best: dict[str, tuple[Candidate, Capacity]] = field(default_factory=dict)
    pruned: list[dict[str, Any]] = field(default_factory=list)
    sensitivity: list[dict[str, Any]] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    requests: int = 0


@dataclass(frozen=True, repr=False)
class PlanResult:
    """A plan: ``document`` holds everything as plain values, ``launch`` the files that start the answer."""

    document: dict[str, Any]
    launch: Mapping[str, str]

    @property
    def answer(self) -> dict[str, Any]:
        """The chosen cluster: name, topology, rate, price, figures."""
        return dict(self.document["answer"])

    @property
    def verdict(self) -> str:
        """The answer in a few sentences."""
        return str(self.document["verdict"])

    @cached_property
    def table(self) -> pd.DataFrame:
        """One row a candidate that was tried to the end."""
        rows = [
            {k: v for k, v in row.items() if k not in ("topology", "interval")} for row in self.document["candidates"]
        ]
        return pd.DataFrame(rows)

    def to_json(self, path: str | os.PathLike[str] | None = None) -> str:
        """The document as text; also written to ``path`` when given."""
        text = dumps(self.document)
        if path is not None:
            write_text(output_file(path, "path"), text)
        return text

    def save(self, folder: str | os.PathLike[str]) -> list[Path]:
        """Write ``plan.json`` and the files that start the cluster into ``folder``; returns their paths."""
        place = output_folder(folder)
        files = {"plan.json": dumps(self.document), **self.launch}
        for name, text in files.items():
            write_text(place / name, text)
        return [place / name for name in files]

    def __repr__(self) -> str:
        return self.verdict


def plan(
    spec: str | os.PathLike[str] | Mapping[str, Any],
    *,
    jobs: int = 1,
    executor: str | None = None,
    said: Said | None = None,
) -> PlanResult:
    """Answer ``spec`` (a YAML file, or its values; see docs/planning.md).

    ``jobs``: processes (0: one a core); ``executor``: ``dask:tcp://host:8786``. ``said`` is called with what is being
    tried. The same spec gives the same answer, whoever works. Raises InputError.
    """
    question = read_plan(spec if isinstance(spec, Mapping) else Path(spec))
    workforce, tell = Workforce.parse(executor, jobs), said or (lambda _: None)
    search = {"max_rate": _max_rate, "best_split": _best_split, "cheapest": _cheapest}[question.spec.find]
    try:
        found = search(question, workforce, tell)
        found.warnings += _overlap(question, found)
    except MisfitError as problem:
        raise InputError(f"{question.place}: {problem}") from None
    return _result(question, found)


def _bench(question: Question, workforce: Workforce, rate: float) -> Bench:
    """Pieces long enough for ``rate`` (requests/s) to settle."""
    targets = question.slo.targets()
    tokens = float(question.trace.output_tokens.mean())
    usual = targets.get("ttft", _USUAL_TTFT_S) + tokens * targets.get("tpot", _USUAL_TPOT_S)
    wanted = int(min(max(rate * _PIECE_E2E * targets.get("e2e", usual), _FEWEST), _MOST))
    spec = question.spec
    pieces = pieces_of(question.trace, question.arrivals, spec.replications, spec.requests or wanted, spec.seed)
    return Bench(pieces, question.slo, question.attainment, workforce)


def _max_rate(question: Question, workforce: Workforce, said: Said) -> _Found:
    spec, work = question.spec, work_of(question.trace, question.attainment)
    topologies = [changed_topology(base, {}, question.folder, question.place) for base in spec.topologies or []]
    candidates = [given(topology) for topology in topologies]
    if len({candidate.name for candidate in candidates}) < len(candidates):
        raise InputError(f"{question.place}: topologies: two have the same name; give each a name of its own")
    bench = _bench(question, workforce, _half_bound(candidates, work))
    race = measure(bench, candidates, work, said)
    return _raced(question, bench, [race], said)


def _best_split(question: Question, workforce: Workforce, said: Said) -> _Found:
    work = work_of(question.trace, question.attainment)
    fit, pruned = units(question.spec)
    candidates = list(splits(question.spec, fit))
    bench = _bench(question, workforce, _half_bound(candidates, work))
    kinds = [[c for c in candidates if c.kind == kind] for kind in (COLOCATED, DISAGGREGATED)]
    found = _raced(question, bench, [run_race(bench, kind, work, said) for kind in kinds], said)
    found.pruned[:0] = pruned
    return found


def _half_bound(candidates: Sequence[Candidate], work: Work) -> float:
    """Half of the highest roofline: about what the best will carry."""
    bounds = []
    for candidate in candidates:
        try:
            bounds.append(most_rate(candidate.plan(), work)[0])
        except InputError:
            continue  # told where it is tried
    finite = [bound for bound in bounds if bound < float("inf")]
    return max(finite, default=2.0) / 2


def _raced(question: Question, bench: Bench, races: Sequence[Race], said: Said) -> _Found:
    found = _Found(pruned=[row for race in races for row in race.pruned], requests=bench.requests)
    for trial in (trial for race in races for trial in race.trials):
        found.candidates.append(_row(trial.candidate, trial.capacity.at_rate, trial.capacity, trial.bound))
        best = found.best.get(trial.candidate.kind)
        if best is None or _value(trial.candidate, trial.capacity) > _value(*best):
            found.best[trial.candidate.kind] = (trial.candidate, trial.capacity)
    if question.spec.sensitivity:
        found.sensitivity = _sensitivity(bench, found, by_price=False, said=said)
    return found


def _value(candidate: Candidate, capacity: Capacity) -> float:
    return capacity.rate / candidate.gpus


def _weight(one: Candidate, other: Candidate, by_price: bool) -> tuple[float, str]:
    """What rates are compared per: dollars where they are looked for, or where kinds of GPU differ and prices are
    known; else GPUs."""
    kinds = {pool.gpu for candidate in (one, other) for pool in candidate.topology.pools}
    if (by_price or len(kinds) > 1) and one.usd_per_hour and other.usd_per_hour:
        return one.usd_per_hour / other.usd_per_hour, "usd"
    return one.gpus / other.gpus, "gpu"


def _sensitivity(bench: Bench, found: _Found, by_price: bool, said: Said) -> list[dict[str, Any]]:
    if len(found.best) < 2 or min(capacity.rate for _, capacity in found.best.values()) <= 0:
        return []
    one, other = found.best[COLOCATED], found.best[DISAGGREGATED]
    guesses = (one[1].rate, other[1].rate)
    return sensitivity(bench, one[0], other[0], guesses, _weight(one[0], other[0], by_price)[0], said)


def _cheapest(question: Question, workforce: Workforce, said: Said) -> _Found:
    spec, rate = question.spec, float(question.spec.rate or 0.0)
    fit, pruned = units(spec)
    engines = [unit for kinds in fit.values() for unit in kinds]
    bench = _bench(question, workforce, rate)
    hunt = Hunt(spec, bench, work_of(question.trace, question.attainment), rate, said)
    whole = [one for unit in engines for one in tuned(spec, unit)]
    both = (hunt_colocated(hunt, whole), hunt_disaggregated(hunt, engines, engines))
    chosen = [candidate for candidate in both if candidate is not None]
    for candidate in chosen:
        _one_more(hunt, candidate)
    found = _Found(pruned=[*pruned, *hunt.pruned], requests=bench.requests)
    for candidate in chosen:
        said(f"{candidate.name}: how much it carries")
        found.best[candidate.kind] = (candidate, find_capacity(bench, candidate.text, rate))
    capacities = {candidate.name: capacity for candidate, capacity in found.best.values()}
    for tried in sorted(hunt.tried.values(), key=lambda tried: (tried.usd_per_hour, tried.candidate.name)):
        row = _row(tried.candidate, tried.scores, capacities.get(tried.candidate.name), None)
        found.candidates.append({**row, "meets": tried.meets})
    if spec.sensitivity and len(found.best) == 2:
        found.sensitivity = [*_at_other_rates(hunt, found, said), *_sensitivity(bench, found, by_price=True, said=said)]
    return found


def _one_more(hunt: Hunt, candidate: Candidate) -> None:
    """Try the cluster with one more engine in each pool: what latency costs."""
    if candidate.kind == COLOCATED:
        hunt.meets(colocated(hunt.spec, candidate.units[0], candidate.workers[0] + 1))
        return
    (prefill, decode), (prefills, decodes) = candidate.units, candidate.workers
    hunt.meets(disaggregated(hunt.spec, prefill, prefills + 1, decode, decodes))
    hunt.meets(disaggregated(hunt.spec, prefill, prefills, decode, decodes + 1))


def _at_other_rates(hunt: Hunt, found: _Found, said: Said) -> list[dict[str, Any]]:
    """The price of the same two kinds of cluster for other rates."""
    rows = []
    (one, _), (other, _) = found.best[COLOCATED], found.best[DISAGGREGATED]
    short = hunt.bench.cut(3, max(hunt.bench.requests // 2, 40))
    for times in _OTHER_RATES:
        said(f"rate x {times:g}")
        again = Hunt(hunt.spec, short, hunt.work, hunt.rate * times, lambda _: None)
        prices = [
            None if c is None else c.usd_per_hour
            for c in (
                hunt_colocated(again, one.units),
                hunt_disaggregated(again, other.units[:1], other.units[1:]),
            )
        ]
        ratio = prices[0] / prices[1] if prices[0] and prices[1] else None
        row = {"factor": "rate", "times": times, "unit": "USD/h", "colocated": prices[0], "disaggregated": prices[1]}
        rows.append({**row, "ratio": ratio, "pays": None if ratio is None else ratio > 1})
    return rows


def _row(candidate: Candidate, scores: Scores | None, capacity: Capacity | None, bound: float | None) -> dict[str, Any]:
    """A candidate as plain values; figures are means over replications, at the rate or the evaluated one below it."""
    carries = None if capacity is None else capacity.rate
    figures: dict[str, Any] = dict.fromkeys(("attainment", "ttft_p99_s", "tpot_p99_s", "e2e_p99_s"))
    figures |= dict.fromkeys(("usd_per_million_tokens", "joules_per_token", "model_error"))
    if scores is not None:
        figures = {"attainment": scores.mean}
        figures |= {f"{name}_p99_s": scores.figure(f"{name}_s", "p99") for name in ("ttft", "tpot", "e2e")}
        figures["usd_per_million_tokens"] = scores.figure("cost", "usd_per_million_tokens")
        figures["joules_per_token"] = scores.figure("energy", "joules_per_token")
        figures["model_error"] = scores.entries[0].get("model_error")
    return {
        "name": candidate.name,
        "kind": candidate.kind,
        "gpus": candidate.gpus,
        "usd_per_hour": candidate.usd_per_hour,
        "max_rate_requests_per_s": carries,
        "interval": None if capacity is None else [capacity.low, capacity.high],
        "requests_per_s_per_gpu": None if carries is None else carries / candidate.gpus,
        **figures,
        "bound_requests_per_s": bound,
        "topology": candidate.topology.to_dict(),
    }


def _result(question: Question, found: _Found) -> PlanResult:
    rows = {row["name"]: row for row in found.candidates}
    best = {kind: rows[candidate.name] for kind, (candidate, _) in found.best.items()}
    if not best or all(not row["max_rate_requests_per_s"] for row in best.values()):
        raise InputError(f"{question.place}: nothing meets the targets: {_why(found)}")
    cheapest = question.spec.find == "cheapest"
    ratio, basis = _ratio(found, cheapest)
    answer = _choose(question, best)
    _mark_front(found.candidates, cheapest)
    launch = launch_files(next(c for c, _ in found.best.values() if c.name == answer["name"]).plan())
    document: dict[str, Any] = {
        "schema": SCHEMA,
        "simulator": simulator.__version__,
        "name": question.spec.name,
        "find": question.spec.find,
        "trace": {"name": question.trace.name, "requests": len(question.trace), "arrivals": str(question.arrivals)},
        "slo": {**question.slo.as_dict(), "attainment": question.attainment},
        "rate_requests_per_s": question.spec.rate,
        "answer": answer,
        "colocated": best.get(COLOCATED),
        "disaggregated": best.get(DISAGGREGATED),
        "pays": _pays(best, ratio, cheapest),
        "ratio": None if ratio is None else ratio.value,
        "interval": None if ratio is None else [ratio.low, ratio.high],
        "ratio_per": basis,
        "sure": None if ratio is None else not ratio.low <= 1 <= ratio.high,
        "replications": question.spec.replications,
        "warnings": found.warnings,
        "sensitivity": found.sensitivity,
        "candidates": found.candidates,
        "pruned": found.pruned,
        "launch": launch,
    }
    document["verdict"] = verdict(document)
    return PlanResult(document, launch)


def _overlap(question: Question, found: _Found) -> list[str]:
    """Pieces of a trace whose requests hang together cannot be drawn anew, only cut; too short a trace repeats."""
    count = question.spec.replications * found.requests
    if not linked(question.trace) or count <= len(question.trace):
        return []
    return [
        f"{question.trace.name} has {len(question.trace):,} requests that share prefixes or sessions: "
        f"{question.spec.replications} pieces of {found.requests:,} overlap, so the intervals are too narrow"
    ]


def _why(found: _Found) -> str:
    if found.pruned:
        return f"{found.pruned[-1]['candidate']}: {found.pruned[-1]['reason']}"
    return "they are missed at any rate, by every topology"


def _choose(question: Question, best: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    """The cheaper one, or the one that carries more (per GPU, where numbers of GPUs differ)."""
    if question.spec.find == "cheapest":
        return min(best.values(), key=lambda row: (row["usd_per_hour"], -row["max_rate_requests_per_s"]))
    return max(best.values(), key=lambda row: row["requests_per_s_per_gpu"])


def _ratio(found: _Found, by_price: bool) -> tuple[Ratio | None, str | None]:
    """What disaggregated clusters carry over what colocated ones do, per GPU or per dollar."""
    if len(found.best) < 2:
        return None, None
    (one, carries), (other, carries_other) = found.best[COLOCATED], found.best[DISAGGREGATED]
    weight, basis = _weight(one, other, by_price)
    return ratio_of(carries, carries_other, weight), basis


def _pays(best: Mapping[str, dict[str, Any]], ratio: Ratio | None, cheapest: bool) -> bool | None:
    if len(best) < 2:
        return None
    prices = (best[COLOCATED]["usd_per_hour"], best[DISAGGREGATED]["usd_per_hour"])
    if cheapest and prices[0] != prices[1]:
        return bool(prices[1] < prices[0])
    return None if ratio is None else ratio.value > 1


def _mark_front(rows: list[dict[str, Any]], cheapest: bool) -> None:
    """Mark the Pareto front: nothing else is at once as cheap and as quick in TTFT and TPOT (p99)."""
    for row in rows:
        price = row["usd_per_hour"] or float(row["gpus"])
        carries = 1.0 if cheapest else row["max_rate_requests_per_s"] or 0.0
        row["_place"] = (price / carries if carries else float("inf"), row["ttft_p99_s"], row["tpot_p99_s"])
    shown = [row for row in rows if None not in row["_place"] and row.get("meets", True)]
    for row in rows:
        place = row["_place"]
        row["pareto"] = row in shown and not any(
            other["_place"] != place and all(a <= b for a, b in zip(other["_place"], place, strict=True))
            for other in shown
        )
    for row in rows:
        del row["_place"]
