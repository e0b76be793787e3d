"""One run, every figure of its entry worked out by hand; the same as one row; and the table of its requests."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
from report_runs import histogram_of, run_of

from simulator.cluster.result import PoolStats, WorkerSeries
from simulator.errors import InputError
from simulator.hardware.power import power_draw
from simulator.metrics.frame import requests_frame
from simulator.metrics.latency import Latencies, histogram_spread, meets
from simulator.metrics.slo import SLO
from simulator.metrics.summary import flat_entry, per_gpu, summarise

#: Two that complete, one of each other end; times in s, prompts of 100 to 500 tokens.
ROWS = [
    {"arrival": 1.0, "first": 2.0, "last": 4.0, "output": 5, "input": 100, "cached": 48, "parts": {"queue": 0.25}},
    {"arrival": 2.0, "state": 1, "reason": 0, "input": 200},
    {"arrival": 3.0, "first": 3.5, "last": 6.0, "output": 11, "input": 300, "cached": -1, "parts": {"host": 0.5}},
    {"arrival": 3.5, "first": 4.0, "state": 2, "reason": 1, "input": 400, "cached": 32},
    {"arrival": 4.0, "state": 4, "reason": 1, "input": 500},
    {"arrival": 5.0, "state": 5, "reason": 1, "input": 500},
    {"arrival": 6.0, "state": 3, "input": 500},
]
REASONS = ("too long", "lost", "never")
POOL = PoolStats(
    name="p",
    role="prefill",
    gpu="h100_sxm",
    workers=2,
    gpus=4,
    utilisation=0.5,
    kv_peak_fraction=0.75,
    preemptions=3,
    kv_blocks=1000,
    block_tokens=16,
    steps=77,
    usd_per_hour=2.0,
    power_watts=700.0,
    idle_power_watts=60.0,
    prefill_share=0.25,
    extra={"dp": 2},
)
OTHER = PoolStats("d", "decode", "a100_sxm", 1, 1, 0.25, 0.5, 0, usd_per_hour=1.0, power_watts=400, idle_power_watts=50)
SERIES = tuple(
    WorkerSeries(name, name[0], "colocated", "g", *(np.zeros(1) for _ in range(4)))  # type: ignore[arg-type]
    for name in ("p/0", "d/0")
)


def made(**more):
    """The run of ``ROWS`` on two pools, with some tokens from caches below the engine."""
    run = run_of(ROWS, reasons=REASONS, pools=(POOL, OTHER), gpus=5, warnings=("from the run",), series=SERIES, **more)
    loaded = {"host": np.array([16, 0, 0, 8, 0, 0, 0]), "pool": np.array([8, 0, 0, 0, 0, 0, 0])}
    workers = {
        "prefill_worker": np.array([0, -1, 1, 0, -1, -1, 0]),
        "decode_worker": np.array([1, -1, 3, -1, -1, 0, 0]),
    }
    record = dataclasses.replace(run.record, loaded_tokens=loaded, **workers)
    topology = dataclasses.replace(run.topology, engine="vllm", gpu_counts={"h100_sxm": 4, "a100_sxm": 1})
    return dataclasses.replace(
        run, record=record, topology=topology, network={"bytes": 9}, cache={"blocks": 4}, saturated=False
    )


def spread_of(low, high):
    """Mean and percentiles of two values."""
    cuts = {f"p{q}": pytest.approx(low + (high - low) * q / 100) for q in (50, 90, 95, 99)}
    return {"mean": pytest.approx((low + high) / 2), **cuts, "max": high}


def test_every_figure_of_an_entry():
    entry = summarise(made(), SLO(ttft_s=0.7, tpot_s=0.4))
    hour, watts = 4 * 2.0 + 1.0, {}
    draw = power_draw(700.0, 60.0)
    watts["p"] = 4 * (0.5 * 60.0 + 0.5 * (0.25 * draw.prefill_watts + 0.75 * draw.decode_watts))
    watts["d"] = 0.75 * 50.0 + 0.25 * power_draw(400, 50).decode_watts
    mean = sum(watts.values())
    assert entry == {
        "name": "colocated",
        "gpus": 5,
        "gpu_counts": {"h100_sxm": 4, "a100_sxm": 1},
        "model": "llama-3.1-8b",
        "engine": "vllm",
        "requests": 7,
        "completed": 2,
        "failed": 1,
        "rejected": 1,
        "timed_out": 1,
        "cancelled": 1,
        "unfinished": 1,
        "duration_s": 5.0,
        "ttft_s": spread_of(0.5, 1.0),
        "tpot_s": spread_of(0.25, 0.5),
        "itl_s": dict.fromkeys(("mean", "p50", "p90", "p95", "p99", "max")),
        "e2e_s": spread_of(3.0, 3.0),
        "goodput_requests_per_s": 1 / 5,
        "slo_attainment": 1 / 7,
        "slo_attainment_by_target": {"ttft": 1 / 7, "tpot": 1 / 7},
        "request_throughput_per_s": 2 / 5,
        "output_tokens_per_s": 16 / 5,
        "input_tokens_per_s": 400 / 5,
        "intervals_95": {},
        "ttft_parts_s": {
            "queue": pytest.approx(0.125),
            "cache_load": 0.0,
            "prefill": pytest.approx(0.375),
            "kv_wait": 0.0,
            "kv_transfer": 0.0,
            "decode_admission": 0.0,
            "host": pytest.approx(0.25),
        },
        "cache": {
            "blocks": 4,
            "hit_token_ratio": 48 / 400,
            "hit_tokens": 48,
            "prompt_tokens": 400,
            "requests_with_a_hit": 1,
            "hit_tokens_by_tier": {"hbm": 24, "host": 16, "pool": 8},
            "computed_tokens": 352,
        },
        "pools": [
            {
                "name": "p",
                "role": "prefill",
                "gpu": "h100_sxm",
                "workers": 2,
                "gpus": 4,
                "utilisation": 0.5,
                "kv_peak_fraction": 0.75,
                "preemptions": 3,
                "kv_blocks": 1000,
                "block_tokens": 16,
                "steps": 77,
                "dp": 2,
            },
            {
                "name": "d",
                "role": "decode",
                "gpu": "a100_sxm",
                "workers": 1,
                "gpus": 1,
                "utilisation": 0.25,
                "kv_peak_fraction": 0.5,
                "preemptions": 0,
                "kv_blocks": None,
                "block_tokens": None,
                "steps": None,
            },
        ],
        "network": {"bytes": 9},
        "cost": {
            "usd_per_hour": hour,
            "usd_per_million_tokens": pytest.approx(hour / 3600 / 83.2 * 1e6),
            "usd_per_million_output_tokens": pytest.approx(hour / 3600 / 3.2 * 1e6),
        },
        "energy": {
            "mean_watts": pytest.approx(mean),
            "joules_per_token": pytest.approx(mean / 83.2),
            "joules_per_output_token": pytest.approx(mean / 3.2),
            "watts_by_pool": {name: pytest.approx(value) for name, value in watts.items()},
        },
        "saturated": False,
        "model_error": None,
        "reasons": {"lost": 3, "too long": 1},
        "warnings": ["from the run"],
    }
    assert list(entry["reasons"]) == ["lost", "too long"]  # most frequent first
    assert list(entry)[13:17] == ["ttft_s", "tpot_s", "itl_s", "e2e_s"]
    assert (per_gpu(entry, "request_throughput_per_s"), per_gpu(entry | {"gpus": 2}, "gpus")) == (2 / 25, 1.0)
    assert math.isnan(per_gpu(entry | {"gpus": 0}, "gpus"))


def test_reasons_that_are_as_frequent_stand_in_alphabetical_order():
    rows = [{"state": 1, "reason": reason} for reason in (0, 1, 2, 2)]
    found = summarise(run_of([*rows, {"first": 1, "last": 2, "reason": 0}], reasons=("b", "a", "c")))["reasons"]
    assert list(found.items()) == [("c", 2), ("a", 1), ("b", 1)]


def test_pools_without_a_price_or_a_power_leave_cost_and_energy_open():
    run = dataclasses.replace(made(), pools=(POOL, dataclasses.replace(OTHER, usd_per_hour=None, power_watts=None)))
    entry = summarise(run)
    assert set(entry["cost"].values()) == {None}
    assert entry["energy"]["watts_by_pool"]["d"] is None and entry["energy"]["watts_by_pool"]["p"] > 0
    assert {entry["energy"][key] for key in ("mean_watts", "joules_per_token", "joules_per_output_token")} == {None}
    only_rated = dataclasses.replace(OTHER, idle_power_watts=None)
    assert summarise(dataclasses.replace(run, pools=(only_rated,)))["energy"]["mean_watts"] is None
    none = summarise(dataclasses.replace(run, pools=()))
    assert none["cost"]["usd_per_hour"] is None and none["energy"]["mean_watts"] is None


def test_where_nothing_completed_an_hour_has_a_price_and_a_token_has_none():
    run = dataclasses.replace(run_of([{"state": 2}]), pools=(POOL,))
    entry = summarise(run)
    assert entry["cost"] == {
        "usd_per_hour": 8.0,
        "usd_per_million_tokens": None,
        "usd_per_million_output_tokens": None,
    }
    assert entry["energy"]["mean_watts"] > 0 and entry["energy"]["joules_per_token"] is None
    assert entry["cache"]["hit_token_ratio"] is None


def test_nothing_done_is_not_the_same_as_nothing_known():
    idle = dataclasses.replace(OTHER, steps=0, kv_blocks=0, block_tokens=1)
    (pool,) = summarise(dataclasses.replace(made(), pools=(idle,)))["pools"]
    assert (pool["steps"], pool["kv_blocks"], pool["block_tokens"]) == (0, 0, 1)
    hits = [{"first": 1, "last": 2, "cached": cached} for cached in (-1, 0, 1, 2)]
    assert summarise(run_of(hits))["cache"]["requests_with_a_hit"] == 2


def test_an_entry_as_one_row():
    entry = summarise(made(itl_histogram=histogram_of([0.5])), SLO(ttft_s=0.7))
    row = flat_entry(entry)
    plain = ("name", "gpus", "requests", "completed", "duration_s", "slo_attainment", "saturated", "model_error")
    assert {key: row[key] for key in plain} == {key: entry[key] for key in plain}
    assert row["ttft_p99_s"] == entry["ttft_s"]["p99"] and row["tpot_mean_s"] == entry["tpot_s"]["mean"]
    assert row["itl_max_s"] == entry["itl_s"]["max"] and row["e2e_p50_s"] == entry["e2e_s"]["p50"]
    assert row["ttft_queue_s"] == entry["ttft_parts_s"]["queue"] and row["ttft_host_s"] == pytest.approx(0.25)
    assert row["slo_attainment_ttft"] == 1 / 7
    assert row["usd_per_hour"] == 9.0 and row["mean_watts"] == entry["energy"]["mean_watts"]
    assert row["cache_hit_token_ratio"] == 48 / 400
    assert not any(isinstance(value, dict | list) for value in row.values())
    assert not {"watts_by_pool", "pools", "network", "warnings", "cost", "cache"} & set(row)


def test_intervals_need_enough_requests_in_each_batch():
    def entry(n, slo=None):
        rows = [{"arrival": i, "first": i + 1.0 + i % 2, "last": i + 20.0, "output": 1 + i % 2} for i in range(n)]
        return summarise(run_of(rows), slo)["intervals_95"]

    assert set(entry(199)) == set()
    assert set(entry(200)) == {"ttft_mean_s", "e2e_mean_s"}  # half of the requests have a TPOT
    assert set(entry(400)) == {"ttft_mean_s", "e2e_mean_s", "tpot_mean_s", "ttft_p50_s", "e2e_p50_s"}
    assert {"ttft_p99_s", "e2e_p99_s"} <= set(entry(4000)) and "tpot_p99_s" not in entry(4000)
    assert entry(400, SLO(ttft_s=1.5))["slo_attainment"] == [0.5, 0.5]  # every batch has as many good ones
    assert entry(200)["ttft_mean_s"] == [1.5, 1.5]
    assert "slo_attainment" in entry(200, SLO(ttft_s=1.5)) and "slo_attainment" not in entry(199, SLO(ttft_s=1.5))


def test_tenants_without_a_name_are_one_group():
    run = run_of(ROWS, reasons=REASONS, tenant=[0, -1, 0, -1, -1, 0, -1], tenant_names=("gold",))
    found = summarise(run)["tenants"]
    assert {name: figures["requests"] for name, figures in found.items()} == {"gold": 3, "(none)": 4}
    assert "tenants" not in summarise(run_of(ROWS, reasons=REASONS))


def test_a_warmup_counts_from_its_end_and_histograms_may_too():
    rows, gaps = ROWS, histogram_of([0.5])
    late = dataclasses.replace(gaps, from_s=2.0)
    entry = summarise(run_of(rows, reasons=REASONS, itl_histogram=late), warmup_s=2.0)
    assert entry["requests"] == 6 and entry["warnings"] == []
    early = summarise(run_of(rows, reasons=REASONS, itl_histogram=gaps), warmup_s=2.0)
    assert early["warnings"] == ["itl_s also holds the gaps of the warm-up"]
    with pytest.raises(InputError) as caught:
        summarise(run_of(rows, reasons=REASONS), warmup_s=6.5)
    assert str(caught.value) == "warmup: no request arrives after the first 6.5 s; use a shorter warm-up"
    assert summarise(run_of(rows, reasons=REASONS), warmup_s=6.0)["warnings"] == ["no counted request completed"]


def test_parts_that_do_not_add_up_are_told_with_both_sums():
    run = run_of([{"arrival": 0.0, "first": 1.0, "last": 2.0}])
    run.record.part_queue_s[0] = 0.5
    (line,) = summarise(run)["warnings"]
    assert line == "the parts of TTFT add up to 1.5 s, not to its mean 1 s"


def test_strangers_stand_in_alphabetical_order():
    run = run_of(ROWS, reasons=REASONS, tenant=[0] * 7, tenant_names=("gold",))
    record = dataclasses.replace(run.record, tenant=run.trace.tenant, tenant_names=("gold",))
    found = summarise(dataclasses.replace(run, record=record), SLO.parse("b:ttft=1s;gold:ttft=1s;a:ttft=2s"))
    assert found["warnings"] == [f"tenant '{name}' has targets, and no requests in the trace" for name in "ab"]


# --- the table of requests


def test_every_column_of_the_requests():
    run = made(tenant=[0, 1, 0, -1, 1, 0, 1], tenant_names=("gold", "free"))
    session, turn = np.array([0, 0, 1, 1, -1, 2, 2]), np.arange(7)
    trace = dataclasses.replace(
        run.trace, request_id=tuple("abcdefg"), session=session, session_names=("s", "t", "u"), turn=turn
    )
    record = dataclasses.replace(run.record, itl_p99_s=np.arange(7) / 10)
    frame = requests_frame(dataclasses.replace(run, trace=trace, record=record), SLO(ttft_s=0.7), warmup_s=3.0)
    names = (
        "arrival_s first_token_s last_token_s input_tokens output_tokens cached_tokens preemptions ttft_s tpot_s e2e_s"
    )
    parts = "queue_s cache_load_s prefill_s kv_wait_s kv_transfer_s decode_admission_s host_s"
    tail = "host_tokens pool_tokens prefill_worker decode_worker state reason tenant session turn counted good"
    assert list(frame) == ["request_id", *names.split(), "itl_p99_s", *parts.split(), *tail.split()]
    first = frame.iloc[0]
    assert (first["request_id"], first["ttft_s"], first["tpot_s"], first["e2e_s"]) == ("a", 1.0, 0.5, 3.0)
    assert (first["queue_s"], first["prefill_s"], first["host_s"]) == (0.25, 0.75, 0.0)
    assert (first["cached_tokens"], first["host_tokens"], first["pool_tokens"]) == (48, 16, 8)
    assert (first["arrival_s"], first["first_token_s"], first["last_token_s"]) == (1.0, 2.0, 4.0)
    assert (first["input_tokens"], first["output_tokens"], first["preemptions"]) == (100, 5, 0)
    assert frame["state"].tolist() == [
        "completed",
        "rejected",
        "completed",
        "failed",
        "timed_out",
        "cancelled",
        "unfinished",
    ]
    assert frame["reason"].astype(object).where(frame["reason"].notna(), None).tolist() == [
        None,
        "too long",
        None,
        *["lost"] * 3,
        None,
    ]
    assert frame["prefill_worker"].tolist()[:3:2] == ["p/0", "d/0"] and frame["prefill_worker"].isna().sum() == 3
    assert frame["decode_worker"].dropna().tolist() == [
        "d/0",
        "3",
        "p/0",
        "p/0",
    ]  # a worker beyond the series: its number
    assert frame["tenant"].dropna().tolist() == ["gold", "free", "gold", "free", "gold", "free"]
    assert frame["session"].dropna().tolist() == ["s", "s", "t", "t", "u", "u"]
    assert frame["turn"].tolist() == list(range(7))
    assert frame["itl_p99_s"].tolist() == (np.arange(7) / 10).tolist()
    assert frame["counted"].tolist() == [False, False, True, True, True, True, True]
    assert frame["good"].tolist() == [False, False, True, False, False, False, False]


def test_columns_that_nobody_asked_for_are_not_there():
    frame = requests_frame(run_of(ROWS, reasons=REASONS))
    assert not {"request_id", "itl_p99_s", "tenant", "session", "turn", "good"} & set(frame)
    assert frame["counted"].all()


def test_names_given_twice_are_told_apart():
    run = run_of(ROWS, reasons=("same", "same"))
    assert requests_frame(run)["reason"].dropna().tolist() == ["same#0", "same#1", "same#1", "same#1"]
    assert requests_frame(run_of([{"state": 1}], reasons=()))["reason"].isna().all()


def test_promises_alone_judge_requests():
    run = run_of(ROWS, reasons=REASONS, tenant=[0] * 7, tenant_names=("gold",))
    record = dataclasses.replace(
        run.record, tenant=run.trace.tenant, tenant_names=("gold",), tenant_targets={"gold": {"ttft": "700ms"}}
    )
    run = dataclasses.replace(run, record=record)
    assert requests_frame(run)["good"].tolist() == [False, False, True, False, False, False, False]
    assert summarise(run)["goodput_requests_per_s"] == 1 / 5


# --- details of latencies


def values_of(**more):
    one = np.ones(3)
    return Latencies(one, one, one, None, one > 0, one > 0, **more)


def test_a_tenants_targets_hold_for_it_alone():
    codes = np.array([0, 1, 2])
    values = values_of(tenant=codes, tenant_names=("a", "b", "c"), promised=(("a", SLO(ttft_s=0.5)),))
    slo = SLO.parse("e2e=2s;b:ttft=2s")
    met = meets(values, slo)
    assert list(met) == ["ttft", "e2e"]  # in the order of targets
    assert met["ttft"].tolist() == [False, True, True]  # promised to a, asked for b, none for c
    assert met["e2e"].tolist() == [True, True, True]
    assert meets(values, SLO.parse("e2e=0.5s;b:ttft=2s"))["e2e"].tolist() == [True, True, False]


def test_percentiles_of_a_histogram_lie_between_neighbouring_gaps():
    found = histogram_spread(histogram_of([0.1, 0.2, 0.4]), mean_s=9.0)
    assert (found["mean"], found["max"]) == (9.0, 0.4)
    assert found["p50"] == pytest.approx(0.2) and found["p90"] == pytest.approx(0.2 + 0.8 * 0.2)
    assert histogram_spread(histogram_of([0.1, 0.2, 0.4]))["mean"] == pytest.approx(0.7 / 3)
