"""Norms, rotary embedding, cache writes, activations, embedding, sampling and routing of whole models."""

from __future__ import annotations

from simulator.calibration.measure.cases import Group, numbers, paged_caches
from simulator.calibration.measure.ops import Ops, Work
from simulator.calibration.measure.plan import Plan
from simulator.calibration.measure.store import Case

#: Sequences that get a token in one step, at most.
_MOST_SAMPLED = 1024


def _cases(plan: Plan, ops: Ops) -> list[Case]:
    found: list[Case] = []
    for model in plan.models:
        heads = {"heads": model.q_heads, "kv_heads": model.kv_heads, "width": model.head_dim}
        for t in plan.element_tokens:
            found.append({"op": "add_norm", "tokens": t, "hidden": model.hidden})
            found += [{"op": name, "tokens": t, **heads} for name in ("rotate", "write_cache")]
            found.append({"op": "embed", "tokens": t, "hidden": model.hidden, "vocab": model.vocab})
            found.append({"op": "quantise", "tokens": t, "hidden": model.hidden})
            if model.experts:
                found.append({"op": "choose", "tokens": t, "experts": model.experts, "top_k": model.top_k})
            else:
                found.append({"op": "activate", "tokens": t, "hidden": model.ffn})
            if t <= _MOST_SAMPLED:
                found.append({"op": "sample", "tokens": t, "vocab": model.vocab})
    return list({str(case): case for case in found}.values())


def _norm(ops: Ops, case: Case) -> Work:
    t, hidden = numbers(case, "tokens", "hidden")
    x, residual, out = (ops.random((t, hidden)) for _ in range(3))
    weight = ops.random((hidden,))
    return Work(lambda i: ops.add_norm(x, residual, weight, out))


def _rotate(ops: Ops, case: Case) -> Work:
    t, q, kv, width = numbers(case, "tokens", "heads", "kv_heads", "width")
    qkv, positions = ops.random((t, (q + 2 * kv) * width)), ops.integers(list(range(t)))
    return Work(lambda i: ops.rotate(qkv, positions, q + kv, width))


def _write(ops: Ops, case: Case) -> Work:
    t, q, kv, width = numbers(case, "tokens", "heads", "kv_heads", "width")
    cache = paged_caches(ops, (kv, width), [max(t, 4096)], 1)[0]
    qkv, slots = ops.random((t, (q + 2 * kv) * width)), ops.permutation(max(t, 4096))[:t]
    return Work(lambda i: ops.write_cache(qkv, q, cache, slots))


def _activate(ops: Ops, case: Case) -> Work:
    t, hidden = numbers(case, "tokens", "hidden")
    x, out = ops.random((t, 2 * hidden)), ops.empty((t, hidden))
    return Work(lambda i: ops.activate(x, out))


def _embed(ops: Ops, case: Case) -> Work:
    t, hidden, vocab = numbers(case, "tokens", "hidden", "vocab")
    table, out = ops.weights((vocab, hidden), "bf16", 0), ops.empty((t, hidden))
    tokens = ops.permutation(max(t, vocab))[:t] % vocab
    return Work(lambda i: ops.embed(table, tokens, out))


def _quantise(ops: Ops, case: Case) -> Work:
    t, hidden = numbers(case, "tokens", "hidden")
    x, out, scales = ops.random((t, hidden)), ops.empty((t, hidden), "fp8"), ops.empty((t, 1), "fp32")
    return Work(lambda i: ops.quantise(x, out, scales))


def _choose(ops: Ops, case: Case) -> Work:
    t, experts, top_k = numbers(case, "tokens", "experts", "top_k")
    logits, ids, shares = ops.random((t, experts)), ops.empty((t, top_k), "int"), ops.empty((t, top_k), "fp32")
    return Work(lambda i: ops.choose(logits, top_k, ids, shares))


def _sample(ops: Ops, case: Case) -> Work:
    t, vocab = numbers(case, "tokens", "vocab")
    logits, out = ops.random((t, vocab)), ops.empty((t,), "int")
    return Work(lambda i: ops.sample(logits, out))


_PREPARE = {
    "add_norm": _norm,
    "rotate": _rotate,
    "write_cache": _write,
    "activate": _activate,
    "embed": _embed,
    "quantise": _quantise,
    "choose": _choose,
    "sample": _sample,
}

ELEMENTS = Group("elements", _cases, lambda plan, ops, case: _PREPARE[str(case["op"])](ops, case))
