"""Dollars and joules of a run."""

from __future__ import annotations

import pytest

from simulator.api import simulate
from simulator.hardware.power import power_draw
from simulator.hardware.profiles import load_gpu
from simulator.workload.trace import Trace

LOAD = {"arrivals": "poisson:12"}


def test_a_million_tokens_cost_the_clusters_hour_over_its_tokens_an_hour():
    entry = simulate("chat", "1p1d", overrides=["pools.decode.usd_per_hour=2.0"], **LOAD).summary()
    hour = load_gpu("h100_sxm").usd_per_hour + 2.0
    tokens_per_s = entry["input_tokens_per_s"] + entry["output_tokens_per_s"]
    assert entry["cost"]["usd_per_hour"] == pytest.approx(hour)
    assert entry["cost"]["usd_per_million_tokens"] == pytest.approx(hour / 3600 / tokens_per_s * 1e6)
    assert entry["cost"]["usd_per_million_output_tokens"] == pytest.approx(
        hour / 3600 / entry["output_tokens_per_s"] * 1e6
    )


def test_power_lies_between_idle_and_rated_and_the_parts_add_up():
    gpu = load_gpu("h100_sxm")
    entry = simulate("chat", "1p1d", **LOAD).summary()
    energy, pools = entry["energy"], {pool["name"]: pool for pool in entry["pools"]}
    draw = power_draw(gpu.power_watts, gpu.idle_power_watts)
    for name, phase_watts in (("prefill", draw.prefill_watts), ("decode", draw.decode_watts)):
        busy = pools[name]["utilisation"]
        expected = gpu.idle_power_watts + busy * (phase_watts - gpu.idle_power_watts)
        assert energy["watts_by_pool"][name] == pytest.approx(expected)
        assert gpu.idle_power_watts <= expected <= gpu.power_watts
    assert energy["mean_watts"] == pytest.approx(sum(energy["watts_by_pool"].values()))
    tokens_per_s = entry["input_tokens_per_s"] + entry["output_tokens_per_s"]
    assert energy["joules_per_token"] == pytest.approx(energy["mean_watts"] / tokens_per_s)


def test_longer_answers_move_a_colocated_pools_power_from_prefill_to_decode():
    gpu = load_gpu("h100_sxm")
    draw = power_draw(gpu.power_watts, gpu.idle_power_watts)
    watts = []
    for output in (2, 50, 2000):
        trace = Trace.from_columns([0.0] * 40, [2000] * 40, [output] * 40)
        watts.append(simulate(trace, "llama-3.1-8b/h100_sxm/1c").summary()["energy"]["mean_watts"])
    assert draw.prefill_watts >= watts[0] > watts[1] > watts[2] > 0.99 * draw.decode_watts


def test_without_a_gpu_there_is_neither_price_nor_power():
    topology = {
        "name": "plain",
        "pools": [{"name": "only", "role": "colocated"}],
        "step_time": {"kind": "affine", "base_s": 0.01},
        "kv_blocks": 50_000,
    }
    entry = simulate("chat", topology, arrivals="poisson:2").summary()
    assert entry["cost"]["usd_per_hour"] is None
    assert entry["cost"]["usd_per_million_tokens"] is None
    assert entry["energy"]["mean_watts"] is None
    topology["pools"][0]["usd_per_hour"] = 1.0
    assert simulate("chat", topology, arrivals="poisson:2").summary()["cost"]["usd_per_hour"] == 1.0
