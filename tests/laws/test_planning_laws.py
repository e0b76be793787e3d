"""Laws of planning: intervals cover, common random numbers save noise, bounds bound, the optimum is the optimum."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import pytest

from simulator.api import simulate
from simulator.cluster.topology import load_topology
from simulator.errors import InputError
from simulator.metrics.confidence import batch_means, batch_percentile, paired, t_interval, t_quantile
from simulator.metrics.slo import SLO
from simulator.planning.bounds import SLACK, most_rate, work_of
from simulator.planning.candidates import DISAGGREGATED, colocated, disaggregated, splits, tuned, units
from simulator.planning.capacity import find_capacity, ratio_of
from simulator.planning.plan import _bench, plan
from simulator.planning.plan_spec import read_plan
from simulator.planning.replicates import Bench, pieces_of
from simulator.planning.runs import plan_of, topology_text
from simulator.planning.workforce import Workforce
from simulator.workload.arrivals import parse_arrivals
from simulator.workload.load import load_trace
from simulator.workload.trace import Trace

QUIET = {"before_s": 0.0, "after_s": 0.0}
SPLIT = {
    "find": "best_split",
    "trace": "chat",
    "slo": {"ttft": "500ms", "tpot": "15ms", "attainment": 0.9},
    "model": "llama-3.1-8b",
    "gpus": {"h100_sxm": {"count": 3}},
    "parallel": [{"tp": 1}, {"tp": 2}],
    "step_tokens": [512],
    "arrivals": "poisson",
    "requests": 150,
    "replications": 3,
    "sensitivity": False,
}
CHEAP = {
    **SPLIT,
    "find": "cheapest",
    "rate": 20.0,
    "gpus": {"h100_sxm": {"usd_per_hour": 3.0, "max": 4}, "l40s": {"usd_per_hour": 1.0, "max": 4}},
    "parallel": [{"tp": 1}],
    "step_tokens": [],
}


def one(**step_time) -> str:
    times = {"kind": "affine", "base_s": 0.01, "per_token_s": 5e-5, **step_time}
    values = {"name": "one", "engine": {"profile": "vllm", "max_num_seqs": 32}, "kv_blocks": 20_000, "frontend": QUIET}
    return topology_text(
        load_topology({**values, "pools": [{"name": "only", "role": "colocated"}], "step_time": times})
    )


def bench(count=6, requests=150, seed=0, slo="ttft=1s,tpot=40ms", attainment=0.9) -> Bench:
    pieces = pieces_of(load_trace("chat"), parse_arrivals("poisson:1"), count, requests, seed)
    return Bench(pieces, SLO.parse(slo), attainment, Workforce())


# Intervals


def test_t_intervals_cover_the_mean_as_often_as_they_say():
    rng = np.random.default_rng(1)
    draws = rng.normal(3.0, 2.0, (4000, 5))
    assert np.mean([t_interval(row).holds(3.0) for row in draws]) == pytest.approx(0.95, abs=0.012)
    assert t_quantile(0.95, 4) == pytest.approx(2.776, abs=1e-3)
    assert np.isnan(t_interval([1.0]).low)
    assert t_interval([]).count == 0


def test_batch_means_cover_where_a_plain_interval_of_a_correlated_series_does_not():
    rng = np.random.default_rng(2)
    covered, naive = 0, 0
    for _ in range(300):
        series = np.empty(4000)
        series[0] = 0.0
        noise = rng.normal(size=4000)
        for i in range(1, 4000):
            series[i] = 0.9 * series[i - 1] + noise[i]
        covered += batch_means(series).holds(0.0)
        naive += t_interval(series).holds(0.0)
    assert covered > 270
    assert naive < 160


def test_batch_percentiles_hold_the_percentile():
    rng = np.random.default_rng(3)
    held = [batch_percentile(rng.exponential(size=2000), 0.9).holds(np.log(10)) for _ in range(200)]
    assert sum(held) > 180


def test_common_random_numbers_make_a_difference_surer():
    """The same pieces on two topologies against other pieces for each: at least five times less variance."""
    mean = lambda b, text: [e["ttft_s"]["mean"] for e in b.scores(text, 4.0).entries]  # noqa: E731
    slow, fast = one(base_s=0.0105), one()
    same, other = bench(30, 100), bench(30, 100, seed=77)
    common = paired(mean(same, fast), mean(same, slow))
    apart = paired(mean(same, fast), mean(other, slow))
    assert common.low > 0
    assert common.half_width**2 < apart.half_width**2 / 5


# Highest rates


def test_one_server_with_fixed_service_carries_one_over_its_service_time():
    """Equal gaps and equal prompts, one token each: the queue grows beyond rate 1 / service, and not below."""
    service_s, count = 0.02, 1500
    ones = np.ones(count, np.int64)
    trace = Trace.from_columns(np.arange(count, dtype=float), 1000 * ones, ones)
    pieces = pieces_of(trace, parse_arrivals("trace"), 2, 600, 0)
    text = one(base_s=0.0, per_token_s=service_s / 1000)
    text = json.dumps({**json.loads(text), "engine": {"profile": "vllm", "max_num_seqs": 1, "async_scheduling": False}})
    found = find_capacity(Bench(pieces, SLO(ttft_s=2 * service_s), 0.95, Workforce()), text, 10.0, close=0.005)
    assert found.rate == pytest.approx(1 / service_s, rel=0.01)
    assert found.low <= found.rate <= found.high


def test_a_target_nobody_can_meet_gives_no_rate_and_a_ratio_of_one_to_oneself():
    none = find_capacity(bench(2, 60, slo="tpot=1ms"), one(), 1.0)
    assert (none.rate, none.at_rate) == (0.0, None)
    some = find_capacity(bench(), one(), 5.0)
    same = ratio_of(some, some)
    assert (same.value, same.low, same.high) == (1.0, 1.0, 1.0)


def test_a_faster_engine_carries_more_and_the_paired_ratio_knows_it():
    slow, fast = (find_capacity(bench(), one(base_s=base), 5.0) for base in (0.011, 0.01))
    ratio = ratio_of(slow, fast)
    assert 1 < ratio.low < ratio.value < ratio.high
    apart = np.log(fast.high / fast.low) + np.log(slow.high / slow.low)
    assert np.log(ratio.high / ratio.low) < 0.5 * apart


@pytest.mark.parametrize("arrivals", ["trace", "poisson:1", "gamma:1:2"])
def test_pieces_have_a_rate_of_one_and_do_not_repeat(arrivals):
    trace = load_trace("chat")
    pieces = pieces_of(trace, parse_arrivals(arrivals), 3, 600, 5)
    for piece in pieces:
        assert (len(piece) - 1) / piece.span_s == pytest.approx(1.0, rel=0.25)
    assert len({piece.input_tokens.tobytes() for piece in pieces}) == 3
    again = pieces_of(trace, parse_arrivals(arrivals), 3, 600, 5)
    assert all(np.array_equal(a.arrival_s, b.arrival_s) for a, b in zip(pieces, again, strict=True))
    if arrivals == "trace":  # long enough to be cut: what is in one stretch is in no other
        found = pieces_of(trace, parse_arrivals(arrivals), 3, 300, 5)
        assert sum(len(piece) for piece in found) == 900


@pytest.mark.slow
def test_the_interval_covers_the_true_rate(monkeypatch):
    """Of 30 seeded repeats, as many as 95 % would give but for bad luck of one in a thousand. The full count of 200 is
    in benchmarks/interval_coverage.py."""
    place = Path(__file__).parents[2] / "benchmarks" / "interval_coverage.py"
    spec = importlib.util.spec_from_file_location("coverage_benchmark", place)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    found = module.coverage(module.Setting(load_trace("chat"), requests=80), 30, replications_of_truth=100)
    assert found.covered >= 25


# Bounds and optima


@pytest.mark.parametrize("name", ["llama-3.1-8b/h100_sxm/1c", "llama-3.1-8b/h100_sxm/1p1d", "llama-3.1-8b/l40s/2c"])
def test_no_topology_carries_more_than_its_rooflines_allow(name):
    trace = load_trace("chat")
    text = topology_text(load_topology(name))
    loose = bench(2, 300, slo="ttft=20s", attainment=0.5)
    bound, _ = most_rate(plan_of(text), work_of(trace, 0.5))
    found = find_capacity(loose, text, bound / 2, sure=False)
    assert 0.1 * bound < found.rate <= SLACK * bound


@pytest.mark.slow
def test_the_best_split_is_that_of_exhaustive_search_and_nothing_pruned_beats_it():
    found = plan(SPLIT)
    question = read_plan(SPLIT)
    fit, _ = units(question.spec)
    candidates = list(splits(question.spec, fit))
    same = Bench(_bench(question, Workforce(), 10.0).pieces, question.slo, question.attainment, Workforce())
    rates = {c.name: find_capacity(same, c.text, 10.0, sure=False).rate for c in candidates}
    best = max(rates, key=lambda name: rates[name])
    assert len(candidates) >= 6
    # two splits may be as good as each other. Attainment of so few requests does not fall evenly: from another first
    # guess the rate is found up to 14 % off, well within its interval
    assert rates[found.answer["name"]] >= rates[best] / 1.05
    assert found.answer["interval"][0] < rates[best] < found.answer["interval"][1]
    assert found.answer["max_rate_requests_per_s"] == pytest.approx(rates[best], rel=0.15)
    pruned = {row["candidate"] for row in found.document["pruned"]}
    assert pruned
    assert all(rates[name] <= rates[best] for name in pruned)
    assert pruned | {row["name"] for row in found.document["candidates"]} == set(rates)


@pytest.mark.slow
def test_the_cheapest_cluster_is_that_of_exhaustive_search():
    found = plan(CHEAP)
    question = read_plan(CHEAP)
    spec, tried = question.spec, _bench(question, Workforce(), 20.0)
    kinds = [unit for members in units(spec)[0].values() for unit in members]
    grid = [colocated(spec, one, n) for unit in kinds for one in tuned(spec, unit) for n in range(1, 5)]
    for prefill in kinds:
        for decode in kinds:
            most = 4 if prefill.gpu == decode.gpu else 8
            pairs = [(p, d) for p in range(1, 5) for d in range(1, 5) if p + d <= most]
            grid += [disaggregated(spec, prefill, p, decode, d) for p, d in pairs]
    enough = [c for c in grid if tried.scores(c.text, 20.0).mean >= question.attainment]
    assert enough
    assert len(enough) < len(grid)
    assert found.answer["usd_per_hour"] == min(c.usd_per_hour for c in enough)
    split = [c.usd_per_hour for c in enough if c.kind == DISAGGREGATED]
    assert found.document["disaggregated"]["usd_per_hour"] == min(split)


def test_a_rate_that_no_cluster_carries_is_told():
    with pytest.raises(InputError, match="nothing meets the targets"):
        plan({**CHEAP, "rate": 5000.0, "gpus": {"l40s": {"usd_per_hour": 1.0, "max": 2}}})


def test_one_long_run_tells_intervals_that_hold_what_other_seeds_give():
    """Mean TTFT and TPOT and attainment of another seed's run lie in the interval of the first about as often as the
    difference of two like runs would: at least half of the time, and mostly within twice its width."""
    trace, inside, near, count = load_trace("chat"), 0, 0, 0
    for seed in range(6):
        first, other = (
            simulate(trace, json.loads(one()), arrivals="poisson:3", seed=s, slo="ttft=1s").summary()
            for s in (seed, seed + 50)
        )
        for figure, value in (("ttft_mean_s", other["ttft_s"]["mean"]), ("tpot_mean_s", other["tpot_s"]["mean"])):
            low, high = first["intervals_95"][figure]
            inside += low <= value <= high
            near += low - (high - low) <= value <= high + (high - low)
            count += 1
    assert inside >= count / 2
    assert near >= 0.9 * count
