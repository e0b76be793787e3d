"""Fault plans drawn at random: topology, load, what fails and when, what is done then. For tests and for counting."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import yaml

from simulator.cluster.assembly import assemble
from simulator.cluster.run import Cluster, RunOptions
from simulator.cluster.topology import load_topology
from simulator.workload.arrivals import apply_arrivals, parse_arrivals
from simulator.workload.load import load_trace

#: Picks one of a sequence: a random generator's choice, or a test tool's.
Choose = Callable[[Sequence[Any]], Any]
Case = dict[str, Any]

_MODEL = "llama-3.1-8b/h100_sxm"
#: Engines, and how many tokens a block of theirs has.
_BLOCK_TOKENS = {"vllm": 16, "sglang": 1, "tensorrt-llm": 32, "splitwise": 16}
_SCARCE_TOKENS = 11_200
_REQUESTS = 60
_MOMENTS_MS = range(8001)
_WAYS: tuple[Mapping[str, Any], ...] = (
    {"mode": "pull"},
    {"mode": "pull", "kv_load_failure_policy": "recompute"},
    {"mode": "pull", "lease_s": 0.4, "heartbeats": False},
    {"mode": "push"},
    {"mode": "layerwise"},
    {"mode": "layerwise", "landing": "host"},
    {"mode": "staged"},
    {"mode": "store", "store": {"gbit_per_s": 100.0}},
)
_CACHES: tuple[Mapping[str, Any] | None, ...] = (
    None,
    {"host": {"gib": 1.0}, "ssd": {"gib": 4.0, "gbyte_per_s": 3.0}, "block_tokens": 64},
    {"host": {"gib": 0.5}, "pool": {"of": "hosts"}, "block_tokens": 64},
    {"host": {"gib": 0.5}, "pool": {"gib": 2.0, "gbyte_per_s": 10.0}, "write": "evict", "block_tokens": 64},
)
_PARTS = ("faults", "autoscaling", "client", "kv_transfer", "cache")
_LINKS = ("* out", "prefill-0 *", "decode-0 * in")


def draw_case(choose: Choose) -> Case:
    """A whole case; ``run_case`` runs it."""
    engine = choose(("vllm", "vllm", "sglang", "tensorrt-llm", "splitwise"))
    over = choose((False, True))
    way = choose(_WAYS) if over else {}
    if engine == "sglang" and "kv_load_failure_policy" in way:  # it knows no other than to fail
        way = _WAYS[0]
    cache = choose(_CACHES) if engine == "vllm" else None
    tiers = [] if cache is None else [kind for kind in ("host", "ssd") if kind in cache]
    if cache is not None and "gib" in cache.get("pool", {}):
        tiers.append("pool")
    pools = ("prefill", "decode") if over else ("colocated",)
    return {
        "name": f"{_MODEL}/{'2p2d' if over else '2c'}/{engine}",
        "kv_transfer": dict(way),
        "faults": _faults(choose, pools, tiers, linked=over),
        "autoscaling": _autoscaling(choose, pools) if choose(range(3)) == 0 else {},
        "client": _client(choose) if choose((False, True)) else {},
        "cache": cache,
        "load": choose(("poisson:12", "poisson:40", "closed:20", "at-once")),
        "trace": choose(("chat", "agentic")),
        "kv_blocks": choose((None, _SCARCE_TOKENS // _BLOCK_TOKENS[engine])),
        "seed": choose(range(1000)),
    }


def _faults(choose: Choose, pools: Sequence[str], tiers: Sequence[str], *, linked: bool) -> dict[str, Any]:
    found: dict[str, Any] = {
        "events": [_event(choose, pools, tiers, linked=linked) for _ in range(choose(range(6)))],
        "restart": {"start_s": 0.7, "load_gbyte_per_s": 50.0},
        "health": {"interval_s": choose((0.25, 2.0))},
        "retry": {"limit": choose(range(4)), "streamed": choose(("continue", "restart", "fail"))},
        "no_worker": choose(("reject", "wait")),
    }
    if choose((False, True)):
        found["rates"] = [{"kind": "crash", "mtbf_s": 6.0, "mttr_s": 1.0, "silent": choose((False, True))}]
    if choose((False, True)):
        found["transfer_timeout_s"] = 0.5
    return found


def _event(choose: Choose, pools: Sequence[str], tiers: Sequence[str], *, linked: bool) -> dict[str, Any]:
    kind = choose(("crash", "crash", "slow", *(("link", "nic") if linked else ()), *(("tier",) if tiers else ())))
    event: dict[str, Any] = {"kind": kind, "at_s": choose(_MOMENTS_MS) / 1000.0}
    lasts = choose(("for ever", "no time", "a while"))
    if lasts != "for ever":
        event["duration_s"] = choose(_MOMENTS_MS) / 1000.0 if lasts == "a while" else 0.0
    if kind == "link":
        return event | {"link": choose(_LINKS), "capacity": choose((0.0, 0.1))}
    if kind == "tier":
        return event | {"tier": choose(tiers)}
    pool = choose(pools)
    event |= {"pool": pool} if choose(range(5)) == 0 else {"worker": f"{pool}-{choose((0, 1))}"}
    if kind == "slow":
        event["slowdown"] = choose((1.5, 8.0))
    if kind == "crash":
        event["silent"] = choose((False, True))
    return event


def _autoscaling(choose: Choose, pools: Sequence[str]) -> dict[str, Any]:
    figures = ({"waiting_requests": 1.0}, {"requests": 4.0}, {"kv_use": 0.05}, {"ttft_s": 0.1})
    often = {"every_s": 0.5, "cooldown_s": choose((0.0, 1.0)), "start_s": 0.3}
    scaled = [{"pool": pool, **often, **choose(figures)} for pool in pools]
    return {"pools": scaled, **({"total_workers": 3} if len(pools) > 1 and choose((False, True)) else {})}


def _client(choose: Choose) -> dict[str, Any]:
    waits = {"timeout_s": choose((0.05, 1.0, 6.0)), "first_token_timeout_s": choose((0.02, 0.5))}
    return waits | {"cancel_share": 0.3, "cancel_after_s": 1.5}


def run_case(case: Case) -> Cluster:
    """The cluster when everything is over."""
    changes = [f"{key}={_written(case[key])}" for key in _PARTS if case[key]]
    if case["kv_transfer"]:
        changes.append(f"network={_written({'kind': 'rdma', 'gpus_per_node': 1, 'nic_gbit_per_s': 100.0})}")
    if case["kv_blocks"]:
        changes.append(f"kv_blocks={case['kv_blocks']}")
    arrivals = parse_arrivals(case["load"])
    offered = apply_arrivals(load_trace(case["trace"], limit=_REQUESTS), arrivals, case["seed"])
    plan = assemble(load_topology(case["name"], changes))
    cluster = Cluster(plan, offered, arrivals, RunOptions(seed=case["seed"]))
    cluster.run()
    return cluster


def _written(value: Any) -> str:
    """A value as one line of YAML."""
    return yaml.safe_dump(value, default_flow_style=True, width=10**6).strip()
