"""Dispatch of tokens to experts on other GPUs and the way back, as DeepEP does it: over NVLink inside a node, over the
network cards between nodes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import comb

import numpy as np
from numpy.typing import ArrayLike

from simulator.cost.kernels import Kernel
from simulator.cost.roofline import Floats, Time
from simulator.hardware.gpu import Gpu
from simulator.models.model import Moe

#: Bytes of an fp8 activation with one fp32 scale for 128 of them, and of a bf16 one.
FP8_SCALED, BF16 = 1.0 + 4.0 / 128.0, 2.0
WAYS = ("dispatch", "combine")


@dataclass(frozen=True)
class ExpertExchange:
    """One way (``way``: dispatch in fp8, combine in bf16) between ``ranks`` GPUs.

    ``low_latency`` kernels send a token once for each expert chosen, straight to its GPU. The normal ones send it once
    to each node, where it is forwarded over NVLink, once to each GPU.
    """

    gpu: Gpu
    ranks: int
    hidden: int
    moe: Moe
    kernel: Kernel
    way: str
    low_latency: bool

    @property
    def inside(self) -> int:
        """GPUs of one NVLink domain that take part."""
        return min(self.ranks, max(self.gpu.nvlink_domain_gpus, 1))

    @property
    def nodes(self) -> int:
        """NVLink domains that take part."""
        return -(-self.ranks // self.inside)

    @property
    def token_bytes(self) -> float:
        """Bytes of one token on its way."""
        return self.hidden * (FP8_SCALED if self.way == "dispatch" else BF16)

    def reached_gpus(self) -> float:
        """Different GPUs that a token's experts sit on, on average; groups of experts sit on neighbouring ones."""
        spread = max(self.ranks * self.moe.top_groups / self.moe.groups, 1.0)
        return spread * (1.0 - (1.0 - 1.0 / spread) ** self.moe.top_k)

    def reached_nodes(self) -> float:
        """Different nodes that a token's experts sit on, on average, its own included."""
        groups, chosen, nodes = self.moe.groups, self.moe.top_groups, self.nodes
        if groups > 1 and groups % nodes == 0:
            held = groups // nodes
            return nodes * (1.0 - comb(groups - held, chosen) / comb(groups, chosen))
        spread = max(nodes * chosen / groups, 1.0)
        return spread * (1.0 - (1.0 - 1.0 / spread) ** self.moe.top_k)

    def bytes_a_token(self) -> tuple[float, float]:
        """Bytes over one GPU's NVLink port and over its card, for each of its tokens."""
        if self.low_latency:
            near, far = (self.inside - 1) / self.ranks, (self.ranks - self.inside) / self.ranks
            return self.moe.top_k * near * self.token_bytes, self.moe.top_k * far * self.token_bytes
        others = self.reached_nodes() * (1.0 - 1.0 / self.nodes)
        return self.reached_gpus() * self.token_bytes, others * self.token_bytes

    def nvlink_bytes_per_s(self) -> float:
        """What a GPU's port reaches: a share of its line rate, and for normal kernels what their SMs can copy."""
        p, line = self.kernel.parameters, self.gpu.nvlink_bandwidth_bytes_per_s
        if self.low_latency:
            return p["nvlink"] * line
        reached = min(p[f"{self.way}_nvlink"] * line, p[f"{self.way}_sm_bytes_per_s"] * p["sms"])
        return reached * (p["forward"] if self.nodes > 1 else 1.0)

    def wire_seconds(self, tokens: ArrayLike, load: ArrayLike = 1.0) -> Floats:
        """Seconds the bytes of ``tokens`` a GPU take; ``load``: rows of the busiest GPU over the mean."""
        near, far = self.bytes_a_token()
        t = np.asarray(tokens, dtype=np.float64) * np.asarray(load, dtype=np.float64)
        result = t * near / self.nvlink_bytes_per_s()
        if self.nodes == 1:
            return result
        return np.maximum(result, t * far / (self.kernel.parameters["nic"] * self.gpu.nic_bandwidth_bytes_per_s))

    def time(self, tokens: ArrayLike, load: ArrayLike = 1.0) -> Time:
        """Seconds of one exchange."""
        wire = self.wire_seconds(tokens, load)
        fixed = np.full(wire.shape, self.kernel.parameters[f"{self.way}_t0_s"])
        size = np.asarray(tokens, dtype=np.float64) * sum(self.bytes_a_token())
        return Time(fixed + wire, wire * 0.0, wire, fixed, wire * 0.0, np.broadcast_to(size, wire.shape))

    def busy_seconds(self, tokens: ArrayLike, load: ArrayLike = 1.0) -> Floats:
        """Seconds of computation lost while another micro-batch computes: a part of the exchange's time, as its SMs and
        its traffic slow computation (normal kernels), or all of it while a message is packed and unpacked."""
        p: Mapping[str, float] = self.kernel.parameters
        if not self.low_latency:
            return self.time(tokens, load).seconds * p["interference"]
        t = np.asarray(tokens, dtype=np.float64) * np.asarray(load, dtype=np.float64)
        result: Floats = p[f"{self.way}_t0_s"] + t * self.moe.top_k * self.token_bytes / p["pack_bytes_per_s"]
        return result

    def origin(self) -> str:
        mode = "low latency" if self.low_latency else "normal"
        return f"roofline: DeepEP, {mode}, {self.way} over {self.ranks} GPUs ({self.kernel.source})"
