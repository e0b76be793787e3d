"""Steps of a GPU at its power limit: what they draw, how long full clocks last, how much longer the rest takes."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from simulator.cluster.assembly import assemble
from simulator.cluster.simulation import run_plan
from simulator.cluster.topology import load_topology
from simulator.cost.engine_costs import load_engine_costs
from simulator.cost.operators import Step
from simulator.cost.power import held_s, relaxed, step_energy_s, under_limit
from simulator.cost.step import build_step_cost, explain_step
from simulator.cost.table import StepCostTable, step_cost_record
from simulator.hardware.power import power_limit
from simulator.hardware.profiles import load_gpu
from simulator.models.catalogue import load_model
from simulator.models.precision import Parallel, Precision
from simulator.validation.engine_steps import validate_steps
from simulator.validation.workloads import replay
from simulator.workload.arrivals import Arrivals
from simulator.workload.trace import Trace

MEASURED = Path(__file__).resolve().parents[2] / "hardware_profiles" / "measured" / "h200_sxm_vllm"
TABLE = StepCostTable(
    False,
    power_window_s=0.04,
    power_idle=0.1,
    power_exponent=0.5,
    mixed_energy_s=np.array([0.0, 0.01, 0.03]),
    decode_energy_s=np.array([0.0, 0.002, 0.005]),
    context_energy_s=1e-6,
    attention_drive=1.2,
)
COST = step_cost_record(TABLE)


def table_of(gpu: str, engine: str = "vllm-0.25") -> StepCostTable:
    return build_step_cost(
        load_model("llama-3.1-8b"),
        load_gpu(gpu),
        Precision(),
        Parallel(),
        load_engine_costs(engine),
        max_tokens=8192,
        max_seqs=256,
        max_context=40_000,
    )


def test_a_step_draws_for_its_tokens_its_context_and_its_attention() -> None:
    assert step_energy_s(COST, 2, 2, 1000, 0.0, 0) == pytest.approx(0.005 + 1e-3)
    assert step_energy_s(COST, 1, 2, 500, 0.02, 1) == pytest.approx(0.03 + 0.5e-3 + 0.024)
    assert step_energy_s(COST, 4, 4, 0, 0.0, 0) == pytest.approx(0.005 + 2 * 0.003)  # beyond the end: the last slope
    assert step_energy_s(step_cost_record(StepCostTable(False)), 2, 2, 1000, 0.0, 0) == 0.0


def test_below_the_limit_a_step_takes_its_time_and_the_mean_nears_its_power() -> None:
    seconds, pressure = under_limit(COST, 0.3, 0.02, 0.008)  # 0.1 + 0.4 of the limit
    assert seconds == 0.02
    assert pressure == pytest.approx(0.5 - 0.2 * math.exp(-0.5))


def test_above_the_limit_full_clocks_last_until_the_mean_is_there() -> None:
    drive = 1.4  # 0.1 idle and 1.3
    full_s = 0.04 * math.log((drive - 0.1) / (drive - 1.0))
    short, pressure = under_limit(COST, 0.1, full_s / 2, 1.3 * full_s / 2)
    assert short == full_s / 2 and pressure < 1.0
    long, pressure = under_limit(COST, 0.1, 0.1, 0.13)
    assert pressure == 1.0
    assert long == pytest.approx(full_s + (0.1 - full_s) * math.sqrt(1.3 / 0.9))
    again, pressure = under_limit(COST, pressure, 0.1, 0.13)
    assert again == pytest.approx(0.1 * math.sqrt(1.3 / 0.9)) and pressure == 1.0


def test_rest_is_forgotten() -> None:
    assert relaxed(COST, 1.0, 0.0) == 1.0
    assert relaxed(COST, 1.0, 0.04) == pytest.approx(0.1 + 0.9 / math.e)
    assert relaxed(COST, 1.0, 10.0) == pytest.approx(0.1)
    assert relaxed(COST, 0.5, -1.0) == 0.5  # work that was planned before the last had ended


def test_of_many_alike_all_are_at_the_limit() -> None:
    assert held_s(COST, 0.01, 0.013) == pytest.approx(0.01 * math.sqrt(1.3 / 0.9))
    assert held_s(COST, 0.01, 0.004) == 0.01
    assert held_s(step_cost_record(StepCostTable(False)), 0.01, 0.013) == 0.01


def test_nothing_takes_no_time() -> None:
    assert under_limit(COST, 0.7, 0.0, 0.0) == (0.0, 0.7)


def test_only_gpus_that_were_measured_have_a_limit() -> None:
    assert table_of("h200_sxm").power_window_s == power_limit().window_s
    assert table_of("h100_sxm").power_idle == pytest.approx(load_gpu("h100_sxm").idle_power_watts / 700)
    assert table_of("b200_sxm").power_window_s == 0.0
    assert table_of("h200_sxm", "tensorrt-llm").power_window_s == 0.0


def test_prompts_want_more_than_the_limit_and_few_decodes_less() -> None:
    table = table_of("h200_sxm")
    cost = step_cost_record(table)
    prompt_s = float(table.mixed_s[4096])
    assert 1.1 < table.power_idle + step_energy_s(cost, 0, 4096, 0, 0.0, 1) / prompt_s < 1.4
    few_s = float(table.decode_s[32])
    assert 0.6 < table.power_idle + step_energy_s(cost, 32, 32, 0, 0.0, 0) / few_s < 1.0


def test_products_beyond_the_rows_that_ran_at_full_clocks_take_as_long_a_row() -> None:
    costs = load_engine_costs("vllm-0.25")
    step = Step(load_model("llama-3.1-8b"), load_gpu("h200_sxm"), Precision(), Parallel(), costs)
    product = next(op for op in step.token_operators if op.name == "MLP gate and up")
    rows = float(power_limit().full_clock_rows)
    one, two = product.total(np.array([rows, 2 * rows])).seconds
    assert two == pytest.approx(2 * one)
    assert product.total(np.array([rows / 2])).seconds[0] > 0.45 * one


def test_formats_that_never_meet_the_limit_are_not_charged_for_the_loop_that_did() -> None:
    """Products in nvfp4 on a B200: 16,384 wide, the tables' rows of 8,192 tokens take a fifth longer each."""
    costs = load_engine_costs("tensorrt-llm")
    precision = Precision(weights="nvfp4")
    step = Step(load_model("llama-3.1-70b"), load_gpu("b200_sxm"), precision, Parallel(), costs)
    held = Step(step.model, step.gpu, precision, Parallel(), replace(costs, full_clock_formats=()))
    rows = float(power_limit().full_clock_rows)
    counts = np.array([1.0, 64.0, rows / 2, rows, 2 * rows, 4 * rows, 7 * rows])
    for name in ("MLP gate and up", "MLP down", "qkv projection"):
        found, before = (
            next(op for op in one.token_operators if op.name == name).total(counts).seconds for one in (step, held)
        )
        assert found[:4] == pytest.approx(before[:4])
        assert np.all(found <= before * (1 + 1e-12))
        each = found / counts
        assert np.all(each[5:] <= min(each[3], each[4]) * (1 + 1e-9))
        assert np.all(np.diff(found) >= 0)
    gate_up = [next(op for op in one.token_operators if op.name == "MLP gate and up") for one in (step, held)]
    found, before = (op.total(np.array([4 * rows])).seconds[0] for op in gate_up)
    assert 0.75 < found / before < 0.95


