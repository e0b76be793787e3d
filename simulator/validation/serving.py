"""``simulate validate serving``: measured closed-loop serving runs, rebuilt, simulated and compared."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from simulator.errors import InputError
from simulator.validation.serving_points import Point, Table, load_points
from simulator.validation.serving_runs import Outcome, run_point

METRICS = ("ttft", "tpot")
#: How the errors are broken down.
GROUPINGS: dict[str, Callable[[Point], str]] = {
    "quality": lambda p: p.quality,
    "engine": lambda p: p.backend,
    "engine and origin": lambda p: f"{p.backend} {p.origin}",
    "GPU": lambda p: p.system,
    "model": lambda p: p.model,
    "mode": lambda p: p.mode,
    "load": lambda p: p.load,
    "engine, model, GPU": lambda p: (
        f"{p.backend} {p.model} {p.system} {p.precision}" + ("" if p.mode == "agg" else " PD")
    ),
}


@dataclass(frozen=True)
class GroupErrors:
    """Absolute percentage errors over a group of runs; ``bias``: the median of the signed errors."""

    grouping: str
    group: str
    points: int
    ttft_mape_percent: float
    ttft_median_ape_percent: float
    ttft_bias_percent: float
    tpot_mape_percent: float
    tpot_median_ape_percent: float
    tpot_bias_percent: float


@dataclass(frozen=True)
class ServingReport:
    """All runs compared. ``overall`` is over all runs that were simulated, ``skipped`` counts the others by reason."""

    outcomes: tuple[Outcome, ...]
    skipped: dict[str, int]

    @property
    def done(self) -> tuple[Outcome, ...]:
        """The runs that were simulated."""
        return tuple(outcome for outcome in self.outcomes if outcome.problem is None)

    def overall(self, quality: str | None = None) -> GroupErrors:
        """Errors over all runs, or over those of one quality."""
        chosen = [o for o in self.done if quality in (None, o.point.quality)]
        return group_errors("all" if quality is None else "quality", quality or "all", chosen)

    def groups(self) -> list[GroupErrors]:
        """Errors by every grouping; all but that by quality are over the ``ok`` runs."""
        found = []
        for grouping, key in GROUPINGS.items():
            chosen = self.done if grouping == "quality" else [o for o in self.done if o.point.quality == "ok"]
            for name in sorted({key(o.point) for o in chosen}):
                found.append(group_errors(grouping, name, [o for o in chosen if key(o.point) == name]))
        return found

    def worst(self, metric: str, count: int = 10) -> list[Outcome]:
        """The runs with the largest errors."""
        return sorted(self.done, key=lambda o: -abs(o.error(metric)))[:count]

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        whole = self.overall()
        figures = {name: value for name, value in asdict(whole).items() if name.endswith("_percent")}
        return {
            "schema": 1,
            "points": whole.points,
            "skipped": dict(sorted(self.skipped.items())),
            **figures,
            "groups": [asdict(group) for group in self.groups()],
            "rows": [_row(outcome) for outcome in self.outcomes],
        }


def group_errors(grouping: str, name: str, outcomes: Sequence[Outcome]) -> GroupErrors:
    """Mean and median absolute percentage error, and median signed error."""
    figures: list[float] = []
    for metric in METRICS:
        errors = np.array([outcome.error(metric) for outcome in outcomes]) * 100.0
        if errors.size == 0:
            errors = np.array([np.nan])
        figures += [float(np.mean(np.abs(errors))), float(np.median(np.abs(errors))), float(np.median(errors))]
    return GroupErrors(grouping, name, len(outcomes), *figures)


def _row(outcome: Outcome) -> dict[str, Any]:
    point = outcome.point
    return {
        "point": point.point,
        "backend": point.backend,
        "backend_version": point.version,
        "model": point.model,
        "system": point.system,
        "precision": point.precision,
        "mode": point.mode,
        "origin": point.origin,
        "quality": point.quality,
        "isl": point.input_tokens,
        "osl": point.output_tokens,
        "concurrency": point.concurrency,
        "engines": [
            f"{group.workers} {group.role} tp{p.tp} pp{p.pp} dp{p.dp} ep{p.ep}"
            for group in point.groups
            for p in (group.parallel,)
        ],
        "ttft_mean_ms": point.ttft_mean_ms,
        "tpot_mean_ms": point.tpot_mean_ms,
        "simulated_ttft_mean_ms": outcome.ttft_mean_ms,
        "simulated_tpot_mean_ms": outcome.tpot_mean_ms,
        "problem": outcome.problem,
        "notes": list(outcome.notes),
    }


def sample_of(points: Sequence[Point], count: int, seed: int) -> tuple[Point, ...]:
    """``count`` runs, spread evenly over engines, models, GPUs and modes."""
    draw = np.random.default_rng(seed)
    queues: dict[str, list[Point]] = {}
    for i in draw.permutation(len(points)):
        queues.setdefault(GROUPINGS["engine, model, GPU"](points[i]), []).append(points[i])
    chosen: list[Point] = []
    while len(chosen) < min(count, len(points)):
        for name in sorted(queues):
            if queues[name] and len(chosen) < count:
                chosen.append(queues[name].pop())
    return tuple(chosen)


def validate_serving(
    path: str | Path,
    *,
    sample: int | None = None,
    seed: int = 0,
    jobs: int = 1,
    progress: Callable[[int, int], None] | None = None,
    choose: Callable[[Point], bool] | None = None,
    profiles: Path | None = None,
) -> ServingReport:
    """Simulate the runs in ``path`` (all, or a sample) and compare. Raises InputError for a file it cannot read.

    ``profiles``: a folder with engine profiles to take in place of the shipped ones.
    """
    table: Table = load_points(path)
    points: Sequence[Point] = [p for p in table.points if choose is None or choose(p)]
    if not points:
        raise InputError(
            f"{path}: no run can be rebuilt: {', '.join(f'{n} x {why}' for why, n in table.skipped.items())}"
        )
    if sample is not None:
        points = sample_of(points, sample, seed)
    # runs of one deployment follow one another: their step tables are shared
    order = sorted(points, key=lambda p: (str(p.deployment), p.concurrency))
    outcomes = []
    for outcome in _outcomes(order, jobs, profiles):
        outcomes.append(outcome)
        if progress is not None:
            progress(len(outcomes), len(order))
    skipped = dict(table.skipped)
    for outcome in outcomes:
        if outcome.problem is not None:
            reason = outcome.problem.removeprefix(f"{outcome.point.point}: ")
            skipped[reason] = skipped.get(reason, 0) + 1
    return ServingReport(tuple(outcomes), skipped)


def _outcomes(points: Sequence[Point], jobs: int, profiles: Path | None) -> Iterator[Outcome]:
    if jobs <= 1:
        yield from (run_point(point, profiles) for point in points)
        return
    batches = [list(batch) for batch in _batches(points)]
    with ProcessPoolExecutor(jobs) as pool:
        for found in pool.map(_run_batch, batches, [profiles] * len(batches)):
            yield from found


def _run_batch(points: Sequence[Point], profiles: Path | None) -> list[Outcome]:
    return [run_point(point, profiles) for point in points]


def _batches(points: Iterable[Point]) -> Iterator[list[Point]]:
    batch: list[Point] = []
    for point in points:
        if batch and batch[-1].deployment != point.deployment:
            yield batch
            batch = []
        batch.append(point)
    if batch:
        yield batch
