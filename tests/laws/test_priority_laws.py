"""What holds of scheduling by priority on any trace: nothing is lost, and the urgent do not wait longer for it."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from simulator.cli import main
from simulator.cluster.assembly import assemble
from simulator.cluster.result import COMPLETED
from simulator.cluster.simulation import run_plan
from simulator.cluster.topology import load_topology
from simulator.errors import InputError
from simulator.workload.arrivals import Arrivals
from simulator.workload.trace import Trace

STEP_S = 0.01
EASY = settings(max_examples=80, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))


def run(trace: Trace, policy: str, *, blocks: int = 200, **engine):
    """One vLLM whose every step takes ``STEP_S``."""
    values = {
        "name": "made",
        "engine": {"profile": "vllm", "max_num_seqs": 4, "max_num_batched_tokens": 512, "scheduling_policy": policy}
        | engine,
        "pools": [{"name": "c", "role": "colocated", "step_time": {"base_s": STEP_S}, "kv_blocks": blocks}],
    }
    return run_plan(assemble(load_topology(values)), trace, Arrivals()).record


@st.composite
def classes(draw):
    """Requests of two classes; the arrivals are those of a queue that forms and empties."""
    rows = draw(
        st.lists(
            st.tuples(st.floats(0, 0.1), st.integers(1, 900), st.integers(1, 60), st.integers(0, 1)),
            min_size=2,
            max_size=40,
        )
    )
    gaps, prompts, outputs, priority = zip(*rows, strict=True)
    return Trace.from_columns(np.cumsum(gaps), prompts, outputs, priority=priority)


@EASY
@given(classes(), st.sampled_from([80, 2000]), st.booleans())
def test_nothing_is_lost_or_early(trace, blocks, caching):
    record = run(trace, "priority", blocks=blocks, prefix_caching=caching)
    assert (record.state == COMPLETED).all()
    assert (record.first_token_s >= trace.arrival_s + STEP_S - 1e-9).all()
    assert (record.last_token_s >= record.first_token_s + (trace.output_tokens - 1) * STEP_S - 1e-9).all()


@EASY
@given(classes(), st.integers(1, 60), st.integers(1, 500), st.booleans())
def test_with_equal_requests_the_urgent_class_never_waits_longer(trace, output, prompt, planned_ahead):
    """Of requests alike in everything else, whoever is urgent takes the place of one that is not: its mean wait cannot
    grow, but by the step that whoever is on its way keeps."""
    n = len(trace)
    trace = trace.with_(input_tokens=np.full(n, prompt), output_tokens=np.full(n, output))
    plain, urgent = (run(trace, policy, blocks=4000, async_scheduling=planned_ahead) for policy in ("fcfs", "priority"))
    first = trace.priority == 0
    if first.any():
        mean = [float((r.first_token_s - trace.arrival_s)[first].mean()) for r in (plain, urgent)]
        assert mean[1] <= mean[0] + STEP_S * (1 + 1e-9)


@EASY
@given(classes(), st.booleans())
def test_one_priority_for_all_is_first_come_first_served(trace, caching):
    """As long as nobody is preempted: then the newest of either order is the same."""
    trace = trace.with_(priority=np.full(len(trace), 7))
    plain, urgent = (run(trace, policy, blocks=4000, prefix_caching=caching) for policy in ("fcfs", "priority"))
    assert plain.first_token_s.tobytes() == urgent.first_token_s.tobytes()
    assert plain.last_token_s.tobytes() == urgent.last_token_s.tobytes()


def test_first_come_first_served_pays_no_heed_to_priorities():
    trace = Trace.from_columns(np.zeros(6), np.full(6, 100), np.full(6, 5), priority=[5, 4, 3, 2, 1, 0])
    told, silent = run(trace, "fcfs", max_num_seqs=1), run(trace.with_(priority=None), "fcfs", max_num_seqs=1)
    assert told.first_token_s.tobytes() == silent.first_token_s.tobytes()
    assert (np.diff(told.first_token_s) > 0).all()
    assert (np.diff(run(trace, "priority", max_num_seqs=1).first_token_s) < 0).all()


@pytest.mark.parametrize(
    ("engine", "said"),
    [
        ({"num_speculative_tokens": 2}, "scheduling_policy priority and num_speculative_tokens over 0 cannot"),
        (
            {"profile": "vllm-0.5", "async_scheduling": False},
            "scheduling_policy priority is not allowed; allowed: fcfs",
        ),
    ],
)
def test_what_cannot_be_simulated_is_refused(engine, said):
    trace = Trace.from_columns([0.0], [10], [2])
    with pytest.raises(InputError, match=said):
        run(trace, "priority", **engine)
    with pytest.raises(InputError, match="'sjf' is not allowed; scheduling_policy is one of fcfs, priority"):
        run(trace, "sjf")


def test_the_command_line_runs_tenants_by_priority(tmp_path, capsys):
    """A tenant that pays overtakes one that does not."""
    lines = ["arrival_s,input_tokens,output_tokens,tenant,priority"]
    lines += [f"{i * 0.001},200,20,{'free' if i < 30 else 'gold'},{1 if i < 30 else 0}" for i in range(40)]
    trace = tmp_path / "trace.csv"
    trace.write_text("\n".join(lines) + "\n", encoding="utf-8")
    topology = tmp_path / "one.yaml"
    text = "name: one\nengine: {profile: vllm, max_num_seqs: 2, scheduling_policy: POLICY}\n"
    text += "pools: [{name: c, role: colocated, step_time: {base_s: 0.01}, kv_blocks: 1000}]\n"
    ttft = {}
    for policy in ("fcfs", "priority"):
        topology.write_text(text.replace("POLICY", policy), encoding="utf-8")
        out = tmp_path / f"{policy}.json"
        words = [str(trace), "--topology", str(topology), "--slo", "ttft=1s;gold:ttft=600ms", "--json", str(out)]
        assert main([*words, "--quiet"]) == 0
        ttft[policy] = json.loads(out.read_text(encoding="utf-8"))["topologies"][0]["tenants"]
    # ten requests of 20 steps, two at a time, behind the two of the others that run; or behind all thirty
    assert ttft["priority"]["gold"]["ttft_s"]["max"] < 6 * 0.21 < 15 * 0.2 < ttft["fcfs"]["gold"]["ttft_s"]["mean"]
    assert ttft["priority"]["free"]["ttft_s"]["mean"] > ttft["fcfs"]["free"]["ttft_s"]["mean"]
    assert all(tenants[name]["completed"] == n for tenants in ttft.values() for name, n in (("free", 30), ("gold", 10)))


def test_a_pair_goes_by_priority_as_a_whole_or_in_a_pool(tmp_path, capsys):
    trace = tmp_path / "trace.csv"
    trace.write_text("arrival_s,input_tokens,output_tokens,priority\n0,20,2,1\n", encoding="utf-8")
    words = [str(trace), "--topology", "llama-3.1-8b/h100_sxm/1p1d", "--quiet", "--set"]
    for pool in ("", "pools.prefill.", "pools.decode."):
        assert main([*words, f"{pool}engine.scheduling_policy=priority"]) == 0
    capsys.readouterr()
