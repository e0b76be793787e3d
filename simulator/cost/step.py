"""Seconds of one engine step: adds up operators, host work and gaps, and lays the result out as a table of counts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike

from simulator.cost.energy import power_fields
from simulator.cost.engine_costs import EngineCosts
from simulator.cost.kernels import at_least_one
from simulator.cost.knots import CHUNK_RATIO, at_all_counts, context_knots, past_knots, spaced
from simulator.cost.launches import (
    begun_early_s,
    between_kernels_s,
    decode_kernels,
    decode_launch_s,
    eager_launch,
    host_time,
    launch_ahead_s,
    launch_floor,
    launch_seqs_s,
    prepare_s,
    queue_launch_s,
    queue_share,
)
from simulator.cost.operator import Operator
from simulator.cost.operators import Step
from simulator.cost.roofline import Floats, Time
from simulator.cost.table import StepCostTable
from simulator.hardware.gpu import Gpu
from simulator.models.model import Model
from simulator.models.precision import Parallel, Precision


@dataclass(frozen=True)
class OperatorCost:
    """One line of an explained step: all launches of an operator on one GPU."""

    operator: str
    launches: float
    seconds: float
    bound_by: str
    flops: float
    bytes: float
    source: str


def _sum(operators: Iterable[Operator], counts: Floats) -> Floats:
    total = np.zeros(counts.shape)
    for operator in operators:
        total = total + operator.total(counts).seconds
    return total


def padded_batch(seqs: ArrayLike, sizes: Sequence[int]) -> Floats:
    """The captured CUDA graph size a batch runs at; larger batches run as they are."""
    n = np.asarray(seqs, dtype=np.float64)
    if not sizes:
        return n
    ladder = np.asarray(sorted(sizes), dtype=np.float64)
    place = np.searchsorted(ladder, n)
    return np.where(place < ladder.size, ladder[np.minimum(place, ladder.size - 1)], n)


def _shared(step: Step, operators: Sequence[Operator], counts: Floats) -> tuple[Floats, Floats]:
    """GPU seconds of ``operators``, and those of exchanges that run beside them: with two micro-batches one computes
    while the other is on its way, and a step takes the longer of the two."""
    parts = step.costs.experts.micro_batches
    if parts == 1 or not step.deepep:
        return _sum(operators, counts), np.zeros(np.shape(counts))
    part = np.ceil(step.local(counts) / parts) * step.parallel.dp
    exchanges = [op for op in operators if op.busy is not None]
    work = parts * _sum([op for op in operators if op.busy is None], part)
    for op in exchanges:
        assert op.busy is not None
        work = work + np.where(counts > 0, parts * op.launches * op.busy(at_least_one(part)), 0.0)
    return work, parts * _sum(exchanges, part)


def _padded(step: Step, seqs: Floats) -> Floats:
    """Sequences that a pure decode step computes: its CUDA graph has room for more."""
    padded = padded_batch(np.ceil(seqs / step.parallel.dp), step.costs.decode_graph_sizes) * step.parallel.dp
    return np.where(seqs > 0, padded, 0.0)


def _decode_gpu(step: Step, seqs: Floats) -> tuple[Floats, Floats]:
    """GPU seconds of a pure decode step without attention over the cache, and a floor under both together."""
    padded = _padded(step, seqs)
    work, beside = _shared(step, step.decode_token_operators, padded)
    return work + _sum(step.sequence_operators, seqs) - begun_early_s(step, seqs, padded), beside


def _mixed_gpu(step: Step, tokens: Floats) -> Floats:
    """Seconds of a step with prefill tokens, without attention over the cache, head and sampling: on the GPU, or,
    where it is launched in its own time, for the host to launch them if that takes longer. What other micro-batches
    send is hidden by computation, but not by attention over the cache, which is not known here."""
    work, beside = _shared(step, step.token_operators, tokens)
    total = np.maximum(work, beside) + between_kernels_s(step, tokens)
    if not step.costs.launch_ahead:
        total = np.maximum(total, launch_floor(step, tokens))
    return np.where(tokens > 0, total, 0.0)


def _mixed_slack(step: Step, tokens: Floats) -> Floats:
    """How much longer the host takes to launch a step with prefill tokens than the GPU to do the work."""
    if step.costs.launch_ahead:
        return np.zeros(tokens.shape)
    total = np.maximum(*_shared(step, step.token_operators, tokens)) + between_kernels_s(step, tokens)
    return np.where(tokens > 0, np.maximum(launch_floor(step, tokens) - total, 0.0), 0.0)


def _rank_gpu(step: Step, tokens: Floats) -> Floats:
    """GPU seconds of what a data-parallel rank does alone, for ``tokens`` of its own."""
    return _sum((op for op in step.token_operators if not op.shared), tokens * step.parallel.dp)


def _fullest_rank_gpu(step: Step, chunks: Sequence[tuple[int, int]], seqs: int) -> Floats:
    """How much longer the fullest rank computes than an even share would take, beside attention."""
    new, ranks = sum(new for new, _ in chunks), step.parallel.dp
    full = np.ceil(np.array([(seqs + new * _fullest_rank(step, len(chunks))) / ranks]))
    even = np.ceil(np.array([(seqs + new) / ranks]))
    slack = _mixed_slack(step, np.array([float(seqs + new)]))
    longer: Floats = np.maximum(_rank_gpu(step, full) - _rank_gpu(step, even) - slack, 0.0)
    return longer


def _fullest_rank(step: Step, chunks: int) -> float:
    """Prompt tokens of the data-parallel rank that holds most of ``chunks`` chunks, over its even share."""
    ranks = step.parallel.dp
    return ranks * -(-chunks // ranks) / chunks


def decode_step_seconds(step: Step, seqs: int, context: float, queries: int = 1) -> float:
    """Direct evaluation of a pure decode step: ``context`` is the sum over sequences. What the table must match.

    ``queries``: tokens a sequence computes, drafts included.
    """
    n = np.array([float(seqs)])
    work, beside = _decode_gpu(step, n * queries)
    gpu = work + step.attention.decode_seconds(n, context / max(seqs, 1), queries)
    host = host_time(step, n, mixed=False)
    return float((np.maximum(np.maximum(gpu, beside), host.floor_s) + host.add_s)[0])


def mixed_step_seconds(step: Step, chunks: Sequence[tuple[int, int]], seqs: int = 0, context: float = 0.0) -> float:
    """Direct evaluation of a step with prefill ``chunks`` (new, past) beside ``seqs`` decodes over ``context``, planned
    when the GPU is free."""
    tokens = np.array([float(seqs + sum(new for new, _ in chunks))])
    gpu = _mixed_gpu(step, tokens)
    if seqs:
        gpu = gpu + step.attention.decode_seconds(np.array([float(seqs)]), context / seqs)
    uneven = _fullest_rank(step, len(chunks))
    if uneven > 1.0:
        gpu = gpu + _fullest_rank_gpu(step, chunks, seqs)
    for new, past in chunks:
        gpu = gpu + step.attention.chunk_seconds(np.array([float(new)]), np.array([float(past)])) * uneven
    count = np.array([float(seqs + len(chunks))])
    host = host_time(step, count, mixed=True)
    gpu = gpu * (1.0 + step.slower)
    alone = np.maximum(gpu, host.floor_s) + host.add_s + _sum(step.sequence_operators, count)
    launch_s = launch_ahead_s(step, tokens) + launch_seqs_s(step, count)
    return float(np.maximum(alone + prepare_s(step.hosted), launch_s)[0])


def build_step_cost(
    model: Model,
    gpu: Gpu,
    precision: Precision,
    parallel: Parallel,
    engine_costs: EngineCosts,
    *,
    max_tokens: int,
    max_seqs: int,
    max_context: int,
) -> StepCostTable:
    """Step cost of every count up to ``max_tokens`` tokens and ``max_seqs`` sequences a step of the whole engine.

    Tables are shared between equal calls: do not change their arrays.
    """
    return _build(_Key(model, gpu, precision, parallel, engine_costs, max_tokens, max_seqs, max_context))


@dataclass(frozen=True)
class _Key:
    """Arguments of a build, compared by value; GPUs by name and numbers (they hold dictionaries)."""

    model: Model
    gpu: Gpu
    precision: Precision
    parallel: Parallel
    costs: EngineCosts
    max_tokens: int
    max_seqs: int
    max_context: int

    def __hash__(self) -> int:
        return hash((self.model, self.gpu.name, self.precision, self.parallel, self.costs, self.max_tokens))


@lru_cache(maxsize=64)
def _build(key: _Key) -> StepCostTable:
    step = Step(key.model, key.gpu, key.precision, key.parallel, key.costs)
    seqs = np.arange(key.max_seqs + 1, dtype=np.float64)
    contexts = context_knots(step, key.max_context)
    new, past = spaced(8.0, key.max_tokens, CHUNK_RATIO), past_knots(step, key.max_context)
    decode_s, beside_s = _decode_gpu(step, seqs)
    decode_host, mixed_host = host_time(step, seqs, mixed=False), host_time(step, seqs, mixed=True)
    most = key.max_tokens + key.max_seqs
    apart = key.parallel.dp > 1  # attention's ranks need not have equal shares
    return StepCostTable(
        affine=False,
        decode_s=decode_s,
        decode_floor_s=np.maximum(decode_host.floor_s, beside_s),
        decode_add_s=decode_host.add_s,
        mixed_s=at_all_counts(lambda tokens: _mixed_gpu(step, tokens), most),
        mixed_floor_s=mixed_host.floor_s,
        mixed_add_s=mixed_host.add_s + _sum(step.sequence_operators, seqs),
        mixed_launch_s=at_all_counts(lambda tokens: launch_ahead_s(step, tokens), key.max_tokens + key.max_seqs),
        mixed_prepare_s=prepare_s(step.hosted),
        launch_jitter=key.costs.launch_jitter,
        launch_swing=key.costs.launch_swing,
        launch_stretch_s=key.costs.launch_stretch_s,
        cold_prompt_s=step.hosted.cold_prompt_s,
        cold_past_s=step.hosted.cold_past_s,
        launch_seq_s=step.hosted.launch_seq_s,
        launch_most_seqs=key.costs.launch_most_seqs,
        stall_rate_hz=key.costs.stall_rate_hz,
        stall_s=key.costs.stall_s,
        queue_launch_s=queue_launch_s(step),
        queue_share=queue_share(step),
        decode_launch_s=decode_launch_s(step, seqs),
        mixed_slower=step.slower,
        context_knots=contexts,
        decode_attention_s=step.attention.decode_seconds(seqs[:, None], contexts[None, :]),
        chunk_new_knots=new,
        chunk_past_knots=past,
        chunk_attention_s=step.attention.chunk_seconds(new[:, None], past[None, :]),
        ranks=key.parallel.dp,
        mixed_rank_s=at_all_counts(lambda tokens: _rank_gpu(step, tokens), most) if apart else np.zeros(2),
        mixed_slack_s=at_all_counts(lambda tokens: _mixed_slack(step, tokens), most) if apart else np.zeros(2),
        **power_fields(step, seqs, _padded(step, seqs), most),
    )


def _line(operator: Operator, count: float, parts: int = 1) -> OperatorCost:
    """All launches of an operator; ``count``: tokens of one of ``parts`` micro-batches."""
    time = operator.total(np.array([count])).times(parts)
    return OperatorCost(
        operator.name,
        operator.launches * parts,
        float(time.seconds[0]),
        time.bound_by(),
        float(time.flops[0]),
        float(time.bytes[0]),
        operator.origin,
    )


def _attention_lines(
    step: Step, chunks: Sequence[tuple[int, int]], decode: tuple[int, float, int]
) -> list[OperatorCost]:
    attention, lines = step.attention, []
    seqs, context, queries = decode
    for window, layers in attention.layers:
        label = f" (window {window})" if window else ""
        for (new, past), times in Counter(chunks).items():
            time = attention.chunk(np.array([float(new)]), np.array([float(past)]), window).times(layers * times)
            kernel = attention.prefill_kernel
            origin = f"derived from the prompt without a past: {kernel.name}" if past else kernel.origin()
            lines.append(_attention_line(f"prefill attention{label}", layers, time, origin))
        if seqs:
            time = attention.decode(np.array([float(seqs)]), context / seqs, window, queries).times(layers)
            lines.append(_attention_line(f"decode attention{label}", layers, time, attention.decode_kernel.origin()))
    return lines


def _launch_lines(step: Step, tokens: float, gpu_s: float) -> list[OperatorCost]:
    """Fixed time of prefill attention, and what launching kernels one by one takes beyond the GPU's ``gpu_s``."""
    fixed_s, layers, count = step.attention.chunk_launch_s(), step.model.layers, np.array([tokens])
    origin, place = step.attention.prefill_kernel.origin(), f"engine profile {step.costs.name}"
    lines = [OperatorCost("prefill attention launches", layers, fixed_s, "latency", 0.0, 0.0, origin)]
    gaps_s = float(between_kernels_s(step, count)[0]) - fixed_s
    if gaps_s > 0:
        lines.append(OperatorCost("gaps between kernels", layers, gaps_s, "latency", 0.0, 0.0, place))
    wait_s = float(launch_floor(step, count)[0]) - gpu_s - fixed_s - gaps_s
    if wait_s > 0 and not step.costs.launch_ahead:
        lines.append(OperatorCost("launching kernel by kernel", layers, wait_s, "host", 0.0, 0.0, place))
    return lines


