"""Intervals by hand; Student's quantiles from printed tables."""

from __future__ import annotations

import math

import numpy as np
import pytest

from simulator.metrics.confidence import (
    BATCHES,
    Interval,
    batch_means,
    batch_percentile,
    paired,
    t_interval,
    t_quantile,
)


def test_quantiles_are_those_of_the_tables():
    assert t_quantile(0.95, 4) == pytest.approx(2.776445, abs=1e-6)
    assert t_quantile(0.90, 1) == pytest.approx(6.313752, abs=1e-6)
    assert t_quantile(0.99, 30) == pytest.approx(2.749996, abs=1e-6)


def test_an_interval_by_hand():
    found = t_interval([1.0, 2.0, math.nan, 3.0, 4.0, 5.0])
    half = 2.776445 * math.sqrt(2.5 / 5)
    assert (found.mean, found.count) == (3.0, 5)
    assert (found.low, found.high) == (pytest.approx(3 - half, abs=1e-5), pytest.approx(3 + half, abs=1e-5))
    assert found.half_width == pytest.approx(half, abs=1e-5)
    narrow = t_interval([1.0, 2.0, 3.0, 4.0, 5.0], 0.90)
    assert narrow.half_width == pytest.approx(2.131847 * math.sqrt(0.5), abs=1e-5)


def test_too_few_values_have_no_interval():
    none, one = t_interval([math.nan]), t_interval([7.0])
    assert none.count == 0 and math.isnan(none.mean) and math.isnan(none.low) and math.isnan(none.high)
    assert (one.mean, one.count) == (7.0, 1) and math.isnan(one.low) and math.isnan(one.high)
    assert t_interval([7.0, 7.0]) == Interval(7.0, 7.0, 7.0, 2)


def test_an_interval_holds_its_ends():
    found = Interval(2.0, 1.0, 3.0, 9)
    assert [found.holds(value) for value in (0.9, 1.0, 2.0, 3.0, 3.1)] == [False, True, True, True, False]
    assert found.to_dict() == {"mean": 2.0, "low": 1.0, "high": 3.0, "count": 9}


def test_pairs_share_what_varies():
    found = paired([1.0, 10.0, 100.0], [3.0, 12.0, 102.0])
    assert (found.mean, found.low, found.high, found.count) == (2.0, 2.0, 2.0, 3)
    assert paired([0, 0], [0, 2], 0.9).half_width == pytest.approx(6.313752, abs=1e-5)


def test_batches_leave_the_front_out_but_the_mean_does_not():
    found = batch_means([100.0, 1.0, 2.0, 3.0, 4.0], 2)  # batches 1.5 and 3.5
    assert (found.mean, found.count) == (22.0, 2)
    assert found.half_width == pytest.approx(12.7062, abs=1e-4)
    assert found.high - found.mean == pytest.approx(found.mean - found.low)
    assert batch_means([100.0, 1.0, 2.0, 3.0, 4.0], 2, 0.9).half_width == pytest.approx(6.313752, abs=1e-5)


def test_percentiles_of_batches():
    found = batch_percentile([9.0, 1.0, 2.0, 3.0, 4.0, 5.0, 9.0], 0.5, 2)  # medians 2 and 5 of the batches, 4 of all
    assert (found.mean, found.count) == (4.0, 2)
    assert found.half_width == pytest.approx(12.7062 * math.sqrt(4.5) / math.sqrt(2), abs=1e-3)
    narrow = batch_percentile([9.0, 1.0, 2.0, 3.0, 4.0, 5.0, 9.0], 0.5, 2, 0.9)
    assert narrow.half_width == pytest.approx(6.313752 * 1.5, abs=1e-4)


def test_fewer_values_than_batches():
    for found in (batch_means([1.0, 2.0], 3), batch_percentile([1.0, 2.0], 0.5, 3)):
        assert (found.mean, found.count) == (1.5, 0)
        assert math.isnan(found.low) and math.isnan(found.high)
    for found in (batch_means([]), batch_percentile([], 0.5)):
        assert math.isnan(found.mean) and found.count == 0


def test_twenty_batches_unless_told():
    values = np.random.default_rng(0).normal(size=400)
    assert batch_means(values) == batch_means(values, BATCHES, 0.95) and batch_means(values).count == 20
    assert batch_percentile(values, 0.9) == batch_percentile(values, 0.9, 20, 0.95)
    assert t_interval(values) == t_interval(values, 0.95)
    assert batch_means(values, 400).half_width == pytest.approx(t_interval(values).half_width)
