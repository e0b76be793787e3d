"""Definitions of the latencies on records small enough to work out by hand."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
from report_runs import NAN, histogram_of, run_of

from simulator.cluster.result import COMPLETED, FAILED, REJECTED, UNFINISHED, ItlHistogram
from simulator.errors import InputError
from simulator.metrics.latency import good, histogram_spread, latencies, meets, spread, ttft_parts
from simulator.metrics.slo import SLO
from simulator.metrics.summary import summarise

FOUR = [
    {"arrival": 0.0, "first": 1.0, "last": 2.0, "output": 11},  # TTFT 1, TPOT 0.1, E2E 2
    {"arrival": 1.0, "first": 3.0, "last": 3.0, "output": 1},  # TTFT 2, no TPOT, E2E 2
    {"arrival": 2.0, "first": 2.5, "last": 6.5, "output": 11},  # TTFT 0.5, TPOT 0.4, E2E 4.5
    {"arrival": 3.0, "state": REJECTED, "reason": 0},
]


def test_latencies_by_hand():
    values = latencies(run_of(FOUR).record)
    assert values.ttft_s[:3].tolist() == [1.0, 2.0, 0.5]
    assert values.tpot_s[[0, 2]].tolist() == [0.1, 0.4]
    assert math.isnan(values.tpot_s[1])
    assert values.e2e_s[:3].tolist() == [2.0, 2.0, 4.5]


def test_goodput_and_attainment_by_hand():
    entry = summarise(run_of(FOUR, reasons=("too long",)), SLO(ttft_s=2.0, tpot_s=0.2))
    # 0 and 1 are good (a token alone passes TPOT); 2 misses TPOT; 3 is rejected. Last completion 6.5, first arrival 0.
    assert entry["slo_attainment"] == 2 / 4
    assert entry["goodput_requests_per_s"] == 2 / 6.5
    assert entry["request_throughput_per_s"] == 3 / 6.5
    assert entry["output_tokens_per_s"] == 23 / 6.5
    assert entry["input_tokens_per_s"] == 300 / 6.5
    assert entry["slo_attainment_by_target"] == {"ttft": 0.75, "tpot": 0.5}
    assert (entry["requests"], entry["completed"], entry["rejected"]) == (4, 3, 1)
    assert entry["reasons"] == {"too long": 1}


def test_targets_are_met_at_the_target_itself():
    values = latencies(run_of(FOUR).record)
    assert good(values, SLO(ttft_s=1.0)).tolist() == [True, False, True, False]
    assert good(values, SLO(e2e_s=2.0)).tolist() == [True, True, False, False]


def test_failed_requests_are_never_good_however_fast():
    rows = [{"arrival": 0, "first": 0.1, "last": 0.2, "state": state} for state in (COMPLETED, FAILED, UNFINISHED)]
    assert good(latencies(run_of(rows).record), SLO(ttft_s=9)).tolist() == [True, False, False]


def test_itl_target_is_per_request():
    rows = [
        {"first": 1, "last": 2, "itl_p99": 0.05},
        {"first": 1, "last": 2, "itl_p99": 0.2},
        {"first": 1, "last": 1, "output": 1, "itl_p99": NAN},
    ]
    values = latencies(run_of(rows).record)
    assert meets(values, SLO(itl_p99_s=0.1))["itl_p99"].tolist() == [True, False, True]


def test_itl_target_without_gaps_is_a_programming_error():
    with pytest.raises(ValueError, match="itl_p99"):
        good(latencies(run_of(FOUR).record), SLO(itl_p99_s=0.1))


def test_warmup_is_not_counted_but_stays_in_the_record():
    entry = summarise(run_of(FOUR), SLO(ttft_s=2.0), warmup_s=1.0)
    assert entry["requests"] == 3
    assert entry["ttft_s"]["max"] == 2.0
    assert entry["duration_s"] == 6.5 - 1.0
    assert entry["slo_attainment"] == 2 / 3


def test_warmup_longer_than_the_trace_is_refused():
    with pytest.raises(InputError, match="warmup: no request arrives after the first 99 s"):
        summarise(run_of(FOUR), warmup_s=99)


def test_turn_that_was_never_sent_counts_against_attainment():
    rows = [FOUR[0], {"arrival": NAN, "state": 5}]
    run = run_of([FOUR[0], {"arrival": 0.0, "state": 5}])
    object.__setattr__(run.record, "arrival_s", np.array([0.0, NAN]))
    assert len(rows) == 2
    entry = summarise(run, SLO(ttft_s=2.0))
    assert (entry["requests"], entry["cancelled"], entry["slo_attainment"], entry["duration_s"]) == (2, 1, 0.5, 2.0)


def test_percentiles_interpolate_linearly():
    found = spread(np.array([4.0, 1.0, 3.0, 2.0, NAN]))
    assert found["mean"] == 2.5
    assert found["p50"] == 2.5
    assert found["p90"] == pytest.approx(3.7, abs=1e-12)  # rank 0.9 * 3 = 2.7, between 3 and 4
    assert found["p99"] == pytest.approx(3.97, abs=1e-12)
    assert found["max"] == 4.0


def test_nothing_measured_is_none_not_zero():
    assert set(spread(np.array([NAN])).values()) == {None}
    entry = summarise(run_of([{"state": FAILED}]), SLO(ttft_s=1))
    assert entry["duration_s"] is None
    assert entry["goodput_requests_per_s"] == 0.0
    assert entry["slo_attainment"] == 0.0
    assert entry["request_throughput_per_s"] is None
    assert "no counted request completed" in entry["warnings"]


def test_histogram_equals_the_plain_percentiles_where_gaps_are_alike():
    gaps = np.array([0.01] * 70 + [0.03] * 30)
    from_histogram, plain = histogram_spread(histogram_of(gaps)), spread(gaps)
    for key, value in plain.items():
        assert from_histogram[key] == pytest.approx(value, rel=1e-12), key


def test_histogram_percentiles_are_within_a_bin():
    gaps = np.random.default_rng(0).lognormal(-4, 0.7, 50_000)
    from_histogram, plain = histogram_spread(histogram_of(gaps)), spread(gaps)
    for key, value in plain.items():
        assert from_histogram[key] == pytest.approx(value, rel=2.4e-3), key


def test_histogram_without_sums_spreads_gaps_over_the_bin():
    histogram = ItlHistogram(np.array([0.0, 1.0, 2.0]), np.array([0, 4]))
    found = histogram_spread(histogram)  # as if 1.125, 1.375, 1.625, 1.875
    assert (found["mean"], found["p50"], found["max"]) == (1.5, 1.5, 1.875)
    assert histogram_spread(dataclasses.replace(histogram, max_s=1.4))["p99"] == 1.4


def test_itl_mean_is_all_gaps_over_their_number():
    # 10 gaps of 0.1 s, none, 10 gaps of 0.4 s: 5 s over 20 gaps
    run = run_of(FOUR, itl_histogram=histogram_of([0.1] * 10 + [0.4] * 10))
    assert summarise(run)["itl_s"]["mean"] == pytest.approx(0.25)
    assert summarise(run)["itl_s"]["p99"] == pytest.approx(0.4)


def test_itl_says_when_it_holds_the_warmup_too():
    run = run_of(FOUR, itl_histogram=histogram_of([0.1]))
    assert summarise(run, warmup_s=1.0)["warnings"] == ["itl_s also holds the gaps of the warm-up"]
    assert summarise(run)["warnings"] == []


def test_empty_histogram_is_none():
    histogram = histogram_of([0.1])
    histogram.counts[:] = 0
    assert set(histogram_spread(histogram).values()) == {None}


@pytest.mark.parametrize("seed", range(20))
def test_parts_add_up_to_the_mean_to_the_last_bit(seed):
    rng = np.random.default_rng(seed)
    rows = []
    for _ in range(201):
        parts = dict(zip(("queue", "kv_transfer", "host"), rng.lognormal(-5, 3, 3).tolist(), strict=True))
        arrival = float(rng.uniform(0, 1e4))
        rows.append(
            {
                "arrival": arrival,
                "first": arrival + sum(parts.values()) + rng.uniform(0, 1),
                "last": 1e6,
                "parts": parts,
            }
        )
    rows.sort(key=lambda row: row["arrival"])
    run = run_of(rows)
    entry = summarise(run)
    assert sum(entry["ttft_parts_s"].values()) == entry["ttft_s"]["mean"]
    assert entry["ttft_parts_s"]["kv_wait"] == 0.0
    assert entry["ttft_parts_s"]["queue"] == pytest.approx(float(run.record.part_queue_s.mean()), rel=1e-12)
    assert not entry["warnings"]


def test_parts_that_do_not_add_up_are_reported_not_hidden():
    run = run_of(FOUR)
    run.record.part_queue_s[0] += 0.5
    measured = latencies(run.record).measured
    assert sum(ttft_parts(run.record, measured).values()) == pytest.approx(3.5 / 3 + 0.5 / 3)
    assert any("add up" in line for line in summarise(run)["warnings"])


def test_cache_ratio_is_over_completed_prompts():
    rows = [
        {"first": 1, "last": 2, "input": 300, "cached": 96},
        {"first": 1, "last": 2, "input": 100},
        {"state": FAILED, "input": 999},
    ]
    cache = summarise(run_of(rows))["cache"]
    assert cache == {
        "hit_token_ratio": 96 / 400,
        "hit_tokens": 96,
        "hit_tokens_by_tier": {"hbm": 96},
        "computed_tokens": 304,
        "prompt_tokens": 400,
        "requests_with_a_hit": 1,
    }


def test_tenants_have_figures_of_their_own():
    entry = summarise(run_of(FOUR, tenant=[0, 1, 1, 0], tenant_names=("gold", "free")), SLO(ttft_s=1.0))
    assert entry["tenants"]["gold"]["requests"] == 2
    assert entry["tenants"]["gold"]["slo_attainment"] == 0.5
    assert entry["tenants"]["free"]["ttft_s"]["mean"] == 1.25
    assert sum(tenant["requests"] for tenant in entry["tenants"].values()) == entry["requests"]
