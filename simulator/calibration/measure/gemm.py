"""Projections in bf16 and in fp8, with the quantisation of their input beside them."""

from __future__ import annotations

from simulator.calibration.measure.cases import STEADY_TOKENS, Group, copies_of, numbers
from simulator.calibration.measure.ops import Ops, Work
from simulator.calibration.measure.plan import Plan
from simulator.calibration.measure.store import Case


def _cases(plan: Plan, rows: tuple[int, ...]) -> list[Case]:
    return [{"m": m, "n": n, "k": k} for n, k in plan.gemm_shapes for m in rows]


def _bf16(ops: Ops, case: Case) -> Work:
    m, n, k = numbers(case, "m", "n", "k")
    x, out = ops.random((m, k)), ops.empty((m, n))
    copies = copies_of(ops, n * k * 2.0)
    weights = [ops.weights((n, k), "bf16", i) for i in range(copies)]
    return Work(lambda i: ops.matmul(x, weights[i], out), copies, steady=m >= STEADY_TOKENS)


def _fp8(ops: Ops, case: Case) -> Work:
    """Quantise the rows, then multiply: what an engine does for a bf16 activation."""
    m, n, k = numbers(case, "m", "n", "k")
    x, out = ops.random((m, k)), ops.empty((m, n))
    small, scales = ops.empty((m, k), "fp8"), ops.empty((m, 1), "fp32")
    one = scales[:1] if case["scales"] == "tensor" else scales
    copies = copies_of(ops, n * k * 1.0)
    weights = [ops.weights((n, k), "fp8", i) for i in range(copies)]

    def run(i: int) -> None:
        ops.quantise(x, small, scales)
        ops.matmul_fp8(small, one, weights[i], out)

    return Work(run, copies, steady=m >= STEADY_TOKENS)


def _fp8_cases(plan: Plan, ops: Ops) -> list[Case]:
    # fp8 kernels want widths that are multiples of 16
    whole = [c for c in _cases(plan, plan.fp8_rows) if not (int(c["n"]) % 16 or int(c["k"]) % 16)]  # type: ignore[call-overload]
    return [{**c, "scales": scales} for scales in ("row", "tensor") for c in whole]


def _bf16_cases(plan: Plan, ops: Ops) -> list[Case]:
    """The step models' own shapes at more rows: kernels work in tiles of rows, and a step may just begin one."""
    own = dict.fromkeys((n, k) for model in plan.models for n, k in model.gemms() if n != model.vocab)
    more: list[Case] = [{"m": m, "n": n, "k": k} for n, k in own for m in plan.step_rows]
    return more + _cases(plan, plan.gemm_rows)


GEMM_BF16 = Group("gemm_bf16", _bf16_cases, lambda plan, ops, case: _bf16(ops, case))
GEMM_FP8 = Group("gemm_fp8", _fp8_cases, lambda plan, ops, case: _fp8(ops, case))
