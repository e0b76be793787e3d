"""The operators of one step of a model on one GPU, each a function of a count of tokens or sequences."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from simulator.cost import collectives, experts
from simulator.cost.attention import Attention
from simulator.cost.deepep import WAYS, ExpertExchange
from simulator.cost.engine_costs import EngineCosts
from simulator.cost.few_tokens import at_few_tokens
from simulator.cost.fusion import fused_norm_bytes, gemm_kernels, quantised_before
from simulator.cost.kernels import Kernel, Kernels, gemm_format, kernels_of, nearest_formats
from simulator.cost.operator import Operator
from simulator.cost.roofline import (
    Floats,
    GemmFormat,
    MoeShape,
    Time,
    active_experts,
    gemm_time,
    moe_time,
    stream_time,
)
from simulator.hardware.gpu import Gpu
from simulator.hardware.power import power_limit
from simulator.models.model import Model
from simulator.models.precision import Parallel, Precision, share

BF16 = 2.0
#: Stored format and arithmetic of what checkpoints leave unquantised.
PLAIN = ("bf16", "bf16")
#: How the operators of shared experts are called, at the beginning.
SHARED = "shared experts"
#: Bytes a logit is moved by sampling: written in bf16, widened to fp32, read for the maximum.
SAMPLING_BYTES = 2.0 + 2.0 + 4.0 + 4.0


@dataclass(frozen=True)
class Step:
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
        """By how much longer the kernels of a step with prompts take than those of the tables at full clocks."""
        known = self.costs.power_limit and self.gpu.name in power_limit().gpus
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
            found = gemm_time(self.gpu, kernel.parameters, form, m, (n, k))
            whole = kernel.apply(found, (float(n), float(k)), m)
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
        return product.at_full_clocks(self.parallel.dp) if self.costs.power_limit else product

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

    def _norms(self, name: str, launches: float) -> Operator:
        """Norms after an all-reduce cost nothing where they are part of it: messages small enough for its buffers."""
        whole = self.stream(name, launches, 4 * self.model.hidden * BF16)
        most = fused_norm_bytes(self.costs, self.parallel.tp)
        if most in (0.0, np.inf):
            return whole if most == 0.0 else replace(whole, launches=0.0)

        def time(tokens: Floats) -> Time:
            apart = collectives.message_bytes(self.local(tokens), self.model.hidden) > most
            return whole.time(tokens).scaled(np.where(apart, 1.0, 0.0))

        return Operator(name, launches, time, whole.origin)

    def _attention_operators(self) -> Iterator[Operator]:
        m, tp, layers = self.model, self.parallel.tp, self.model.layers
        formats = (self.precision.attention_weight_format, self.precision.attention_gemm_arithmetic)
        yield self._norms("attention norm", layers)
        if m.mla is None:
            q, kv = share(m.q_heads, tp) * m.head_dim, m.kv_heads_per_rank(tp) * m.head_dim
            yield self.gemm("qkv projection", layers, (q + 2 * kv, m.hidden), formats)
            inside = self.costs.rope_in_attention
            # a norm of q and k has to come before: with it, rotary embedding is one pass more, or part of that one
            passes = (2 if m.details.qk_norm else 1) - inside
            yield self.stream("rotary embedding", passes * layers, 2 * (q + kv) * BF16)
            yield self.stream("KV cache write", 0 if inside else layers, 4 * kv * BF16)
            yield self.gemm("output projection", layers, (m.hidden, q), formats, "attention")
        else:
            yield from self.mla_operators()
        yield from self.all_reduce("all-reduce after attention", layers)

    def mla_operators(self) -> Iterator[Operator]:
        """All of an MLA block but attention over the cache, norm before it and all-reduce after it."""
        formats = (self.precision.attention_weight_format, self.precision.attention_gemm_arithmetic)
        m, mla, layers = self.model, self.model.mla, self.model.layers
        assert mla is not None
        heads = share(m.q_heads, self.parallel.tp)
        latent = mla.kv_rank + mla.rope_dim
        q_out = heads * (mla.nope_dim + mla.rope_dim)
        if mla.q_rank:
            yield self.gemm("q and kv compression", layers, (mla.q_rank + latent, m.hidden), formats)
            yield self.stream("latent norms", 2 * layers, (mla.q_rank + latent) * BF16)
            yield self.gemm("q expansion", layers, (q_out, mla.q_rank), formats)
        else:
            yield self.gemm("q and kv projection", layers, (q_out + latent, m.hidden), formats)
            yield self.stream("latent norms", layers, 2 * latent * BF16)
        yield self.stream("rotary embedding", layers, 2 * (q_out + latent) * BF16)
        yield self.stream("KV cache write", layers, 2 * latent * BF16)
        # decode absorbs the expansion of K into q and that of V into the output: the same weights and FLOP a token
        expanded = heads * (mla.nope_dim + mla.v_dim)
        yield self.gemm("kv expansion or absorption", layers, (expanded, mla.kv_rank), PLAIN)
        yield self.gemm("output projection", layers, (m.hidden, heads * mla.v_dim), formats, "attention")

    def _mlp(self, label: str, layers: int, width: int) -> Iterator[Operator]:
        m, part = self.model, share(width, self.parallel.tp)
        formats = (self.precision.linear_weight_format, self.precision.gemm_arithmetic)
        name = f"{label} gate and up" if m.gated else f"{label} up"
        yield self.gemm(name, layers, (part * (2 if m.gated else 1), m.hidden), formats)
        yield self.stream(f"{label} activation", layers, part * (3 if m.gated else 2) * BF16)
        yield self.gemm(f"{label} down", layers, (m.hidden, part), formats, "activation")

    def _feed_forward_operators(self) -> Iterator[Operator]:
        m = self.model
        yield self._norms("feed-forward norm", m.layers)
        if m.dense_layers:
            yield from self._mlp("MLP", m.dense_layers, m.ffn)
        if m.moe_layers:
            yield from self._moe_operators()
        exchanged = m.moe_layers if self.parallel.dp > 1 else 0
        yield from self.all_reduce("all-reduce after feed-forward", m.layers - exchanged)

    def _moe_operators(self) -> Iterator[Operator]:
        m, moe, layers = self.model, self.model.moe, self.model.moe_layers
        assert moe is not None
        yield self.gemm("router", layers, (moe.experts, m.hidden), PLAIN)
        chooses = 0 if self.costs.router_choice_inside else layers
        yield self.stream("top-k of the router", chooses, 2 * moe.experts * 4.0)
        if moe.shared_width:
            yield from self._mlp(SHARED, layers, moe.shared_width)
        fixed_s, token_s = self.costs.expert_routing_s, self.costs.expert_token_s
        if fixed_s or token_s:
            place = f"engine profile {self.costs.name}"
            yield Operator("sorting by expert", layers, lambda t: experts.fixed_time(fixed_s, t, token_s), place)
        kind, _ = gemm_format(self.gpu, self.precision.weights, self.precision.gemm_arithmetic, experts=True)
        aligned = self.costs.expert_block_rows > 0 and kind == "fp8_block" and not self.deepep
        if aligned or (self.deepep and self.costs.experts.grouped):
            yield self._grouped_experts(layers)
        else:
            experts = self._experts(layers)
            yield experts.or_slower(self._experts(layers, routing="balanced")) if self._waits_for_busiest else experts
        if self.deepep:
            yield from self._deepep(layers, low_latency=False)
        elif self.parallel.dp > 1:
            yield from self._exchange(layers, prompts=True)

    def moe_shape(self) -> MoeShape:
        """Experts of one GPU, as the engine's kernels lay them out."""
        _, form = gemm_format(self.gpu, self.precision.weights, self.precision.gemm_arithmetic, experts=True)
        kernel = self.costs.widened_experts if form.widened_per_s else experts.NATIVE
        rules = self.costs.mxfp4_padding if self.precision.weights == "mxfp4" else ()
        return experts.expert_shape(self.model, self.parallel, rules, kernel)

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

    def experts_kernel(self, routing: str = "") -> tuple[Kernel, GemmFormat]:
        kind, form = gemm_format(self.gpu, self.precision.weights, self.precision.gemm_arithmetic, experts=True)
        form = replace(form, widened_per_s=form.widened_per_s * self.costs.expert_widening)
        if form.widened_per_s and self.costs.widened_experts:
            kernel = self.kernels.find(f"{self.costs.widened_experts}_experts", "any", "any")
            rate = kernel.parameters["weights_per_sm_s"] * self.gpu.sms
            return kernel, replace(form, widened_per_s=rate, compute_share=1.0)
        names = [f"{f}-{routing or self.routing}" for f in nearest_formats(kind)]
        return self.kernels.find("moe", self.costs.expert_kernels or self.costs.kernels, *names), form

    def _experts(self, layers: int, *, identical: bool = False, routing: str = "") -> Operator:
        routing = routing or self.routing
        kernel, form = self.experts_kernel(routing)
        shape = self.moe_shape()
        key = (shape.hidden, shape.width, shape.top_k, shape.experts, shape.local_experts)

        def time(tokens: Floats) -> Time:
            chosen = np.minimum(tokens, 1.0) if identical else tokens
            active = active_experts(shape, chosen, None if routing == "balanced" else 1.0)
            return kernel.apply(moe_time(self.gpu, kernel.parameters, form, shape, (tokens, active)), key, tokens)

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
        _, form = gemm_format(self.gpu, self.precision.weights, self.precision.gemm_arithmetic, experts=True)
        kernel, shape = self.kernels.find("grouped_experts", "any", "any"), self.moe_shape()
        slots = (shape.experts + self.costs.experts.redundant) / self.parallel.expert_gpus

        def work(tokens: Floats) -> experts.GroupedWork:
            if not self.deepep:
                return experts.aligned_work(shape, tokens, self.costs.expert_block_rows)
            rows = self.expert_rows(tokens) * self.expert_load(tokens)
            return experts.GroupedWork(
                rows, rows, experts.distinct_experts(shape, tokens) / shape.local_experts * slots
            )

        def time(tokens: Floats) -> Time:
            return experts.grouped_experts_time(self.gpu, kernel.parameters, form, shape, work(tokens))

        return Operator("experts", layers, time, kernel.origin(), shared=True)

    def _deepep(self, layers: int, *, low_latency: bool) -> Iterator[Operator]:
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

    def _exchange(self, layers: int, *, prompts: bool) -> Iterator[Operator]:
        """Tokens of all attention ranks to all experts and back; of prompts, some engines add up whole tensors."""
        m, ranks = self.model, self.parallel.expert_gpus
        for kind, name in collectives.EXCHANGES[self.costs.prompt_exchange if prompts else "gather"]:
            way = collectives.nccl(self.kernels, kind, ranks)

            def time(tokens: Floats, way: collectives.Collective = way) -> Time:
                return way.time(collectives.message_bytes(tokens, m.hidden))

            yield Operator(name, layers, time, way.origin(), shared=True)

    # -- the whole step --------------------------------------------------------------------------------------------

    @cached_property
    def token_operators(self) -> tuple[Operator, ...]:
        """Operators whose time depends on the number of tokens in the step."""
        found = [self.stream("embedding", 1, 2 * self.model.hidden * BF16)]
        found += self.all_reduce("all-reduce after embedding", 1)
        found += [*self._attention_operators(), *self._feed_forward_operators()]
        if self.parallel.pp > 1:
            found.append(self._stage_handover())
        return tuple(at_few_tokens(self, op) for op in found if op.launches)

    @cached_property
    def decode_token_operators(self) -> tuple[Operator, ...]:
        """``token_operators`` of a step without prefill: the experts may differ, see ``decode_routing``, and tokens
        travel to them by low-latency kernels."""
        if self.deepep:
            fast = {op.name: op for op in self._deepep(self.model.moe_layers, low_latency=True)}
            return tuple(fast.get(op.name, op) for op in self.token_operators)
        found = self.token_operators
        if self.parallel.dp > 1 and self.model.moe_layers:
            ways = (self._exchange(self.model.moe_layers, prompts=prompts) for prompts in (True, False))
            gathered = {summed.name: way for summed, way in zip(*ways, strict=True)}
            found = tuple(gathered.get(op.name, op) for op in found)
        if self.costs.shared_experts == "beside":
            found = tuple(self._beside(op) if op.name.startswith(SHARED) else op for op in found)
        identical = self.costs.decode_routing == "identical"
        if not self.model.moe_layers or not (identical or self._waits_for_busiest):
            return found
        experts = self._experts(self.model.moe_layers, identical=identical)
        return tuple(experts if op.name == experts.name else op for op in found)

    def _beside(self, found: Operator) -> Operator:
        """An operator that runs beside a longer one: the bytes it has to read are what it adds."""

        def time(tokens: Floats) -> Time:
            alone = found.time(tokens)
            return alone.scaled(np.minimum(alone.memory_s / alone.seconds, 1.0))

        return replace(found, time=time, origin=f"{found.origin}; beside the routed experts, its bytes alone")

    def _stage_handover(self) -> Operator:
        kernel = self.kernels.find("point_to_point", "any", "any")
        same = self.parallel.gpus <= max(self.gpu.nvlink_domain_gpus, 1)

        def time(tokens: Floats) -> Time:
            size = collectives.message_bytes(self.local(tokens), self.model.hidden)
            return collectives.point_to_point_time(self.gpu, kernel, size, same_node=same)

        return Operator("handover to the next stage", self.parallel.pp - 1, time, kernel.origin())

    @cached_property
    def sequence_operators(self) -> tuple[Operator, ...]:
        """Operators of the sequences that may get a token: head, gathering logits, sampling."""
        m, tp = self.model, self.parallel.tp
        found = [
            self.stream("final norm", 1, 4 * m.hidden * BF16),
            self.gemm("output head", 1, (share(m.vocab, tp), m.hidden), PLAIN),
        ]
        if tp > 1:
            gather = collectives.nccl(self.kernels, "all_gather", tp)
            found.append(
                Operator("gather logits", 1, lambda n: gather.time(self.local(n) * m.vocab * BF16), gather.origin())
            )
        found.append(self.stream("sampling", 1, m.vocab * SAMPLING_BYTES).longer(self.costs.sampling_logit_s * m.vocab))
        return tuple(found)
