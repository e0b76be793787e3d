"""Fused experts, with routing even or skewed as a power law."""

from __future__ import annotations

import numpy as np

from simulator.calibration.measure.cases import STEADY_TOKENS, Group, copies_of, numbers
from simulator.calibration.measure.ops import Array, Ops, Work
from simulator.calibration.measure.plan import Plan
from simulator.calibration.measure.store import Case

SEED = 7


def _cases(plan: Plan, ops: Ops) -> list[Case]:
    return [
        {"hidden": h, "width": w, "experts": e, "top_k": k, "tokens": t, "skew": skew}
        for h, w, e, k in plan.moe_shapes
        for skew in plan.moe_skews
        for t in plan.moe_tokens
    ]


def choices(tokens: int, experts: int, top_k: int, skew: float, rng: np.random.Generator) -> np.ndarray:
    """Distinct experts of each token, (tokens, top_k): drawn with weights rank^-skew over experts in random order.

    Largest ``log weight + Gumbel noise`` is drawing without replacement by weight (the Gumbel-top-k trick).
    """
    weight = -skew * np.log(np.arange(1, experts + 1)[rng.permutation(experts)])
    return np.argsort(-(weight + rng.gumbel(size=(tokens, experts))), axis=1)[:, :top_k]


def _prepare(ops: Ops, case: Case) -> Work:
    hidden, width, experts, top_k, tokens = numbers(case, "hidden", "width", "experts", "top_k", "tokens")
    rng = np.random.default_rng(SEED)
    copies = max(2, min(8, copies_of(ops, 6.0 * experts * hidden * width)))
    skew = float(case["skew"])  # type: ignore[arg-type]
    ids = [ops.integers(choices(tokens, experts, top_k, skew, rng).tolist()) for _ in range(copies)]
    weights: list[tuple[Array, Array]] = [
        (ops.weights((experts, 2 * width, hidden), "bf16", i), ops.weights((experts, hidden, width), "bf16", i))
        for i in range(copies)
    ]
    x, out, shares = ops.random((tokens, hidden)), ops.empty((tokens, hidden)), ops.empty((tokens, top_k), "fp32")
    shares[:] = 1.0 / top_k
    return Work(lambda i: ops.experts(x, ids[i], shares, weights[i], out), copies, steady=tokens >= STEADY_TOKENS)


EXPERTS = Group("experts", _cases, lambda plan, ops, case: _prepare(ops, case))
