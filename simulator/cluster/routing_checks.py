"""What a topology's routing, admission and tenants must satisfy before anything is computed from them."""

from __future__ import annotations

from typing import Any

from simulator.cluster.profiles import load_profile
from simulator.cluster.routers import ADMISSION, JOINT, OPTIONS, ROUTERS
from simulator.cluster.schema import RouterPart, Topology
from simulator.errors import TopologyError, unknown
from simulator.units import parse_duration

#: Policies whose engines can take any part of a request, as machines do that are lent to another pool.
_ANY_PART = ("vllm-v1", "splitwise", "tensorrt-llm")


def check_routing(topology: Topology, place: str) -> None:
    """Raise TopologyError for the first router, option or target that cannot be used."""
    routing = topology.routing
    for role in ("prefill", "decode", "colocated"):
        _check_router(routing.router(role), f"{place}: routing.{role}", ROUTERS)
    joint = routing.router("joint")
    if joint is not None:
        _check_router(joint, f"{place}: routing.joint", JOINT)
        if not topology.disaggregated:
            roles = ", ".join(sorted({pool.role for pool in topology.pools}))
            raise TopologyError(f"{place}: routing.joint: needs prefill and decode pools; found {roles}")
    _check_parts(topology, place)
    _check_admission(topology, place)
    for tenant, part in topology.tenants.items():
        for name, target in part.targets().items():
            where = f"{place}: tenants.{tenant}.slo.{name}"
            if parse_duration(target, where) <= 0:
                raise TopologyError(f"{where}: {target}; a target is above 0")


def is_lending(topology: Topology) -> bool:
    """Whether machines of one pool may do the work of the other."""
    joint = topology.routing.router("joint")
    return joint is not None and joint.kind == "splitwise"


def _check_router(part: RouterPart | None, place: str, table: dict[str, Any]) -> None:
    if part is None:
        return
    if part.kind not in table:
        raise TopologyError(unknown(place, "router", part.kind, table))
    meant = OPTIONS.get(part.kind, ())
    for name in type(part).model_fields:
        if name != "kind" and name not in meant and getattr(part, name) is not None:
            allowed = ", ".join(meant) or "no option"
            raise TopologyError(f"{place}.{name}: means nothing for router {part.kind}; allowed: {allowed}")


def _check_parts(topology: Topology, place: str) -> None:
    """Mixed machines, and lent ones, need an engine that can take any part of a request."""
    mixed = topology.disaggregated and any(pool.role == "mixed" for pool in topology.pools)
    if not mixed and not is_lending(topology):
        return
    policy = load_profile(topology.profile, f"{place}: engine").policy
    if policy not in _ANY_PART:
        what = "routing.joint: splitwise" if is_lending(topology) else "pools: role mixed beside prefill and decode"
        raise TopologyError(f"{place}: {what} cannot be run with {policy} engines; allowed: {', '.join(_ANY_PART)}")


def _check_admission(topology: Topology, place: str) -> None:
    admission = topology.admission
    if admission is None:
        return
    place = f"{place}: admission"
    if admission.kind not in ADMISSION:
        raise TopologyError(unknown(f"{place}.kind", "admission", admission.kind, ADMISSION))
    if (admission.kind == "queue") != (admission.max_waiting is not None):
        what = "is missing" if admission.kind == "queue" else "means nothing for this kind; allowed: kind queue"
        raise TopologyError(f"{place}: key 'max_waiting' {what}")
    if admission.kind == "queue":
        return
    if admission.ttft is None and admission.tpot is None:
        raise TopologyError(f"{place}: key 'ttft' or 'tpot' is missing: the target that may not be missed")
    if admission.kind == "predicted" and admission.decode_s is None:
        raise TopologyError(f"{place}: key 'decode_s' is missing: how long a request is taken to decode")
    for name in ("ttft", "tpot"):
        given = getattr(admission, name)
        if given is not None and parse_duration(given, f"{place}.{name}") <= 0:
            raise TopologyError(f"{place}.{name}: {given}; a target is above 0")