def test_choosing_a_token_takes_time_for_each_logit() -> None:
    model, gpu = load_model("llama-3.1-8b"), load_gpu("h200_sxm")
    plain, slow = (
        next(op for op in Step(model, gpu, Precision(), Parallel(), load_engine_costs(name)).sequence_operators[::-1])
        for name in ("sglang", "vllm-0.25")
    )
    seqs = np.array([64.0])
    more = float((slow.total(seqs).seconds - plain.total(seqs).seconds)[0])
    assert more == pytest.approx(64 * model.vocab * load_engine_costs("vllm-0.25").sampling_logit_s)


def first_tokens_s(engine: str, arrivals: list[float], tokens: int) -> np.ndarray:
    pools = [{"name": "e", "role": "colocated", "gpu": "h200_sxm"}]
    topology = {"name": "t", "model": "llama-3.1-8b", "engine": engine, "pools": pools}
    trace = Trace.from_columns(arrivals, [tokens] * len(arrivals), [2] * len(arrivals))
    record = run_plan(assemble(load_topology(topology)), trace, Arrivals(), seed=0).record
    return record.first_token_s - record.arrival_s


def without_limit(path: Path) -> str:
    path.write_text("extends: vllm-0.25\nname: free\ncosts:\n  power_limit: false\n  sources: {power_limit: none}\n")
    return str(path)


