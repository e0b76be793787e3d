"""What each GPU can move and over which link profile: NVLink ports, cards, PCIe lanes, and the cores behind sockets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from simulator.cluster.schema import NetworkPart
from simulator.errors import TopologyError
from simulator.hardware.gpu import Gpu
from simulator.hardware.links import Link, list_links, load_link
from simulator.network.layout import Cell, Seat, Wiring
from simulator.units import BITS_PER_BYTE, GB

_NODE_GPUS = 8


@dataclass(frozen=True)
class Ports:
    """One GPU type's ports as the topology's network has them, in effective bytes a second.

    ``card_line_bytes_per_s``: a card before what is lost on the way. ``cpu_bytes_per_s``: what the cores behind one
    GPU's sockets move, 0 where cards need none.
    """

    nvlink: Link | None
    card: Link | None
    pcie: Link
    nvlink_bytes_per_s: float
    card_bytes_per_s: float
    card_line_bytes_per_s: float
    pcie_bytes_per_s: float
    cpu_bytes_per_s: float

    def seat(self, name: str, cells: tuple[Cell, ...]) -> Seat:
        """An engine with such GPUs in ``cells``."""
        ports = (self.nvlink_bytes_per_s, self.card_bytes_per_s, self.pcie_bytes_per_s, self.cpu_bytes_per_s)
        return Seat(name, cells, *ports)


def wiring_of(network: NetworkPart, gpus: Sequence[Gpu], store_bytes_per_s: float) -> Wiring:
    """Sizes of nodes and racks, and what narrows the ways out of them."""
    domain = min(gpu.nvlink_domain_gpus for gpu in gpus)
    if network.kind == "nvlink":
        return Wiring(network.gpus_per_node or domain, 1, 1.0, nvlink_between_nodes=False)
    per_node = network.gpus_per_node or max(_NODE_GPUS, domain)
    return Wiring(
        per_node,
        network.nics_per_node or per_node,
        network.oversubscription,
        nodes_per_rack=network.nodes_per_rack or 0,
        rack_oversubscription=network.rack_oversubscription,
        rails=network.rails,
        store_bytes_per_s=store_bytes_per_s,
    )


def ports_of(network: NetworkPart, gpu: Gpu, wiring: Wiring, place: str) -> Ports:
    """Line rates from the topology, the named link or the GPU; efficiencies from the nearest link profile."""
    named = _named_link(network.link, place) if network.link else None
    nvlink_rate = (network.nvlink_gbyte_per_s or 0.0) * GB or gpu.nvlink_bandwidth_bytes_per_s
    card_rate = (network.nic_gbit_per_s or 0.0) * GB / BITS_PER_BYTE
    pcie = nearest_link("pcie", gpu.pcie_bandwidth_bytes_per_s)
    lanes = gpu.pcie_bandwidth_bytes_per_s * pcie.reached
    if network.kind == "nvlink":
        if named and not network.nvlink_gbyte_per_s:
            nvlink_rate = named.bandwidth_bytes_per_s
        if nvlink_rate <= 0:
            raise TopologyError(f"{place}.kind: {gpu.name} has no NVLink; use rdma or ethernet")
        link = named or nearest_link("nvlink", nvlink_rate)
        return Ports(link, None, pcie, nvlink_rate * (network.efficiency or link.reached), 0.0, 0.0, lanes, 0.0)
    if not card_rate:
        share = gpu.nic_bandwidth_bytes_per_s * wiring.gpus_per_node / wiring.nics_per_node
        card_rate = named.bandwidth_bytes_per_s if named else share
    if card_rate <= 0:
        raise TopologyError(f"{place}.nic_gbit_per_s: {gpu.name} has no network card of its own; give a number")
    card = named or nearest_link(network.kind, card_rate)
    nvlink = nearest_link("nvlink", nvlink_rate) if nvlink_rate > 0 else None
    effective = nvlink_rate * nvlink.reached if nvlink else 0.0
    cores = (network.cores_per_gpu or 1.0) / card.cpu_s_per_byte if card.cpu_s_per_byte else 0.0
    return Ports(
        nvlink, card, pcie, effective, card_rate * (network.efficiency or card.reached), card_rate, lanes, cores
    )


def _named_link(name: str, place: str) -> Link:
    try:
        return load_link(name)
    except TopologyError as error:
        raise TopologyError(f"{place}.{error}") from None


def nearest_link(kind: str, bandwidth_bytes_per_s: float) -> Link:
    """The shipped link of this kind whose line rate is nearest, as a ratio."""
    links = [link for link in map(load_link, list_links()) if link.kind == kind and not link.by_name_only]
    ratio = [max(link.bandwidth_bytes_per_s, bandwidth_bytes_per_s) for link in links]
    low = [min(link.bandwidth_bytes_per_s, bandwidth_bytes_per_s) for link in links]
    return min(zip(ratio, low, links, strict=True), key=lambda entry: entry[0] / entry[1])[2]
