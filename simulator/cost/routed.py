"""Routed experts of a step: router, kernels of the experts, and how tokens travel to them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from simulator.cost import collectives, experts
from simulator.cost.deepep import WAYS, ExpertExchange
from simulator.cost.kernels import Kernel, gemm_format, nearest_formats
from simulator.cost.operator import Operator
from simulator.cost.parts import BF16, PLAIN, Parts
from simulator.cost.roofline import Floats, GemmFormat, MoeShape, Time, active_experts, moe_time

#: How the operators of shared experts are called, at the beginning.
SHARED = "shared experts"


@dataclass(frozen=True)
class RoutedParts(Parts):
    """The parts of layers with routed experts."""

    def moe_operators(self) -> Iterator[Operator]:
        m, moe, layers = self.model, self.model.moe, self.model.moe_layers
        assert moe is not None
        yield self.gemm("router", layers, (moe.experts, m.hidden), PLAIN)
        kind, form = self.expert_format
        derived = kind == "mxfp4" or form.widened_per_s > 0.0  # from rows of other formats, less what these do beside
        inside = self.costs.router_choice_inside or (self.costs.router_choice_in_rows and not derived)
        yield self.stream("top-k of the router", 0 if inside else layers, 2 * moe.experts * 4.0)
        place, grouped_s = f"engine profile {self.costs.name}", self.costs.grouped_choice_s
        if grouped_s and m.softmax_in_groups:
            yield Operator("choice among groups", layers, lambda t: experts.fixed_time(grouped_s, t), place)
        if moe.shared_width:
            yield from self.mlp(SHARED, layers, moe.shared_width)
        fixed_s, token_s = self.costs.expert_routing_s, self.costs.expert_token_s
        if fixed_s or token_s:
            yield Operator("sorting by expert", layers, lambda t: experts.fixed_time(fixed_s, t, token_s), place)
        if self._grouped:
            yield self._grouped_experts(layers)
        else:
            yield self._prompts_experts(layers)
        if self.deepep:
            yield from self.deepep_exchange(layers, low_latency=False)
        elif self.parallel.dp > 1:
            yield from self.exchange(layers, prompts=True)

    def moe_shape(self) -> MoeShape:
        """Experts of one GPU, as the engine's kernels lay them out."""
        _, form = self.expert_format
        kernel = self.costs.widened_experts if form.widened_per_s else experts.NATIVE
        rules = self.costs.mxfp4_padding if self.precision.weights == "mxfp4" else ()
        return experts.expert_shape(self.model, self.parallel, rules, kernel)

    @cached_property
    def expert_format(self) -> tuple[str, GemmFormat]:
        """Format of the experts' kernels, and bytes and arithmetic of their weights."""
        return gemm_format(self.gpu, self.precision.weights, self.precision.gemm_arithmetic, experts=True)

    @cached_property
    def routing(self) -> str:
        """Rows of the expert tables: balanced or skewed."""
        if self.costs.routing not in ("by_groups", "busiest"):
            return self.costs.routing
        return "skewed" if self.model.moe is not None and self.model.moe.groups > 1 else "balanced"

    @property
    def _waits_for_busiest(self) -> bool:
        """Whether a step with prompts waits for the GPU whose experts have most to do: where they are spread, skewed
        rows of the tables are those of a GPU that may have less to do than the mean."""
        return self.costs.routing == "busiest" and self.routing == "skewed" and self.parallel.ep > 1

    @property
    def _grouped(self) -> bool:
        """Whether experts are computed by grouped GEMMs."""
        aligned = self.costs.expert_block_rows > 0 and self.expert_format[0] == "fp8_block" and not self.deepep
        return aligned or (self.deepep and self.costs.experts.grouped)

    @cached_property
    def _chosen_by_chance(self) -> bool:
        """Whether the rows are of choices that give all experts equally many rows to the last one, as no router does.
        Those of ``simulate calibrate`` are of random choices."""
        if self._grouped or self.routing != "balanced":
            return False
        even, skewed = (self.experts_kernel(routing)[0].name for routing in ("balanced", "skewed"))
        return even != skewed == even.replace("-balanced", "-skewed") and "/torch/" not in even

    def _prompts_experts(self, layers: int) -> Operator:
        """Fused experts of a step with prompts."""
        routed = self.routed_experts(layers)
        if self._waits_for_busiest:
            return routed.or_slower(self.routed_experts(layers, routing="balanced"))
        if not self._chosen_by_chance:
            return routed
        shape = self.moe_shape()
        skewed = self.routed_experts(layers, routing="skewed")
        return routed.towards_slower(skewed, lambda tokens: experts.by_chance(shape, tokens))

    def experts_kernel(self, routing: str = "") -> tuple[Kernel, GemmFormat]:
        kind, form = self.expert_format
        form = replace(form, widened_per_s=form.widened_per_s * self.costs.expert_widening)
        if form.widened_per_s and self.costs.widened_experts:
            kernel = self.kernels.find(f"{self.costs.widened_experts}_experts", "any", "any")
            rate = kernel.parameters["weights_per_sm_s"] * self.gpu.sms
            return kernel, replace(form, widened_per_s=rate, compute_share=1.0)
        names = [f"{f}-{routing or self.routing}" for f in nearest_formats(kind)]
        return self.kernels.find("moe", self.costs.expert_kernels or self.costs.kernels, *names), form

    def routed_experts(self, layers: int, *, identical: bool = False, routing: str = "") -> Operator:
        routing = routing or self.routing
        kernel, form = self.experts_kernel(routing)
        shape = self.moe_shape()
        key = (shape.hidden, shape.width, shape.top_k, shape.experts, shape.local_experts)
        tiles = self.kernels.find("expert_tiles", "any", "any").parameters
        cached_bytes_per_s = tiles["cached_bytes_per_sm_s"] * self.gpu.sms

        def time(tokens: Floats) -> Time:
            chosen = np.minimum(tokens, 1.0) if identical else tokens
            dealt = None if routing == "balanced" else 1.0
            active = active_experts(shape, chosen, dealt, self.costs.experts.skew)
            again_s_per_byte = experts.further_tiles(tokens) / cached_bytes_per_s if identical else 0.0
            found = moe_time(self.gpu, kernel.parameters, form, shape, (tokens, active), again_s_per_byte)
            return kernel.apply(found, key, tokens)

        origin = kernel.origin(key)
        if form.weight_bytes < BF16 and form.arithmetic == "bf16":
            origin = f"derived: {kernel.name} with {self.precision.weights} weights widened in registers"
        return Operator("experts", layers, time, origin, shared=True)

    @property
    def deepep(self) -> bool:
        """Whether tokens travel to their experts, each to those it chose alone."""
        spread = self.parallel.dp > 1 and self.parallel.ep > 1
        return spread and self.costs.expert_all_to_all == "deepep" and self.model.moe_layers > 0

    def expert_rows(self, tokens: Floats) -> Floats:
        """Rows that a GPU's experts compute for ``tokens`` of the whole engine, on average."""
        moe = self.model.moe
        assert moe is not None
        result: Floats = np.asarray(tokens, dtype=np.float64) * moe.top_k / self.parallel.expert_gpus
        return result

    def expert_load(self, tokens: Floats) -> Floats:
        """Rows of the busiest GPU over the mean."""
        moe = self.model.moe
        assert moe is not None
        return self.costs.experts.load(moe.experts, self.parallel.expert_gpus, self.expert_rows(tokens))

    def _grouped_experts(self, layers: int) -> Operator:
        """Experts by grouped GEMMs: the busiest GPU's rows, or all rows of a layout with room for every padding."""
        _, form = self.expert_format
        kernel, shape = self.kernels.find("grouped_experts", "any", "any"), self.moe_shape()
        slots = (shape.experts + self.costs.experts.redundant) / self.parallel.expert_gpus

        def work(tokens: Floats) -> experts.GroupedWork:
            if not self.deepep:
                return experts.aligned_work(shape, tokens, self.costs.expert_block_rows)
            rows = self.expert_rows(tokens) * self.expert_load(tokens)
            return experts.GroupedWork(rows, rows, active_experts(shape, tokens) / shape.local_experts * slots)

        def time(tokens: Floats) -> Time:
            return experts.grouped_experts_time(self.gpu, kernel.parameters, form, shape, work(tokens))

        return Operator("experts", layers, time, kernel.origin(), shared=True)

    def deepep_exchange(self, layers: int, *, low_latency: bool) -> Iterator[Operator]:
        """Dispatch and combine. Inside one NVLink domain the measured table, where this GPU has one.

        A rank with more tokens than others sends them all: its exchange is its own, unless a micro-batch hides it.
        """
        moe, ranks = self.model.moe, self.parallel.expert_gpus
        assert moe is not None
        shared = low_latency or self.costs.experts.micro_batches > 1
        kernel = self.kernels.find("deepep_low_latency" if low_latency else "deepep_normal", "any", "any")
        for way in WAYS:
            found = ExpertExchange(self.gpu, ranks, self.model.hidden, moe, kernel, way, low_latency)
            table = self.kernels.find(f"expert_{way}", "deepep", "any")
            if found.nodes == 1 and not table.derived:
                yield replace(self._measured_exchange(layers, found, table), shared=shared)
                continue

            def time(tokens: Floats, found: ExpertExchange = found) -> Time:
                return found.time(self.local(tokens), self.expert_load(tokens))

            def busy(tokens: Floats, found: ExpertExchange = found) -> Floats:
                return found.busy_seconds(self.local(tokens), self.expert_load(tokens))

            yield Operator(f"expert {way}", layers, time, found.origin(), busy, shared=shared)

    def _measured_exchange(self, layers: int, found: ExpertExchange, table: Kernel) -> Operator:
        measured = collectives.ExpertExchange(self.gpu, found.ranks, self.model.hidden, found.moe, table, found.way)
        lost = self.kernels.find("deepep_normal", "any", "any").parameters["interference"]

        def time(tokens: Floats) -> Time:
            return measured.time(self.local(tokens) * self.expert_load(tokens))

        def busy(tokens: Floats) -> Floats:
            result: Floats = time(tokens).seconds * lost
            return result

        return Operator(f"expert {found.way}", layers, time, measured.origin(), busy)

    def exchange(self, layers: int, *, prompts: bool) -> Iterator[Operator]:
        """Tokens of all attention ranks to all experts and back; of prompts, some engines add up whole tensors."""
        m, ranks = self.model, self.parallel.expert_gpus
        for kind, name in collectives.EXCHANGES[self.costs.prompt_exchange if prompts else "gather"]:
            way = collectives.nccl(self.kernels, kind, ranks)

            def time(tokens: Floats, way: collectives.Collective = way) -> Time:
                return way.time(collectives.message_bytes(tokens, m.hidden))

            yield Operator(name, layers, time, way.origin(), shared=True)
