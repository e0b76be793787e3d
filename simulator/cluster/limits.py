"""How much time and memory a run may take; what is over is stopped, and what was simulated so far is kept."""

from __future__ import annotations

import resource
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from simulator.errors import InputError, SimulatorError
from simulator.units import GB

_STATM = Path("/proc/self/statm")
_PAGE_BYTES = resource.getpagesize()


class LimitError(SimulatorError):
    """A run reached a limit; the message says which."""


@dataclass(frozen=True)
class Limits:
    """``seconds`` of real time for one run, ``memory_bytes`` of the whole process; None: as much as it takes."""

    seconds: float | None = None
    memory_bytes: float | None = None

    def __post_init__(self) -> None:
        for name, value in (("seconds", self.seconds), ("memory", self.memory_bytes)):
            if value is not None and not value > 0:
                raise InputError(f"limit on {name}: {value:g}; allowed: more than 0")

    @property
    def any(self) -> bool:
        """Whether there is any."""
        return self.seconds is not None or self.memory_bytes is not None


class Watch:
    """Looks at clock and memory now and then, from when it is made."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._began_s = time.monotonic()

    def look(self) -> None:
        """Raises LimitError when a limit is reached."""
        limits = self._limits
        if limits.seconds is not None and time.monotonic() - self._began_s > limits.seconds:
            raise LimitError(f"stopped after {limits.seconds:g} s of computing, the limit")
        if limits.memory_bytes is not None and memory_bytes() > limits.memory_bytes:
            raise LimitError(f"stopped at {limits.memory_bytes / GB:g} GB of memory, the limit")


def memory_bytes() -> float:
    """Memory this process has now (at most, where the system does not tell)."""
    if _STATM.exists():
        return float(_STATM.read_text().split()[1]) * _PAGE_BYTES
    unit = 1 if sys.platform == "darwin" else 1024
    return float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss) * unit
