"""Collectives: all-reduce, all-gather, reduce-scatter, point to point, and dispatch to experts and back."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from simulator.cost.kernels import Kernel, Kernels
from simulator.cost.roofline import Floats, Time, collective_time, either
from simulator.hardware.gpu import Gpu
from simulator.models.model import Moe

#: Bytes that cross one GPU's link, as a multiple of ``(n - 1) / n`` of the message (ring algorithms).
RING = {"all_reduce": 2.0, "all_gather": 1.0, "reduce_scatter": 1.0, "alltoall": 1.0}

#: Ways of tokens to experts on other data-parallel ranks and back: gathered; or added up over all ranks, each of which
#: has put its own tokens into a tensor of zeros.
EXCHANGES = {
    "gather": (("all_gather", "all-gather to experts"), ("reduce_scatter", "reduce-scatter from experts")),
    "all_reduce": (("all_reduce", "all-reduce to experts"), ("all_reduce", "all-reduce from experts")),
}


def link_bandwidth(gpu: Gpu, kernel: Kernel | None = None) -> float:
    """One direction of the link between GPUs of a node: NVLink, or PCIe without it, where ``kernel`` may state how fast
    host memory passes it on (``host_bytes_per_s``)."""
    if gpu.nvlink_bandwidth_bytes_per_s:
        return gpu.nvlink_bandwidth_bytes_per_s
    staged = float("inf") if kernel is None else kernel.parameters.get("host_bytes_per_s", float("inf"))
    return min(gpu.pcie_bandwidth_bytes_per_s, staged)


@dataclass(frozen=True)
class Collective:
    """One kind of collective over ``ranks`` GPUs, by the library an engine uses."""

    gpu: Gpu
    kind: str
    ranks: int
    kernel: Kernel
    between_nodes: Kernel

    @property
    def inside(self) -> int:
        """GPUs of one NVLink domain that take part."""
        return min(self.ranks, max(self.gpu.nvlink_domain_gpus, 1)) if self.gpu.nvlink_domain_gpus > 1 else self.ranks

    def time(self, message: ArrayLike) -> Time:
        """Seconds for ``message`` bytes (of the whole tensor, as in the tables)."""
        n = self.inside
        share = RING[self.kind] * (n - 1) / n
        inner = collective_time(link_bandwidth(self.gpu, self.kernel), self.kernel.parameters, n, message, share)
        inner = self.kernel.apply(inner, (float(n),), message)
        nodes = -(-self.ranks // n)
        return inner if nodes == 1 else self._across(inner, message, nodes)

    def _across(self, inner: Time, message: ArrayLike, nodes: int) -> Time:
        """Hierarchical: inside the nodes, then each GPU's part of the message between them over its NIC."""
        part = np.asarray(message, dtype=np.float64) / self.inside
        share = RING[self.kind] * (nodes - 1) / nodes
        outer = collective_time(self.gpu.nic_bandwidth_bytes_per_s, self.between_nodes.parameters, nodes, part, share)
        return Time(*(getattr(inner, f) + getattr(outer, f) for f in Time.__dataclass_fields__))

    def origin(self) -> str:
        if self.ranks > self.inside:
            return f"derived: {self.kernel.name} inside nodes, {self.between_nodes.name} between them"
        return self.kernel.origin((float(self.ranks),))


def all_reduce(kernels: Kernels, library: str, ranks: int) -> Collective:
    """The engine's own all-reduce."""
    return Collective(
        kernels.gpu, "all_reduce", ranks, _inside(kernels, "all_reduce", library, "custom"), _between(kernels)
    )


@dataclass(frozen=True)
class EngineAllReduce:
    """The engine's own all-reduce, and the one that the norm is part of for messages of up to ``most`` bytes."""

    apart: Collective
    fused: Collective
    most: float

    @classmethod
    def of(cls, kernels: Kernels, ranks: int, library: str, fused: str, most: float) -> EngineAllReduce:
        """``library``, ``fused``: whose all-reduce is run; an empty ``fused``: the same one."""
        apart = all_reduce(kernels, library, ranks)
        return cls(apart, all_reduce(kernels, fused, ranks) if fused else apart, most)

    def time(self, message: Floats) -> Time:
        """Seconds for ``message`` bytes."""
        return either(message > self.most, self.apart.time(message), self.fused.time(message))

    def origin(self) -> str:
        both = self.apart.kernel != self.fused.kernel
        return self.apart.origin() + (f"; where the norm is part of it: {self.fused.origin()}" if both else "")


def nccl(kernels: Kernels, kind: str, ranks: int) -> Collective:
    """A collective of NCCL."""
    return Collective(kernels.gpu, kind, ranks, _inside(kernels, kind, "nccl", "nccl"), _between(kernels))


def _inside(kernels: Kernels, kind: str, library: str, variant: str) -> Kernel:
    """The measured kernel over NVLink; over PCIe alone, which no table has, what NCCL reaches there."""
    if not kernels.gpu.nvlink_bandwidth_bytes_per_s:
        return kernels.find("pcie_collective", "any", "any")
    return kernels.find(kind, library, variant)


def _between(kernels: Kernels) -> Kernel:
    return kernels.find("between_nodes", "any", "any")


def point_to_point_time(gpu: Gpu, kernel: Kernel, message: ArrayLike, *, same_node: bool) -> Time:
    """Activations handed to the next pipeline stage. Parameters: t0_s, efficiency."""
    bandwidth = link_bandwidth(gpu) if same_node else gpu.nic_bandwidth_bytes_per_s
    return collective_time(bandwidth, kernel.parameters, 2, message, 1.0)


@dataclass(frozen=True)
class ExpertExchange:
    """Tokens to experts on the other GPUs of an NVLink domain (``way``: dispatch, in one byte a number) or back
    (combine, in two), as the tables have it."""

    gpu: Gpu
    ranks: int
    hidden: int
    moe: Moe
    kernel: Kernel
    way: str

    def time(self, tokens: ArrayLike) -> Time:
        """Seconds for ``tokens`` on each GPU. A token goes once to each GPU that holds one of its experts."""
        t = np.asarray(tokens, dtype=np.float64)
        n = float(self.ranks)
        reached = (n - 1) * (1.0 - (1.0 - 1.0 / n) ** self.moe.top_k)
        message = t * self.hidden * (1.0 if self.way == "dispatch" else 2.0)
        found = collective_time(link_bandwidth(self.gpu), self.kernel.parameters, self.ranks, message, reached)
        return self.kernel.apply(found, self._shape, t)

    @property
    def _shape(self) -> tuple[float, ...]:
        return float(self.hidden), float(self.moe.top_k), float(self.moe.experts)

    def origin(self) -> str:
        return self.kernel.origin(self._shape)


def message_bytes(tokens: ArrayLike, hidden: int) -> Floats:
    """bf16 activations of ``tokens``."""
    result: Floats = np.asarray(tokens, dtype=np.float64) * hidden * 2.0
    return result
