"""What a page is made from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from simulator.cluster.plan import ClusterPlan
from simulator.cluster.result import RunResult
from simulator.metrics.slo import SLO
from simulator.planning.around import Around
from simulator.planning.crossover import Crossover
from simulator.planning.rate_curve import RateCurve


@dataclass(frozen=True)
class Material:
    """``document`` is the result JSON, ``runs`` and ``plans`` (by name) its topologies in order.

    ``around``: what was simulated besides; ``command``: what was typed.
    """

    document: Mapping[str, Any]
    runs: Sequence[RunResult]
    plans: Mapping[str, ClusterPlan] = field(default_factory=dict)
    slo: SLO = field(default_factory=SLO)
    warmup_s: float = 0.0
    around: Around = field(default_factory=Around)
    command: str = ""

    @property
    def curve(self) -> RateCurve | None:
        """Latency against rate, where it was simulated."""
        return self.around.curve

    @property
    def map(self) -> Crossover | None:
        """Where disaggregation pays, where it was simulated."""
        return self.around.map

    @property
    def entries(self) -> Sequence[Mapping[str, Any]]:
        """The topologies' figures."""
        found: Sequence[Mapping[str, Any]] = self.document["topologies"]
        return found

    @property
    def names(self) -> list[str]:
        """The topologies' names."""
        return [entry["name"] for entry in self.entries]
