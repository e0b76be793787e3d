"""Numbers as people read them: three figures and a unit."""

from __future__ import annotations

import math

from simulator.units import SAME_INSTANT_S


def figures(value: float, digits: int = 3) -> str:
    """``value`` to ``digits`` significant figures, in plain notation: 0.0123, 4.57, 12,300."""
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    mantissa, exponent = f"{value:.{digits - 1}e}".split("e")
    decimals = max(0, digits - 1 - int(exponent))
    return f"{float(mantissa) * 10.0 ** int(exponent):,.{decimals}f}"


def seconds(value: float | None) -> str:
    """A time: ``850 us``, ``48.2 ms``, ``1.93 s``, ``95 s``; a dash where there is none, 0 where rounding is all."""
    if value is None or math.isnan(value):
        return "–"
    if abs(value) < SAME_INSTANT_S:
        return "0 s"
    for limit, scale, unit in ((1e-3, 1e6, "us"), (1.0, 1e3, "ms")):
        if abs(value) < limit * (1 - 5e-4):
            return f"{figures(value * scale)} {unit}"
    return f"{figures(value)} s"


def target(value: float) -> str:
    """A target as it was written, without padding: ``50 ms``, ``2 s``."""
    for limit, scale, unit in ((1e-3, 1e6, "us"), (1.0, 1e3, "ms")):
        if value < limit:
            return f"{value * scale:.6g} {unit}"
    return f"{value:.6g} s"


def percent(share: float | None) -> str:
    """A share: ``93 %``, ``71.4 %``; 100 % only of all, 0 % only of none."""
    if share is None or math.isnan(share):
        return "–"
    text = f"{100 * share:.1f}".removesuffix(".0")
    if text == "100" and share < 1:
        return "> 99.9 %"
    return "< 0.1 %" if text == "0" and share > 0 else f"{text} %"


def within(error_percent: float) -> str:
    """An interval of the model's error: ``± 14 %``, or ``within a factor 2.6`` where per cent mislead."""
    if error_percent < 100:
        return f"± {error_percent:.0f} %"
    return f"within a factor {figures(1 + error_percent / 100, 2)}"


def count(number: int) -> str:
    """``12,345``."""
    return f"{number:,}"


def rate(value: float | None) -> str:
    """A rate without its unit, three figures; a dash where there is none."""
    return "–" if value is None or math.isnan(value) else figures(value)


def listed(names: list[str]) -> str:
    """``a``, ``a and b``, ``a, b and c``."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
