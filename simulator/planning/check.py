"""``check``: latency curves against a stored baseline. Which points moved, by how much, and could it be luck?"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from xml.etree import ElementTree

import simulator
from simulator.errors import InputError
from simulator.files import dumps, output_file, write_text
from simulator.metrics.confidence import t_quantile
from simulator.planning.curves import MORE_IS_BETTER, Curves, Measured, Place, Progress, measure_curves, read_curves
from simulator.planning.workforce import Workforce

SCHEMA = 1
#: Chance that other seeds alone make any point of the whole check fail.
FALSE_ALARM = 0.01


@dataclass(frozen=True)
class CheckResult:
    """A check: ``document`` holds every point as plain values, ``updated`` is True where the baseline was written."""

    document: dict[str, Any]
    updated: bool = False

    @property
    def ok(self) -> bool:
        """Whether no point moved and none is missing."""
        return bool(self.document["ok"])

    @property
    def moved(self) -> list[dict[str, Any]]:
        """Points beyond their tolerance, and those that the baseline lacks."""
        return [point for point in self.document["points"] if point["verdict"] != "same"]

    def to_json(self, path: str | os.PathLike[str] | None = None) -> str:
        """The document as text; also written to ``path`` when given."""
        text = dumps(self.document)
        if path is not None:
            write_text(output_file(path, "--json"), text)
        return text

    def to_junit(self, path: str | os.PathLike[str]) -> None:
        """Write JUnit XML: a test suite a curve, a test case a point."""
        write_text(output_file(path, "--junit"), junit(self.document["points"]))


def check(
    file: str | os.PathLike[str], *, update: bool = False, jobs: int = 1, progress: Progress | None = None
) -> CheckResult:
    """Compare the curves of ``file`` with their baseline; ``update`` writes the baseline instead.

    A point moved when its mean over seeds is off by more than ``tolerance_percent``; where the baseline was made with
    other seeds, by more than that and what chance explains. Raises InputError.
    """
    curves = read_curves(os.fspath(file))
    before = None if update else _read_baseline(curves)
    measured = measure_curves(curves, Workforce(jobs), progress)
    if before is None:
        write_text(output_file(curves.baseline, "baseline"), dumps(_baseline(measured)))
        points = [_point(place, None, _mean(values), 0.0, "same") for place, values in measured.values.items()]
        return CheckResult(_document(curves, points), updated=True)
    return CheckResult(_document(curves, _compare(curves, measured, before)))


def _document(curves: Curves, points: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "schema": SCHEMA,
        "simulator": simulator.__version__,
        "baseline": curves.spec.baseline,
        "ok": all(point["verdict"] == "same" for point in points),
        "points": points,
    }


def _baseline(measured: Measured) -> dict[str, Any]:
    points = [
        {**vars(place), "values": {str(seed): value for seed, value in values.items()}}
        for place, values in measured.values.items()
    ]
    return {"schema": SCHEMA, "simulator": simulator.__version__, "traces": dict(measured.traces), "points": points}


def _read_baseline(curves: Curves) -> Measured:
    path = curves.baseline
    if not path.is_file():
        raise InputError(f"{path}: there is no baseline; write one with --update")
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        values = {
            Place(p["curve"], p["topology"], float(p["rate"]), p["metric"]): {
                int(seed): None if value is None else float(value) for seed, value in p["values"].items()
            }
            for p in data["points"]
        }
        return Measured(values, dict(data["traces"]))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise InputError(f"{path}: not a baseline as --update writes it; write it again with --update") from None


def _compare(curves: Curves, measured: Measured, before: Measured) -> list[dict[str, Any]]:
    tolerances = {curve.name: curve.tolerance_percent for curve in curves.spec.curves}
    points = []
    for place, now in measured.values.items():
        then = before.values.get(place)
        if then is None:
            points.append(_point(place, None, _mean(now), tolerances[place.curve], "not in the baseline"))
        elif before.traces.get(place.curve) != measured.traces[place.curve]:
            points.append(_point(place, _mean(then), _mean(now), tolerances[place.curve], "another trace"))
        else:
            points.append(_judged(place, then, now, tolerances[place.curve], len(measured.values)))
    gone = [place for place in before.values if place not in measured.values]
    return points + [_point(place, _mean(before.values[place]), None, 0.0, "no longer asked for") for place in gone]


def _judged(
    place: Place, then: Mapping[int, float | None], now: Mapping[int, float | None], tolerance: float, points: int
) -> dict[str, Any]:
    before, after = _mean(then), _mean(now)
    if before is None or after is None:
        return _point(place, before, after, tolerance, "same" if before is after else "no figure")
    allowed = tolerance / 100 * abs(before)
    if set(then) != set(now):
        allowed += _luck(_known(then), _known(now), points)
    change = after - before
    if abs(change) <= allowed:
        return _point(place, before, after, _percent(allowed, before), "same")
    better = (change > 0) == (place.metric in MORE_IS_BETTER)
    return _point(place, before, after, _percent(allowed, before), "better" if better else "worse")


def _luck(then: Sequence[float], now: Sequence[float], points: int) -> float:
    """How far two means over different seeds may lie apart by chance (two-sided t, level shared among all points)."""
    freedom = len(then) + len(now) - 2
    if len(then) < 2 or len(now) < 2:
        raise InputError(
            "seeds: not those of the baseline; two or more on both sides are needed to tell luck from change"
        )
    error = math.sqrt(_variance(then) / len(then) + _variance(now) / len(now))
    return t_quantile(1 - FALSE_ALARM / points, freedom) * error


def _variance(values: Sequence[float]) -> float:
    mean = math.fsum(values) / len(values)
    return math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1)


def _known(values: Mapping[int, float | None]) -> list[float]:
    return [value for value in values.values() if value is not None]


def _mean(values: Mapping[int, float | None]) -> float | None:
    known = _known(values)
    return math.fsum(known) / len(known) if known else None


def _percent(change: float, before: float) -> float:
    return 100 * change / abs(before) if before else (0.0 if change == 0 else math.inf)


def _point(place: Place, before: float | None, now: float | None, allowed: float, verdict: str) -> dict[str, Any]:
    change = None if before is None or now is None else _percent(now - before, before)
    figures = {"before": before, "now": now, "change_percent": change, "allowed_percent": allowed}
    return {**vars(place), **figures, "verdict": verdict}


def describe(point: Mapping[str, Any]) -> str:
    """One line of a point that moved."""
    where = f"{point['curve']}: {point['topology']} at {point['rate']:g}: {point['metric']}"
    if point["change_percent"] is None:
        return f"{where}: {point['verdict']}"
    figures = f"{point['before']:.6g} -> {point['now']:.6g}"
    change = f"{point['change_percent']:+.2f} % (allowed {point['allowed_percent']:.2f} %)"
    return f"{where}: {figures}, {change}, {point['verdict']}"


def junit(points: Sequence[Mapping[str, Any]]) -> str:
    """The points as JUnit XML."""
    root = ElementTree.Element("testsuites")
    for curve in dict.fromkeys(point["curve"] for point in points):
        members = [point for point in points if point["curve"] == curve]
        failed = [point for point in members if point["verdict"] != "same"]
        counts = {"tests": str(len(members)), "failures": str(len(failed)), "errors": "0"}
        suite = ElementTree.SubElement(root, "testsuite", {"name": str(curve), **counts})
        for point in members:
            name = f"{point['topology']} at {point['rate']:g}: {point['metric']}"
            case = ElementTree.SubElement(suite, "testcase", classname=str(curve), name=name)
            if point in failed:
                ElementTree.SubElement(case, "failure", message=describe(point), type=point["verdict"])
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="unicode", xml_declaration=True) + "\n"
