"""The result JSON: its keys, its strictness, and that the same run gives the same bytes."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from report_runs import busy_run, run_of

from simulator.errors import InputError
from simulator.files import dumps, plain
from simulator.metrics.slo import SLO
from simulator.metrics.summary import summarise
from simulator.report.document import distinct_names, document, trace_entry

SPREAD = ["mean", "p50", "p90", "p95", "p99", "max"]


def made(**more):
    runs, slo = [busy_run("2 colocated", n=200), busy_run("1P1D", n=200, split=True)], SLO(ttft_s=2.0, tpot_s=0.05)
    entries = [summarise(run, slo) for run in runs]
    return document(trace_entry(runs[0].trace, {"arrivals": "trace", **more}), entries, slo, 7)


def strict(text):
    def refuse(word):
        raise AssertionError(f"{word} is not JSON")

    return json.loads(text, parse_constant=refuse)


def test_keys_of_schema_1_in_their_order():
    read = strict(dumps(made()))
    assert list(read) == ["schema", "simulator", "trace", "slo", "seed", "set", "topologies", "comparison"]
    assert read["schema"] == 1
    assert read["seed"] == 7
    assert read["slo"] == {"ttft_s": 2.0, "tpot_s": 0.05, "e2e_s": None, "itl_p99_s": None}
    entry = read["topologies"][1]
    assert list(entry) == [
        "name", "gpus", "gpu_counts", "model", "engine", "requests", "completed", "failed", "rejected", "timed_out", "cancelled", "unfinished",
        "duration_s", "ttft_s", "tpot_s", "itl_s", "e2e_s", "goodput_requests_per_s", "slo_attainment",
        "slo_attainment_by_target", "request_throughput_per_s", "output_tokens_per_s", "input_tokens_per_s",
        "intervals_95", "ttft_parts_s", "cache", "pools", "network", "cost", "energy", "saturated", "model_error", "reasons", "warnings",
    ]  # fmt: skip
    for name in ("ttft_s", "tpot_s", "itl_s", "e2e_s"):
        assert list(entry[name]) == SPREAD
    parts = ["queue", "cache_load", "prefill", "kv_wait", "kv_transfer", "decode_admission", "host"]
    assert list(entry["ttft_parts_s"]) == parts
    assert {"name", "role", "gpu", "utilisation", "kv_peak_fraction", "preemptions"} <= set(entry["pools"][0])
    assert {"best", "goodput_per_gpu", "goodput_per_gpu_ratio", "saturated", "verdict"} <= set(read["comparison"])


def test_same_run_same_bytes():
    assert dumps(made()) == dumps(made())


def test_parts_still_add_up_after_reading_back():
    for entry in strict(dumps(made()))["topologies"]:
        assert sum(entry["ttft_parts_s"].values()) == entry["ttft_s"]["mean"]
        assert sum(reversed(entry["ttft_parts_s"].values())) == entry["ttft_s"]["mean"]


def test_what_is_not_finite_becomes_null():
    assert strict(dumps({"a": math.nan, "b": [math.inf, np.float64("nan"), np.int64(3)], "c": np.array([1.5])})) == {
        "a": None, "b": [None, None, 3], "c": [1.5],
    }  # fmt: skip


def test_a_run_without_completions_is_still_strict_json():
    run = run_of([{"state": 2}])
    read = strict(dumps(document(trace_entry(run.trace), [summarise(run, SLO(ttft_s=1))], SLO(ttft_s=1), 0)))
    assert read["topologies"][0]["ttft_s"] == dict.fromkeys(SPREAD)
    assert read["trace"]["rate_requests_per_s"] is None


def test_unknown_objects_are_refused():
    with pytest.raises(TypeError, match="has no place in a result"):
        plain({"a": object()})


def test_names_are_made_distinct():
    assert distinct_names(["a", "b", "a", "a"]) == ["a", "b", "a#2", "a#3"]
    with pytest.raises(InputError):
        distinct_names([""])


def test_trace_entry_by_hand():
    run = run_of([{"arrival": 0.0}, {"arrival": 4.0}, {"arrival": 8.0}])
    entry = trace_entry(run.trace, {"arrivals": "closed:2"})
    assert (entry["requests"], entry["span_s"], entry["rate_requests_per_s"]) == (3, 8.0, 0.25)
    assert entry["input_tokens"] == {"mean": 100.0, "p50": 100.0, "p99": 100.0, "max": 100, "sum": 300}
    assert entry["arrivals"] == "closed:2"
