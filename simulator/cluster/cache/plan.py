"""Caches below the engines worked out: pages each tier holds, and the links that loads and copies go over."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from simulator.cluster.engines import Engine
from simulator.cluster.plan import CachePlan, TierPlan, WorkerPlan
from simulator.cluster.ports import nearest_link
from simulator.cluster.schema import CachePart, PoolTierPart, TierPart, Topology
from simulator.errors import TopologyError
from simulator.network.fabric import Crossing, Link, Network, Path
from simulator.units import GB, GIB

#: Read latency of a data-centre NVMe drive, where the topology does not say: 4 KiB random reads take 80 to 100 us by
#: the datasheets of PCIe 4.0 and 5.0 drives.
_SSD_SETUP_S = 100e-6


def plan_cache(
    topology: Topology, workers: Sequence[WorkerPlan], engines: Sequence[Engine], network: Network
) -> CachePlan | None:
    """The tiers of a topology, or None; ``network``: what joins the engines, to which the tiers' links are added."""
    part, place = topology.cache, f"{topology.source}: cache"
    if part is None:
        return None
    _check(part, workers, place)
    size = workers[0].block_size
    bytes_per_token = [_bytes_per_token(part, worker, place) for worker in workers]
    page_bytes = [part.block_tokens * each for each in bytes_per_token]
    own = [worker.role != "decode" or part.outputs for worker in workers]
    links = _Links(network, workers, engines, place)
    tiers: dict[str, TierPlan] = {}
    if part.host is not None:
        link = links.host(part.host, own)
        setup_s = _first(part.host.setup_s, link)
        written = links.rates(own, "pcie out")
        tiers["host"] = TierPlan(_pages(part.host, page_bytes, own), part.host.policy, setup_s, written)
    if part.ssd is not None:
        links.ssd(part.ssd, own, place)
        setup_s = _SSD_SETUP_S if part.ssd.setup_s is None else part.ssd.setup_s
        written = links.rates(own, "ssd write")
        tiers["ssd"] = TierPlan(_pages(part.ssd, page_bytes, own), part.ssd.policy, setup_s, written)
    if part.pool is not None:
        link = links.pool(part.pool, own, place)
        pages = (int((part.pool.gib or 0.0) * GIB / page_bytes[0]),)
        tiers["pool"] = TierPlan(pages, part.pool.policy, _first(part.pool.setup_s, link))
    return CachePlan(
        tiers=tiers,
        page_tokens=part.block_tokens,
        page_blocks=part.block_tokens // size,
        bytes_per_token=tuple(bytes_per_token),
        own=tuple(own),
        of_hosts=part.pool is not None and part.pool.of == "hosts",
        write=part.write,
        outputs=part.outputs,
        network=links.network(),
    )


#: Engines that load from caches below, and the setting that turns their own prefix cache on.
_PREFIX_CACHE = {"vllm-v1": "prefix_caching", "tensorrt-llm": "enable_block_reuse"}


def _check(part: CachePart, workers: Sequence[WorkerPlan], place: str) -> None:
    if part.host is None and part.ssd is None and part.pool is None:
        raise TopologyError(f"{place}: no tier is given; allowed: host, ssd, pool")
    for worker in workers:
        if worker.role == "decode":
            continue
        if worker.policy not in _PREFIX_CACHE:
            loading = ", ".join(_PREFIX_CACHE)
            raise TopologyError(f"{place}: {worker.policy} engines cannot load from caches below; allowed: {loading}")
        setting = _PREFIX_CACHE[worker.policy]
        if not worker.settings[setting]:
            raise TopologyError(f"{place}: pool {worker.pool} has {setting} off, and would find nothing")
    sizes = sorted({worker.block_size for worker in workers})
    if len(sizes) > 1 or part.block_tokens % sizes[0]:
        found = ", ".join(map(str, sizes))
        needed = f"needed: a multiple of the engines' block size ({found}), one for all"
        raise TopologyError(f"{place}.block_tokens: {part.block_tokens}; {needed}")
    if part.pool is not None and part.pool.of == "hosts" and part.host is None:
        raise TopologyError(f"{place}: key 'host' is missing: pool.of: hosts shares what the hosts hold")
    if part.pool is not None and part.pool.of == "store" and part.pool.gib is None:
        raise TopologyError(f"{place}.pool: key 'gib' is missing")


