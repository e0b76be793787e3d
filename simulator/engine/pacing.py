"""A worker gets slower or faster: the cost of its steps is replaced while it runs."""

from __future__ import annotations

from dataclasses import fields, replace

from simulator.compiled import compiled
from simulator.cost.table import StepCostTable

#: What of a step cost is not a number of seconds: shares, counts, and what stalls are drawn from.
_NOT_SECONDS = {"affine", "launch_jitter", "launch_most_seqs", "launch_seed", "mixed_slower", "ranks", "stall_rate_hz"}
_NOT_SECONDS |= {"context_knots", "chunk_new_knots", "chunk_past_knots"}
_NOT_SECONDS |= {"power_window_s", "power_idle", "power_exponent", "attention_drive"}


def slowed(cost: StepCostTable, factor: float) -> StepCostTable:
    """The same steps, each taking ``factor`` times as long; a launch meets as many stalls, and longer ones."""
    seconds = [field.name for field in fields(cost) if field.name not in _NOT_SECONDS]
    slower = {name: getattr(cost, name) * factor for name in seconds}
    return replace(cost, **slower, stall_rate_hz=cost.stall_rate_hz / factor)


@compiled
def set_cost(e, cost):  # type: ignore[no-untyped-def]
    """Batches planned from now on take this cost; those in flight keep theirs."""
    e.cost = cost
