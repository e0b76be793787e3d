"""What holds in every run, whatever the trace, the topology and the settings."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from simulator.cluster.assembly import assemble
from simulator.cluster.result import COMPLETED, REJECTED
from simulator.cluster.simulation import run_plan
from simulator.cluster.topology import load_topology
from simulator.workload.arrivals import Arrivals, parse_arrivals
from simulator.workload.load import load_trace
from simulator.workload.trace import Trace

SHAPES = ["2c", "1p1d", "2p1d", "1p3d"]
ROUTERS = ["round_robin", "least_requests", "least_pending_tokens", "most_free_blocks", "prefix_aware"]
ENGINES = ["vllm", "sglang", "tensorrt-llm"]
MODES = ["pull", "push", "layerwise", "staged"]


@st.composite
def traces(draw: st.DrawFn) -> Trace:
    rows = draw(
        st.lists(st.tuples(st.floats(0, 0.3), st.integers(1, 3000), st.integers(1, 60)), min_size=1, max_size=30)
    )
    gaps, prompts, outputs = zip(*rows, strict=True)
    return Trace.from_columns(np.cumsum(gaps), prompts, outputs)


@st.composite
def plans(draw: st.DrawFn):
    engine = draw(st.sampled_from(ENGINES))
    shape = draw(st.sampled_from(SHAPES))
    changes = [f"kv_blocks={draw(st.sampled_from([300, 2000]))}"] if engine == "vllm" else []
    role = "colocated" if shape.endswith("c") else "prefill"
    changes.append(f"routing.{role}={draw(st.sampled_from(ROUTERS))}")
    if role == "prefill":
        changes.append(f"kv_transfer.mode={draw(st.sampled_from(MODES))}")
    return assemble(load_topology(f"llama-3.1-8b/h100_sxm/{shape}/{engine}", changes))


LOADS = st.sampled_from(["trace", "at-once", "closed:3", "poisson:20"])
EASY = settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))


@EASY
@given(plans(), traces(), LOADS)
def test_every_request_ends_once_with_all_its_tokens_and_nothing_before_its_cause(plan, trace, load):
    result = run_plan(plan, trace, parse_arrivals(load), seed=1)
    record = result.record
    ended = record.state == COMPLETED
    assert (ended | (record.state == REJECTED)).all()
    assert np.isnan(record.last_token_s[~ended]).all()
    assert (record.arrival_s[ended] < record.first_token_s[ended]).all()
    single = ended & (record.output_tokens == 1)
    assert (record.first_token_s[single] == record.last_token_s[single]).all()
    assert (record.first_token_s[ended & ~single] < record.last_token_s[ended & ~single]).all()
    parts = [getattr(record, f"part_{name}_s") for name in ("queue", "prefill", "kv_wait", "kv_transfer")]
    parts += [record.part_decode_admission_s, record.part_host_s]
    for part in parts:
        assert (part[ended] >= -1e-9).all()
    np.testing.assert_allclose(sum(parts)[ended], (record.first_token_s - record.arrival_s)[ended], atol=1e-9)
    asked = int(record.output_tokens[ended].sum())
    assert result.itl_histogram is not None
    assert int(result.itl_histogram.counts.sum()) == asked - int(ended.sum())
    for series in result.series:
        assert ((series.kv_fraction >= 0) & (series.kv_fraction <= 1)).all()


def test_bytes_on_the_wire_are_the_blocks_that_were_read():
    plan = assemble(load_topology("llama-3.1-8b/h100_sxm/2p2d"))
    trace = load_trace("chat", limit=300)
    result = run_plan(plan, trace, Arrivals())
    route = next(iter(plan.transfer.routes.values()))
    assert result.network["transfers"] == 300
    assert result.network["bytes"] == pytest.approx(result.network["blocks"] * route.bytes_per_block)
    assert result.network["blocks"] == int(np.ceil(trace.input_tokens / 16).sum())


@pytest.mark.parametrize("shape", ["2c", "1p1d"])
def test_more_bandwidth_and_faster_decode_do_not_hurt(shape):
    """Mean TTFT over three seeds, on a fabric ten times as fast, is no worse than noise."""
    trace = load_trace("chat", limit=400)

    def mean_ttft(changes: list[str]) -> float:
        plan = assemble(load_topology(f"llama-3.1-8b/h100_sxm/{shape}", changes))
        means = []
        for seed in range(3):
            record = run_plan(plan, trace, parse_arrivals("poisson:15"), seed=seed).record
            means.append(float((record.first_token_s - record.arrival_s).mean()))
        return float(np.mean(means))

    slow = ["network={kind: rdma, nic_gbit_per_s: 40}"] if shape == "1p1d" else []
    fast = ["network={kind: rdma, nic_gbit_per_s: 400}"] if shape == "1p1d" else []
    assert mean_ttft(fast) <= mean_ttft(slow) * 1.01
    if shape == "1p1d":
        assert mean_ttft(fast) < mean_ttft(slow)


def test_same_seed_same_bytes_under_another_hash_seed(tmp_path):
    texts = []
    for hash_seed in ("1", "2"):
        out = tmp_path / f"{hash_seed}.json"
        command = [
            sys.executable,
            "-m",
            "simulator.cli",
            "chat",
            "--limit",
            "200",
            "--arrivals",
            "gamma:20:2",
            "--seed",
            "5",
        ]
        command += ["--topology", "colocated", "--topology", "1p1d", "--quiet", "--json", str(out)]
        subprocess.run(command, check=True, capture_output=True, env={**os.environ, "PYTHONHASHSEED": hash_seed})
        texts.append(out.read_bytes())
    assert texts[0] == texts[1]
