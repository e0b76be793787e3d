"""A GPU at its power limit: full clocks for some tens of milliseconds, then whatever clock keeps to the limit.

A step states what it would draw at full clocks, beyond idle, as energy in seconds of the limit (joules over the limit
in watts). The GPU's controller watches the mean power of the last tens of milliseconds, here an exponential mean, the
``pressure`` (1 = the limit). Until it reaches 1 work runs at full clocks; from then on it takes
``((drive - idle) / (1 - idle)) ** exponent`` times as long, ``drive`` being the power at full clocks over the limit.
Measured on an H200 (docs/calibration.md, the power limit).
"""

from __future__ import annotations

import math

from simulator.compiled import compiled
from simulator.cost.table import at_count


@compiled
def step_energy_s(cost, decodes, tokens, context, attention_s, chunks):  # type: ignore[no-untyped-def]
    """Energy of a step beyond idle, in seconds of the limit: of ``tokens`` tokens, ``decodes`` of them decoding, over
    ``context`` tokens of KV read by decode attention, and of prefill attention that takes ``attention_s``."""
    if cost.power_window_s == 0.0:
        return 0.0
    own = at_count(cost.mixed_energy_s, tokens) if chunks > 0 else at_count(cost.decode_energy_s, decodes)
    return own + cost.context_energy_s * context + cost.attention_drive * attention_s


@compiled
def relaxed(cost, pressure, idle_s):  # type: ignore[no-untyped-def]
    """The pressure after ``idle_s`` seconds without work."""
    return cost.power_idle + (pressure - cost.power_idle) * math.exp(-max(idle_s, 0.0) / cost.power_window_s)


@compiled
def under_limit(cost, pressure, seconds, energy_s):  # type: ignore[no-untyped-def]
    """Seconds of a step that takes ``seconds`` at full clocks, begun at ``pressure``; and the pressure at its end."""
    if seconds <= 0.0:
        return seconds, pressure
    window, idle = cost.power_window_s, cost.power_idle
    drive = idle + energy_s / seconds
    full_s = seconds
    if drive > 1.0:
        full_s = window * math.log((drive - pressure) / (drive - 1.0)) if pressure < 1.0 else 0.0
    if seconds <= full_s or drive <= 1.0:
        return seconds, drive + (pressure - drive) * math.exp(-seconds / window)
    longer = ((drive - idle) / (1.0 - idle)) ** cost.power_exponent
    return full_s + (seconds - full_s) * longer, 1.0


@compiled
def limited_step(cost, start, seconds, energy_s, pressure, worked_s):  # type: ignore[no-untyped-def]
    """A step begun at ``start`` on a GPU whose last work ended at ``worked_s`` with ``pressure``: its seconds, and both
    of these at its end. Without a limit nothing changes."""
    if cost.power_window_s == 0.0:
        return seconds, pressure, worked_s
    seconds, pressure = under_limit(cost, relaxed(cost, pressure, start - worked_s), seconds, energy_s)
    return seconds, pressure, start + seconds


@compiled
def held_s(cost, seconds, energy_s):  # type: ignore[no-untyped-def]
    """Seconds of a step among many of its like: of one that draws more than the limit, all at the limit."""
    if cost.power_window_s == 0.0:
        return seconds
    return under_limit(cost, max(min(cost.power_idle + energy_s / seconds, 1.0), cost.power_idle), seconds, energy_s)[0]