def _uneven_lines(step: Step, chunks: Sequence[tuple[int, int]], seqs: int) -> list[OperatorCost]:
    """What the data-parallel ranks with fewer prompts wait for the fullest one."""
    uneven = _fullest_rank(step, len(chunks))
    if uneven <= 1.0:
        return []
    wait = _fullest_rank_gpu(step, chunks, seqs)
    for own, past in chunks:
        wait = wait + step.attention.chunk_seconds(np.array([float(own)]), np.array([float(past)])) * (uneven - 1.0)
    place = f"derived: {len(chunks)} prompts on {step.parallel.dp} data-parallel ranks"
    return [OperatorCost("waiting for the fullest rank", 1, float(wait[0]), "compute", 0.0, 0.0, place)]


def _slower_lines(step: Step, gpu_s: float) -> list[OperatorCost]:
    """What the kernels of a step with prompts take more than those of the tables."""
    slower_s, place = step.slower * gpu_s, f"engine profile {step.costs.name}"
    return [OperatorCost("slower than in the tables", 1, slower_s, "compute", 0.0, 0.0, place)] if slower_s > 0 else []


def _early_lines(step: Step, seqs: int, tokens: float) -> list[OperatorCost]:
    count, padded = np.array([float(seqs)]), np.array([tokens])
    sooner_s, kernels = float(begun_early_s(step, count, padded)[0]), float(decode_kernels(step, count, padded)[0])
    place = f"engine profile {step.costs.name}"
    return [OperatorCost("begun early", kernels, -sooner_s, "overlap", 0.0, 0.0, place)] if sooner_s else []


