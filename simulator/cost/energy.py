"""What a step draws at full clocks, for GPUs that run at their power limit (``simulator.cost.power``)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from simulator.cost.knots import at_all_counts
from simulator.cost.operator import Operator
from simulator.cost.operators import Step
from simulator.cost.roofline import Floats, Time
from simulator.hardware.power import power_limit


def power_fields(step: Step, seqs: Floats, padded: Floats, most_tokens: int) -> dict[str, Any]:
    """The power fields of a StepCostTable; none where the engine profile or the GPU has no such limit.

    ``padded``: sequences a decode step of ``seqs`` computes. Energies are joules beyond idle over the limit in watts.
    """
    limit, gpu = power_limit(), step.gpu
    if not step.costs.power_limit or gpu.name not in limit.gpus:
        return {}
    decode = _seconds(step, step.decode_token_operators, padded) + _seconds(step, step.sequence_operators, seqs)
    return {
        "power_window_s": limit.window_s,
        "power_idle": gpu.idle_power_watts / gpu.power_watts,
        "power_exponent": limit.exponent,
        "mixed_energy_s": at_all_counts(lambda tokens: _seconds(step, step.token_operators, tokens), most_tokens),
        "decode_energy_s": np.where(seqs > 0, decode, 0.0),
        "context_energy_s": _context_energy_s(step),
        "attention_drive": limit.attention_watts / gpu.power_watts,
    }


def _joules(step: Step, time: Time) -> Floats:
    """Work at the peak of its format draws ``peak_watts``, whatever the format; bytes of memory cost energy as well."""
    limit = power_limit()
    form = "fp8" if step.precision.weights.startswith("fp8") else "bf16"
    peak = step.gpu.peak_flops[form]
    joules: Floats = limit.peak_watts * time.flops / peak + limit.joules_per_byte * time.bytes
    return joules


def _seconds(step: Step, operators: Sequence[Operator], counts: Floats) -> Floats:
    total = np.zeros(np.shape(counts))
    for operator in operators:
        total = total + _joules(step, operator.total(counts))
    return total / step.gpu.power_watts


def _context_energy_s(step: Step) -> float:
    """Of one token of KV that decode attention reads, all layers."""
    context = 1024.0
    one = np.array([1.0])
    joules = sum(float(_joules(step, step.attention.decode(one, context, w))[0]) * n for w, n in step.attention.layers)
    return joules / context / step.gpu.power_watts
