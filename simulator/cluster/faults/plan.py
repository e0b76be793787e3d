"""Faults of a topology worked out: which workers and links each one hits, how long a restart takes, who notices."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

from simulator.cluster.faults.parts import AutoscalingPart, ClientPart, EventPart, FaultsPart, HealthPart, RatePart
from simulator.cluster.faults.scaling_checks import check_autoscaling
from simulator.cluster.places import Places
from simulator.errors import TopologyError, unknown
from simulator.network.fabric import Network
from simulator.resources import shipped
from simulator.schema import read_yaml
from simulator.units import GB

if TYPE_CHECKING:
    from simulator.cluster.plan import CachePlan, WorkerPlan
    from simulator.cluster.schema import NetworkPart, Topology

#: Keys that mean something for each kind of event, besides ``at_s`` and ``duration_s``; the first ones: what it hits.
_KEYS = {
    "crash": ("worker", "pool", "silent"),
    "slow": ("worker", "pool", "slowdown"),
    "link": ("link", "capacity"),
    "nic": ("worker", "pool", "cards"),
    "tier": ("tier", "worker", "pool"),
}
_ALL = ("worker", "pool", "link", "tier", "slowdown", "capacity", "cards", "silent")


@dataclass(frozen=True)
class Event:
    """One fault: workers by index, links by name. ``factor``: of step times, or of the links' capacity."""

    kind: str
    at_s: float
    duration_s: float | None
    workers: tuple[int, ...] = ()
    links: tuple[str, ...] = ()
    tier: str = ""
    factor: float = 1.0
    silent: bool = False


@dataclass(frozen=True)
class Rate:
    """Faults of each of these workers, drawn."""

    kind: str
    workers: tuple[int, ...]
    mtbf_s: float
    mttr_s: float
    factor: float
    silent: bool


@dataclass(frozen=True)
class Health:
    """Probes at multiples of ``interval_s``; ``failures`` in a row, each known ``timeout_s`` later, are believed."""

    interval_s: float
    failures: int
    timeout_s: float

    def noticed_s(self, died_s: float) -> float:
        """When a worker that died without a word is taken for dead."""
        first = math.floor(died_s / self.interval_s) + 1
        return (first + self.failures - 1) * self.interval_s + self.timeout_s

    def back_s(self, up_s: float) -> float:
        """When a worker that answers again gets requests: with its first probe."""
        return math.ceil(up_s / self.interval_s) * self.interval_s


@dataclass(frozen=True)
class FaultPlan:
    """What fails, and what is done then. ``restart_s``: of each worker, process and weights."""

    events: tuple[Event, ...]
    rates: tuple[Rate, ...]
    health: Health
    restart_s: tuple[float, ...]
    retry_limit: int = 3
    streamed: str = "continue"
    waits: bool = False
    transfer_timeout_s: float | None = None
    client: ClientPart = field(default_factory=ClientPart)
    autoscaling: AutoscalingPart | None = None


def plan_faults(
    topology: Topology, workers: Sequence[WorkerPlan], network: Network, cache: CachePlan | None
) -> FaultPlan | None:
    """The plan, or None where nothing can fail and clients wait for ever. Raises TopologyError for unknown names."""
    part, client = topology.faults or FaultsPart(), topology.client or ClientPart()
    if client.cancel_share > 0 and client.cancel_after_s is None:
        raise TopologyError(f"{topology.source}: client: key 'cancel_after_s' is missing beside cancel_share")
    if not part.events and not part.rates and client == ClientPart() and topology.autoscaling is None:
        return None
    place = f"{topology.source}: faults"
    names = _Names(topology, workers, network, cache)
    defaults = read_yaml(shipped("hardware_profiles") / "reliability" / "restart.yaml", TopologyError)
    start_s = _first(part.restart.start_s, defaults["start_s"])
    load = _first(part.restart.load_gbyte_per_s, defaults["load_gbyte_per_s"]) * GB
    plan = FaultPlan(
        events=tuple(names.event(event, f"{place}.events.{i}") for i, event in enumerate(part.events)),
        rates=tuple(names.rate(rate, f"{place}.rates.{i}") for i, rate in enumerate(part.rates)),
        health=_health(part.health, defaults["health"]),
        restart_s=tuple(start_s + weight_bytes(worker) / load for worker in workers),
        retry_limit=part.retry.limit,
        streamed=part.retry.streamed,
        waits=part.no_worker == "wait",
        transfer_timeout_s=part.transfer_timeout_s,
        client=client,
        autoscaling=topology.autoscaling,
    )
    check_autoscaling(topology)
    return plan


def weight_bytes(worker: WorkerPlan) -> float:
    """Weights of all GPUs of a worker; 0 where step times are given outright."""
    return 0.0 if worker.memory is None else worker.memory.weights * worker.parallel.gpus


def _first(given: float | None, default: Any) -> float:
    return float(default) if given is None else given


