"""Latency targets (service level objectives) and which requests meet them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from simulator.errors import InputError, unknown
from simulator.units import parse_duration

#: What may be a target, as the user writes it, and how it is printed.
TARGETS = {"ttft": "TTFT", "tpot": "TPOT", "e2e": "E2E", "itl_p99": "ITL p99"}


@dataclass(frozen=True)
class SLO:
    """Targets in seconds; ``None`` = no target. A request is good when it meets every target there is.

    ``itl_p99_s`` bounds the 99th percentile of one request's own gaps between tokens. ``tenants``: names, and the
    targets that hold for a tenant's requests in place of these.
    """

    ttft_s: float | None = None
    tpot_s: float | None = None
    e2e_s: float | None = None
    itl_p99_s: float | None = None
    tenants: tuple[tuple[str, SLO], ...] = ()

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if value is None or field.name == "tenants":
                continue
            if isinstance(value, bool) or not isinstance(value, int | float) or not (0 < value < math.inf):
                raise InputError(f"slo: {field.name} = {value!r}; a target is a number of seconds above 0")

    @classmethod
    def parse(cls, text: str, place: str = "--slo") -> SLO:
        """Read ``ttft=2s,tpot=50ms``, and behind semicolons what holds for tenants: ``ttft=2s;gold:ttft=1s``.

        The unit is required. Raises InputError that starts with ``place``.
        """
        common, *others = text.split(";")
        if ":" in common.partition("=")[0]:
            common, others = "", [common, *others]
        tenants: dict[str, SLO] = {}
        for part in others:
            name, colon, targets = part.partition(":")
            name = name.strip()
            if not colon or not name or "=" in name:
                raise InputError(f"{place}: '{part.strip()}' names no tenant; write ttft=2s;gold:ttft=1s")
            if name in tenants:
                raise InputError(f"{place}: tenant '{name}' is given twice")
            tenants[name] = cls._parse_targets(targets, f"{place}: {name}")
        slo = cls._parse_targets(common, place) if common.strip() or not tenants else cls()
        return replace(slo, tenants=tuple(tenants.items()))

    @classmethod
    def _parse_targets(cls, text: str, place: str) -> SLO:
        given: dict[str, str] = {}
        for part in text.split(","):
            name, equals, value = part.partition("=")
            name = name.strip()
            if not equals:
                raise InputError(
                    f"{place}: '{part.strip()}' is not a target; write name=duration, as ttft=2s,tpot=50ms"
                )
            if name in given:
                raise InputError(f"{place}: '{name}' is given twice")
            given[name] = value
        return cls.from_mapping(given, place)

    @classmethod
    def from_mapping(cls, given: Mapping[str, object], place: str = "slo") -> SLO:
        """Read ``{"ttft": "2s", "tpot": "50ms"}``. Raises InputError for unknown names and bare numbers."""
        seconds: dict[str, Any] = {}
        for name, value in given.items():
            if name not in TARGETS:
                raise InputError(unknown(place, "target", name, TARGETS))
            seconds[f"{name}_s"] = parse_duration(str(value), f"{place}: {name}")
            if seconds[f"{name}_s"] <= 0:
                raise InputError(f"{place}: {name} = {value}; a target is above 0")
        return cls(**seconds)

    @classmethod
    def of(cls, value: SLO | str | Mapping[str, object] | None, place: str = "slo") -> SLO:
        """Take targets however they come: an SLO, the command's text, a mapping, or none at all."""
        if value is None:
            return cls()
        if isinstance(value, SLO):
            return value
        return cls.parse(value, place) if isinstance(value, str) else cls.from_mapping(value, place)

    def targets(self) -> dict[str, float]:
        """The targets there are, name (``ttft``) to seconds."""
        return {name: getattr(self, f"{name}_s") for name in TARGETS if getattr(self, f"{name}_s") is not None}

    @property
    def needs_gaps(self) -> bool:
        """Whether each request's own gaps between tokens have to be kept."""
        return self.itl_p99_s is not None or any(slo.itl_p99_s is not None for _, slo in self.tenants)

    def with_targets(self, seconds: Mapping[str, float]) -> SLO:
        """The same with some targets (``ttft`` -> seconds) replaced."""
        changed: dict[str, Any] = {f"{name}_s": value for name, value in seconds.items()}
        return replace(self, **changed)

    def __bool__(self) -> bool:
        return bool(self.targets() or self.tenants)

    def as_dict(self) -> dict[str, Any]:
        """For the result JSON: every name, ``None`` where there is no target; ``tenants`` only where there are any."""
        found: dict[str, Any] = {f"{name}_s": getattr(self, f"{name}_s") for name in TARGETS}
        return found | ({"tenants": {name: slo.as_dict() for name, slo in self.tenants}} if self.tenants else {})
