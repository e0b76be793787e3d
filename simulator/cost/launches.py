"""Host time to launch a step kernel by kernel, where no CUDA graph does it."""

from __future__ import annotations

from simulator.cost.kernels import gemm_format
from simulator.cost.operators import Step


def block_gemms(step: Step) -> int:
    """GEMMs of a step, but for routed experts, whose weights and activations are fp8 with a scale for each block: their
    activations are quantised by a kernel of its own, and the GEMM is called through a just-in-time compiler."""
    model, precision = step.model, step.precision

    def are_blocks(stored: str, arithmetic: str) -> bool:
        return gemm_format(step.gpu, stored, arithmetic)[0] == "fp8_block"

    count = 0
    if are_blocks(precision.attention_weight_format, precision.attention_gemm_arithmetic):
        projections = 2 if model.mla is None or not model.mla.q_rank else 3
        count += projections * model.layers
    if are_blocks(precision.linear_weight_format, precision.gemm_arithmetic):
        shared = model.moe_layers if model.moe is not None and model.moe.shared_width else 0
        count += 2 * (model.dense_layers + shared)
    return count


def eager_launch_s(step: Step) -> float:
    """Host seconds to launch a step kernel by kernel."""
    costs, model = step.hosted, step.model
    layer_s = costs.eager_layer_s + (costs.eager_mla_layer_s if model.mla is not None else 0.0)
    whole_s = layer_s * model.layers + costs.eager_block_gemm_s * block_gemms(step)
    if not model.moe_layers:
        return whole_s
    kernel, form = step.experts_kernel()
    # experts that widen their weights are one call (Marlin, triton_kernels), whichever kernel stands in for them
    parts = step.kernels.find("widening", "any", "any") if form.widened_per_s else kernel
    return whole_s + costs.eager_moe_layer_s * parts.parameters["launch"] * model.moe_layers
