"""How a trace is offered: parsing, drawn arrivals, sessions."""

from __future__ import annotations

import numpy as np
import pytest

from simulator.errors import InputError
from simulator.workload import Arrivals, Trace, apply_arrivals, load_trace, parse_arrivals, same_requests


def plain(count: int) -> Trace:
    return Trace.from_columns(np.arange(float(count)), np.arange(1, count + 1), np.ones(count, np.int64))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("trace", Arrivals("trace")),
        ("trace-raw", Arrivals("trace-raw")),
        ("at-once", Arrivals("at-once")),
        ("poisson:4", Arrivals("poisson", 4.0, 1.0)),
        ("gamma:0.5:2.5", Arrivals("gamma", 0.5, 2.5)),
        ("closed:16", Arrivals("closed", clients=16)),
    ],
)
def test_parse(text: str, expected: Arrivals) -> None:
    assert parse_arrivals(text) == expected
    assert str(expected) == text
    assert parse_arrivals(str(expected)) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("poison:4", "unknown arrivals 'poison' (did you mean 'poisson:RATE'?)"),
        ("", "unknown arrivals ''"),
        ("poisson", "has 0 numbers; allowed: poisson:RATE"),
        ("poisson:1:2", "has 2 numbers; allowed: poisson:RATE"),
        ("gamma:4", "has 1 numbers; allowed: gamma:RATE:CV"),
        ("trace:1", "has 1 numbers; allowed: trace"),
        ("poisson:0", "RATE is '0'; allowed: numbers above 0"),
        ("poisson:-3", "RATE is '-3'"),
        ("poisson:nan", "RATE is 'nan'"),
        ("poisson:inf", "RATE is 'inf'"),
        ("poisson:fast", "RATE is 'fast'"),
        ("poisson:1_0", "RATE is '1_0'"),
        ("poisson:1e9", "up to 1e+06"),
        ("gamma:4:0", "CV is '0'"),
        ("gamma:4:-1", "CV is '-1'"),
        ("gamma:4:1000", "CV is '1000'"),
        ("closed:0", "N is '0'"),
        ("closed:2.5", "N is 2.5; allowed: whole numbers"),
        ("closed:-1", "N is '-1'"),
    ],
)
def test_parse_errors(text: str, expected: str) -> None:
    with pytest.raises(InputError) as caught:
        parse_arrivals(text)
    assert expected in str(caught.value)
    assert str(caught.value).startswith("--arrivals: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("cv", [0.5, 1.0, 3.0])
def test_drawn_gaps_have_the_rate_and_burstiness(cv: float) -> None:
    drawn = apply_arrivals(plain(40_000), parse_arrivals(f"gamma:8:{cv}"), seed=3)
    gaps = np.diff(drawn.arrival_s, prepend=0.0)
    # Standard errors: the mean of n gaps varies by CV/sqrt(n); four of them are allowed.
    assert gaps.mean() * 8 == pytest.approx(1, abs=4 * cv / 200)
    assert gaps.std() / gaps.mean() == pytest.approx(cv, rel=0.06)


def test_poisson_is_exponential() -> None:
    gaps = np.diff(apply_arrivals(plain(40_000), parse_arrivals("poisson:2"), seed=0).arrival_s)
    for q in (0.1, 0.5, 0.9, 0.99):
        assert np.quantile(gaps, q) == pytest.approx(-np.log(1 - q) / 2, rel=0.05)


def test_same_seed_same_arrivals() -> None:
    one, same, other = (apply_arrivals(plain(50), parse_arrivals("poisson:2"), seed=s) for s in (1, 1, 2))
    assert same_requests(one, same)
    assert not same_requests(one, other)
    assert one.notes == ("arrivals drawn: poisson:2, seed 1",)


@pytest.mark.parametrize("seed", [-1, 1.5, True, "1"])
def test_seeds_are_whole_numbers(seed: object) -> None:
    with pytest.raises(InputError, match="seed: "):
        apply_arrivals(plain(5), parse_arrivals("poisson:2"), seed=seed)  # type: ignore[arg-type]


def test_lengths_stay() -> None:
    drawn = apply_arrivals(plain(50), parse_arrivals("poisson:2"), seed=1)
    np.testing.assert_array_equal(drawn.input_tokens, plain(50).input_tokens)


@pytest.mark.parametrize("kind", ["trace", "trace-raw"])
def test_the_traces_own_arrivals(kind: str) -> None:
    trace = plain(5)
    assert apply_arrivals(trace, parse_arrivals(kind)) is trace


@pytest.mark.parametrize("kind", ["closed:3", "at-once"])
def test_all_at_zero(kind: str) -> None:
    assert apply_arrivals(plain(5), parse_arrivals(kind)).arrival_s.tolist() == [0] * 5


def test_sessions_move_as_one() -> None:
    trace = Trace.from_columns(
        [0.0, 1.0, 2.0, 5.0, 6.0],
        [1, 2, 3, 4, 5],
        [1] * 5,
        session=[0, 1, 0, -1, 1],
        session_names=("a", "b"),
        turn=[0, 0, 1, -1, 1],
        think_s=[np.nan, np.nan, 1.0, np.nan, 4.0],
    )
    moved = apply_arrivals(trace, parse_arrivals("poisson:0.01"), seed=5)
    when = dict(zip(moved.input_tokens.tolist(), moved.arrival_s.tolist(), strict=True))
    assert when[3] - when[1] == pytest.approx(2)
    assert when[5] - when[2] == pytest.approx(5)
    assert moved.input_tokens.tolist() != trace.input_tokens.tolist(), "at this rate sessions no longer overlap"
    assert (np.diff(moved.arrival_s) >= 0).all()


def test_rate_of_a_trace_of_sessions_counts_all_requests() -> None:
    trace = load_trace("agentic")
    drawn = apply_arrivals(trace, parse_arrivals("poisson:10"), seed=0)
    starts = drawn.arrival_s[~drawn.follows_session()]
    wanted = 10 * len(starts) / len(trace)
    assert len(starts) / starts[-1] == pytest.approx(wanted, rel=4 / np.sqrt(len(starts)))
    assert sorted(drawn.input_tokens.tolist()) == sorted(trace.input_tokens.tolist())
