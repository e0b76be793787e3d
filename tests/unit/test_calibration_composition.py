"""Steps put together from kernels beside steps timed whole, and what a GPU's power limit does to them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from simulator.calibration.composition import HELD_BACK_AFTER_S, Composed, composed_prompts, composed_steps, makespan
from simulator.calibration.measure.layer import COMMON, MOST_LEFT_OUT, StepRun
from simulator.calibration.measure.numpy_ops import NumpyOps
from simulator.calibration.measure.ops import Array
from simulator.calibration.measure.plan import StepCase, read_plan, tiny_plan
from simulator.calibration.measure.run import GROUPS, Budget, measure, store_at
from simulator.calibration.measure.trace import FIRST, MOST, chunks, thin
from simulator.calibration.measured import read_measured
from simulator.resources import shipped

MEASURED = shipped("hardware_profiles") / "measured"
STEPS = MEASURED / "h200_sxm_steps"


@pytest.mark.parametrize("rested", [True, False])
def test_steps_measured_whole_are_the_sum_of_their_kernels(rested: bool) -> None:
    """The figures of docs/calibration.md."""
    steps = list(composed_steps(read_measured(STEPS), read_plan(MEASURED / "plan_steps.json"), rested=rested))
    assert len(steps) == 80
    errors = np.array([abs(s.error) for s in steps])
    assert np.median(errors) < 0.015
    assert np.quantile(errors, 0.9) < 0.035
    missed = {(s.model, s.library, s.step.seqs, s.step.new) for s in steps if abs(s.error) >= 0.05}
    # one row: products alone take 1 to 4 us longer than between others; attention over a long past leaves power to them
    known = {("llama-3.1-8b", "own", 1, 0)} | (set() if rested else {("llama-3.1-8b", "own", 16, 900)})
    assert missed == known
    engine = [s for s in steps if s.library == "vllm"]
    assert max(abs(s.error) for s in engine) < 0.05


def test_lone_prompts_are_the_sum_of_their_kernels_held_back_by_power() -> None:
    prompts = list(composed_prompts(read_measured(STEPS), read_plan(MEASURED / "plan_steps.json")))
    assert {(p.library, p.step.new) for p in prompts} == {
        (k, n) for k in ("own", "vllm") for n in (512, 2048, 8192, 30000)
    }
    assert all(abs(p.error) < 0.05 for p in prompts)
    engine = {p.step.new: sum(p.burst_s.values()) / p.whole_s - 1 for p in prompts if p.library == "vllm"}
    assert engine[2048] == pytest.approx(0.0, abs=0.02)  # as after a rest all along
    assert engine[30000] < -0.12


def test_the_power_limit_holds_once_a_rested_step_is_long_enough() -> None:
    step = StepCase(0, 0, 8192)
    short = Composed("m", step, "own", True, 1.0, {"a": 0.5 * HELD_BACK_AFTER_S}, {"a": 0.6 * HELD_BACK_AFTER_S})
    assert short.sum_s == pytest.approx(0.5 * HELD_BACK_AFTER_S)
    long = Composed("m", step, "own", True, 1.0, {"a": 0.1, "b": 0.1}, {"a": 0.1, "b": 0.15})
    assert long.sum_s == pytest.approx(HELD_BACK_AFTER_S + (0.2 - HELD_BACK_AFTER_S) * 1.25)
    steady = Composed("m", step, "own", False, 1.0, {"a": 0.1}, {"a": 0.15})
    assert steady.error == pytest.approx(-0.85)


def test_blocks_of_a_chunk_are_dealt_out_longest_first() -> None:
    assert makespan(128, 0, 4, 4) == pytest.approx(129.0)  # a block each
    assert makespan(128, 0, 5, 4) == pytest.approx(2 * 129.0)  # one has two
    # two tiles, one head, one processor: all of it; two processors: the longer one
    assert makespan(256, 1000, 1, 1) == pytest.approx(2 * 1000 + 256 + 128 + 2)
    assert makespan(256, 1000, 1, 2) == pytest.approx(1000 + 256 + 1)
    # over a long past every wave counts in full: 8 tiles of 32 heads are two waves of 132, as 7.1 are
    assert makespan(900, 8192, 32, 132) == pytest.approx(makespan(1024, 8192, 32, 132), rel=0.03)
    assert makespan(1100, 8192, 32, 132) > 1.4 * makespan(1000, 8192, 32, 132)


def test_a_layer_less_a_launch_is_the_layer_without_it() -> None:
    calls: list[str] = []

    class Noted(NumpyOps):
        def rotate(self, qkv: Array, positions: Array, heads: int, width: int) -> None:
            calls.append("rotate")
            super().rotate(qkv, positions, heads, width)

        def activate(self, x: Array, out: Array) -> None:
            calls.append("activate")
            super().activate(x, out)

    run = StepRun(Noted(), tiny_plan().models[0], StepCase(2, 16))
    run.layer(0)
    assert calls == ["rotate", "activate"]
    run.without = "rotate"
    run.layer(0)
    assert calls == ["rotate", "activate", "activate"]
    names = [name for name, _ in run.launches(0)]
    assert set(COMMON) < set(names)
    assert len(names) == len(set(names))


def test_launches_left_out_are_those_of_steps_below_the_power_limit() -> None:
    (group,) = [g for g in GROUPS if g.name == "left_out"]
    plan = read_plan(MEASURED / "plan_steps.json")
    cases = group.cases(plan, NumpyOps())
    assert {c["without"] for c in cases} >= {"nothing", "attention", "experts", "down"}
    assert max(int(str(c["seqs"])) + int(str(c["new"])) for c in cases) <= MOST_LEFT_OUT


def test_a_prompt_is_computed_in_chunks_of_the_budget() -> None:
    assert chunks(30000, 8192) == [(8192, 0), (8192, 8192), (8192, 16384), (5424, 24576)]
    assert chunks(512, 8192) == [(512, 0)]


def test_a_long_series_keeps_its_beginning_and_means_of_the_rest() -> None:
    values, rounds = [float(i) for i in range(1000)], [0] * 1000
    found = thin(values, rounds)
    assert len(found) == MOST
    assert found[:FIRST] == values[:FIRST]
    assert found[-1] > 980.0
    assert thin([1.0, 2.0, 3.0], [0, 0, 1]) == [1.0, 2.0, 3.0]


def test_traces_note_every_run_of_every_round(tmp_path: Path) -> None:
    store = store_at(tmp_path)
    measure(NumpyOps(), tiny_plan(), store, Budget(60.0, 60.0), lambda line: None, ["trace"])
    rows = [row for row in store.rows if row["group"] == "trace"]
    prompts = [row for row in rows if row["case"]["what"] == "prompt"]  # type: ignore[index]
    assert [len(row["took_s_readings"]) for row in prompts] == [2 * 3]  # type: ignore[arg-type]
    assert all(len(r["began_s_readings"]) == len(r["took_s_readings"]) for r in rows)  # type: ignore[arg-type]


def test_a_gpu_lowers_its_clock_after_tens_of_milliseconds_above_its_power_limit() -> None:
    """The figures of docs/calibration.md: layers of Llama-3.1-8B, and the same with pauses."""
    trace = read_measured(STEPS).table("trace")
    layers = trace[(trace["what"] == "layer") & (trace["model"] == "llama-3.1-8b")]
    (row,) = layers[(layers["new"] == 8192) & (layers["on_s"] == 1.0)].to_dict("records")
    began, took = (np.array(json.loads(row[f"{name}_readings"])) for name in ("began_s", "took_s"))
    burst = np.median(took[began < 0.025])
    assert np.median(took[(began > 0.2) & (began < 0.6)]) == pytest.approx(1.14 * burst, rel=0.02)
    assert 0.02 < began[took > 1.02 * burst][0] < 0.09
    turns = layers[(layers["on_s"] == 0.05) & (layers["off_s"] == 0.2)].to_dict("records")[0]
    assert np.array(json.loads(turns["took_s_readings"])).mean() < 1.03 * burst
