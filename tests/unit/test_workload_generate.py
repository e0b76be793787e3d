"""Generated traces have the statistics their spec states."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from simulator.errors import TraceError
from simulator.resources import shipped
from simulator.workload import generate_trace, load_trace, measure_spec, same_requests
from simulator.workload.distributions import Distribution, gaps_weibull, weibull_shape
from simulator.workload.measure import rank_correlation

QUANTILES = {0: 5, 0.25: 100, 0.5: 400, 0.9: 3000, 1: 9000}
BASE: dict[str, Any] = {
    "name": "t",
    "requests": 20_000,
    "arrivals": {"rate_per_s": 5.0, "cv": 2.0},
    "input_tokens": {"quantiles": QUANTILES},
    "output_tokens": {
        "lognormal": [{"weight": 3, "median": 50, "sigma": 0.4}, {"weight": 1, "median": 900, "sigma": 0.2}]
    },
    "rank_correlation": -0.4,
}
SESSIONS: dict[str, Any] = {
    "turns": {"quantiles": {0: 1, 0.5: 3, 1: 12}},
    "think_s": {"constant": 2.0},
    "new_tokens": {"constant": 40},
    "seconds_per_output_token": 0.01,
    "max_input_tokens": 20_000,
}
PREFIXES: dict[str, Any] = {
    "count": 5,
    "zipf": 1.0,
    "share": 0.75,
    "tokens": {"constant": 300},
    "common_tokens": 100,
    "block_tokens": 50,
}


def test_lengths_rate_and_correlation() -> None:
    trace = generate_trace(BASE)
    for q in (0.25, 0.5, 0.9):
        assert np.quantile(trace.input_tokens, q) == pytest.approx(QUANTILES[q], rel=0.05)
    assert trace.input_tokens.min() >= 5
    assert trace.input_tokens.max() <= 9000
    assert np.median(trace.output_tokens[trace.output_tokens < 300]) == pytest.approx(50, rel=0.03)
    assert (trace.output_tokens > 300).mean() == pytest.approx(0.25, abs=0.015)
    assert rank_correlation(trace.input_tokens, trace.output_tokens) == pytest.approx(-0.4, abs=0.03)
    stats = trace.stats()
    assert stats["requests_per_s"] == pytest.approx(5, rel=0.06)
    assert stats["interarrival_cv"] == pytest.approx(2, rel=0.06)


def test_quantiles_are_log_linear_in_between() -> None:
    values = Distribution(quantiles={0: 1, 1: 10_000}).at(np.array([0.0, 0.25, 0.5, 1.0]))
    assert values.tolist() == pytest.approx([1, 10, 100, 10_000])


def test_mixture_quantiles_against_its_definition() -> None:
    d = Distribution(lognormal=[{"median": 100, "sigma": 0.5}], max=150)  # type: ignore[list-item]
    assert d.at(np.array([0.5, 0.8413447460685429])).tolist() == pytest.approx([100, 150], rel=1e-3)
    assert d.at(np.array([0.15865525393145707])).tolist() == pytest.approx([100 * np.exp(-0.5)], rel=1e-3)


@pytest.mark.parametrize("cv", [0.2, 0.5, 1.0, 2.5])
def test_weibull_gaps(cv: float) -> None:
    gaps = gaps_weibull(np.random.default_rng(1), 400_000, cv)
    assert gaps.mean() == pytest.approx(1, rel=0.02)
    assert gaps.std() == pytest.approx(cv, rel=0.03)
    assert weibull_shape(1.0) == pytest.approx(1.0, abs=1e-6)


def test_diurnal_rate() -> None:
    day = {"period_s": 1000.0, "amplitude": 0.5, "peak_s": 250.0}
    trace = generate_trace({**BASE, "arrivals": {"rate_per_s": 20.0, "diurnal": day}})
    phase = trace.arrival_s % 1000
    high, low = ((phase > 150) & (phase < 350)).sum(), ((phase > 650) & (phase < 850)).sum()
    swing = 0.5 * np.sin(2 * np.pi * 0.1) / (2 * np.pi * 0.1)
    assert high / low == pytest.approx((1 + swing) / (1 - swing), rel=0.06)
    assert len(trace) / trace.arrival_s[-1] == pytest.approx(20, rel=0.03)


def test_gaps_by_quantiles() -> None:
    trace = generate_trace({**BASE, "arrivals": {"gaps_s": {"quantiles": {0: 0, 0.5: 0.1, 1: 3}}}})
    assert np.median(np.diff(trace.arrival_s)) == pytest.approx(0.1, rel=0.05)


def test_prefixes() -> None:
    trace = generate_trace({**BASE, "prefixes": PREFIXES})
    long = [i for i in range(2000) if trace.input_tokens[i] >= 350]
    first = [trace.hashes(i)[0] for i in long]
    sixth = [trace.hashes(i)[5] for i in long]
    # The common beginning is block 0 and 1 of all with a prefix; of five prefixes Zipf's law gives the first 1/2.283.
    top = np.bincount(first).max()
    assert top / len(long) == pytest.approx(0.75, abs=0.05)
    assert np.sort(np.bincount(sixth))[::-1][:5].sum() == top
    assert np.bincount(sixth).max() / top == pytest.approx(1 / 2.2833, abs=0.05)
    seventh = [trace.hashes(i)[6] for i in long]
    assert len(set(seventh)) == len(seventh), "what follows the prefix is each prompt's own"


def test_block_ids_are_numbered_in_order_of_appearance() -> None:
    trace = generate_trace({**BASE, "requests": 300, "prefixes": PREFIXES, "sessions": SESSIONS})
    assert trace.hash_ids is not None
    _, first = np.unique(trace.hash_ids, return_index=True)
    assert (np.diff(first) > 0).all()


def test_sessions_grow() -> None:
    trace = generate_trace({**BASE, "requests": 3000, "prefixes": PREFIXES, "sessions": SESSIONS})
    assert trace.session is not None
    assert trace.turn is not None
    assert trace.think_s is not None
    last: dict[int, int] = {}
    for i, code in enumerate(trace.session.tolist()):
        before = last.get(code)
        if before is None:
            assert trace.turn[i] == 0
            assert np.isnan(trace.think_s[i])
        else:
            history = trace.input_tokens[before] + trace.output_tokens[before]
            assert trace.input_tokens[i] == history + 40
            assert trace.turn[i] == trace.turn[before] + 1
            assert trace.think_s[i] == 2.0
            full = trace.input_tokens[before] // 50
            np.testing.assert_array_equal(trace.hashes(i)[:full], trace.hashes(before)[:full])
            assert trace.hashes(i)[full] not in trace.hashes(before)
        last[code] = i
    assert trace.input_tokens.max() <= 20_000
    assert trace.stats()["requests_per_s"] == pytest.approx(5, rel=0.15)


def test_sessions_are_under_way_at_the_start() -> None:
    trace = generate_trace({**BASE, "requests": 6000, "arrivals": {"rate_per_s": 20.0}, "sessions": SESSIONS})
    # Sessions last about 20 s: with none at the start, the first 10 s would hold less than half of their share.
    assert (trace.arrival_s < 10).sum() > 0.7 * 10 * len(trace) / trace.span_s
    assert trace.hash_ids is None


def test_client_limit_cuts_answers() -> None:
    trace = generate_trace({**BASE, "requests": 500, "max_output_tokens": 100, "sessions": SESSIONS})
    assert trace.output_tokens.max() == 100
    assert set(trace.max_output_tokens.tolist()) == {100}


def test_seed_and_count_override() -> None:
    assert same_requests(generate_trace(BASE, seed=4), generate_trace({**BASE, "seed": 4}))
    assert not same_requests(generate_trace(BASE, seed=4), generate_trace(BASE))
    assert len(generate_trace(BASE, requests=7)) == 7


def test_one_statistic_leaves_the_other_draws_alone() -> None:
    one, other = generate_trace(BASE), generate_trace({**BASE, "prefixes": PREFIXES, "arrivals": {"rate_per_s": 1.0}})
    np.testing.assert_array_equal(one.input_tokens, other.input_tokens)


def test_measured_spec_generates_the_like() -> None:
    trace = load_trace("code")
    spec = measure_spec(trace, gaps=True)
    like = generate_trace({**spec, "requests": 20_000})
    for q in (0.1, 0.5, 0.9, 0.99):
        assert np.quantile(like.input_tokens, q) == pytest.approx(np.quantile(trace.input_tokens, q), rel=0.1)
    assert measure_spec(generate_trace(BASE))["arrivals"]["cv"] == pytest.approx(2, rel=0.06)
    assert measure_spec(load_trace("chat", limit=1))["arrivals"] == {"rate_per_s": 1.0}


@pytest.mark.parametrize("name", ["chat", "code", "long_context", "agentic"])
def test_shipped_traces_are_their_specs(name: str) -> None:
    made, kept = generate_trace(shipped("traces") / "specs" / f"{name}.yaml"), load_trace(name)
    np.testing.assert_array_equal(made.input_tokens, kept.input_tokens)
    np.testing.assert_array_equal(made.output_tokens, kept.output_tokens)
    np.testing.assert_allclose(made.arrival_s, kept.arrival_s, rtol=0, atol=2e-6)
    if made.hash_ids is not None and kept.hash_ids is not None:
        np.testing.assert_array_equal(made.hash_ids, kept.hash_ids)


def broken(*path: str, value: Any = None, drop: bool = False) -> dict[str, Any]:
    spec: dict[str, Any] = {
        **BASE,
        "arrivals": dict(BASE["arrivals"]),
        "prefixes": dict(PREFIXES),
        "sessions": dict(SESSIONS),
    }
    inner = spec
    for key in path[:-1]:
        inner = inner[key]
    if drop:
        del inner[path[-1]]
    else:
        inner[path[-1]] = value
    return spec


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        (broken("name", drop=True), "spec: name: Field required"),
        (broken("requets", value=5), "spec: unknown key 'requets' (did you mean 'requests'?)"),
        (broken("arrivals", "rate", value=5), "spec.arrivals: unknown key 'rate'"),
        (broken("prefixes", "zipff", value=1), "spec.prefixes: unknown key 'zipff' (did you mean 'zipf'?)"),
        (broken("sessions", "think_s", value={"quantile": {}}), "unknown key 'quantile' (did you mean 'quantiles'?)"),
        (broken("requests", value=0), "requests: Input should be greater than or equal to 1 (found 0)"),
        (broken("requests", value="many"), "requests: Input should be a valid integer"),
        (broken("arrivals", "rate_per_s", value=0), "arrivals.rate_per_s"),
        (broken("arrivals", "rate_per_s", value=-1), "arrivals.rate_per_s"),
        (broken("arrivals", "cv", value=float("nan")), "arrivals.cv"),
        (broken("arrivals", value={}), "give rate_per_s (and cv), or gaps_s"),
        (broken("arrivals", value={"gaps_s": {"constant": 0}}), "mean above 0"),
        (broken("input_tokens", value={}), "give one of constant, quantiles, lognormal; found none"),
        (broken("input_tokens", value={"quantiles": {0: 5, 0.5: 1}}), "must run from 0 to 1"),
        (broken("input_tokens", value={"quantiles": {0: 5, 1: 1}}), "must not fall"),
        (broken("input_tokens", value={"quantiles": {0: -5, 1: 1}}), "must not be negative"),
        (broken("input_tokens", value={"constant": 5, "min": 9, "max": 7}), "min 9 is above max 7"),
        (broken("input_tokens", value={"lognormal": []}), "at least one component"),
        (broken("rank_correlation", value=2), "rank_correlation"),
        (broken("prefixes", "share", value=1.5), "prefixes.share"),
        (broken("seed", value=-1), "seed"),
        (broken("arrivals", "diurnal", value={"amplitude": 0.5, "period_s": 0.001}), "too short"),
    ],
)
def test_bad_specs(spec: dict[str, Any], expected: str) -> None:
    with pytest.raises(TraceError) as caught:
        generate_trace(spec)
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (b"name: [", "spec.yaml, line 2: not valid YAML"),
        (b"- 1\n", "expected 'key: value' lines"),
        (b"", "expected 'key: value' lines"),
        (b"\xff", "is not UTF-8"),
        (b"name: t\nrequest: 5\n", "spec.yaml: unknown key 'request' (did you mean 'requests'?)"),
    ],
)
def test_bad_spec_files(text: bytes, expected: str, tmp_path: Path) -> None:
    (tmp_path / "spec.yaml").write_bytes(text)
    with pytest.raises(TraceError) as caught:
        generate_trace(tmp_path / "spec.yaml")
    assert expected in str(caught.value)
    with pytest.raises(TraceError, match="cannot be read"):
        generate_trace(tmp_path / "none.yaml")
