"""A worker gets slower or faster: the cost of its steps is replaced while it runs."""

from __future__ import annotations

from dataclasses import fields, replace

from simulator.compiled import compiled
from simulator.cost.table import StepCostTable


def slowed(cost: StepCostTable, factor: float) -> StepCostTable:
    """The same steps, each taking ``factor`` times as long; a launch meets as many stalls, and longer ones."""
    names = [field.name for field in fields(cost)]
    # names carry their unit; the window belongs to the GPU's controller, and a stretch to what else the host does
    seconds = [name for name in names if name.endswith("_s") and name not in ("power_window_s", "launch_stretch_s")]
    slower = {name: getattr(cost, name) * factor for name in seconds}
    return replace(cost, **slower, stall_rate_hz=cost.stall_rate_hz / factor)


@compiled
def set_cost(e, cost):  # type: ignore[no-untyped-def]
    """Batches planned from now on take this cost; those in flight keep theirs."""
    e.cost = cost
