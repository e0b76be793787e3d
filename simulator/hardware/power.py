"""How much of its rated power a GPU draws, by phase of serving."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

from pydantic import Field

from simulator.errors import TopologyError
from simulator.resources import shipped
from simulator.schema import Schema, check, read_yaml


class PhaseEntry(Schema):
    """One phase: its share of the span from idle to rated power, and where the share is from."""

    share: float = Field(ge=0, le=1)
    source: str = Field(min_length=1)


class PhasesFile(Schema):
    """``hardware_profiles/power/phases.yaml``."""

    prefill: PhaseEntry
    decode: PhaseEntry


class PowerLimit(Schema):
    """``hardware_profiles/power/limit.yaml``: what work draws at full clocks, and how a GPU keeps to its limit."""

    gpus: list[str]
    window_s: float = Field(gt=0, le=10)
    exponent: float = Field(ge=0, le=1)
    peak_watts: float = Field(ge=0, le=1e5)
    attention_watts: float = Field(ge=0, le=1e5)
    joules_per_byte: float = Field(ge=0, le=1e-9)
    joules_per_flop: float = Field(ge=0, le=1e-9)
    full_clock_rows: int = Field(ge=1, le=10**9)
    sources: dict[str, str]


@dataclass(frozen=True)
class PowerDraw:
    """One GPU: power with nothing to do, and while it computes prompts or decodes (watts)."""

    idle_watts: float
    prefill_watts: float
    decode_watts: float

    def mean_watts(self, utilisation: float, prefill_share: float) -> float:
        """Mean power of a GPU that is busy for ``utilisation`` of the time, ``prefill_share`` of that with prompts."""
        busy = prefill_share * self.prefill_watts + (1.0 - prefill_share) * self.decode_watts
        return (1.0 - utilisation) * self.idle_watts + utilisation * busy


def power_draw(power_watts: float, idle_watts: float) -> PowerDraw:
    """``idle + (rated - idle) x share of the phase``."""
    phases, span = _phases(), power_watts - idle_watts
    return PowerDraw(idle_watts, idle_watts + span * phases.prefill.share, idle_watts + span * phases.decode.share)


@cache
def power_limit() -> PowerLimit:
    """The shipped figures of the power limit."""
    path = shipped("hardware_profiles") / "power" / "limit.yaml"
    return check(PowerLimit, read_yaml(path, TopologyError), str(path), TopologyError)


@cache
def _phases() -> PhasesFile:
    path = shipped("hardware_profiles") / "power" / "phases.yaml"
    return check(PhasesFile, read_yaml(path, TopologyError), str(path), TopologyError)
