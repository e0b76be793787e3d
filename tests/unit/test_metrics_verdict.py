"""Whole verdicts, word by word, of entries whose figures are plain to see."""

from __future__ import annotations

import pytest

from simulator.metrics.compare import METRICS, compare_entries, metric, same
from simulator.metrics.slo import SLO
from simulator.metrics.verdict import PART_NAMES, verdict

TARGETS = SLO(ttft_s=1.0, tpot_s=0.05)
HEAD = "the targets (TTFT 1 s, TPOT 50 ms)"
PARTS = {"queue": 0.1, "prefill": 0.06, "host": 0.04}


def topology(name, *, mean=(0.2, 0.03, 5.0), p99=(0.4, 0.05, 9.0), parts=None, split=False, by=(0.95, 0.92), **more):
    """An entry with a TTFT, a TPOT and an E2E (mean, p99), and the shares of requests that meet TTFT and TPOT."""
    known = {
        "gpus": 2,
        "requests": 1200,
        "completed": 100,
        "saturated": False,
        "slo_attainment": 0.9,
        "goodput_requests_per_s": 4.5,
        "model_error": None,
    }
    latencies = {
        f"{key}_s": {"mean": m, "p99": p} for key, m, p in zip(("ttft", "tpot", "e2e"), mean, p99, strict=True)
    }
    return {
        "name": name,
        **known,
        **latencies,
        "slo_attainment_by_target": dict(zip(("ttft", "tpot"), by, strict=True)),
        "ttft_parts_s": dict.fromkeys(PART_NAMES, 0.0) | PARTS | (parts or {}),
        "pools": [{"role": role} for role in (("prefill", "decode") if split else ("colocated",))],
        **more,
    }


def error(**more):
    """A model error with percentiles for TTFT and TPOT alone."""
    regime = {"engine": "vllm", "mode": "any", "load": "idle", "profile": "measured"}
    percents = {"ttft_percent": {"p99": 14.0}, "tpot_percent": {"p99": 160.0}}
    return {"share": 0.8, "runs": 1234, "taken_from": regime, "outside": [], **percents, **more}


def said(*entries, slo=TARGETS):
    return verdict(entries, slo, same)


def test_nothing_and_nothing_completed():
    assert said() == "Nothing was run."
    assert said(topology("a", completed=0)) == "a completed none of 1,200 requests."


def test_one_without_targets():
    assert said(topology("a"), slo=SLO()) == (
        "a: TTFT p99 400 ms, TPOT p99 50.0 ms, E2E p99 9.00 s; no targets were given (--slo), so none are judged."
    )


def test_one_with_targets_tells_where_most_are_lost():
    spread = "TTFT p99 400 ms, TPOT p99 50.0 ms, E2E p99 9.00 s."
    assert said(topology("a")) == (
        f"a meets {HEAD} for 90 % of requests, 4.50 good requests/s; most are lost on TPOT (92 % meet it). {spread}"
    )
    assert said(topology("a", slo_attainment=1.0, by=(1.0, 1.0))) == (
        f"a meets {HEAD} for 100 % of requests, 4.50 good requests/s. {spread}"
    )


def test_model_error_in_brackets_and_where_it_is_from():
    spread = "TTFT p99 400 ms (± 14 %), TPOT p99 50.0 ms (within a factor 2.6), E2E p99 9.00 s"
    assert said(topology("a", model_error=error()), slo=SLO()) == (
        f"a: {spread}; no targets were given (--slo), so none are judged. Model error in brackets: "
        "it held for 80 % of 1,234 measured runs (vllm, idle)."
    )
    strange = error(taken_from={"engine": "any", "profile": "measured"}, outside=["GPU x", "model y"])
    assert said(topology("a", model_error=strange), slo=SLO()).endswith(
        " Model error in brackets: it held for 80 % of 1,234 measured runs (of all kinds). "
        "a is far from everything measured: GPU x and model y; its errors may be larger."
    )


