"""Finds the few host parameters of a user's own engine from runs that the user has measured."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from simulator.cluster.profiles import load_profile
from simulator.cluster.topology import Topology, load_topology
from simulator.cost.engine_costs import engine_costs
from simulator.errors import InputError
from simulator.validation.clients.measured import Measured
from simulator.validation.measured_run import simulated_latencies, statistic

#: What is fitted to an engine profile, with its usual size: what nothing hides, by request, step and sequence.
ENGINE_SCALES_S = {"frontend_s": 5e-3, "step_gap_s": 1e-3, "seq_gap_s": 2e-5, "mixed_gap_s": 2e-3}
#: And to an explicit step time; ``before_s`` belongs to the front end.
STEP_SCALES_S = {
    "base_s": 5e-3,
    "per_token_s": 1e-4,
    "per_context_token_s": 1e-7,
    "per_sequence_s": 1e-4,
    "weights_s": 5e-3,
    "before_s": 5e-3,
}
#: Statistics a fit looks at, and their weights: medians, because machines have hiccups.
LOOKED_AT = (("ttft", "p50", 1.0), ("tpot", "p50", 1.0), ("ttft", "p90", 0.5), ("tpot", "p90", 0.5))
#: Errors beyond this share pull less than in proportion.
SOFT_SHARE = 0.1
EVALUATIONS = 40
#: Streams are sent alike if they span like times, to about 12 %; below the shortest they are bursts.
SPANS_A_DECADE, SHORTEST_SPAN_S = 20, 0.05
#: Residual of a parameter that is one of its scales away from where it began: what runs cannot tell stays as it was.
PRIOR_SHARE = 0.02
#: Steps of the differences that slopes are taken from.
LONG, SHORT = 0.2, 0.05


@dataclass(frozen=True)
class FittedRun:
    """A run's errors (simulated / measured - 1, in per cent) before and after, by ``ttft_p50`` and the like."""

    name: str
    before_percent: Mapping[str, float]
    after_percent: Mapping[str, float]


@dataclass(frozen=True)
class Fit:
    """Parameters before and after in seconds, how well each run is met, and the file's content that holds them.

    ``document``: an engine profile, or a whole topology where the step time is explicit. ``left_out``: slower repeats.
    """

    kind: str
    before_s: Mapping[str, float]
    after_s: Mapping[str, float]
    runs: tuple[FittedRun, ...]
    document: Mapping[str, Any]
    left_out: tuple[str, ...] = ()

    def text(self) -> str:
        """The file as YAML."""
        head = f"# {self.document['name']}: host times fitted to measured runs by 'simulate validate run --fit'.\n"
        return head + yaml.safe_dump(dict(self.document), sort_keys=False, allow_unicode=True, width=120)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        runs = [
            {"name": run.name, "before_percent": dict(run.before_percent), "after_percent": dict(run.after_percent)}
            for run in self.runs
        ]
        return {"kind": self.kind, "before_s": dict(self.before_s), "after_s": dict(self.after_s), "runs": runs} | {
            "left_out": list(self.left_out)
        }


def undisturbed(runs: Sequence[Measured]) -> tuple[list[Measured], list[str]]:
    """Of runs of the same requests the quickest (by median end-to-end latency), and the names of the others.

    Other work on a machine only ever slows a run down, so that of several repeats the quickest says most about the
    engine.
    """
    quickest: dict[tuple[object, ...], Measured] = {}
    for run in runs:
        span_s = 0.0 if run.clients or not len(run) else float(run.sent_s[-1])
        sent = round(SPANS_A_DECADE * math.log10(max(span_s, SHORTEST_SPAN_S)))
        key = (run.input_tokens.tobytes(), run.output_tokens.tobytes(), run.clients, run.rate, sent)
        best = quickest.get(key)
        if best is None or np.median(run.e2e_s) < np.median(best.e2e_s):
            quickest[key] = run
    kept = [run for run in runs if any(run is best for best in quickest.values())]
    return kept, [run.name for run in runs if not any(run is best for best in quickest.values())]


def fit_runs(
    runs: Sequence[Measured],
    topology: Topology,
    *,
    name: str,
    seed: int = 0,
    progress: Callable[[int], None] | None = None,
) -> Fit:
    """Host parameters with which ``topology`` meets the medians (and, with half the weight, the 90th percentiles) of
    ``runs`` best, by least squares on relative errors. Nothing goes below zero. Of repeats the quickest counts.

    ``name``: of the profile or topology that comes out. Raises InputError where a run cannot be simulated.
    """
    from scipy.optimize import least_squares

    runs, slower = undisturbed(runs)
    target = _StepTime(topology) if topology.step_time is not None else _Profile(topology, runs)
    start = target.start(runs)
    scales = np.array([target.scales[key] for key in target.scales])
    count = 0

    # a step of the differences is a share of the value, and must not vanish where it is small: values count from 1
    def errors(x: np.ndarray[Any, np.dtype[np.float64]]) -> np.ndarray[Any, np.dtype[np.float64]]:
        nonlocal count
        count += 1
        if progress is not None:
            progress(count)
        with target.with_values(dict(zip(target.scales, (x - 1.0) * scales, strict=True))) as changed:
            found = [_residuals(run, changed, seed) for run in runs]
        return np.concatenate([*found, target.prior_share * (x - centre)])

    # near first, with long differences that look over the steps of a schedule; then without what outliers pull
    x = centre = 1.0 + np.maximum(np.array([start[key] for key in target.scales]) / scales, 1e-3)
    for loss, difference in (("linear", LONG), ("soft_l1", SHORT)):
        x = least_squares(
            errors, x, bounds=(1.0, np.inf), loss=loss, f_scale=SOFT_SHARE, diff_step=difference, max_nfev=EVALUATIONS
        ).x
        # the next round is pulled to where this one ended, not to the start: a pull that runs speak against must not
        # stay in the answer, and what they cannot tell has not moved (iterated Tikhonov regularisation)
        centre = x
    after = {key: float(f"{value:.4g}") for key, value in zip(target.scales, (x - 1.0) * scales, strict=True)}
    before = {key: float(value) for key, value in start.items()}
    tables = []
    for values in (before, after):
        with target.with_values(values) as changed:
            tables.append([_percent(run, changed, seed) for run in runs])
    met = tuple(FittedRun(run.name, old, new) for run, old, new in zip(runs, *tables, strict=True))
    sources = ", ".join(Path(run.source).name for run in runs)
    return Fit(target.kind, before, after, met, target.document(after, name, sources), tuple(slower))


