"""Attention: whole prompts by a library's kernel, chunks after a past and decode over a paged cache by our own."""

from __future__ import annotations

from simulator.calibration.measure.cases import STEADY_TOKENS, Group, copies_of, heads_of, numbers, paged_caches
from simulator.calibration.measure.ops import Ops, Work
from simulator.calibration.measure.plan import Plan
from simulator.calibration.measure.store import Case


def _heads(plan: Plan) -> list[Case]:
    return [{"heads": q, "kv_heads": kv, "width": d} for q, kv, d in plan.attention_heads]


def _step_heads(plan: Plan) -> list[Case]:
    shapes = dict.fromkeys((m.q_heads, m.kv_heads, m.head_dim) for m in plan.models)
    return [{"heads": q, "kv_heads": kv, "width": d} for q, kv, d in shapes]


def _prefill_cases(plan: Plan, ops: Ops) -> list[Case]:
    return [
        {**heads, "batch": batch, "new": new, "past": past, "library": library}
        for library in ops.paged_libraries()
        for heads in _heads(plan)
        for batch, new, past in plan.prefill_chunks
    ]


def _prefill(ops: Ops, case: Case) -> Work:
    q, kv, width = heads_of(case)
    batch, new, past = numbers(case, "batch", "new", "past")
    copies = min(copies_of(ops, batch * (new + past) * kv * width * 4.0), 16)
    caches = paged_caches(ops, (kv, width), [past + new] * batch, copies)
    qkv = ops.random((batch * new, (q + 2 * kv) * width))
    out = ops.empty((batch * new, q * width))
    starts = ops.integers([i * new for i in range(batch + 1)])
    library = str(case["library"])
    steady = batch * new >= STEADY_TOKENS
    return Work(lambda i: ops.prefill_attention(qkv, starts, new, caches[i], out, library), copies, steady=steady)


def _dense_cases(plan: Plan, ops: Ops) -> list[Case]:
    found = []
    for library in ops.dense_libraries():
        for heads in _heads(plan):
            found += [
                {**heads, "batch": b, "new": n, "library": library} for b, n, past in plan.prefill_chunks if not past
            ]
    return found


def _dense(ops: Ops, case: Case) -> Work:
    q, kv, width = heads_of(case)
    batch, new = numbers(case, "batch", "new")
    arrays = [ops.random((batch, heads, new, width)) for heads in (q, kv, kv)]
    library = str(case["library"])

    def run(i: int) -> None:
        ops.dense_attention(arrays[0], arrays[1], arrays[2], library)

    return Work(run, steady=batch * new >= STEADY_TOKENS)


def _decode_cases(plan: Plan, ops: Ops) -> list[Case]:
    """The step models' own heads at more contexts: kernels work in blocks of tokens, and a step may just begin one."""
    grids = [(_step_heads(plan), plan.step_contexts), (_heads(plan), plan.decode_contexts)]
    return [
        {**heads, "batch": batch, "context": context, "library": library}
        for chosen, contexts in grids
        for library in ops.paged_libraries()
        for heads in chosen
        for batch in plan.decode_batches
        for context in contexts
        if batch * context <= plan.decode_tokens
    ]


def _decode(ops: Ops, case: Case) -> Work:
    q, kv, width = heads_of(case)
    batch, context = numbers(case, "batch", "context")
    copies = copies_of(ops, batch * context * kv * width * 4.0)
    caches = paged_caches(ops, (kv, width), [context] * batch, copies)
    qkv, out = ops.random((batch, (q + 2 * kv) * width)), ops.empty((batch, q * width))
    library = str(case["library"])
    return Work(lambda i: ops.decode_attention(qkv, q, caches[i], out, library), copies)


def _mixed_cases(plan: Plan, ops: Ops) -> list[Case]:
    return [
        {**heads, "seqs": s.seqs, "context": s.context, "new": s.new, "past": s.past, "library": library}
        for library in ops.paged_libraries()
        for heads in _step_heads(plan)
        for s in plan.steps
        if s.seqs and s.new
    ]


def _mixed(ops: Ops, case: Case) -> Work:
    """Decoding sequences and a chunk in one launch, as engines without a split of their batches do; the token that a
    sequence decodes comes after its context, as in a step."""
    q, kv, width = heads_of(case)
    seqs, context, new, past = numbers(case, "seqs", "context", "new", "past")
    lengths = [context + 1] * seqs + [past + new]
    copies = min(copies_of(ops, sum(lengths) * kv * width * 4.0), 16)
    caches = paged_caches(ops, (kv, width), lengths, copies)
    rows = seqs + new
    qkv, out = ops.random((rows, (q + 2 * kv) * width)), ops.empty((rows, q * width))
    starts, library = ops.integers([*range(seqs + 1), rows]), str(case["library"])
    return Work(lambda i: ops.prefill_attention(qkv, starts, new, caches[i], out, library), copies, steady=True)


PREFILL = Group("prefill_attention", _prefill_cases, lambda plan, ops, case: _prefill(ops, case))
DENSE = Group("dense_attention", _dense_cases, lambda plan, ops, case: _dense(ops, case))
DECODE = Group("decode_attention", _decode_cases, lambda plan, ops, case: _decode(ops, case))
MIXED = Group("mixed_attention", _mixed_cases, lambda plan, ops, case: _mixed(ops, case))
