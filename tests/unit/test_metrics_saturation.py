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
