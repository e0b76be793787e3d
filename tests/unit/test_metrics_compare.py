"""Who is best at what, ties, GPUs that differ, and the sentences of the verdict."""

from __future__ import annotations

import pytest
from report_runs import busy_run, run_of

from simulator.metrics.compare import best, compare_entries, same
from simulator.metrics.slo import SLO
from simulator.metrics.summary import summarise

SLO_ = SLO(ttft_s=1.0, tpot_s=0.1)


def entry(name, ttft=0.5, tpot=0.05, *, missed=0, gpus=2, requests=100, late_tpot=0.3, roles=("colocated",), **more):
    """100 requests a second apart; ``missed`` of them take ``late_tpot`` a token."""
    rows = [
        {"arrival": float(i), "first": i + ttft, "last": i + ttft + 10 * (late_tpot if i < missed else tpot), **more}
        for i in range(requests)
    ]
    found = summarise(run_of(rows, name=name, gpus=gpus), SLO_)
    found["pools"] = [{"role": role} for role in roles]
    return found


def test_best_is_lowest_for_latency_and_highest_for_rates():
    pair = [entry("a", tpot=0.05, missed=30), entry("b", tpot=0.04)]
    found = compare_entries(pair, SLO_)["best"]
    assert found["tpot_p99"] == ["b"]
    assert found["slo_attainment"] == ["b"]
    assert found["ttft_mean"] == ["a", "b"]


def test_values_within_half_a_per_cent_tie():
    assert same(100.0, 100.4)
    assert not same(100.0, 100.6)
    assert not same(float("nan"), float("nan"))
    assert same(0.0, 0.0)


def test_nobody_is_best_where_nobody_has_a_value():
    without = [summarise(run_of([{"first": 1.0, "last": 2.0}], name=name)) for name in "ab"]
    assert best(without, "goodput_requests_per_s") == []
    assert compare_entries(without)["goodput_per_gpu_ratio"] == {"a": None, "b": None}


def test_goodput_is_divided_by_gpus():
    found = compare_entries([entry("small", gpus=1), entry("big", gpus=4)], SLO_)
    assert found["gpus_differ"]
    assert found["goodput_per_gpu_ratio"] == {"small": 1.0, "big": pytest.approx(0.25)}
    assert "The numbers of GPUs differ; good requests/s per GPU" in found["verdict"]
    assert "small has 4.00 times that of big" in found["verdict"]


def test_verdict_names_winner_shares_reason_and_price():
    colocated = entry("2 colocated", ttft=0.2, missed=29)
    split = entry("1P1D", ttft=0.32, missed=7, roles=("prefill", "decode"))
    split["ttft_parts_s"] |= {"prefill": 0.2, "kv_transfer": 0.1, "kv_wait": 0.02}
    said = compare_entries([colocated, split], SLO_)["verdict"]
    assert said.startswith(
        "1P1D meets the targets (TTFT 1 s, TPOT 100 ms) for 93 % of requests against 71 % of 2 colocated: "
        "TPOT stays within 100 ms for 93 % against 71 %"
    )
    assert "because decode steps are no longer stretched by prefill" in said
    assert "its mean TTFT is higher by 120 ms (320 ms against 200 ms), of which KV transfer adds 100 ms" in said


def test_no_mechanism_is_claimed_that_the_topologies_do_not_show():
    said = compare_entries([entry("a", missed=50), entry("b")], SLO_)["verdict"]
    assert "b meets the targets" in said
    assert "stretched by prefill" not in said


def test_tie_is_said_as_a_tie():
    said = compare_entries([entry("a"), entry("b")], SLO_)["verdict"]
    assert said.startswith("a and b tie: the targets (TTFT 1 s, TPOT 100 ms) are met for 100 % of requests.")
    assert "Their TTFT, TPOT and E2E p99 are level too." in said


def test_nobody_meets_the_targets():
    said = compare_entries([entry("a", ttft=5.0), entry("b", ttft=6.0)], SLO_)["verdict"]
    assert said.startswith("Neither topology meets the targets (TTFT 1 s, TPOT 100 ms) for any request.")
    assert "a has the lowest TTFT p99, 5.00 s against 6.00 s of b" in said


def test_without_targets_no_winner_is_named():
    pair = [summarise(busy_run("a")), summarise(busy_run("b", split=True))]
    said = compare_entries(pair)["verdict"]
    assert "b has the lowest TPOT p99" in said
    assert "meets" not in said


def test_saturated_runs_are_named():
    pair = [summarise(busy_run("a"), SLO_), summarise(busy_run("slow", saturated=True), SLO_)]
    found = compare_entries(pair, SLO_)
    assert found["saturated"] == ["slow"]
    assert "slow is saturated: its queue grows to the end" in found["verdict"]


@pytest.mark.parametrize("count", [1, 2, 3, 5])
@pytest.mark.parametrize("slo", [SLO(), SLO_])
def test_verdict_is_whole_sentences_for_any_number(count, slo):
    entries = [
        summarise(busy_run(f"t{i}", n=80, seed=i, split=bool(i % 2), gpus=2 + 2 * (i % 3)), slo) for i in range(count)
    ]
    said = compare_entries(entries, slo)["verdict"]
    assert said.endswith(".")
    assert "None" not in said
    assert "nan" not in said
    assert all(f"t{i}" in said for i in range(count))


def test_verdict_of_runs_that_completed_nothing():
    lost = [summarise(run_of([{"state": 2}], name=name), SLO_) for name in "ab"]
    assert "for any request" in compare_entries(lost, SLO_)["verdict"]
    assert compare_entries(lost[:1], SLO_)["verdict"].startswith("a completed none of 1 requests")
    plain = [summarise(run_of([{"state": 2}], name=name)) for name in "ab"]
    assert compare_entries(plain)["verdict"] == "No topology completed a request."
