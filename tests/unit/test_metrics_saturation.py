"""The queue of a single server, with the load below and above what it can take."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from report_runs import busy_run, run_of

from simulator.metrics.saturation import is_saturated, queue_grows


def single_server(load, n=2000, seed=0, service_cv=1.0):
    """Arrival and start times of a queue with one server at ``load`` times its capacity."""
    rng = np.random.default_rng(seed)
    arrival = np.cumsum(rng.exponential(1.0, n))
    service = rng.gamma(1 / service_cv**2, load * service_cv**2, n)
    start, free = np.empty(n), 0.0
    for i in range(n):
        start[i] = max(arrival[i], free)
        free = start[i] + service[i]
    return arrival, start


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("load", [0.3, 0.7, 0.85])
def test_stable_queue_is_not_saturated(load, seed):
    assert not queue_grows(*single_server(load, seed=seed))


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("load", [1.25, 2.0, 10.0])
def test_overloaded_queue_is(load, seed):
    assert queue_grows(*single_server(load, seed=seed))


def test_long_prefill_is_no_queue_that_grows():
    arrival = np.arange(1000) * 0.1
    assert not queue_grows(arrival, arrival + 20.0)


def test_too_few_requests_or_all_at_once_show_no_trend():
    arrival, start = single_server(3.0, n=20)
    assert not queue_grows(arrival, start)
    assert not queue_grows(np.zeros(500), np.arange(500.0))


def test_closed_loops_are_not_judged_and_a_run_that_knows_is_believed():
    run = busy_run(saturated=True)
    assert is_saturated(run)
    assert not is_saturated(dataclasses.replace(run, arrivals="closed:16"))
    assert not is_saturated(dataclasses.replace(run, saturated=False))
    assert is_saturated(dataclasses.replace(run_of([{"first": 1, "last": 2}]), saturated=True))


def test_requests_that_never_start_count_as_waiting():
    rows = [
        {"arrival": float(i), "state": 3} if i % 2 else {"arrival": float(i), "first": i + 1, "last": i + 2}
        for i in range(200)
    ]
    assert is_saturated(run_of(rows))


def growing(n, excess):
    """Arrivals a second apart; of every 100 the server starts all but ``excess``, evenly."""
    arrival = np.arange(float(n))
    started = arrival[: int(n * (1 - excess / 100))] / (1 - excess / 100)
    return arrival, np.concatenate([started, np.full(n - started.size, np.inf)])


def test_a_queue_has_to_grow_by_more_than_chance():
    """In the second half 2,000 arrive: chance explains 2 x sqrt(2000) = 89 more that wait, 4.5 of every 100."""
    assert not queue_grows(*growing(4000, 4.2))
    assert queue_grows(*growing(4000, 4.8))
    # of 40 arrivals 20: chance explains 8.9 of them
    assert not queue_grows(*growing(40, 40))
    assert queue_grows(*growing(40, 50))
    assert not queue_grows(*growing(39, 90))


def test_a_queue_that_shrinks_once_does_not_grow_to_the_end():
    arrival = np.arange(4000.0)
    for end in (1000, 2000, 3000, 4000):  # nothing starts for a quarter, then all that waits does
        held = (arrival >= end - 900) & (arrival < end)
        started = np.where(held, float(end), arrival)
        assert queue_grows(arrival, np.sort(started)) is False
    # it grows from quarter to quarter, but all of that in the first half
    started = np.where(arrival < 2000, arrival + arrival / 4, arrival + 440.0)
    assert not queue_grows(arrival, np.sort(started))


def test_all_but_the_first_at_one_moment_is_a_window_all_the_same():
    arrival = np.concatenate([[0.0], np.full(99, 10.0)])
    assert not queue_grows(arrival, np.full(100, np.inf))
    assert not queue_grows(np.full(100, 3.0), np.full(100, np.inf))