def _statistics(run: Measured, topology: Topology, seed: int) -> Iterator[tuple[str, float, float, float]]:
    made, _ = simulated_latencies(run, topology, seed)
    for metric, which, weight in LOOKED_AT:
        real = run.latencies(metric)
        if real.size and made[metric].size:
            pair = statistic(real, which), statistic(made[metric], which)
            yield f"{metric}_{which}", weight, *pair


def _residuals(run: Measured, topology: Topology, seed: int) -> np.ndarray[Any, np.dtype[np.float64]]:
    found = [
        weight * np.log(max(made, 1e-9) / max(real, 1e-9)) for _, weight, real, made in _statistics(run, topology, seed)
    ]
    return np.array(found)


def _percent(run: Measured, topology: Topology, seed: int) -> dict[str, float]:
    return {key: 100.0 * (made / real - 1.0) for key, _, real, made in _statistics(run, topology, seed) if real > 0}


class _StepTime:
    """An explicit step time, in the topology itself."""

    kind = "step_time"
    #: It starts from a guess, which nothing speaks for.
    prior_share = 0.0

    def __init__(self, topology: Topology) -> None:
        self._topology = topology
        self.scales = dict(STEP_SCALES_S)

    def values(self) -> dict[str, float]:
        step, front = self._topology.step_time, self._topology.frontend
        assert step is not None
        return {key: getattr(step, key) for key in self.scales if key != "before_s"} | {
            "before_s": front.before_s or 0.0
        }

    def start(self, runs: Sequence[Measured]) -> dict[str, float]:
        """The topology's numbers; where they are zero, what the quickest steps and the prompts' lengths say."""
        found = self.values()
        tokens = np.concatenate([run.input_tokens for run in runs]).astype(np.float64)
        first = np.concatenate([run.ttft_s for run in runs])
        gaps = [run.latencies("tpot") for run in runs]
        found["base_s"] = found["base_s"] or float(np.percentile(np.concatenate(gaps), 5))
        found["per_token_s"] = found["per_token_s"] or max(float(np.percentile(first / tokens, 20)), 1e-7)
        return found

    @contextmanager
    def with_values(self, values: Mapping[str, float]) -> Iterator[Topology]:
        yield self._changed(values)

    def _changed(self, values: Mapping[str, float], name: str | None = None) -> Topology:
        plain = self._topology.to_dict()
        step = {key: float(value) for key, value in values.items() if key != "before_s"}
        plain["step_time"] = {"kind": "affine", **step}
        plain["frontend"] = {**plain.get("frontend", {}), "before_s": float(values["before_s"])}
        return load_topology(plain, name=name)

    def document(self, values: Mapping[str, float], name: str, sources: str) -> dict[str, Any]:
        plain = self._changed(values, name).to_dict()
        return plain | {"description": f"step time and front end fitted to {sources}"}


class _Profile:
    """An engine profile that extends the topology's own."""

    kind = "engine profile"
    prior_share = PRIOR_SHARE

    def __init__(self, topology: Topology, runs: Sequence[Measured]) -> None:
        self._topology = topology
        self._base = load_profile(topology.profile, f"{topology.source}: engine")
        if not self._base.costs:
            raise InputError(f"{topology.source}: engine profile {self._base.name} has no costs to fit")
        self.scales = dict(ENGINE_SCALES_S)
        if all(run.at_engine for run in runs):
            del self.scales["frontend_s"]
        self._calls = 0

    def values(self) -> dict[str, float]:
        costs = engine_costs(self._base.name, dict(self._base.costs), self._base.source)
        return {key: getattr(costs, key) for key in self.scales}

    def start(self, runs: Sequence[Measured]) -> dict[str, float]:
        return self.values()

    @contextmanager
    def with_values(self, values: Mapping[str, float]) -> Iterator[Topology]:
        with tempfile.TemporaryDirectory() as folder:
            self._calls += 1
            path = Path(folder) / f"fit-{self._calls}.yaml"
            path.write_text(yaml.safe_dump(self.document(values, "fit", "")), encoding="utf-8")
            yield self._using(str(path))

    def _using(self, profile: str) -> Topology:
        plain = self._topology.to_dict()
        plain["engine"] = {**self._topology.engine_settings, "profile": profile}
        return load_topology(plain)

    def document(self, values: Mapping[str, float], name: str, sources: str) -> dict[str, Any]:
        said = dict.fromkeys(values, f"fit to {sources}" if sources else "fit")
        costs = {key: float(value) for key, value in values.items()}
        return {"extends": self._topology.profile, "name": name, "costs": {**costs, "sources": said}}
