"""What operators of a step are made of: products, passes over memory, sums over ranks."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from simulator.cost import collectives
from simulator.cost.attention import Attention
from simulator.cost.engine_costs import EngineCosts
from simulator.cost.fusion import fused_norm_bytes, gemm_kernels, quantised_before
from simulator.cost.gemms import measured_gemm
from simulator.cost.kernels import Kernels, gemm_format, kernels_of, nearest_formats
from simulator.cost.operator import Operator
from simulator.cost.roofline import Floats, Time, stream_time
from simulator.hardware.gpu import Gpu
from simulator.hardware.power import power_limit
from simulator.models.model import Model
from simulator.models.precision import Parallel, Precision, share

BF16 = 2.0
#: Stored format and arithmetic of what checkpoints leave unquantised.
PLAIN = ("bf16", "bf16")


@dataclass(frozen=True)
class Parts:
    """A model on a GPU in an engine: everything one step's cost depends on, but the counts."""

    model: Model
    gpu: Gpu
    precision: Precision
    parallel: Parallel
    costs: EngineCosts

    @cached_property
    def hosted(self) -> EngineCosts:
        """Host times on this GPU's host."""
        return self.costs.on_host(self.gpu.host_speed)

    @cached_property
    def slower(self) -> float:
        """By how much longer the kernels of a step with prompts take than those of the tables at full clocks; nothing
        on a GPU whose power limit lets products run at their peak (RTX 4090, RTX PRO 6000)."""
        limit, gpu = power_limit(), self.gpu
        wanted_watts = gpu.idle_power_watts + limit.joules_per_flop * gpu.peak_flops["bf16"]
        if self.precision.gemm_arithmetic in self.costs.full_clock_formats or wanted_watts < gpu.power_watts:
            return 0.0
        known = self.costs.power_limit and gpu.name in limit.gpus
        return self.costs.mixed_slower + (0.0 if known else self.costs.power_slower)

    @cached_property
    def kernels(self) -> Kernels:
        return kernels_of(self.gpu)

    @cached_property
    def attention(self) -> Attention:
        costs = self.costs
        return Attention(
            self.model, self.gpu, self.precision, self.parallel, costs.kernels, self.kernels, costs.past_attention
        )

    def local(self, tokens: Floats) -> Floats:
        """Tokens of one attention data-parallel rank, shared out evenly."""
        return np.ceil(np.asarray(tokens, dtype=np.float64) / self.parallel.dp)

    # -- building blocks -------------------------------------------------------------------------------------------

    def gemm(
        self, name: str, launches: float, shape: tuple[int, int], formats: tuple[str, str], behind: str = "norm"
    ) -> Operator:
        """A projection of the tokens of one rank; ``shape``: to n numbers from k; ``formats``: stored, arithmetic;
        ``behind``: the kernel before it (norm, attention, activation), which may quantise."""
        (n, k), (stored, arithmetic) = shape, formats
        kind, form = gemm_format(self.gpu, stored, arithmetic)
        kernel = self.kernels.find("gemm", gemm_kernels(self.costs, kind), *nearest_formats(kind))
        # scales of a whole tensor or of 16 numbers can be had on the way; those of 128 need a pass of their own
        fused = form.quantised and bool(self.costs.fused_quantisation) and kind != "fp8_block"
        # quantisation fused into the kernel before leaves the launch of a GEMM that needs none
        plain = self.kernels.find("gemm", self.costs.kernels, "bf16").parameters["t0_s"]

        def time(tokens: Floats) -> Time:
            m = self.local(tokens)
            found, whole = measured_gemm(self.gpu, kernel, form, m, (n, k))
            if kind == "fp8_block":
                whole = whole.after(self.costs.block_quantise_s)
            if fused:
                message = collectives.message_bytes(m, self.model.hidden)
                before = quantised_before(self.costs, behind, self.parallel.tp, message)
                whole = whole.scaled(1.0 - before * (found.fixed_s - plain) / found.seconds)
            return whole

        origin = kernel.origin((float(n), float(k)))
        if form.weight_bytes < BF16 and kind == "bf16":
            origin = f"derived: {kernel.name} with {stored} weights widened in registers"
        product = Operator(name, launches, time, origin)
        if self.costs.power_limit:
            return product.at_full_clocks(self.parallel.dp)
        return product.no_slower_for_more(self.parallel.dp) if arithmetic in self.costs.full_clock_formats else product

    def stream(self, name: str, launches: float, bytes_per_token: float) -> Operator:
        """A memory-bound pass over the tokens of one rank."""
        kernel = self.kernels.find("elementwise", "any", "any")

        def time(tokens: Floats) -> Time:
            return stream_time(self.gpu, kernel.parameters, self.local(tokens) * bytes_per_token)

        return Operator(name, launches, time, kernel.origin())

    def all_reduce(self, name: str, launches: float) -> Iterator[Operator]:
        """Sum of the tensor-parallel ranks' partial activations."""
        if self.parallel.tp == 1 or launches == 0:
            return
        most = fused_norm_bytes(self.costs, self.parallel.tp)
        found = collectives.EngineAllReduce.of(
            self.kernels, self.parallel.tp, self.costs.all_reduce, self.costs.fused_all_reduce, most
        )
        hidden, wait_s = self.model.hidden, self.costs.all_reduce_wait_s

        def time(tokens: Floats) -> Time:
            return found.time(collectives.message_bytes(self.local(tokens), hidden)).after(wait_s)

        yield Operator(name, launches, time, found.origin())

    # -- layers ----------------------------------------------------------------------------------------------------

    def norms(self, name: str, launches: float) -> Operator:
        """Norms after an all-reduce cost nothing where they are part of it: messages small enough for its buffers."""
        whole = self.stream(name, launches, 4 * self.model.hidden * BF16)
        most = fused_norm_bytes(self.costs, self.parallel.tp)
        if most in (0.0, np.inf):
            return whole if most == 0.0 else replace(whole, launches=0.0)

        def time(tokens: Floats) -> Time:
            apart = collectives.message_bytes(self.local(tokens), self.model.hidden) > most
            return whole.time(tokens).scaled(np.where(apart, 1.0, 0.0))

        return Operator(name, launches, time, whole.origin)

    def mlp(self, label: str, layers: int, width: int) -> Iterator[Operator]:
        m, part = self.model, share(width, self.parallel.tp)
        formats = (self.precision.linear_weight_format, self.precision.gemm_arithmetic)
        name = f"{label} gate and up" if m.gated else f"{label} up"
        yield self.gemm(name, layers, (part * (2 if m.gated else 1), m.hidden), formats)
        yield self.stream(f"{label} activation", layers, part * (3 if m.gated else 2) * BF16)
        yield self.gemm(f"{label} down", layers, (m.hidden, part), formats, "activation")