def test_model_errors_of_several_regimes_name_their_topologies():
    pair = [topology(name, model_error=error()) for name in "ab"]
    assert said(*pair).endswith(
        " level too. Model error in brackets: it held for 80 % of 1,234 measured runs (vllm, idle)."
    )
    assert said(*pair, topology("c", model_error=error(runs=7, taken_from={}))).endswith(
        " Model error in brackets: it held for 80 % of 1,234 measured runs (vllm, idle) for a and b; "
        "80 % of 7 measured runs (of all kinds) for c."
    )


def test_a_winner_by_tpot_with_its_mechanism_and_its_price():
    one = topology("one", slo_attainment=0.71, goodput_requests_per_s=3.0, by=(0.98, 0.71), saturated=True)
    more = {"queue": 0.05, "kv_transfer": 0.1, "prefill": 0.13}
    two = topology("two", slo_attainment=0.93, goodput_requests_per_s=4.6, by=(0.97, 0.93), split=True, parts=more)
    two |= {"ttft_s": {"mean": 0.32, "p99": 0.5}, "tpot_s": {"mean": 0.02, "p99": 0.03}}
    two["e2e_s"] = {"mean": 5.5, "p99": 9.5}
    text = (
        f"two meets {HEAD} for 93 % of requests against 71 % of one: TPOT stays within 50 ms for 93 % against 71 % "
        "(p99 30.0 ms against 50.0 ms), because decode steps are no longer stretched by prefill. "
        "Good requests/s: 4.60 (two) and 3.00 (one). The price: its mean TTFT is higher by 120 ms (320 ms against "
        "200 ms), of which KV transfer adds 100 ms and mean E2E is higher by 500 ms (5.50 s against 5.00 s). one is "
        "saturated: its queue grows to the end, so the latencies there tell the length of the trace as much as the "
        "topology."
    )
    assert said(one, two) == text
    assert said(two, one) == text  # whatever their order
    both = said(one | {"pools": two["pools"]}, two)
    assert "stretched" not in both  # no mechanism where both split


def test_a_winner_by_ttft_tells_the_part_that_shrank():
    quick = topology("a", mean=(0.1, 0.03, 5.0), by=(0.9, 0.99), parts={"queue": 0.01})
    slow = topology("b", slo_attainment=0.5, goodput_requests_per_s=2.5, by=(0.5, 0.99))
    assert said(slow, quick) == (
        f"a meets {HEAD} for 90 % of requests against 50 % of b: TTFT stays within 1 s for 90 % against 50 % "
        "(p99 400 ms against 400 ms), because queueing takes 90.0 ms less in the mean. "
        "Good requests/s: 4.50 (a) and 2.50 (b)."
    )


def test_no_reason_is_given_where_no_target_gained_or_nothing_completed():
    low = {"slo_attainment": 0.5, "goodput_requests_per_s": 2.5}
    first = f"a meets {HEAD} for 90 % of requests against 50 % of b"
    assert said(topology("a"), topology("b", **low)).startswith(f"{first}. Good")
    none = topology("b", **low, by=(0.5, 0.92), mean=(None,) * 3, p99=(None,) * 3)
    assert said(topology("a"), none).startswith(f"{first}: TTFT stays within 1 s for 95 % against 50 %. Good")


def test_a_gap_target_is_explained_by_the_split_too():
    slo = SLO(itl_p99_s=0.1)
    a, b = topology("a", split=True), topology("b", slo_attainment=0.6, goodput_requests_per_s=3.0)
    a["slo_attainment_by_target"], b["slo_attainment_by_target"] = {"itl_p99": 0.9}, {"itl_p99": 0.6}
    assert said(a, b, slo=slo).startswith(
        "a meets the targets (ITL p99 100 ms) for 90 % of requests against 60 % of b: ITL p99 stays within 100 ms for "
        "90 % against 60 %, because decode steps are no longer stretched by prefill. Good"
    )


