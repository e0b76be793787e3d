"""The timeline for Perfetto: the trace event format, and that it says what the run says."""

from __future__ import annotations

import dataclasses
import json
from collections import defaultdict
from itertools import pairwise

import numpy as np
import pytest

from simulator.api import compare, simulate
from simulator.cluster.steps import WorkerSteps, batch_sums
from simulator.errors import InputError
from simulator.report.timeline import timeline_events, window_of, write_timeline
from simulator.workload.trace import Trace

STEP = {"kind": "affine", "base_s": 0.01, "per_token_s": 1e-5}
ONE = {"name": "one", "step_time": STEP, "kv_blocks": 60, "pools": [{"name": "main", "role": "colocated"}]}
SPLIT = {
    "name": "split",
    "step_time": STEP,
    "kv_blocks": 400,
    "kv_transfer": {"mode": "pull", "setup_s": 0.002, "per_block_s": 1e-4},
    "pools": [{"name": "prefill", "role": "prefill"}, {"name": "decode", "role": "decode", "workers": 2}],
}


def small_trace(requests=40, gap_s=0.03):
    n = np.arange(requests)
    return Trace.from_columns(n * gap_s, 100 + 7 * n, 5 + n % 9, request_id=tuple(f"</b>{i}" for i in n))


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    runs = compare(small_trace(), [ONE, SPLIT], log_steps=True)
    path = tmp_path_factory.mktemp("timeline") / "t.json"
    write_timeline(path, [result.run for result in runs.results])
    return runs, json.loads(path.read_text())


def test_every_event_has_what_its_phase_needs(made):
    needs = {
        "X": {"dur", "tid"},
        "b": {"cat", "id"},
        "e": {"cat", "id"},
        "C": {"args"},
        "M": {"args"},
        "s": {"id", "cat"},
        "f": {"id", "bp"},
    }
    events = made[1]["traceEvents"]
    assert {event["ph"] for event in events} == set(needs)
    for event in events:
        assert needs[event["ph"]] | {"name", "pid", "ts"} <= set(event)
        assert event["ts"] >= 0
        assert event.get("dur", 0) >= 0


def test_slices_of_a_track_do_not_overlap(made):
    tracks = defaultdict(list)
    for event in made[1]["traceEvents"]:
        if event["ph"] == "X":
            tracks[event["pid"], event["tid"]].append((event["ts"], event["ts"] + event["dur"]))
    assert len(tracks) >= 6
    for slices in tracks.values():
        slices.sort()
        assert all(second[0] >= first[1] - 0.002 for first, second in pairwise(slices))


def test_asynchronous_slices_open_and_close(made):
    depth = defaultdict(list)
    for event in made[1]["traceEvents"]:
        key = (event["pid"], event.get("id"))
        if event["ph"] == "b":
            depth[key].append(event)
        elif event["ph"] == "e":
            begun = depth[key].pop()
            assert begun["name"] == event["name"]
            assert begun["ts"] <= event["ts"]
    assert len(depth) == 80
    assert not any(depth.values())


def test_arrows_begin_and_end_inside_slices(made):
    slices = defaultdict(list)
    arrows = defaultdict(dict)
    for event in made[1]["traceEvents"]:
        if event["ph"] == "X":
            slices[event["pid"], event["tid"]].append((event["ts"], event["ts"] + event["dur"]))
        elif event["ph"] in "sf":
            arrows[event["id"]][event["ph"]] = event
    assert len(arrows) == 80  # two for each of 40 transfers
    for pair in arrows.values():
        assert set(pair) == {"s", "f"}
        assert pair["s"]["ts"] <= pair["f"]["ts"]
        for event in pair.values():
            assert any(a <= event["ts"] <= b for a, b in slices[event["pid"], event["tid"]])


def test_tokens_of_batches_are_those_of_the_run(made):
    runs, written = made
    names = {e["pid"]: e["args"]["name"] for e in written["traceEvents"] if e["name"] == "process_name"}
    for result in runs.results:
        batches = [
            e
            for e in written["traceEvents"]
            if e.get("cat") == "batch" and names[e["pid"]].startswith(result.name + ":")
        ]
        pools = result.run.pools
        assert len(batches) == sum(pool.steps for pool in pools)
        # a prompt's last token, computed again where its KV was read, is shown as the decode that it is
        again = int(result.run.moments.kv_bytes.size) if result.name == "split" else 0
        prompts = sum(pool.extra["prefill_tokens"] for pool in pools) - again
        decoded = sum(pool.extra["decode_tokens"] for pool in pools) + again
        assert sum(e["args"]["prompt tokens"] for e in batches) == prompts
        assert sum(e["args"]["decode tokens"] for e in batches) == decoded


def test_keeping_steps_changes_no_figure():
    assert simulate(small_trace(), SPLIT, log_steps=True).to_json() == simulate(small_trace(), SPLIT).to_json()


def test_what_is_hidden_behind_the_prefill_opens_no_slice_of_its_own(made):
    run = made[0].results[1].run
    early = dataclasses.replace(run.moments, kv_start_s=run.moments.prefill_start_s)
    events = list(timeline_events([dataclasses.replace(run, moments=early)], window_of([run])))
    begun = [e for e in events if e["ph"] == "b" and e["id"] == 0 and e["name"] != f"request {run.trace.request_id[0]}"]
    ended = [e for e in events if e["ph"] == "e" and e["id"] == 0]
    assert [e["name"] for e in begun] == ["queue", "prefill", "KV transfer", "first token", "decode"][
        int(begun[0]["name"] != "queue") :
    ]
    assert [e["ts"] for e in begun[1:]] == [e["ts"] for e in ended[: len(begun) - 1]]


def test_preempted_requests_are_shown():
    run = simulate(small_trace(60, 0.005), ONE | {"kv_blocks": 40}, log_steps=True).run
    sums = batch_sums(run.steps[0], 0, run.record.prefill_worker, run.moments.prefill_end_s)
    assert sums.preempted.sum() == run.pools[0].preemptions > 0


def test_long_decodes_with_drafts_are_no_prompts():
    steps = WorkerSteps(
        np.array([0.0, 1.0]), np.array([1.0, 2.0]), np.array([0, 1]), np.array([0, 0]), np.array([9, 3]), 4
    )
    sums = batch_sums(steps, 0, np.array([0], np.int32), np.array([1.0]))
    assert (sums.prompt_tokens.tolist(), sums.decode_tokens.tolist()) == ([9, 0], [0, 3])


def test_a_large_run_is_cut_with_a_note(made):
    runs = [result.run for result in made[0].results]
    window = window_of(runs, 0.2, most_events=500)
    assert window.cut
    assert window.start_s == 0.2
    assert 0.2 < window.end_s < 1.0
    assert window.note.startswith("the timeline shows 200 ms to ")
    assert not window_of(runs).note


def test_steps_that_were_not_kept(tmp_path):
    with pytest.raises(InputError, match="log_steps=True"):
        compare(small_trace(), [ONE]).timeline(tmp_path / "t.json")
    many = Trace.from_columns([0.0, 1.0], [10, 10], [30_000_000, 30_000_000])
    with pytest.raises(InputError, match="60,000,000 tokens"):
        simulate(many, ONE, log_steps=True)