def _health(part: HealthPart, default: dict[str, Any]) -> Health:
    return Health(
        _first(part.interval_s, default["interval_s"]),
        int(_first(part.failures, default["failures"])),
        _first(part.timeout_s, default["timeout_s"]),
    )


@dataclass(frozen=True)
class _Names:
    """What a fault may name in this topology."""

    topology: Topology
    workers: Sequence[WorkerPlan]
    network: Network
    cache: CachePlan | None

    def event(self, part: EventPart, place: str) -> Event:
        """An event with what it hits."""
        found = [key for key in _ALL if getattr(part, key) is not None]
        for key in found:
            if key not in _KEYS[part.kind]:
                raise TopologyError(unknown(f"{place}: kind {part.kind}", "key", key, _KEYS[part.kind]))
        if part.kind in ("link", "tier"):
            if getattr(part, part.kind) is None:
                raise TopologyError(f"{place}: key '{part.kind}' is missing")
        elif part.worker is None and part.pool is None:
            raise TopologyError(f"{place}: key 'worker' is missing (or give pool)")
        span = part.at_s, part.duration_s
        if part.kind == "link":
            return Event("link", *span, links=self._links(str(part.link), place), factor=part.capacity or 0.0)
        workers = self._workers(part.worker, part.pool, place)
        if part.kind == "nic":
            return Event("link", *span, links=self._cards(workers, place), factor=self._left(workers, part.cards or 1))
        if part.kind == "tier":
            self._check_tier(str(part.tier), place)
            return Event("tier", *span, workers, tier=str(part.tier))
        return Event(part.kind, *span, workers, factor=self._slowdown(part, place), silent=bool(part.silent))

    def rate(self, part: RatePart, place: str) -> Rate:
        """A rate with the workers it holds for: all, where none are named."""
        workers = self._workers(part.worker, part.pool, place)
        return Rate(part.kind, workers, part.mtbf_s, part.mttr_s, self._slowdown(part, place), bool(part.silent))

    def _slowdown(self, part: EventPart | RatePart, place: str) -> float:
        if part.kind == "slow" and part.slowdown is None:
            raise TopologyError(f"{place}: key 'slowdown' is missing")
        if part.kind != "slow" and part.slowdown is not None:
            raise TopologyError(f"{place}: slowdown has no meaning for kind {part.kind}; allowed with kind slow")
        return part.slowdown or 1.0

    def _workers(self, worker: str | None, pool: str | None, place: str) -> tuple[int, ...]:
        if worker is not None and pool is not None:
            raise TopologyError(f"{place}: found worker and pool; give one of them")
        if worker is not None:
            names = [one.name for one in self.workers]
            if worker not in names:
                raise TopologyError(unknown(place, "worker", worker, names))
            return (names.index(worker),)
        if pool is not None:
            pools = [one.name for one in self.topology.pools]
            if pool not in pools:
                raise TopologyError(unknown(place, "pool", pool, pools))
        return tuple(one.index for one in self.workers if pool in (None, one.pool))

    def _links(self, pattern: str, place: str) -> tuple[str, ...]:
        names = [link.name for link in self.network.links]
        found = tuple(name for name in names if fnmatchcase(name, pattern))
        if not found and not names:
            raise TopologyError(f"{place}.link: found {pattern!r}; this topology has no network with links")
        if not found:
            raise TopologyError(unknown(place, "link", pattern, names))
        return found

    def _cards(self, workers: Sequence[int], place: str) -> tuple[str, ...]:
        """Links that are network cards of these workers, both ways."""
        names: dict[str, None] = {}
        hosts = Places(len(self.workers)).host
        ends = {*workers, *map(hosts, workers)}
        for (src, dst), path in self.network.paths.items():
            for end, way in ((src, "out"), (dst, "in")):
                if end in ends:
                    links = (self.network.links[crossing.link].name for crossing in path.crossings)
                    names |= dict.fromkeys(name for name in links if " nic " in name and name.endswith(f" {way}"))
        if not names:
            raise TopologyError(f"{place}: kind nic: the workers named have no network cards between them and others")
        return tuple(names)

    def _left(self, workers: Sequence[int], lost: int) -> float:
        """Share of a worker's cards that is left: what they carried goes over the others, evenly."""
        network: NetworkPart | None = self.topology.network
        cards = max(self.workers[i].parallel.gpus for i in workers)
        if network is not None and network.nics_per_node and network.gpus_per_node:
            cards = max(1, cards * network.nics_per_node // network.gpus_per_node)
        return max(cards - lost, 0) / cards

    def _check_tier(self, tier: str, place: str) -> None:
        tiers = (
            []
            if self.cache is None
            else [kind for kind in self.cache.tiers if kind != "pool" or not self.cache.of_hosts]
        )
        if not tiers:
            raise TopologyError(f"{place}.tier: found {tier!r}; this topology has no cache below its engines")
        if tier not in tiers:
            raise TopologyError(unknown(place, "tier", tier, tiers))
