"""Shipped topologies of published systems: each serves shipped traces, and those of the same money cost the same."""

from __future__ import annotations

import pytest

from simulator import load_topology, load_trace, simulate
from simulator.cluster.topology import topology_names
from simulator.hardware.profiles import load_gpu
from simulator.workload.window import Window

PRESETS = (
    "mooncake",
    "vllm-nixl",
    "tensorrt-llm",
    "deepseek-v3",
    "cachegen-100gbe",
    "distserve",
    "splitwise",
    "sglang-pd",
    "dynamo",
    "b200-prefill-h100-decode",
    "h100-same-money",
    "b200-same-money",
)


def usd_per_hour(name: str) -> float:
    pools = load_topology(name).pools
    return sum(
        pool.workers * pool.parallel.value().gpus * (load_gpu(str(pool.gpu)).usd_per_hour or 0.0) for pool in pools
    )


def test_presets_are_shipped() -> None:
    assert set(PRESETS) <= set(topology_names())


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_serves_a_shipped_trace(name: str) -> None:
    trace = Window(limit=60).apply(load_trace("chat"))
    entry = simulate(trace, name).summary()
    assert entry["completed"] + entry["rejected"] == 60
    assert entry["completed"] >= 55
    assert 0.0 < entry["ttft_s"]["p50"] < 5.0
    assert entry["warnings"] == []


def test_the_same_money_buys_the_same_dollars_an_hour() -> None:
    mixed = usd_per_hour("b200-prefill-h100-decode")
    assert usd_per_hour("h100-same-money") == pytest.approx(mixed, rel=0.03)
    assert usd_per_hour("b200-same-money") == pytest.approx(mixed, rel=0.03)
