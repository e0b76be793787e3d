"""Faults one at a time: when they are noticed, what they cost, what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from simulator.api import simulate
from simulator.cluster.assembly import assemble
from simulator.cluster.faults.plan import Health
from simulator.cluster.result import CANCELLED, COMPLETED, FAILED, REJECTED, TIMED_OUT, UNFINISHED, RunResult
from simulator.cluster.run import Cluster, RunOptions
from simulator.cluster.simulation import run_plan
from simulator.cluster.topology import load_topology
from simulator.engine.pacing import slowed
from simulator.errors import TopologyError
from simulator.metrics.slo import SLO
from simulator.metrics.verdict import verdict
from simulator.validation.fault_laws import broken_laws
from simulator.workload.arrivals import apply_arrivals, parse_arrivals
from simulator.workload.load import load_trace
from simulator.workload.trace import Trace

ONE = {
    "name": "one",
    "kv_blocks": 1000,
    "step_time": {"base_s": 0.01, "per_token_s": 0.0001},
    "engine": {"profile": "vllm", "async_scheduling": False, "enable_prefix_caching": False},
    "pools": [{"name": "all", "role": "colocated", "workers": 2}],
    "frontend": {"before_s": 0.0, "after_s": 0.0},
    "routing": {"colocated": "round_robin"},
}
CRASH = {"kind": "crash", "worker": "all-0", "at_s": 0.105}


def outcome(faults: dict[str, Any], trace: Trace, **more: Any) -> RunResult:
    plan = assemble(load_topology({**ONE, "faults": faults, **more}))
    return run_plan(plan, trace, parse_arrivals("trace"))


def lone(outputs: int = 20, at: float = 0.0) -> Trace:
    return Trace.from_columns([at], [100], [outputs])


def test_probes_find_a_silent_death_after_so_many_failures() -> None:
    health = Health(10.0, 3, 1.0)
    assert health.noticed_s(0.0) == 31.0 and health.noticed_s(9.9) == 31.0 and health.noticed_s(10.0) == 41.0
    assert health.back_s(20.0) == 20.0 and health.back_s(20.1) == 30.0


def test_a_request_goes_on_from_its_tokens_at_another_worker() -> None:
    """Prompt 20 ms, then steps of 10.1 ms; at 105 ms the client has 9 tokens: 11 are left behind a prompt of 109."""
    record = outcome({"events": [CRASH]}, lone()).record
    assert record.state[0] == COMPLETED and record.attempts is not None and record.attempts[0] == 1
    assert record.first_token_s[0] == pytest.approx(0.02)
    assert record.last_token_s[0] == pytest.approx(0.105 + 0.01 + 109 * 0.0001 + 10 * 0.0101)
    assert record.lost_tokens is not None and record.lost_tokens[0] == 0


def test_or_begins_anew_and_what_was_lost_is_queueing() -> None:
    record = outcome({"events": [CRASH], "retry": {"streamed": "restart"}}, lone()).record
    assert record.first_token_s[0] == pytest.approx(0.105 + 0.02)
    assert record.last_token_s[0] == pytest.approx(0.105 + 0.02 + 19 * 0.0101)
    assert record.part_queue_s[0] == pytest.approx(0.105)
    assert record.lost_tokens is not None and record.lost_tokens[0] == 9


@pytest.mark.parametrize("retry", [{"streamed": "fail"}, {"limit": 0}])
def test_or_fails(retry: dict[str, Any]) -> None:
    record = outcome({"events": [CRASH], "retry": retry}, lone()).record
    assert record.state[0] == FAILED and record.reasons == ("worker all-0 died",)


def test_until_a_silent_death_is_noticed_requests_go_there() -> None:
    """Probes every second, one failure, known at once: what comes to all-0 between 0.1 s and 1 s waits until then."""
    trace = Trace.from_columns([0.0, 0.2, 0.4, 0.6], [100] * 4, [2] * 4)
    health = {"interval_s": 1.0, "failures": 1, "timeout_s": 0.0}
    event = {**CRASH, "at_s": 0.1, "silent": True}
    record = outcome({"events": [event], "health": health}, trace).record
    np.testing.assert_allclose(record.first_token_s - record.arrival_s, [0.02, 0.02, 0.62, 0.02], atol=1e-9)


def test_a_worker_starts_again_with_its_weights() -> None:
    """Nobody else is there: the request waits for the process (2 s after half a second) and the next probe."""
    pools = [{"name": "all", "role": "colocated"}]
    restart, health = {"start_s": 2.0}, {"interval_s": 0.5}
    faults = {"events": [{**CRASH, "duration_s": 0.5}], "restart": restart, "health": health, "no_worker": "wait"}
    record = outcome(faults, lone(), pools=pools).record
    assert record.last_token_s[0] == pytest.approx(3.0 + 0.01 + 109 * 0.0001 + 10 * 0.0101)
    real = assemble(
        load_topology("llama-3.1-8b/h100_sxm:tp2/2c", ["faults={events: [{kind: crash, pool: colocated, at_s: 1}]}"])
    )
    assert real.faults is not None and real.faults.restart_s[0] == pytest.approx(64.0 + 16.06e9 / 2e9, rel=0.02)


def test_without_a_worker_requests_are_turned_away_or_never_end() -> None:
    trace = Trace.from_columns([0.0, 1.0], [100] * 2, [20] * 2)
    gone = {"events": [{"kind": "crash", "pool": "all", "at_s": 0.1}]}
    record = outcome(gone, trace).record
    assert record.state.tolist() == [FAILED, REJECTED]
    run = outcome({**gone, "no_worker": "wait"}, trace)
    assert run.record.state.tolist() == [UNFINISHED, UNFINISHED]
    assert set(run.record.reasons) == {"no worker is left that could take it"}


def test_a_slow_worker_takes_so_many_times_as_long() -> None:
    record = outcome({"events": [{"kind": "slow", "worker": "all-0", "at_s": 0.0, "slowdown": 3.0}]}, lone(2)).record
    assert record.last_token_s[0] == pytest.approx(3 * (0.02 + 0.0101))
    plan = assemble(load_topology("llama-3.1-8b/h100_sxm/1c")).workers[0].step_cost
    assert (
        slowed(plan, 2.0).decode_s[5] == 2 * plan.decode_s[5] and slowed(plan, 2.0).launch_jitter == plan.launch_jitter
    )


def test_clients_leave() -> None:
    two = Trace.from_columns([0.0, 0.0], [100] * 2, [20] * 2)
    record = outcome({}, two, client={"timeout_s": 0.1}).record
    assert record.state.tolist() == [TIMED_OUT] * 2 and record.reasons == ("no answer within 0.1 s",)
    slow = {"events": [{"kind": "slow", "worker": "all-0", "at_s": 0.0, "slowdown": 9.0}]}
    record = outcome(slow, two, client={"first_token_timeout_s": 0.1}).record
    assert record.state.tolist() == [TIMED_OUT, COMPLETED]
    record = outcome({}, two, client={"cancel_share": 1.0, "cancel_after_s": 1e-3}).record
    assert record.state.tolist() == [CANCELLED] * 2


def test_a_run_in_which_nothing_can_move_ends_and_says_so() -> None:
    """All prefill workers are gone for good; decode workers die and come back for as long as anybody waits."""
    faults = {
        "events": [{"kind": "crash", "pool": "prefill", "at_s": 0.01}],
        "rates": [{"kind": "crash", "pool": "decode", "mtbf_s": 10.0, "mttr_s": 1.0}],
        "no_worker": "wait",
    }
    values = load_topology("llama-3.1-8b/h100_sxm/1p1d").to_dict() | {"faults": faults}
    run = run_plan(assemble(load_topology(values)), lone(), parse_arrivals("trace"))
    assert (
        run.record.state.tolist() == [UNFINISHED] and "nothing moves any more: no more faults are drawn" in run.warnings
    )
    assert run.record.reasons[int(run.record.reason[0])] == "no worker is left that could take it"


def test_a_full_queue_turns_requests_away() -> None:
    """One request runs, two may wait; with prompts of 20 ms and 20 steps each, the fourth to sixth find no room."""
    trace = Trace.from_columns([0.0, 0.05, 0.06, 0.07, 0.08, 0.09], [100] * 6, [20] * 6)
    engine = {**ONE["engine"], "max_num_seqs": 1}
    pools = [{"name": "all", "role": "colocated"}]
    record = outcome({}, trace, engine=engine, pools=pools, admission={"kind": "queue", "max_waiting": 2}).record
    assert record.state.tolist() == [COMPLETED] * 3 + [REJECTED] * 3
    assert record.reasons == ("turned away: 2 requests wait at every worker",)
    for admission, said in (({"kind": "queue"}, "is missing"), ({"kind": "early", "max_waiting": 3}, "means nothing")):
        with pytest.raises(TopologyError, match=said):
            load_topology({**ONE, "admission": admission})


def test_a_cut_link_holds_kv_up_for_as_long_as_it_is_cut(tmp_path: Path) -> None:
    """The prompt is done within 0.4 s; its KV then waits for the link until 3 s, or for what the time-out allows."""
    name, trace = "llama-3.1-8b/h100_sxm/1p1d", Trace.from_columns([0.0], [8000], [4])
    cut = {"events": [{"kind": "link", "link": "prefill-0 * out", "at_s": 0.0, "duration_s": 3.0}]}
    runs = []
    for faults in ({}, cut, {**cut, "transfer_timeout_s": 1.0, "retry": {"limit": 1}}):
        values = load_topology(name).to_dict() | {"faults": faults}
        runs.append(run_plan(assemble(load_topology(values)), trace, parse_arrivals("trace")).record)
    plain, held, late = runs
    shown = float(plain.part_kv_transfer_s[0])
    begun = float(plain.part_queue_s[0] + plain.part_prefill_s[0])
    assert 3.0 < held.first_token_s[0] < 3.0 + shown + 0.05 and held.part_kv_transfer_s[0] > 3.0 - begun - 0.05
    assert held.part_prefill_s[0] == plain.part_prefill_s[0]
    assert late.state[0] == FAILED and late.reasons[int(late.reason[0])] == "its KV cache was under way for too long"


def test_the_result_counts_what_happened(tmp_path: Path) -> None:
    file = tmp_path / "faults.yaml"
    file.write_text("events: [{kind: crash, worker: decode-1, at_s: 2, silent: true}]\nhealth: {interval_s: 1}\n")
    result = simulate(
        load_trace("chat", limit=60), "llama-3.1-8b/h100_sxm/1p2d", faults=str(file), arrivals="poisson:12"
    )
    assert result.entry["faults"]["crashes"] == 1 and result.entry["faults"]["requests_hit"] > 0
    assert "a worker died once" in verdict([result.entry], SLO(), lambda one, other: one == other)
    frame = result.requests
    assert int((frame["attempts_lost"] > 0).sum()) == result.entry["faults"]["requests_hit"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("event: []", "unknown key 'event' (did you mean 'events'?)"),
        ("events: [{kind: crush, worker: all-0, at_s: 1}]", "'crush'"),
        ("events: [{kind: crash, worker: all-0}]", "'events.0.at_s' is missing"),
        ("events: [{kind: crash, worker: all-7, at_s: 1}]", "unknown worker 'all-7' (did you mean 'all-"),
        ("events: [{kind: crash, pool: al, at_s: 1}]", "unknown pool 'al' (did you mean 'all'?)"),
        ("events: [{kind: crash, at_s: 1}]", "key 'worker' is missing (or give pool)"),
        ("events: [{kind: crash, worker: all-0, pool: all, at_s: 1}]", "give one of them"),
        ("events: [{kind: crash, worker: all-0, at_s: -1}]", "events.0.at_s: found -1"),
        ("events: [{kind: slow, worker: all-0, at_s: 1}]", "key 'slowdown' is missing"),
        ("events: [{kind: crash, worker: all-0, at_s: 1, slowdown: 2}]", "unknown key 'slowdown'"),
        ("events: [{kind: link, at_s: 1}]", "key 'link' is missing"),
        ("events: [{kind: link, link: x, at_s: 1}]", "no network with links"),
        ("events: [{kind: nic, worker: all-0, at_s: 1}]", "have no network cards"),
        ("events: [{kind: tier, tier: host, at_s: 1}]", "no cache below its engines"),
        ("rates: [{kind: crash, mtbf_s: 0, mttr_s: 1}]", "rates.0.mtbf_s: found 0"),
        ("client: {timeout: 3}", "client: unknown key 'timeout'"),
        ("client: {cancel_share: 0.5}", "key 'cancel_after_s' is missing"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(tmp_path: Path, text: str, said: str) -> None:
    file = tmp_path / "faults.yaml"
    file.write_text(text)
    with pytest.raises(TopologyError) as caught:
        simulate(lone(), ONE, faults=str(file))
    assert said in str(caught.value) and "\n" not in str(caught.value)


def test_clients_leave_sglang_engines_with_the_next_result() -> None:
    """One place; steps of 10.1 ms. The first client leaves at 105 ms, in the tenth step: that is the last with its
    request but for the next, which is planned by then or is planned before its result is there."""
    engine = {"profile": "sglang", "max_running_requests": 1, "chunked_prefill_size": 8192, "page_size": 1}
    trace, found = Trace.from_columns([0.0, 0.104], [100, 100], [60, 2]), {}
    for overlap in (False, True):
        more = {"engine": {**engine, "overlap": overlap}, "pools": [{"name": "all", "role": "colocated"}]}
        record = outcome({}, trace, client={"timeout_s": 0.105}, **more).record
        assert record.state.tolist() == [TIMED_OUT, COMPLETED]
        assert record.reasons[int(record.reason[0])] == "no answer within 0.105 s"
        found[overlap] = float(record.first_token_s[1])
    ends = 0.02 + 9 * 0.0101  # of the step in which the client leaves
    assert found[False] == pytest.approx(ends + 0.0101 + 0.02)
    assert found[True] == pytest.approx(ends + 2 * 0.0101 + 0.02)


@pytest.mark.parametrize("name", ["2c", "1p2d"])
def test_who_leaves_sglang_engines_leaves_nothing_behind(name: str) -> None:
    client = {"first_token_timeout_s": 0.15, "timeout_s": 4.0, "cancel_share": 0.4, "cancel_after_s": 1.0}
    plan = assemble(load_topology(f"llama-3.1-8b/h100_sxm/{name}/sglang", [f"client={client}"]))
    arrivals = parse_arrivals("poisson:40")
    cluster = Cluster(plan, apply_arrivals(load_trace("chat", limit=150), arrivals, 0), arrivals, RunOptions())
    cluster.run()
    assert broken_laws(cluster) == []
    ended = {state: int((cluster.state == state).sum()) for state in (COMPLETED, CANCELLED, TIMED_OUT)}
    assert sum(ended.values()) == 150 and min(ended.values()) > 0
