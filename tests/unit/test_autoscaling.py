"""Pools that follow the load: when workers come and go, what is paid for, what is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from simulator.cluster.assembly import assemble
from simulator.cluster.result import COMPLETED, RunResult
from simulator.cluster.simulation import run_plan
from simulator.cluster.topology import load_topology
from simulator.errors import TopologyError
from simulator.metrics.summary import summarise
from simulator.workload.arrivals import parse_arrivals
from simulator.workload.trace import Trace

POOL = {"name": "all", "role": "colocated", "workers": 4, "usd_per_hour": 3.6}
ONE: dict[str, Any] = {
    "name": "one",
    "kv_blocks": 100_000,
    "step_time": {"base_s": 0.1},
    "engine": {"profile": "vllm", "async_scheduling": False, "enable_prefix_caching": False, "max_num_seqs": 1},
    "pools": [POOL],
    "frontend": {"before_s": 0.0, "after_s": 0.0},
}
SCALE = {"pool": "all", "requests": 1.0, "every_s": 1.0, "cooldown_s": 3.0, "start_s": 0.5}


def outcome(trace: Trace, scale: dict[str, Any], **more: Any) -> RunResult:
    autoscaling = {"pools": [{**SCALE, **scale}]}
    return run_plan(
        assemble(load_topology({**ONE, "autoscaling": autoscaling, **more})), trace, parse_arrivals("trace")
    )


def burst() -> Trace:
    """Four requests of 10 s each in the first half second, one after another at one worker; later short ones."""
    late = np.arange(14.5, 46.0, 4.0)
    arrivals = np.concatenate([np.linspace(0.1, 0.4, 4), late])
    return Trace.from_columns(arrivals, np.full(arrivals.size, 8), [100] * 4 + [2] * late.size)


def test_workers_come_with_the_load_and_go_when_it_has_been_gone_for_long_enough() -> None:
    run = outcome(burst(), {})
    assert (run.record.state == COMPLETED).all()
    found = [(change["at_s"], change["workers"]) for change in run.autoscaling["changes"]]  # type: ignore[attr-defined]
    # one request less every 10 s, which is seen a second later, and believed when it has been so for three
    assert found[:4] == [(1.0, 4), (14.0, 3), (24.0, 2), (34.0, 1)]
    assert found[4:] == [(35.0, 2)]  # what came at 34.5 s stands behind the last of the four


def test_what_comes_while_workers_start_goes_to_those_there_are() -> None:
    trace = Trace.from_columns([0.1, 0.2, 1.2, 1.6], [8] * 4, [50] * 4)
    record = outcome(trace, {}).record
    assert record.prefill_worker.tolist() == [0, 0, 0, 1]


def test_only_what_was_on_is_paid_for() -> None:
    run = outcome(burst(), {})
    (pool,) = run.pools
    hours = run.autoscaling["worker_hours"]["all"]  # type: ignore[index]
    assert pool.on_share == pytest.approx(hours * 3600 / (4 * (run.last_completion_s - run.first_arrival_s)), rel=0.02)
    entry = summarise(run)
    assert entry["cost"]["usd_per_hour"] == pytest.approx(4 * 3.6 * pool.on_share)
    assert entry["gpus_on"] == pytest.approx(4 * pool.on_share)
    assert 0.25 < pool.on_share < 1.0


def test_a_worker_that_goes_finishes_what_it_has() -> None:
    """Looks are a second apart: one request each at two workers, and one worker is enough by then."""
    trace = Trace.from_columns([0.1, 0.2], [8] * 2, [50] * 2)
    run = outcome(trace, {"first_workers": 2, "requests": 9.0, "cooldown_s": 0.0})
    assert run.autoscaling["changes"] == [{"at_s": 1.0, "pool": "all", "workers": 1}]
    assert run.record.prefill_worker.tolist() == [0, 1] and (run.record.state == COMPLETED).all()
    assert run.autoscaling["worker_hours"]["all"] == pytest.approx((5.1 + 5.2) / 3600, abs=1.1 / 3600)  # type: ignore[index]


def test_machines_change_between_prefill_and_decode() -> None:
    """Three machines: long prompts first, long answers later."""
    prompts = Trace.from_columns(
        np.arange(120) * 0.25, [6000] * 60 + [20] * 60, [2] * 60 + [400] * 60, name="prompts, then answers"
    )
    scale = {"every_s": 1.0, "cooldown_s": 2.0, "start_s": 0.5, "requests": 2.0}
    pools = [{"pool": pool, **scale} for pool in ("prefill", "decode")]
    part = {"autoscaling": {"pools": pools, "total_workers": 3}}
    values = load_topology("llama-3.1-8b/l40s/2p2d").to_dict() | part
    run = run_plan(assemble(load_topology(values)), prompts, parse_arrivals("trace"))
    assert (run.record.state == COMPLETED).all()
    most: dict[str, int] = {}
    at = {"prefill": 1, "decode": 1}
    for change in run.autoscaling["changes"]:  # type: ignore[attr-defined]
        at[change["pool"]] = change["workers"]
        most[change["pool"]] = max(most.get(change["pool"], 1), change["workers"])
    assert most == {"prefill": 2, "decode": 2}
    assert run.pools[0].on_share + run.pools[1].on_share <= 2 * 3 / 4 + 1e-9


@pytest.mark.parametrize(
    ("scale", "said"),
    [
        ({"pool": "al"}, "unknown pool 'al' (did you mean 'all'?)"),
        ({"kv_use": 0.5}, "found requests and kv_use; give one of"),
        ({"min_workers": 5}, "first_workers: found 5; allowed: 5 to 4 (pools.all.workers)"),
        ({"every": 1}, "unknown key 'every' (did you mean 'every_s'?)"),
        ({"tolerance": 2.0}, "tolerance"),
    ],
)
def test_what_cannot_be_is_refused(scale: dict[str, Any], said: str) -> None:
    with pytest.raises(TopologyError) as caught:
        outcome(burst(), scale)
    assert said in str(caught.value) and "\n" not in str(caught.value)


def test_the_budget_holds_at_least_the_first_workers() -> None:
    with pytest.raises(TopologyError, match="total_workers: found 1; allowed: from 2"):
        values = {**ONE, "autoscaling": {"pools": [{**SCALE, "first_workers": 2}], "total_workers": 1}}
        assemble(load_topology(values))
