"""Clocks and power over time: what work takes right after a pause, and what it takes once the power limit holds."""

from __future__ import annotations

from dataclasses import asdict

import numpy as np

from simulator.calibration.measure.attention import PREFILL
from simulator.calibration.measure.cases import STEADY_TOKENS, Group, numbers
from simulator.calibration.measure.gemm import GEMM_BF16
from simulator.calibration.measure.layer import LAYER_COPIES, StepRun
from simulator.calibration.measure.machine import MACHINE
from simulator.calibration.measure.ops import Ops, Pattern, Work
from simulator.calibration.measure.plan import Plan, StepCase
from simulator.calibration.measure.store import Case
from simulator.calibration.measure.timing import summary

#: Seconds of steady work, and of the pause before it.
STEADY_S, PAUSE_S = 1.0, 0.7
#: One layer is run for so long.
LONG_S = 5.0
#: Seconds of work and of pause that take turns, and how often.
TURNS = ((0.05, 0.05, 20), (0.05, 0.2, 8), (0.2, 0.2, 6), (0.5, 0.1, 4))
#: How often a lone prompt is run.
PROMPTS = 3
#: Points of a series that are kept: the first runs of a round one by one, the rest as means.
FIRST, MOST = 40, 120


def _steady(plan: Plan, ops: Ops) -> list[Case]:
    """Kernels and layers of growing demand for power."""
    dense = plan.models[0]
    heads = {"heads": dense.q_heads, "kv_heads": dense.kv_heads, "width": dense.head_dim}
    rows, (n, k) = plan.gemm_rows[-1], dense.gemms()[-2]
    chunk = max(new for batch, new, past in plan.prefill_chunks if batch == 1 and not past)
    found: list[Case] = [{"what": "product", "size": plan.peak_size, "format": f} for f in ("bf16", "fp8")]
    found.append({"what": "stream", "bytes": plan.stream_bytes[-1], "method": "kernel"})
    found += [{"what": "gemm", "m": m, "n": n, "k": k} for m in (rows, rows // 4)]
    for each in ops.paged_libraries():
        found.append({"what": "prefill", **heads, "batch": 1, "new": chunk, "past": 0, "library": each})
    heavy = [step for step in plan.steps if step.seqs + step.new >= STEADY_TOKENS]
    for model in plan.models:
        for step in (plan.steps[0], *heavy):
            found.append({"what": "layer", "model": model.name, **asdict(step), "library": ops.paged_libraries()[-1]})
    return found


def _cases(plan: Plan, ops: Ops) -> list[Case]:
    library = ops.paged_libraries()[-1]
    prompts: list[Case] = [
        {"what": "prompt", "model": plan.models[0].name, "new": new, "library": each}
        for each in ops.paged_libraries()
        for new in plan.prompts
    ]
    alone = {"on_s": 0.0, "off_s": PAUSE_S, "rounds": PROMPTS}
    steady = {"on_s": STEADY_S, "off_s": PAUSE_S, "rounds": 1}
    longest = max(plan.steps, key=lambda step: step.new * (not step.seqs))
    layer = {"what": "layer", "model": plan.models[0].name, **asdict(longest), "library": library}
    turns = [{**layer, "on_s": on, "off_s": off, "rounds": rounds} for on, off, rounds in TURNS]
    turns += [{**layer, "on_s": LONG_S, "off_s": PAUSE_S, "rounds": 1}]
    return [{**p, **alone} for p in prompts] + turns + [{**c, **steady} for c in _steady(plan, ops)]


def _prepare(plan: Plan, ops: Ops, case: Case) -> Work:
    what = str(case["what"])
    if what in ("product", "stream"):
        return MACHINE.prepare(plan, ops, case)
    if what == "gemm":
        return GEMM_BF16.prepare(plan, ops, case)
    if what == "prefill":
        return PREFILL.prepare(plan, ops, case)
    model = next(m for m in plan.models if m.name == case["model"])
    library = str(case["library"])
    if what == "layer":
        step = StepCase(*numbers(case, "seqs", "context", "new", "past"))
        return Work(StepRun(ops, model, step, library).layer, LAYER_COPIES)
    (whole,) = numbers(case, "new")
    pieces = chunks(whole, plan.prompt_budget)
    runs = [StepRun(ops, model, StepCase(0, 0, new, past), library) for new, past in pieces]
    return Work(lambda i: runs[i].step(), len(runs))


def chunks(tokens: int, budget: int) -> list[tuple[int, int]]:
    """(new, past) of a prompt's steps."""
    return [(min(budget, tokens - past), past) for past in range(0, tokens, budget)]


def _measure(ops: Ops, work: Work, case: Case) -> dict[str, object]:
    pattern = Pattern(float(str(case["on_s"])), float(str(case["off_s"])), int(str(case["rounds"])))
    trace = ops.trace(work, pattern)
    began, took = thin(trace.began_s, trace.rounds), thin(trace.took_s, trace.rounds)
    found = {name: value for name, value in asdict(summary(trace.took_s)).items() if value is not None}
    series = {"began_s": began, "took_s": took, **trace.readings}
    return {**found, **{f"{name}_readings": [round(v, 6) for v in values] for name, values in series.items()}}


def thin(values: list[float], rounds: list[int]) -> list[float]:
    """The first values of each round, and means of equal shares of its others."""
    found: list[float] = []
    turns = sorted(set(rounds))
    room = max(1, MOST // max(len(turns), 1))
    for turn in turns:
        mine = [v for v, r in zip(values, rounds, strict=True) if r == turn]
        kept = min(FIRST, room)
        found += mine[:kept]
        rest = np.array_split(np.array(mine[kept:]), max(1, min(room - kept, len(mine) - kept)))
        found += [float(part.mean()) for part in rest if part.size]
    return found


TRACE = Group("trace", _cases, _prepare, _measure)
