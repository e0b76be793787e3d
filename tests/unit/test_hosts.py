"""Hosts of machines: their speed, what keeps them from launching, and what a launch holds back."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import yaml

from simulator.cli import main
from simulator.cluster.assembly import assemble
from simulator.cluster.simulation import run_plan
from simulator.cluster.topology import load_topology
from simulator.cost.table import (
    StepCostTable,
    decode_launch_seconds,
    launch_seconds,
    mixed_step_seconds,
    step_cost_record,
)
from simulator.errors import InputError
from simulator.validation.machines import host_of
from simulator.workload.arrivals import Arrivals
from simulator.workload.trace import Trace

LONG = 2000


def topology(host: dict[str, float] | None = None, **engine: object) -> dict[str, object]:
    return {
        "name": "one",
        "model": "llama-3.1-8b",
        "engine": {"profile": "vllm-0.25", "max_model_len": 16_000, "prefix_caching": False, **engine},
        "pools": [{"name": "engine", "role": "colocated", "gpu": "h100_sxm"}],
        **({} if host is None else {"host": host}),
    }


def cost_of(host: dict[str, float] | None = None, **engine: object) -> StepCostTable:
    return assemble(load_topology(topology(host, **engine))).workers[0].step_cost


def launch_s(table: StepCostTable, tokens: int, seqs: int = 1) -> float:
    return float(launch_seconds(step_cost_record(table), tokens, seqs))


def test_a_host_twice_as_fast_launches_in_half_the_time_and_computes_as_before() -> None:
    plain, fast = cost_of(), cost_of({"speed": 2.0})
    assert launch_s(fast, LONG, 9) == pytest.approx(launch_s(plain, LONG, 9) / 2)
    assert fast.mixed_prepare_s == pytest.approx(plain.mixed_prepare_s / 2)
    graph = [float(decode_launch_seconds(step_cost_record(table), 8)) for table in (plain, fast)]
    assert 0 < graph[1] == pytest.approx(graph[0] / 2)
    assert np.array_equal(plain.mixed_s, fast.mixed_s) and np.array_equal(plain.decode_s, fast.decode_s)


def test_each_sequence_of_a_step_makes_its_launch_longer() -> None:
    table = cost_of()
    assert launch_s(table, LONG, 51) - launch_s(table, LONG, 1) == pytest.approx(50 * table.launch_seq_s)
    most = table.launch_most_seqs
    assert launch_s(table, LONG, most - 1) < launch_s(table, LONG, most) == launch_s(table, LONG, most + 100)
    assert launch_s(StepCostTable(True, 1e-3), LONG, 101) == 0.0  # an explicit step time has no launches


def test_steps_beyond_the_largest_graph_are_launched_kernel_by_kernel() -> None:
    small, large, eager = cost_of(), cost_of(max_cudagraph_capture_size=2048), cost_of(enforce_eager=True)
    assert launch_s(large, LONG) < launch_s(small, LONG) == pytest.approx(launch_s(large, 4096))
    assert launch_s(eager, 100) == pytest.approx(launch_s(small, LONG)) and launch_s(small, 100) < launch_s(eager, 100)


def first_tokens_ms(host: dict[str, float], seed: int) -> np.ndarray:
    """TTFT of 400 prompts of 1,000 tokens, one after another."""
    trace = Trace.from_columns(np.arange(400) * 0.25, np.full(400, 1000), np.full(400, 2))
    record = run_plan(assemble(load_topology(topology(host))), trace, Arrivals(), seed=seed).record
    return 1e3 * (record.first_token_s - record.arrival_s)


def test_stalls_come_at_their_rate_and_length_and_belong_to_the_seed() -> None:
    quiet = first_tokens_ms({}, 0)
    stalled = first_tokens_ms({"stall_rate_hz": 4.0, "stall_s": 0.1}, 0)
    longer = stalled - quiet
    launch = launch_s(cost_of(), 1000)
    hit = longer > 1e-9
    # a launch of 20 ms is hit with 1 - exp(-4 x 0.02) = 8 %; short ones hide behind the GPU's own work
    assert 0.5 * 400 * 4.0 * launch < hit.sum() < 1.5 * 400 * 4.0 * launch
    assert 60 < longer[hit].mean() < 140
    assert longer.min() > -1e-9
    assert np.array_equal(stalled, first_tokens_ms({"stall_rate_hz": 4.0, "stall_s": 0.1}, 0))
    assert not np.array_equal(stalled, first_tokens_ms({"stall_rate_hz": 4.0, "stall_s": 0.1}, 1))


def test_a_step_with_prompts_takes_longer_than_its_kernels_by_the_profile_s_share() -> None:
    table = cost_of()
    alone = dataclasses.replace(table, mixed_slower=0.0)
    times = [float(mixed_step_seconds(step_cost_record(t), 0, 0, 1, 8000, 0, 0.0, 1)) for t in (table, alone)]
    gap = float(table.mixed_add_s[1])
    assert times[0] - gap == pytest.approx((times[1] - gap) * (1 + table.mixed_slower))


def test_a_machine_s_own_gap_between_steps_stands_for_the_profile_s_whatever_its_speed() -> None:
    def gap_s(host: dict[str, float]) -> float:
        return float(cost_of(host).decode_add_s[1])

    assert gap_s({"speed": 2.0}) == pytest.approx(gap_s({}) / 2.0)
    assert gap_s({"step_gap_s": 0.35e-3}) == pytest.approx(0.35e-3)
    assert gap_s({"step_gap_s": 0.35e-3, "speed": 2.0}) == pytest.approx(0.35e-3)
    assert gap_s({"step_gap_s": 0.0}) == 0.0


def test_hosts_of_the_measured_machines_and_of_rows_that_state_theirs() -> None:
    assert host_of({}, "h200_sxm", "x")["speed"] > 1.0
    assert host_of({}, "h100_sxm", "x")["stall_rate_hz"] > 0.0 and host_of({}, "h100_sxm", "x")["step_gap_s"] > 0.0
    assert host_of({"host_step_gap_s": 1e-4}, "h100_sxm", "x") == {"step_gap_s": 1e-4}
    assert host_of({}, "b200_sxm", "x") == {}
    assert host_of({"host_speed": 1.7}, "h100_sxm", "x") == {"speed": 1.7}
    with pytest.raises(InputError, match="speed"):
        host_of({"host_speed": -1.0}, "h100_sxm", "workloads.csv: a.b")


def test_an_impossible_host_is_refused_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "t.yaml"
    path.write_text(yaml.safe_dump(topology({"stall_rate_hz": -2.0})))
    trace = tmp_path / "t.jsonl"
    trace.write_text('{"timestamp": 0, "input_length": 10, "output_length": 2}\n')
    assert main([str(trace), "--topology", str(path)]) == 2
    said = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("note:")]
    assert len(said) == 1 and "host.stall_rate_hz" in said[0]
