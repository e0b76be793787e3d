"""Kernels that an engine has for few tokens alone."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from simulator.cost.kernels import gemm_format
from simulator.cost.operator import Operator

if TYPE_CHECKING:
    from simulator.cost.operators import Step

#: Projections of MLA models, in bf16, that an engine may have kernels of its own for at few tokens.
FEW_TOKENS = ("router", "q and kv compression")


def at_few_tokens(step: Step, found: Operator) -> Operator:
    """An operator as it is, or at the bandwidth of memory for few tokens, if the engine has a kernel for them."""
    formats = (step.precision.attention_weight_format, step.precision.attention_gemm_arithmetic)
    latent = step.model.mla is not None
    biased = step.model.details.router_bias and found.name == FEW_TOKENS[0]
    most = step.costs.low_latency_tokens if latent else step.costs.low_latency_router_tokens if biased else 0
    if not most or found.name not in FEW_TOKENS:
        return found
    if found.name != FEW_TOKENS[0] and gemm_format(step.gpu, *formats)[0] != "bf16":
        return found
    return replace(found, time=lambda tokens: found.time(tokens).at_bandwidth(step.local(tokens) <= most))
