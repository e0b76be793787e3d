"""Cases with a known answer: a queue, a request alone, a transfer alone."""

from __future__ import annotations

import numpy as np
import pytest

from simulator.cluster.assembly import assemble
from simulator.cluster.plan import ClusterPlan
from simulator.cluster.result import RunResult
from simulator.cluster.simulation import run_plan
from simulator.cluster.topology import load_topology
from simulator.workload.arrivals import Arrivals, parse_arrivals
from simulator.workload.trace import Trace

QUIET = {"before_s": 0.0, "after_s": 0.0}


def one_engine(**engine) -> ClusterPlan:
    settings = {"max_num_seqs": 1, "max_num_batched_tokens": 4096, "async_scheduling": False, "prefix_caching": False}
    return assemble(
        load_topology(
            {
                "name": "one",
                "engine": {"profile": "vllm", **settings, **engine},
                "pools": [{"name": "only", "role": "colocated"}],
                "step_time": {"kind": "affine", "base_s": 0.004, "per_token_s": 1e-5, "per_context_token_s": 2e-8},
                "kv_blocks": 10_000,
                "frontend": QUIET,
            }
        )
    )


def run(plan: ClusterPlan, trace: Trace, arrivals: str = "trace", seed: int = 0) -> RunResult:
    return run_plan(plan, trace, parse_arrivals(arrivals), seed=seed)


@pytest.mark.parametrize("load", [0.3, 0.6, 0.8])
def test_waiting_time_of_a_prefill_only_worker_is_that_of_a_queue_with_fixed_service(load):
    """M/D/1 (Pollaczek-Khinchine): mean wait = load x service / (2 (1 - load)), within a 99.9 % interval."""
    requests, prompt = 60_000, 1000
    service_s = 0.004 + 1e-5 * prompt
    ones = np.ones(requests, np.int64)
    trace = Trace.from_columns(np.zeros(requests), ones * prompt, ones)
    record = run(one_engine(), trace, f"poisson:{load / service_s}", seed=7).record
    waits = record.part_queue_s
    np.testing.assert_allclose(record.part_prefill_s, service_s, atol=1e-9)
    batches = waits.reshape(60, -1).mean(axis=1)
    half_width = 3.45 * batches.std(ddof=1) / np.sqrt(batches.size)
    expected = load * service_s / (2 * (1 - load))
    assert abs(waits.mean() - expected) < half_width
    assert half_width < 0.15 * expected


@pytest.mark.parametrize("asynchronous", [False, True])
def test_one_request_alone_takes_the_sum_of_its_steps(asynchronous):
    prompt, output = 5000, 300
    trace = Trace.from_columns([2.0], [prompt], [output])
    record = run(one_engine(async_scheduling=asynchronous), trace).record
    chunks = [(4096, 0), (prompt - 4096, 4096)]
    first = 2.0 + sum(0.004 + 1e-5 * new + 2e-8 * past for new, past in chunks)
    rest = sum(0.004 + 1e-5 + 2e-8 * (prompt + i) for i in range(output - 1))
    assert record.first_token_s[0] == pytest.approx(first, abs=1e-9)
    assert record.last_token_s[0] == pytest.approx(first + rest, abs=1e-9)


def pair(**transfer) -> ClusterPlan:
    return assemble(
        load_topology(
            {
                "name": "pair",
                "model": "llama-3.1-8b",
                "engine": {"profile": "vllm", "async_scheduling": False, "max_model_len": 16384},
                "pools": [
                    {"name": "p", "role": "prefill", "gpu": "h100_sxm"},
                    {"name": "d", "role": "decode", "gpu": "h100_sxm"},
                ],
                "network": {"kind": "rdma", "nic_gbit_per_s": 100, "efficiency": 0.5},
                "kv_transfer": transfer,
                "frontend": QUIET,
            }
        )
    )


def test_a_transfer_alone_takes_setup_descriptors_and_bytes():
    """KV of 4,096 tokens of Llama-3.1-8B (131,072 bytes a token) over half of 100 Gbit/s, one block a descriptor."""
    plan = pair(setup_s=0.003, per_descriptor_s=0.0)
    record = run(plan, Trace.from_columns([0.0], [4096], [8])).record
    expected = 0.003 + 4096 * 131_072 / (0.5 * 100e9 / 8)
    assert record.part_kv_transfer_s[0] == pytest.approx(expected, rel=1e-9)


def test_twice_the_bandwidth_halves_what_the_bytes_take():
    slow = pair(setup_s=0.0, per_descriptor_s=0.0)
    fast = assemble(load_topology(slow.topology, ["network.nic_gbit_per_s=200"]))
    trace = Trace.from_columns([0.0], [8000], [2])
    slow_s, fast_s = (run(plan, trace).record.part_kv_transfer_s[0] for plan in (slow, fast))
    assert slow_s == pytest.approx(2 * fast_s, rel=1e-9)


def test_a_closed_loop_keeps_as_many_requests_as_there_are_clients():
    """With equal requests and one place, N clients wait in turn: each finds N - 1 before it once all have begun."""
    trace = Trace.from_columns(np.zeros(200), np.full(200, 1000), np.ones(200, np.int64))
    result = run_plan(one_engine(), trace, Arrivals("closed", clients=5))
    service_s = 0.004 + 1e-5 * 1000
    np.testing.assert_allclose(result.record.part_queue_s[10:], 4 * service_s, atol=1e-7)
