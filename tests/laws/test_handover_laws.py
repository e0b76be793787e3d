"""Laws of handing KV over: what no protocol may break, whatever is handed over and when."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from simulator.cluster.assembly import assemble
from simulator.cluster.result import COMPLETED, FAILED, REJECTED, RunResult
from simulator.cluster.run import Cluster, RunOptions
from simulator.cluster.simulation import run_plan
from simulator.cluster.topology import load_topology
from simulator.workload.arrivals import Arrivals, parse_arrivals
from simulator.workload.load import load_trace
from simulator.workload.trace import Trace

ONE = "llama-3.1-8b/h100_sxm/1p1d"
STAGED = "kv_transfer={mode: staged}"
STORE = "kv_transfer={mode: store, store: {gbit_per_s: 100}}"
TO_HOST = "kv_transfer={mode: layerwise, landing: host}"
WAYS = ["kv_transfer.mode=pull", "kv_transfer.mode=push", "kv_transfer.mode=layerwise", STAGED, STORE, TO_HOST]
IN_TURN = "kv_transfer={mode: push, setup_s: 0.02, setup_in_turn: true}"
EASY = settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
PARTS = ("queue", "prefill", "kv_wait", "kv_transfer", "decode_admission", "host")


def outcome(topology: str, *changes: str, trace: Trace | None = None, load: str = "poisson:12") -> RunResult:
    trace = load_trace("chat", limit=150) if trace is None else trace
    return run_plan(assemble(load_topology(topology, changes)), trace, parse_arrivals(load), seed=1)


def lone(tokens: int, outputs: int = 4) -> Trace:
    return Trace.from_columns([0.0], [tokens], [outputs])


@pytest.mark.parametrize(
    ("engine", "mode"), [("vllm", "pull"), ("sglang", "push"), ("splitwise", "layerwise"), ("tensorrt-llm", "pull")]
)
def test_engines_hand_over_in_their_own_way(engine: str, mode: str) -> None:
    result = outcome(f"{ONE}/{engine}")
    assert result.network["mode"] == mode and result.network["transfers"] == 150


@pytest.mark.parametrize("engine", ["vllm", "sglang", "splitwise"])
@pytest.mark.parametrize("way", [*WAYS, IN_TURN])
def test_every_request_is_decoded_and_its_parts_add_up(way: str, engine: str) -> None:
    record = outcome(f"{ONE}/{engine}", way).record
    assert (record.state == COMPLETED).all()
    parts = [getattr(record, f"part_{name}_s") for name in PARTS]
    assert min(part.min() for part in parts) >= -1e-9
    np.testing.assert_allclose(sum(parts), record.first_token_s - record.arrival_s, rtol=0, atol=1e-12)


@pytest.mark.parametrize("engine", ["vllm", "sglang", "splitwise"])
@pytest.mark.parametrize(("way", "legs"), list(zip(WAYS, [1, 1, 1, 3, 2, 2], strict=True)))
def test_the_bytes_sent_are_those_of_the_prompts_blocks_on_each_leg(way: str, legs: int, engine: str) -> None:
    trace = load_trace("chat", limit=150)
    plan = assemble(load_topology(f"{ONE}/{engine}", [way]))
    result = run_plan(plan, trace, Arrivals())
    assert plan.transfer is not None and plan.model is not None
    size = plan.workers[0].block_size
    blocks = int(np.ceil(trace.input_tokens / size).sum())
    assert result.network["bytes"] == pytest.approx(legs * blocks * size * 131_072)  # bytes a token of this model


@EASY
@given(st.integers(20, 12_000), st.sampled_from([10, 40, 400]), st.sampled_from([0.0, 1e-6, 1e-4]))
def test_layers_sent_early_never_show_more_than_a_pull_on_an_idle_path(tokens: int, gbit: int, piece_s: float) -> None:
    shown = []
    for mode in ("pull", "layerwise"):
        changes = f"kv_transfer={{mode: {mode}, per_descriptor_s: {piece_s}}}", f"network.nic_gbit_per_s={gbit}"
        shown.append(outcome(ONE, *changes, trace=lone(tokens), load="trace").network["exposed_s"])
    assert shown[1] <= shown[0] + 1e-9


def test_an_idle_path_shows_only_the_last_layer() -> None:
    network = outcome(ONE, "kv_transfer.mode=layerwise", trace=lone(4096), load="trace").network
    plan = assemble(load_topology(ONE))
    assert plan.transfer is not None and plan.model is not None
    route = plan.transfer.route(0, 1)
    speed = plan.transfer.network.paths[0, 1].alone_bytes_per_s(plan.transfer.network.links)
    layer_s = (route.per_block_s * 256 + route.wire_bytes(256) / speed) / plan.model.layers
    assert network["exposed_s"] == pytest.approx(route.setup_s + layer_s, rel=1e-6)
    assert network["hidden_s"] == pytest.approx(network["transfer_mean_s"] - network["exposed_s"])


def test_chunks_pushed_while_later_ones_are_computed_are_hidden() -> None:
    chunks = "engine={profile: vllm, max_num_batched_tokens: 1024}"
    network = outcome(ONE, chunks, "kv_transfer.mode=push", trace=lone(4096), load="trace").network
    whole = outcome(ONE, chunks, trace=lone(4096), load="trace").network
    setup = 0.38e-3
    assert network["exposed_s"] == pytest.approx((whole["exposed_s"] - setup) / 4 + setup, rel=1e-6)
    assert network["bytes"] == whole["bytes"]


@pytest.mark.parametrize("way", WAYS)
def test_compression_never_sends_more_and_faster_decoding_never_hurts(way: str) -> None:
    link = "network.nic_gbit_per_s=20"
    small = [f"kv_transfer.compression={{ratio: 4, decode_s_per_token: {cost}}}" for cost in (0, 1e-5, 1e-4)]
    plain = outcome(ONE, way, link)
    packed = [outcome(ONE, way, link, change) for change in small]
    assert all(run.network["bytes"] == pytest.approx(plain.network["bytes"] / 4) for run in packed)
    waits = [float((run.record.first_token_s - run.record.arrival_s).mean()) for run in packed]
    assert waits[0] <= waits[1] * 1.01 <= waits[2] * 1.02


@pytest.mark.parametrize("way", WAYS)
def test_more_bandwidth_never_hurts(way: str) -> None:
    waits = []
    for gbit in (400, 40, 4):
        record = outcome(ONE, way, f"network.nic_gbit_per_s={gbit}").record
        waits.append(float((record.last_token_s - record.arrival_s).mean()))
    assert waits[0] <= waits[1] * 1.01 <= waits[2] * 1.02


def test_without_memory_where_they_are_decoded_prompts_wait_before_they_are_computed() -> None:
    short = "pools.decode.kv_blocks=400"
    push, pull = (outcome(ONE, f"kv_transfer.mode={mode}", short).record for mode in ("push", "pull"))
    assert push.part_kv_wait_s.mean() > 0.2 and pull.part_kv_wait_s.mean() > 0.2
    assert push.part_queue_s.mean() < 0.1 * push.part_kv_wait_s.mean()


@pytest.mark.parametrize("shape", ["2p1d", "1p2d"])
@pytest.mark.parametrize("way", WAYS)
def test_memory_for_one_prompt_at_a_time_strands_nobody(way: str, shape: str) -> None:
    record = outcome(f"llama-3.1-8b/h100_sxm/{shape}", way, "kv_blocks=330", load="poisson:40").record
    assert ((record.state == COMPLETED) | (record.state == REJECTED)).all()
    assert (record.state == COMPLETED).sum() > 140


@pytest.mark.parametrize("policy", ["fail", "recompute"])
def test_a_lease_without_heartbeats_ends(policy: str) -> None:
    """Decode engines without memory for the prompts leave them at the prefill engine beyond their lease."""
    changes = ["pools.decode.kv_blocks=400", "kv_transfer.lease_s=0.2", "kv_transfer.heartbeats=false"]
    changes.append(f"kv_transfer.kv_load_failure_policy={policy}")
    plan = assemble(load_topology(ONE, changes))
    cluster = Cluster(plan, load_trace("chat", limit=150), Arrivals(), RunOptions())
    cluster.run()
    never_read, failed = cluster.moved.wire_bytes == 0, cluster.state == FAILED
    assert 10 < never_read.sum() < 150
    assert failed[never_read].all() if policy == "fail" else not failed.any()
    assert np.isnan(cluster.moved.read_end_s[failed]).all()  # some while they were being read
    assert (cluster.state[~failed] == COMPLETED).all()
    assert_empty(cluster)


def test_heartbeats_keep_what_waits() -> None:
    result = outcome(ONE, "pools.decode.kv_blocks=400", "kv_transfer.lease_s=0.2")
    assert (result.record.state == COMPLETED).all() and result.network["transfers"] == 150


@EASY
@given(
    st.sampled_from([*WAYS, IN_TURN]),
    st.sampled_from(["vllm", "sglang", "splitwise"]),
    st.integers(0, 29),
    st.floats(0.0, 2.0),
)
def test_a_handover_can_be_given_up_at_any_moment(way: str, engine: str, row: int, at: float) -> None:
    """The request fails, the others do not, and nobody keeps anything."""
    changes = [way, "network.nic_gbit_per_s=2"]
    trace = load_trace("chat", limit=30)
    cluster = Cluster(assemble(load_topology(f"{ONE}/{engine}", changes)), trace, Arrivals(), RunOptions())
    handover = cluster.handover
    assert handover is not None
    at += float(cluster.arrival_s[row]) + float(cluster.front.before_s[row]) + 1e-6

    def give_up(now: float) -> None:
        if np.isnan(cluster.moved.read_end_s[row]) and np.isnan(cluster.desk.first_token_s[row]):
            handover.abort(row, now, "given up")

    cluster.agenda.add(at, give_up)
    cluster.run()
    others = np.arange(30) != row
    assert (cluster.state[others] == COMPLETED).all()
    assert cluster.state[row] in (COMPLETED, FAILED)
    assert_empty(cluster)


def assert_empty(cluster: Cluster) -> None:
    for worker in cluster.workers:
        load = worker.engine.load()
        assert (load.running, load.waiting, load.holding) == (0, 0, 0)
        assert load.free_blocks == load.blocks


def test_transfers_set_up_in_turn_leave_one_after_another() -> None:
    """Four prompts of one step: by themselves all are set up at once, in turn each waits for those before it."""
    burst = Trace.from_columns([0.0] * 4, [500] * 4, [4] * 4)
    changes = [f"kv_transfer={{mode: push, setup_s: 0.5, setup_in_turn: {turn}}}" for turn in ("false", "true")]
    together = "frontend.before_s=0.03"  # a front end that deals with one after another would spread them over steps
    at_once, in_turn = (
        outcome(f"{ONE}/sglang", change, together, trace=burst, load="trace").record.part_kv_transfer_s
        for change in changes
    )
    assert max(at_once) - min(at_once) < 0.1
    assert np.diff(sorted(in_turn)) == pytest.approx([0.5] * 3, abs=0.1)
    assert min(in_turn) == pytest.approx(min(at_once), abs=0.01)  # which share the wire
