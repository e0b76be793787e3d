"""What an engine does in one kernel where the tables have two: norms and quantisation inside another kernel."""

from __future__ import annotations

import numpy as np

from simulator.cost.engine_costs import EngineCosts
from simulator.cost.roofline import Floats


def fused_norm_bytes(costs: EngineCosts, ranks: int) -> float:
    """Largest message of an all-reduce over ``ranks`` GPUs that the norm behind it is part of; 0: none is."""
    if not costs.fused_norm_all_reduce or ranks == 1:
        return 0.0
    return next((most for least, most in reversed(costs.fused_norm_bytes) if least <= ranks), np.inf)


def quantised_before(costs: EngineCosts, behind: str, ranks: int, message: Floats) -> Floats:
    """1 where the kernel ``behind`` which a GEMM runs (norm, attention, activation) quantises its activations, else 0.

    ``message``: bytes of the all-reduce before that kernel, over ``ranks`` GPUs.
    """
    if behind in costs.fused_quantisation:
        return np.ones(np.shape(message))
    inside = behind == "norm" and "all_reduce" in costs.fused_quantisation
    return np.where(inside & (message <= fused_norm_bytes(costs, ranks)), 1.0, 0.0)


def gemm_kernels(costs: EngineCosts, form: str) -> str:
    """Whose GEMMs of this format the engine runs."""
    return dict(costs.gemm_kernels).get(form, costs.kernels)
