"""Targets of tenants: how they are written, whose requests they judge, and where they come from."""

from __future__ import annotations

import numpy as np
import pytest

from simulator.cluster.assembly import assemble
from simulator.cluster.simulation import run_plan
from simulator.cluster.topology import load_topology
from simulator.errors import InputError, TopologyError
from simulator.metrics.frame import requests_frame
from simulator.metrics.slo import SLO
from simulator.metrics.summary import summarise
from simulator.workload.arrivals import Arrivals
from simulator.workload.trace import Trace


def run(tenants=None, names=("gold", "free")):
    """Eight requests at once on one engine that takes one at a time, 0.1 s each: they wait 0.1 s to 0.8 s."""
    values = {
        "name": "made",
        "engine": {"profile": "vllm", "max_num_seqs": 1, "async_scheduling": False},
        "pools": [{"name": "c", "role": "colocated", "step_time": {"base_s": 0.1}, "kv_blocks": 100}],
    } | ({"tenants": tenants} if tenants else {})
    trace = Trace.from_columns(
        np.zeros(8), np.full(8, 16), np.full(8, 1), tenant=np.arange(8) % 2, tenant_names=names
    )  # fmt: skip
    return run_plan(assemble(load_topology(values)), trace, Arrivals())


def test_text_of_targets_with_tenants():
    slo = SLO.parse("ttft=2s,tpot=50ms;gold:ttft=1s;free:e2e=1min")
    assert slo.targets() == {"ttft": 2.0, "tpot": 0.05}
    assert {name: own.targets() for name, own in slo.tenants} == {"gold": {"ttft": 1.0}, "free": {"e2e": 60.0}}
    alone = SLO.parse("gold:ttft=1s")
    assert (alone.targets(), bool(alone)) == ({}, True)
    assert SLO.parse("ttft=1s;x:itl_p99=5ms").needs_gaps
    assert "tenants" not in SLO.parse("ttft=1s").as_dict()
    assert slo.as_dict()["tenants"]["gold"]["ttft_s"] == 1.0


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("ttft=2s;gold", "--slo: 'gold' names no tenant"),
        ("ttft=2s;gold:ttft=1s;gold:ttft=2s", "--slo: tenant 'gold' is given twice"),
        ("ttft=2s;gold:tpt=1s", "--slo: gold: unknown target 'tpt' (did you mean 'tpot'?)"),
        ("ttft=2s;gold:ttft=1", "--slo: gold: ttft: '1' is not a duration"),
    ],
)
def test_what_cannot_be_read_is_said(text, said):
    with pytest.raises(InputError) as error:
        SLO.parse(text)
    assert said in str(error.value)


def test_each_tenant_is_judged_by_its_own_targets():
    """Gold waits 0.1, 0.3, 0.5 and 0.7 s, free 0.2 to 0.8 s."""
    result = run()
    entry = summarise(result, SLO.parse("ttft=450ms;gold:ttft=150ms"))
    assert entry["tenants"]["gold"]["slo_attainment"] == 0.25
    assert entry["tenants"]["free"]["slo_attainment"] == 0.5
    assert entry["slo_attainment"] == 3 / 8
    assert entry["slo_attainment_by_target"] == {"ttft": 3 / 8}
    frame = requests_frame(result, SLO.parse("ttft=450ms;gold:ttft=150ms"))
    assert frame.groupby("tenant", observed=True)["good"].sum().to_dict() == {"gold": 1, "free": 2}


def test_a_tenant_without_targets_of_its_own_or_common_ones_is_always_good():
    entry = summarise(run(), SLO.parse("gold:ttft=150ms"))
    assert entry["tenants"]["gold"]["slo_attainment"] == 0.25
    assert entry["tenants"]["free"]["slo_attainment"] == 1.0


def test_promises_of_the_topology_hold_unless_the_question_says_otherwise():
    result = run({"gold": {"slo": {"ttft": "350ms"}}})
    assert summarise(result)["tenants"]["gold"]["slo_attainment"] == 0.5
    assert summarise(result)["slo_attainment"] == 6 / 8
    assert summarise(result, SLO.parse("ttft=1s;gold:ttft=150ms"))["tenants"]["gold"]["slo_attainment"] == 0.25


def test_targets_for_a_stranger_are_pointed_out():
    assert "tenant 'silver' has targets, and no requests in the trace" in summarise(
        run(), SLO.parse("ttft=1s;silver:ttft=1s")
    )["warnings"]  # fmt: skip


@pytest.mark.parametrize(
    ("tenants", "said"),
    [
        ({"gold": {"slo": {"ttfb": "1s"}}}, "tenants.gold.slo: unknown key 'ttfb' (did you mean 'ttft'?)"),
        ({"gold": {"slo": {"ttft": "quick"}}}, "tenants.gold.slo.ttft: 'quick' is not a duration"),
        ({"gold": {"slo": {"ttft": "0s"}}}, "tenants.gold.slo.ttft: 0s; a target is above 0"),
        ({"gold": {"slos": {}}}, "tenants.gold: unknown key 'slos' (did you mean 'slo'?)"),
    ],
)
def test_bad_promises_are_refused(tenants, said):
    with pytest.raises((TopologyError, InputError)) as error:
        run(tenants)
    assert said in str(error.value)
