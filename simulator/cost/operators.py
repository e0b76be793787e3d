"""The operators of one step of a model on one GPU, each a function of a count of tokens or sequences."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from simulator.cost import collectives
from simulator.cost.few_tokens import at_few_tokens
from simulator.cost.operator import Operator
from simulator.cost.parts import BF16, PLAIN
from simulator.cost.roofline import Floats, Time
from simulator.cost.routed import SHARED, RoutedParts
from simulator.models.precision import share

#: Bytes a logit is moved by sampling: written in bf16, widened to fp32, read for the maximum.
SAMPLING_BYTES = 2.0 + 2.0 + 4.0 + 4.0


@dataclass(frozen=True)
class Step(RoutedParts):
    """A model on a GPU in an engine: everything one step's cost depends on, but the counts."""

    def _attention_operators(self) -> Iterator[Operator]:
        m, tp, layers = self.model, self.parallel.tp, self.model.layers
        formats = (self.precision.attention_weight_format, self.precision.attention_gemm_arithmetic)
        yield self.norms("attention norm", layers)
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

    def _feed_forward_operators(self) -> Iterator[Operator]:
        m = self.model
        yield self.norms("feed-forward norm", m.layers)
        if m.dense_layers:
            yield from self.mlp("MLP", m.dense_layers, m.ffn)
        if m.moe_layers:
            yield from self.moe_operators()
        exchanged = m.moe_layers if self.parallel.dp > 1 else 0
        yield from self.all_reduce("all-reduce after feed-forward", m.layers - exchanged)

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
            fast = {op.name: op for op in self.deepep_exchange(self.model.moe_layers, low_latency=True)}
            return tuple(fast.get(op.name, op) for op in self.token_operators)
        found = self.token_operators
        if self.parallel.dp > 1 and self.model.moe_layers:
            ways = (self.exchange(self.model.moe_layers, prompts=prompts) for prompts in (True, False))
            gathered = {summed.name: way for summed, way in zip(*ways, strict=True)}
            found = tuple(gathered.get(op.name, op) for op in found)
        if self.costs.shared_experts == "beside":
            found = tuple(self._beside(op) if op.name.startswith(SHARED) else op for op in found)
        identical = self.costs.decode_routing == "identical"
        if not self.model.moe_layers or not (identical or self._waits_for_busiest or self._chosen_by_chance):
            return found
        experts = self.routed_experts(self.model.moe_layers, identical=identical)
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
