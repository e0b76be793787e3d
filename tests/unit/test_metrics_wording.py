"""Numbers as people read them."""

from __future__ import annotations

import math

import pytest

from simulator.metrics.wording import count, figures, listed, percent, rate, seconds, target, within


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0"),
        (math.inf, "inf"),
        (math.nan, "nan"),
        (0.0123, "0.0123"),
        (4.5678, "4.57"),
        (12_345, "12,300"),
        (9.999, "10.0"),
        (-0.5, "-0.500"),
        (100, "100"),
    ],
)
def test_three_figures(value, text):
    assert figures(value) == text


def test_other_numbers_of_figures():
    assert (figures(2.64, 2), figures(264, 2), figures(0.00264, 1)) == ("2.6", "260", "0.003")


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "–"),
        (math.nan, "–"),
        (0.0, "0 s"),
        (-9.7e-17, "0 s"),
        (850e-6, "850 us"),
        (0.99940e-3, "999 us"),
        (0.99960e-3, "1.00 ms"),
        (1e-3, "1.00 ms"),
        (0.0482, "48.2 ms"),
        (0.9994, "999 ms"),
        (0.9996, "1.00 s"),
        (1.0, "1.00 s"),
        (1.93, "1.93 s"),
        (95.0, "95.0 s"),
        (-0.02, "-20.0 ms"),
    ],
)
def test_times(value, text):
    assert seconds(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(150e-6, "150 us"), (1e-3, "1 ms"), (0.05, "50 ms"), (0.1234567, "123.457 ms"), (1.0, "1 s"), (2.5, "2.5 s")],
)
def test_targets_as_they_were_written(value, text):
    assert target(value) == text


@pytest.mark.parametrize(
    ("share", "text"),
    [
        (None, "–"),
        (math.nan, "–"),
        (0.0, "0 %"),
        (0.0004, "< 0.1 %"),
        (0.001, "0.1 %"),
        (0.714, "71.4 %"),
        (0.93, "93 %"),
        (0.9994, "99.9 %"),
        (0.9996, "> 99.9 %"),
        (1.0, "100 %"),
        (2.0, "200 %"),
    ],
)
def test_shares(share, text):
    assert percent(share) == text


def test_errors_of_the_model():
    assert within(14.4) == "± 14 %"
    assert within(99.4) == "± 99 %"
    assert within(100.0) == "within a factor 2.0"
    assert within(160.0) == "within a factor 2.6"


def test_counts_rates_and_lists():
    assert count(1_234_567) == "1,234,567"
    assert (rate(None), rate(math.nan), rate(6.3219)) == ("–", "–", "6.32")
    assert [listed(list(names)) for names in ("a", "ab", "abc")] == ["a", "a and b", "a, b and c"]