def _bytes_per_token(part: CachePart, worker: WorkerPlan, place: str) -> float:
    found = part.bytes_per_token or worker.kv_bytes_per_block / worker.block_size
    if found <= 0:
        raise TopologyError(f"{place}: key 'bytes_per_token' is missing (or give a model)")
    return found


def _pages(part: TierPart, page_bytes: Sequence[float], own: Sequence[bool]) -> tuple[int, ...]:
    return tuple(int(part.gib * GIB / each) if mine else 0 for each, mine in zip(page_bytes, own, strict=True))


def _first(given: float | None, otherwise: float) -> float:
    return otherwise if given is None else given


@dataclass
class _Links:
    """Links and paths of the tiers, added to those that join the engines.

    A network card that handovers use is the same link here; the direction they do not use is added beside it.
    """

    base: Network
    workers: Sequence[WorkerPlan]
    engines: Sequence[Engine]
    place: str
    links: list[Link] = field(default_factory=list)
    paths: dict[tuple[int, int], Path] = field(default_factory=dict)
    _known: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.links = list(self.base.links)
        self.paths = dict(self.base.paths)
        self._known = {link.name: i for i, link in enumerate(self.links)}

    def network(self) -> Network:
        """All links and paths."""
        return Network(tuple(self.links), self.paths)

    def rates(self, own: Sequence[bool], link: str) -> tuple[float, ...]:
        """Bytes a second of the link of this name that each worker has, 0 where it has none."""
        known = ((f"{worker.name} {link}", own[worker.index]) for worker in self.workers)
        return tuple(self.links[self._known[name]].capacity_bytes_per_s if mine else 0.0 for name, mine in known)

    def host(self, part: TierPart, own: Sequence[bool]) -> float:
        """PCIe of each worker's GPUs, both ways; returns the time to start a copy."""
        setup_s = 0.0
        for worker in self._owners(own):
            gpu, place = self.engines[worker.index].gpu, f"{self.place}.host"
            if part.gbyte_per_s is not None:
                rate = part.gbyte_per_s * GB
            elif gpu is None:
                raise TopologyError(f"{place}: key 'gbyte_per_s' is missing (or give the pool a gpu)")
            else:
                link = nearest_link("pcie", gpu.pcie_bandwidth_bytes_per_s)
                rate = gpu.pcie_bandwidth_bytes_per_s * link.efficiency * worker.parallel.gpus
                setup_s = max(setup_s, link.setup_s)
            back = rate if part.write_gbyte_per_s is None else part.write_gbyte_per_s * GB
            self._path((host_of(worker.index, len(self.workers)), worker.index), [(f"{worker.name} pcie in", rate)])
            self._path((worker.index, host_of(worker.index, len(self.workers))), [(f"{worker.name} pcie out", back)])
        return setup_s

    def ssd(self, part: TierPart, own: Sequence[bool], place: str) -> None:
        """Each worker's drives, behind its PCIe where host memory is a tier, too."""
        if part.gbyte_per_s is None:
            raise TopologyError(f"{place}.ssd: key 'gbyte_per_s' is missing: what the drives of one worker read")
        count = len(self.workers)
        back = part.gbyte_per_s if part.write_gbyte_per_s is None else part.write_gbyte_per_s
        for worker in self._owners(own):
            i = worker.index
            read, write = (f"{worker.name} ssd read", part.gbyte_per_s * GB), (f"{worker.name} ssd write", back * GB)
            inward = self._along(host_of(i, count), i)
            self._path((ssd_of(i, count), i), [read], inward)
            self._path((i, ssd_of(i, count)), [write], self._along(i, host_of(i, count)))
            self._path((host_of(i, count), ssd_of(i, count)), [write])

    def pool(self, part: PoolTierPart, own: Sequence[bool], place: str) -> float:
        """Cards of the workers, and of the store where there is one; returns the time to start a copy."""
        count, setup_s = len(self.workers), 0.0
        for worker in self._owners(own):
            setup_s = max(setup_s, self._card_setup_s(worker))
        if part.of == "hosts":
            for src in self._owners(own):
                for dst in self._owners(own):
                    if src is not dst:
                        crossings = (*self._card(src, "out"), *self._card(dst, "in"))
                        self.paths[host_of(src.index, count), dst.index] = Path(crossings)
            return setup_s
        if part.gbyte_per_s is None:
            raise TopologyError(f"{place}.pool: key 'gbyte_per_s' is missing: what the store gives to all together")
        back = part.gbyte_per_s if part.write_gbyte_per_s is None else part.write_gbyte_per_s
        for worker in self._owners(own):
            i, store = worker.index, store_of(count)
            self._path((store, i), [("store out", part.gbyte_per_s * GB)], self._card(worker, "in"))
            for start in (i, host_of(i, count), ssd_of(i, count)):
                self._path((start, store), [("store in", back * GB)], self._card(worker, "out"))
        return setup_s

    def _owners(self, own: Sequence[bool]) -> list[WorkerPlan]:
        return [worker for worker in self.workers if own[worker.index]]

    def _along(self, src: int, dst: int) -> tuple[Crossing, ...]:
        return self.paths[src, dst].crossings if (src, dst) in self.paths else ()

    def _path(self, ends: tuple[int, int], new: Sequence[tuple[str, float]], more: tuple[Crossing, ...] = ()) -> None:
        self.paths[ends] = Path((*(Crossing(self._index(*link)) for link in new), *more))

    def _index(self, name: str, rate: float) -> int:
        if name not in self._known:
            self._known[name] = len(self.links)
            self.links.append(Link(name, rate))
        return self._known[name]

    def _card(self, worker: WorkerPlan, way: str) -> tuple[Crossing, ...]:
        """The worker's network cards in one direction; what goes over several is spread evenly."""
        cards: dict[str, float] = {}
        for (src, dst), path in self.base.paths.items():
            for end, direction in ((src, "out"), (dst, "in")):
                if end == worker.index:
                    for crossing in path.crossings:
                        link = self.base.links[crossing.link]
                        if " nic " in link.name and link.name.endswith(f" {direction}"):
                            name = link.name.removesuffix(direction) + way
                            cards[name] = link.capacity_bytes_per_s
        if not cards:
            gpu = self.engines[worker.index].gpu
            rate = 0.0 if gpu is None else gpu.nic_bandwidth_bytes_per_s
            if rate <= 0:
                raise TopologyError(f"{self.place}.pool: pool {worker.pool} has no network card; give network")
            cards[f"{worker.name} nic {way}"] = rate * nearest_link("rdma", rate).efficiency * worker.parallel.gpus
        share = 1.0 / len(cards)
        return tuple(Crossing(self._index(name, rate), share, share) for name, rate in cards.items())

    def _card_setup_s(self, worker: WorkerPlan) -> float:
        gpu = self.engines[worker.index].gpu
        return 0.0 if gpu is None else nearest_link("rdma", max(gpu.nic_bandwidth_bytes_per_s, 1.0)).setup_s


def host_of(worker: int, workers: int) -> int:
    """End of a path: the worker's part of host memory (beside the places that handovers know)."""
    return 2 * workers + 1 + worker


def ssd_of(worker: int, workers: int) -> int:
    """End of a path: the worker's drives."""
    return 3 * workers + 1 + worker


def store_of(workers: int) -> int:
    """End of a path: the store that all share."""
    return 4 * workers + 1
