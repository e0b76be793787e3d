"""Runs around the one asked for: latency against rate with its knee, and where disaggregation pays."""

from __future__ import annotations

import numpy as np
import pytest

from simulator.cluster.assembly import assemble
from simulator.cluster.topology import load_topology
from simulator.metrics.slo import SLO
from simulator.planning.crossover import PROMPTS, RATES, Cell, crossover, rivals
from simulator.planning.offer import Offer
from simulator.planning.rate_curve import RateCurve, RatePoint, rate_curve
from simulator.workload.arrivals import Arrivals, apply_arrivals, parse_arrivals
from simulator.workload.trace import Trace

STEP = {"kind": "affine", "base_s": 0.01, "per_token_s": 1e-4}


def plan_of(name, workers=1, split=False):
    pools = [{"name": "main", "role": "colocated", "workers": workers}]
    more = {}
    if split:
        pools = [{"name": "prefill", "role": "prefill"}, {"name": "decode", "role": "decode"}]
        more = {"kv_transfer": {"mode": "pull", "setup_s": 0.001, "per_block_s": 1e-5}}
    return assemble(load_topology({"name": name, "step_time": STEP, "kv_blocks": 4000, "pools": pools, **more}))


def offer_of(rate=5.0, requests=300, slo="ttft=100ms,tpot=30ms", arrivals="trace"):
    gaps = np.random.default_rng(1).exponential(1 / rate, requests)
    trace = Trace.from_columns(np.cumsum(gaps), np.full(requests, 200), np.full(requests, 20))
    how = parse_arrivals(arrivals)
    return Offer(apply_arrivals(trace, how, 0), how, SLO.parse(slo) if slo else SLO())


def point(level, attainment):
    return RatePoint("t", level, {"slo_attainment": attainment, "saturated": attainment < 0.5})


def test_knee_is_where_attainment_crosses_nine_tenths():
    curve = RateCurve((point(1, 1.0), point(2, 0.95), point(4, 0.75)), 100, 1.0, False, True)
    assert curve.knee("t") == pytest.approx(2 + (0.05 / 0.2) * 2)
    assert RateCurve((point(1, 1.0), point(2, 0.95)), 100, 1.0, False, True).knee("t") is None
    assert RateCurve((point(1, 0.8), point(2, 0.7)), 100, 1.0, False, True).knee("t") == 0.0
    without_targets = RateCurve((point(1, 1.0), point(2, 0.7), point(3, 0.2)), 100, 1.0, False, False)
    assert without_targets.knee("t") == 2


def test_the_search_goes_on_until_every_cluster_has_given_in():
    # one token takes 10.1 ms, 20 of them 0.2 s beside other prompts: a few dozen requests a second saturate an engine
    curve = rate_curve(offer_of(rate=6.0), {"one": plan_of("one"), "two": plan_of("two", 2)}, budget=6_000)
    assert curve.given == pytest.approx(6.0, rel=0.2)
    assert 0 < curve.knee("one") < curve.knee("two")
    assert [p.level for p in curve.of("one")] == sorted(p.level for p in curve.of("one"))
    attained = [p.figures["slo_attainment"] for p in curve.of("one")]
    assert attained[0] == 1.0
    assert attained[-1] < 0.9


def test_stated_levels_are_run_as_they_are():
    curve = rate_curve(offer_of(), {"one": plan_of("one")}, budget=1_000, levels=[8.0, 2.0])
    assert [p.level for p in curve.points] == pytest.approx([2.0, 8.0])


def test_closed_loops_turn_the_number_of_clients():
    curve = rate_curve(offer_of(arrivals="closed:4"), {"one": plan_of("one")}, budget=1_500)
    assert curve.closed
    assert {1.0, 2.0, 4.0, 8.0} <= {p.level for p in curve.points}


def test_all_at_once_has_no_rate():
    assert rate_curve(offer_of(arrivals="at-once"), {"one": plan_of("one")}) is None


def test_a_shorter_offer_keeps_the_share_of_its_warm_up():
    offer = Offer(Trace.from_columns(np.arange(101.0), [9] * 101, [9] * 101), Arrivals(), SLO(), warmup_s=10.0)
    assert offer.shortened(51).warmup_s == pytest.approx(5.0)
    assert offer.shortened(51).at(2.0).warmup_s == pytest.approx(2.5)
    assert offer.at(4.0).level == pytest.approx(4.0)
    assert offer.with_prompts(0.01).trace.input_tokens.tolist() == [1] * 101


def test_map_has_a_winner_for_every_load():
    plans = {"one": plan_of("one", 2), "split": plan_of("split", split=True)}
    pair = rivals(plans, {})
    assert pair == ("one", "split")
    found = crossover(offer_of(slo="ttft=300ms,tpot=15ms"), plans, pair, budget=0)
    assert len(found.cells) == len(PROMPTS) * len(RATES)
    assert {cell.winner for cell in found.cells} <= {"colocated", "disaggregated", "tie", "neither"}
    assert [cell.rate_requests_per_s for cell in found.cells[: len(RATES)]] == sorted(
        c.rate_requests_per_s for c in found.cells[: len(RATES)]
    )
    # prompts stretch decode steps of engines that do both past 15 ms; a decode engine of its own has 10 ms steps
    assert "disaggregated" in {cell.winner for cell in found.cells}


def test_no_map_without_rivals_or_targets():
    assert rivals({"one": plan_of("one")}, {}) is None
    plans = {"one": plan_of("one"), "split": plan_of("split", split=True)}
    assert crossover(offer_of(slo=""), plans, ("one", "split")) is None
    assert crossover(offer_of(arrivals="closed:4"), plans, ("one", "split")) is None


def test_winner_goes_by_good_requests_per_gpu():
    def cell(a, gpus_a, b, gpus_b):
        return Cell(100, 1.0, {"slo_attainment": a, "gpus": gpus_a}, {"slo_attainment": b, "gpus": gpus_b}).winner

    assert cell(0.9, 2, 0.9, 2) == "tie"
    assert cell(0.9, 2, 0.9, 4) == "colocated"
    assert cell(0.5, 2, 0.9, 2) == "disaggregated"
    assert cell(0.05, 2, 0.09, 2) == "neither"
    assert Cell(100, 1.0, None, {"slo_attainment": 0.9, "gpus": 2}).winner == "disaggregated"