def _attention_line(name: str, layers: int, time: Time, origin: str) -> OperatorCost:
    values = [float(np.ravel(x)[0]) for x in (time.seconds, time.flops, time.bytes)]
    return OperatorCost(name, layers, values[0], time.bound_by(), values[1], values[2], origin)


def _operator_lines(step: Step, operators: Sequence[Operator], tokens: float, more_s: float) -> list[OperatorCost]:
    """Operators of all tokens; with micro-batches, also what hides of their exchanges. ``more_s``: computation beside
    ``operators`` that helps to hide them."""
    parts = step.costs.experts.micro_batches if step.deepep else 1
    count = np.array([tokens])
    part = float((np.ceil(step.local(count) / parts) * step.parallel.dp)[0]) if parts > 1 else tokens
    lines = [line for line in (_line(op, part, parts) for op in operators) if line.seconds > 0]  # fused: nothing
    if parts == 1:
        return lines
    work, beside = _shared(step, operators, count)
    whole_s = max(float(work[0]) + more_s, float(beside[0])) - more_s
    hidden_s = whole_s - sum(line.seconds for line in lines)
    origin = "exchanges run beside the other micro-batch; what they cost its computation is not hidden"
    return [*lines, OperatorCost("hidden by the other micro-batch", 1, hidden_s, "overlap", 0.0, 0.0, origin)]


