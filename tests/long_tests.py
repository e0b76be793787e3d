"""How long the long tests take."""

from __future__ import annotations

import os

#: Share of the cases of long tests that a run draws: SIMULATOR_CASES=1 draws all of them, an hour on two slow cores.
CASES = float(os.environ.get("SIMULATOR_CASES", "0.4"))


def fewer(examples: int) -> int:
    """How many of a long test's cases this run draws."""
    return max(1, round(CASES * examples))