def test_equal_shares_are_told_apart_by_goodput():
    rates = {"a": 4.0, "b": 5.0, "c": 3.0}
    assert said(*(topology(name, goodput_requests_per_s=rate) for name, rate in rates.items())) == (
        f"b gives 5.00 good requests/s against 4.00 of a and 3.00 of c; {HEAD} are met for 90 % of its requests. "
        "Good requests/s: 5.00 (b), 4.00 (a) and 3.00 (c)."
    )


def test_ties_tell_who_is_behind_and_where_tails_differ():
    lower = topology("c", goodput_requests_per_s=3.0, slo_attainment=0.6)
    assert said(topology("a"), topology("b", p99=(0.3, 0.06, 9.0)), lower) == (
        f"a and b tie: {HEAD} are met for 90 % of requests, against 60 % of c. Good requests/s: 4.50 (a), 4.50 (b) and "
        "3.00 (c). TTFT p99 is lower with b (300 ms against 400 ms) and TPOT p99 is lower with a (50.0 ms against "
        "60.0 ms)."
    )
    near = [topology("a", slo_attainment=0.8), topology("b", slo_attainment=0.81, goodput_requests_per_s=4.51)]
    assert said(*near) == (
        f"b and a tie: {HEAD} are met for 81 % and 80 % of requests. Good requests/s: 4.51 (b) and 4.50 (a). "
        "Their TTFT, TPOT and E2E p99 are level too."
    )
    assert said(topology("a", p99=(None, 0.05, 9.0)), topology("b")).endswith("level too.")


def test_nobody_meets_the_targets():
    tails = (
        "a and b tie for the lowest TTFT p99, 400 ms; a and b tie for the lowest TPOT p99, 50.0 ms; "
        "a and b tie for the lowest E2E p99, 9.00 s."
    )
    a, b, c = (topology(name, goodput_requests_per_s=0.0) for name in "abc")
    assert said(a, b) == f"Neither topology meets {HEAD} for any request. {tails}"
    none = {f"{key}_s": {"mean": None, "p99": None} for key in ("ttft", "tpot", "e2e")}
    assert said(a, b, c | none) == f"None of the topologies meets {HEAD} for any request. {tails}"


@pytest.mark.parametrize(
    ("gpus", "good", "shares", "text"),
    [
        ((1, 4), (4.0, 8.0), (0.9, 0.99), "4.00 (a, 1 GPU) and 2.00 (b, 4 GPUs); a has 2.00 times that of b."),
        ((1, 2), (4.0, 8.0), (0.9, 0.99), "4.00 (b, 2 GPUs) and 4.00 (a, 1 GPU), a tie."),
        ((1, 2), (4.0, 0.0), (0.9, 0.0), "4.00 (a, 1 GPU) and 0 (b, 2 GPUs)."),
        ((1, 2), (4.0, 1.0), (0.9, 0.2), "4.00 (a, 1 GPU) and 0.500 (b, 2 GPUs); a has 8.00 times that of b."),
    ],
)
def test_different_numbers_of_gpus(gpus, good, shares, text):
    a, b = (
        topology(name, gpus=n, goodput_requests_per_s=rate, slo_attainment=share)
        for name, n, rate, share in zip("ab", gpus, good, shares, strict=True)
    )
    found = said(a, b)
    assert found.endswith(f". The numbers of GPUs differ; good requests/s per GPU: {text}")
    assert found.startswith(f"{'b' if shares[1] > shares[0] else 'a'} meets {HEAD} for")


def test_without_targets_the_lowest_tails_are_named():
    entries = [topology("a"), topology("b", p99=(0.3, 0.05, 12.0), gpus=4), topology("c", p99=(0.35, None, 9.0))]
    assert said(*entries, slo=SLO()) == (
        "b has the lowest TTFT p99, 300 ms against 350 ms of c and 400 ms of a; a and b tie for the lowest TPOT p99, "
        "50.0 ms; a and c tie for the lowest E2E p99, 9.00 s against 12.0 s of b. The numbers of GPUs differ: a has 2, "
        "b has 4 and c has 2."
    )