def test_a_short_prompt_is_not_held_back_a_long_one_is_and_so_are_many(tmp_path: Path) -> None:
    # products at full clocks are part of the same switch: prompts of at most full_clock_rows tokens have none beyond
    free = without_limit(tmp_path / "free.yaml")
    assert first_tokens_s("vllm-0.25", [0.0], 1024)[0] == pytest.approx(first_tokens_s(free, [0.0], 1024)[0])
    burst = [0.03 * i for i in range(100)]
    held, apart = first_tokens_s("vllm-0.25", burst, 1500), first_tokens_s(free, burst, 1500)
    assert held[0] == pytest.approx(apart[0])
    assert held[-1] > 1.05 * apart[-1]


def test_decode_steps_measured_on_a_second_h200() -> None:
    """vLLM 0.25.1, none of whose decode steps of Llama-3.1-8B and Qwen3-30B-A3B here went into a fit."""
    rows = [r for r in validate_steps(MEASURED).rows if r.kind == "decode" and "dsv2" not in r.stage]
    errors = [abs(row.error_percent) for row in rows]
    assert len(errors) == 42
    assert np.median(errors) < 3.0
    assert max(errors) < 10.0


LAYERS = 32
#: Operators of a layer by the profile's names; gaps between kernels and attention have several lines of a step each.
LAYER_OPERATORS = {
    "attention norm",
    "qkv projection",
    "rotary embedding",
    "KV cache write",
    "output projection",
    "feed-forward norm",
    "MLP gate and up",
    "MLP activation",
    "MLP down",
    "prefill attention",
    "decode attention",
    "prefill attention launches",
    "gaps between kernels",
    "slower than in the tables",
}


@pytest.mark.parametrize(("kind", "prefill", "tolerance"), [("decode", (), 0.03), ("mixed", ((600, 0),), 0.05)])
def test_a_layer_beside_250_sequences_takes_what_its_kernels_took(
    kind: str, prefill: tuple[tuple[int, int], ...], tolerance: float
) -> None:
    rows = pd.read_csv(MEASURED / "layers.csv", keep_default_na=False)
    measured_us = rows.median_us[rows.step == kind].sum()
    lines = explain_step(
        load_model("llama-3.1-8b"),
        load_gpu("h200_sxm"),
        Precision(),
        Parallel(),
        load_engine_costs("vllm-0.25"),
        prefill=prefill,
        decode=(250, 250 * 1360.0),
    )
    simulated_us = 1e6 * sum(line.seconds for line in lines if line.operator in LAYER_OPERATORS) / LAYERS
    assert simulated_us == pytest.approx(measured_us, rel=tolerance)


def test_250_sequences_decode_at_the_power_limit_as_measured() -> None:
    """A run that no constant of the limit was fitted to; the GPU ran at 1,750 to 1,790 MHz and 690 W throughout."""
    row = pd.read_csv(MEASURED / "workloads.csv").query("stage == 'h200c_tp1'").to_dict("records")[0]
    figures = {(f.metric, f.statistic): f.error_percent for f in replay(row, MEASURED).figures}
    clocks = pd.read_csv(MEASURED / "clocks.csv").query("workload == 'decode_250'")
    assert clocks.share_at_power_limit.min() == 1.0
    assert abs(figures["tpot", "mean"]) < 2.0
