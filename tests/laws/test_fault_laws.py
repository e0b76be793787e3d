"""Laws under fire: whatever fails and whenever, every request has one end, and nobody keeps anything."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from simulator.cluster.assembly import assemble
from simulator.cluster.result import COMPLETED
from simulator.cluster.run import Cluster, RunOptions
from simulator.cluster.topology import load_topology
from simulator.validation.fault_laws import broken_laws
from simulator.workload.arrivals import apply_arrivals, parse_arrivals
from simulator.workload.load import load_trace

MODEL = "llama-3.1-8b/h100_sxm"
QUICK = {"start_s": 0.7, "load_gbyte_per_s": 50.0}
WAYS = [
    {"mode": "pull"},
    {"mode": "pull", "kv_load_failure_policy": "recompute"},
    {"mode": "pull", "lease_s": 0.4, "heartbeats": False},
    {"mode": "push"},
    {"mode": "layerwise"},
    {"mode": "layerwise", "landing": "host"},
    {"mode": "staged"},
    {"mode": "store", "store": {"gbit_per_s": 100.0}},
]
CACHES = [
    None,
    {"host": {"gib": 1.0}, "ssd": {"gib": 4.0, "gbyte_per_s": 3.0}, "block_tokens": 64},
    {"host": {"gib": 0.5}, "pool": {"of": "hosts"}, "block_tokens": 64},
    {"host": {"gib": 0.5}, "pool": {"gib": 2.0, "gbyte_per_s": 10.0}, "write": "evict", "block_tokens": 64},
]
BLOCK_TOKENS = {"vllm": 16, "sglang": 1, "tensorrt-llm": 32, "splitwise": 16}
seconds = st.floats(0.0, 8.0).map(lambda s: round(s, 3))
spans = st.one_of(st.none(), st.just(0.0), seconds)


@st.composite
def events(draw: st.DrawFn, pools: tuple[str, ...], linked: bool, tiers: tuple[str, ...]) -> dict[str, Any]:
    kinds = ["crash", "crash", "slow"] + ["link", "nic"] * linked + ["tier"] * bool(tiers)
    kind = draw(st.sampled_from(kinds))
    event: dict[str, Any] = {"kind": kind, "at_s": draw(seconds)}
    span = draw(spans)
    if span is not None:
        event["duration_s"] = span
    if kind == "link":
        return event | {"link": draw(st.sampled_from(["* out", "prefill-0 *", "decode-0 * in"])), "capacity": draw(st.sampled_from([0.0, 0.1]))}
    if kind == "tier":
        return event | {"tier": draw(st.sampled_from(tiers))}
    pool = draw(st.sampled_from(pools))
    event |= {"pool": pool} if draw(st.integers(0, 4)) == 0 else {"worker": f"{pool}-{draw(st.integers(0, 1))}"}
    if kind == "slow":
        event["slowdown"] = draw(st.sampled_from([1.5, 8.0]))
    if kind == "crash":
        event["silent"] = draw(st.booleans())
    return event


@st.composite
def cases(draw: st.DrawFn, engines: tuple[str, ...] = ("vllm", "vllm", "sglang", "tensorrt-llm", "splitwise")) -> dict[str, Any]:
    engine = draw(st.sampled_from(engines))
    over = draw(st.booleans())
    way = draw(st.sampled_from(WAYS)) if over else {}
    if engine == "sglang" and "kv_load_failure_policy" in way:
        way = {"mode": "pull"}
    cache = draw(st.sampled_from(CACHES)) if engine == "vllm" else None
    tiers = () if cache is None else tuple(kind for kind in ("host", "ssd", "pool") if kind in cache and cache[kind].get("of") != "hosts")
    pools = ("prefill", "decode") if over else ("colocated",)
    faults: dict[str, Any] = {
        "events": draw(st.lists(events(pools, over, tiers), max_size=5)),
        "restart": QUICK,
        "health": {"interval_s": draw(st.sampled_from([0.25, 2.0]))},
        "retry": {"limit": draw(st.integers(0, 3)), "streamed": draw(st.sampled_from(["continue", "restart", "fail"]))},
        "no_worker": draw(st.sampled_from(["reject", "wait"])),
    }
    if draw(st.booleans()):
        faults["rates"] = [{"kind": "crash", "mtbf_s": 6.0, "mttr_s": 1.0, "silent": draw(st.booleans())}]
    if draw(st.booleans()):
        faults["transfer_timeout_s"] = 0.5
    client: dict[str, Any] = {}
    if engine != "sglang" and draw(st.booleans()):
        client = {"timeout_s": draw(st.sampled_from([0.05, 1.0, 6.0])), "first_token_timeout_s": draw(st.sampled_from([0.02, 0.5]))}
        client |= {"cancel_share": 0.3, "cancel_after_s": 1.5}
    return {
        "name": f"{MODEL}/{'2p2d' if over else '2c'}/{engine}",
        "transfer": way,
        "faults": faults,
        "client": client,
        "cache": cache,
        "load": draw(st.sampled_from(["poisson:12", "poisson:40", "closed:20", "at-once"])),
        "trace": draw(st.sampled_from(["chat", "agentic"])),
        "kv_blocks": draw(st.sampled_from([None, 11_200 // BLOCK_TOKENS[engine]])),
        "seed": draw(st.integers(0, 999)),
    }


def run(case: dict[str, Any]) -> Cluster:
    import yaml

    def written(value: Any) -> str:
        return yaml.safe_dump(value, default_flow_style=True, width=10**6).strip()

    changes = [f"faults={written(case['faults'])}"]
    changes += [f"client={written(case['client'])}"] if case["client"] else []
    if case["transfer"]:
        network = {"kind": "rdma", "gpus_per_node": 1, "nic_gbit_per_s": 100.0}
        changes += [f"kv_transfer={written(case['transfer'])}", f"network={written(network)}"]
    changes += [f"cache={written(case['cache'])}"] if case["cache"] else []
    changes += [f"kv_blocks={case['kv_blocks']}"] if case["kv_blocks"] else []
    arrivals = parse_arrivals(case["load"])
    offered = apply_arrivals(load_trace(case["trace"], limit=60), arrivals, case["seed"])
    cluster = Cluster(assemble(load_topology(case["name"], changes)), offered, arrivals, RunOptions(seed=case["seed"]))
    cluster.run()
    return cluster


def check(case: dict[str, Any]) -> Cluster:
    cluster = run(case)
    assert broken_laws(cluster) == []
    return cluster


def any_plan(count: int) -> settings:
    return settings(max_examples=count, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))


@any_plan(120)
@given(cases())
def test_every_request_has_one_end_and_nobody_keeps_anything(case: dict[str, Any]) -> None:
    check(case)


@any_plan(15)
@given(cases())
def test_the_same_seed_gives_the_same_run(case: dict[str, Any]) -> None:
    one, other = run(case), run(case)
    assert one.desk.last_token_s.tobytes() == other.desk.last_token_s.tobytes()
    assert one.state.tobytes() == other.state.tobytes() and one.reasons == other.reasons


@any_plan(15)
@given(cases())
def test_faults_that_never_come_change_nothing(case: dict[str, Any]) -> None:
    late = [event | {"at_s": 1e8} for event in case["faults"]["events"]] or [{"kind": "crash", "at_s": 1e8, "worker": "colocated-0"}]
    pool = "prefill-0" if "2p2d" in case["name"] else "colocated-0"
    faults = {"events": [event | ({"worker": pool} if "worker" in event else {}) for event in late]}
    never = run({**case, "faults": faults, "client": {}})
    none = run({**case, "faults": {}, "client": {}})
    assert none.faults is None and never.faults is not None
    assert (never.state == COMPLETED).sum() == (none.state == COMPLETED).sum()
    np.testing.assert_array_equal(never.desk.last_token_s, none.desk.last_token_s)
    np.testing.assert_array_equal(never.desk.first_token_s, none.desk.first_token_s)


@pytest.mark.slow
@any_plan(1500)
@given(cases())
def test_hundreds_of_plans(case: dict[str, Any]) -> None:
    check(case)