def test_saturation_comes_first_where_it_holds_for_all():
    assert said(topology("a", saturated=True), topology("b", saturated=True)).startswith(
        "a and b are saturated: their queues grow to the end, so the latencies there tell the length of the trace as "
        "much as the topology. a and b tie"
    )
    assert said(topology("a", saturated=True)).startswith("a is saturated: its queue grows to the end")


@pytest.mark.parametrize(
    ("part", "words"),
    [
        ("queue", "queueing"),
        ("cache_load", "loading from caches"),
        ("prefill", "prefill"),
        ("kv_wait", "waiting for the KV transfer"),
        ("kv_transfer", "KV transfer"),
        ("decode_admission", "admission and first step at the decode worker"),
        ("host", "host work"),
    ],
)
def test_every_part_has_words(part, words):
    slow = topology("a", mean=(1.2, 0.03, 5.0), parts={part: 1.0 + PARTS.get(part, 0.0)})
    other = topology("b", slo_attainment=0.5, goodput_requests_per_s=2.0)
    assert said(slow, other).endswith(f"(1.20 s against 200 ms), of which {words} adds 1.00 s.")


# --- comparisons of figures


def measured(name, gpus, scale):
    spreads = {
        f"{key}_s": {"mean": scale, "p50": 2 * scale, "p99": 3 * scale} for key in ("ttft", "tpot", "itl", "e2e")
    }
    rates = dict.fromkeys(("request_throughput_per_s", "output_tokens_per_s"), scale)
    costs = {"cost": {"usd_per_million_tokens": scale}, "energy": {"joules_per_token": scale}}
    return topology(name, gpus=gpus) | spreads | rates | costs | {"goodput_requests_per_s": scale, "slo_attainment": 1}


def test_each_figure_is_best_where_it_is_lowest_or_highest():
    found = compare_entries([measured("small", 1, 1.0), measured("big", 8, 4.0)], TARGETS)
    high = {"goodput_requests_per_s", "request_throughput_per_s", "output_tokens_per_s"}
    lows = {f"{key}_{spread}" for key in ("ttft", "tpot", "itl", "e2e") for spread in ("mean", "p50", "p99")}
    lows |= {"usd_per_million_tokens", "joules_per_token"}
    assert {name: names for name, names in found["best"].items() if names != ["small"]} == {
        **{name: ["big"] for name in high},
        "slo_attainment": ["small", "big"],
    }
    assert set(found["best"]) == lows | high | {"slo_attainment"} | {f"{name}_per_gpu" for name in high}
    assert found["goodput_per_gpu"] == {"small": 1.0, "big": 0.5}
    assert found["goodput_per_gpu_ratio"] == {"small": 1.0, "big": 0.5}
    assert (found["gpus_differ"], found["saturated"]) == (True, [])
    assert found["verdict"] == verdict([measured("small", 1, 1.0), measured("big", 8, 4.0)], TARGETS, same)
    assert [metric(measured("x", 2, 5.0), name) for name in ("ttft_p50", "e2e_p99", "joules_per_token")] == [10, 15, 5]
    assert not set(METRICS) - set(found["best"])


def test_ratios_to_a_first_that_has_none_say_nothing():
    a, b = measured("a", 1, 0.0), measured("b", 2, 4.0)
    assert compare_entries([a, b], TARGETS)["goodput_per_gpu_ratio"] == {"a": None, "b": None}
    b |= {"goodput_requests_per_s": None}
    assert compare_entries([measured("a", 1, 2.0), b])["goodput_per_gpu"] == {"a": 2.0, "b": None}
    assert compare_entries([measured("a", 1, 2.0), b])["goodput_per_gpu_ratio"] == {"a": 1.0, "b": None}
    assert compare_entries([a, a])["gpus_differ"] is False
    twice = compare_entries([measured("a", 1, 2.0), measured("b", 1, 6.0)])
    assert twice["goodput_per_gpu_ratio"] == {"a": 1.0, "b": 3.0}


def test_a_tie_is_half_a_per_cent_of_the_larger():
    assert same(199.0, 200.0) and same(200.0, 199.0) and same(-200.0, -199.0)
    assert not same(198.9, 200.0)
    assert not same(1.0, -1.0)
