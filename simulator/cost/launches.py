"""Host time to launch a step, kernel by kernel or ahead of the GPU, and what the GPU idles meanwhile."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from simulator.cost.engine_costs import EngineCosts
from simulator.cost.kernels import gemm_format
from simulator.cost.operators import Step
from simulator.cost.roofline import Floats

#: Kernels of a layer of routed experts: quantising, counting and sorting by expert, two grouped GEMMs, activation, sum.
EXPERT_KERNELS = 7


@dataclass(frozen=True)
class HostTime:
    """Floor under a step's GPU time, and what it takes beside it, by number of sequences."""

    floor_s: Floats
    add_s: Floats


def graph_launch_s(step: Step) -> float:
    """Host seconds to launch a step with prompts, a graph a layer."""
    return step.hosted.mixed_step_s + step.hosted.mixed_layer_s * step.model.layers


def host_time(step: Step, seqs: Floats, *, mixed: bool) -> HostTime:
    """The host's share of a step of ``seqs`` sequences, with prompts (``mixed``) or without."""
    costs = step.hosted
    own = step.local(seqs)  # each data-parallel rank has a scheduler process of its own
    work = costs.host_step_s + costs.host_seq_s * own
    add = costs.step_gap_s + costs.seq_gap_s * own + (0.0 if costs.overlap else work)
    if step.parallel.dp > 1:
        add = add + costs.rank_gap_s
    floor = work if costs.overlap else np.zeros_like(work)
    largest = max(costs.decode_graph_sizes, default=0)
    launched = np.full(seqs.shape, mixed) | (seqs > largest * step.parallel.dp)
    if costs.launch_ahead and mixed:
        launched = np.zeros(seqs.shape, dtype=bool)
    floor = np.where(launched, np.maximum(floor, graph_launch_s(step)), floor)
    return HostTime(floor, add + (costs.mixed_gap_s if mixed else 0.0))


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


def queue_launch_s(step: Step) -> float:
    """Host seconds to launch a step with prompts whatever its tokens, where the queue of commands is told apart."""
    if step.costs.launch_queue == 0:
        return 0.0
    return max(graph_launch_s(step), eager_launch_s(step))


def queue_share(step: Step) -> float:
    """Of the kernels of a step with prompts, the share that the GPU's queue of commands holds; 1 where all of them fit
    or none is told apart. Operators are counted as one kernel each, GEMMs scaled by blocks as two, routed experts as
    ``EXPERT_KERNELS``."""
    if step.costs.launch_queue == 0:
        return 1.0
    kernels = sum(op.launches for op in (*step.token_operators, *step.sequence_operators)) + block_gemms(step)
    kernels += step.model.layers + step.model.moe_layers * (EXPERT_KERNELS - 1)  # attention is no operator of tokens
    return min(step.costs.launch_queue / kernels, 1.0)


def eager_launch(step: Step, tokens: Floats) -> Floats:
    """Host seconds to launch a step kernel by kernel; nothing while it fits in CUDA graphs."""
    return np.where(step.local(tokens) > step.costs.mixed_graph_tokens, eager_launch_s(step), 0.0)


def launch_floor(step: Step, tokens: Floats) -> Floats:
    """``eager_launch`` as a floor under GPU time that ``slower`` is yet to stretch: that slows kernels, not the
    host."""
    return eager_launch(step, tokens) / (1.0 + step.slower)


def prepare_s(costs: EngineCosts) -> float:
    """Of these seconds, those before the first kernel runs."""
    return costs.mixed_step_s if costs.launch_ahead else 0.0


def launch_ahead_s(step: Step, tokens: Floats) -> Floats:
    """Host seconds to launch a step with prefill tokens while the one before it runs; 0 where that is not done."""
    costs = step.hosted
    if not costs.launch_ahead:
        return np.zeros(tokens.shape)
    graphs = np.where(step.local(tokens) > costs.mixed_graph_tokens, 0.0, costs.mixed_layer_s * step.model.layers)
    return np.where(tokens > 0, costs.mixed_step_s + graphs + eager_launch(step, tokens), 0.0)


def launch_seqs_s(step: Step, seqs: Floats) -> Floats:
    """Host seconds of launching such a step beside so many sequences, on top of that."""
    return step.hosted.launch_seq_s * np.minimum(seqs, step.costs.launch_most_seqs)


def decode_launch_s(step: Step, seqs: Floats) -> Floats:
    """Host seconds to launch a step of pure decode while the one before it runs; 0 where that is not done."""
    costs = step.hosted
    work = costs.host_step_s + costs.host_seq_s * step.local(seqs)
    return np.where((seqs > 0) & (costs.launch_ahead and costs.overlap), work, 0.0)


def between_kernels_s(step: Step, tokens: Floats) -> Floats:
    """GPU seconds of a step with prefill tokens outside its kernels: fixed time of prefill attention, and what the GPU
    idles between kernels that are launched one by one."""
    gaps_s = step.costs.eager_gap_s * step.model.layers
    eager = step.local(tokens) > step.costs.mixed_graph_tokens
    seconds: Floats = step.attention.chunk_launch_s() + np.where(eager, gaps_s, 0.0)
    return seconds


def decode_kernels(step: Step, seqs: Floats, padded: Floats) -> Floats:
    """Kernels of a pure decode step of ``seqs`` sequences, which computes ``padded``: all that take any time."""
    counted = ((step.decode_token_operators, padded), (step.sequence_operators, seqs))
    found = np.full(np.shape(seqs), float(sum(layers for _, layers in step.attention.layers)))
    for operators, counts in counted:
        for op in operators:
            found = found + np.where(op.total(counts).seconds > 0, op.launches, 0.0)
    return np.where(seqs > 0, found, 0.0)


def begun_early_s(step: Step, seqs: Floats, padded: Floats) -> Floats:
    """By how much a pure decode step is shorter than its kernels, which begin before the one before them has ended."""
    each_s = step.costs.dependent_launch_s
    return each_s * decode_kernels(step, seqs, padded) if each_s else np.zeros(np.shape(seqs))