def explain_step(
    model: Model,
    gpu: Gpu,
    precision: Precision,
    parallel: Parallel,
    engine_costs: EngineCosts,
    *,
    prefill: Sequence[tuple[int, int]] = (),
    decode: tuple[int, float] = (0, 0.0),
    queries: int = 1,
) -> list[OperatorCost]:
    """A step's cost, operator by operator: ``prefill`` chunks (new, past), ``decode`` (sequences, summed context), each
    sequence computing ``queries`` tokens in a step without prefill.

    The seconds of all lines, host time included, add up to the step's.
    """
    step = Step(model, gpu, precision, parallel, engine_costs)
    seqs, context = decode
    mixed = bool(prefill)
    queries = 1 if mixed else queries
    count = np.array([float(seqs + len(prefill))])
    tokens = float(seqs + sum(new for new, _ in prefill))
    if not mixed:
        per_rank = padded_batch(np.ceil(seqs * queries / parallel.dp), engine_costs.decode_graph_sizes)
        tokens = float(per_rank) * parallel.dp
    attention = _attention_lines(step, prefill, (seqs, context, queries))
    head = [_line(op, float(count[0]) * queries) for op in step.sequence_operators]
    operators = step.token_operators if mixed else step.decode_token_operators
    beside_s = 0.0 if mixed else sum(line.seconds for line in attention + head)
    lines = _operator_lines(step, operators, tokens, beside_s)
    if mixed:
        attention += _launch_lines(step, tokens, sum(line.seconds for line in lines))
        attention += _uneven_lines(step, prefill, seqs)
    lines += attention if mixed else attention + _early_lines(step, int(count[0]) * queries, tokens)
    if mixed:
        lines += _slower_lines(step, sum(line.seconds for line in lines))
    gpu_s = sum(line.seconds for line in (lines if mixed else lines + head))
    host = host_time(step, count, mixed=mixed)
    waits = [("waiting for the host", max(float(host.floor_s[0]) - gpu_s, 0.0)), ("gap", float(host.add_s[0]))]
    if mixed:
        waits.append(("preparing on an idle GPU", prepare_s(step.hosted)))
        whole_s = sum(line.seconds for line in lines + head) + sum(seconds for _, seconds in waits)
        launch_s = float((launch_ahead_s(step, np.array([tokens])) + launch_seqs_s(step, count))[0])
        eager = float(eager_launch(step, np.array([tokens]))[0]) > 0.0
        waits.append(("launching kernel by kernel" if eager else "launching graphs", max(launch_s - whole_s, 0.0)))
    place = f"engine profile {engine_costs.name}"
    return lines + head + [OperatorCost(n, 1, s, "host", 0.0, 0.0, place) for n, s in waits if s > 0]
