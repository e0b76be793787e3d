"""A GPU as datasheets describe it, and its kernels as they were measured."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class KernelProfile:
    """Fitted efficiencies of one GPU's kernels.

    ``operators``: operator name -> parameter name -> value; what they mean is the cost room's affair.
    ``sources``: operator name -> where its parameters come from. ``derived_from``: the GPU they were fitted on, if it
    is not this one. ``path``: the file, beside which an operator may keep tables.
    """

    gpu: str
    operators: Mapping[str, Mapping[str, float]]
    sources: Mapping[str, str] = field(default_factory=dict)
    derived_from: str | None = None
    path: Path | None = None


@dataclass(frozen=True)
class Gpu:
    """One GPU and its share of the node. Peaks are dense (datasheets often print the sparse ones, twice as high).

    ``peak_flops``: per second, by arithmetic (bf16, fp8, nvfp4, mxfp4, int8, fp32). Link bandwidths are in one
    direction. ``nvlink_domain_gpus``: GPUs that reach each other over NVLink, 1 without it.
    ``nic_bandwidth_bytes_per_s``: one GPU's share of the node's network cards. ``host_speed``: how fast the processors
    it is sold with run one thread, those beside an H100 being 1 (None: as those). ``sources``: field -> where it is
    from.
    ``derived_from``: the GPU whose kernel measurements stand in for this one's, if any.
    """

    name: str
    memory_bytes: int
    memory_bandwidth_bytes_per_s: float
    peak_flops: Mapping[str, float]
    sms: int
    l2_bytes: int
    nvlink_bandwidth_bytes_per_s: float
    nvlink_domain_gpus: int
    pcie_bandwidth_bytes_per_s: float
    nic_bandwidth_bytes_per_s: float
    power_watts: float
    idle_power_watts: float
    usd_per_hour: float | None = None
    host_speed: float | None = None
    sources: Mapping[str, str] = field(default_factory=dict)
    kernels: KernelProfile | None = None
    derived_from: str | None = None
