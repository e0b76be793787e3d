"""Steps of one engine, as rows ask for them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any

from simulator.cost.engine_costs import load_engine_costs
from simulator.cost.operators import Step
from simulator.cost.step import decode_step_seconds, mixed_step_seconds
from simulator.hardware.profiles import load_gpu
from simulator.models.catalogue import load_model
from simulator.models.precision import Parallel, Precision


@dataclass(frozen=True)
class Engine:
    """An engine in words; ``experts``: what of its spreading of experts differs from the profile, as sorted pairs."""

    model: str
    gpu: str
    profile: str
    parallel: Parallel = field(default_factory=Parallel)
    precision: Precision = field(default_factory=Precision)
    experts: tuple[tuple[str, Any], ...] = ()

    def prefill_s(self, chunks: Sequence[tuple[int, int]]) -> float:
        """Seconds of a step that computes prompts (new, past)."""
        return mixed_step_seconds(_step(self), chunks)

    def decode_s(self, sequences: int, context: float, queries: int = 1) -> float:
        """Seconds of a decode step of ``sequences`` with ``context`` tokens each."""
        return decode_step_seconds(_step(self), sequences, sequences * context, queries)


@lru_cache(maxsize=64)
def _step(engine: Engine) -> Step:
    costs = load_engine_costs(engine.profile)
    costs = replace(costs, experts=replace(costs.experts, **dict(engine.experts)))
    return Step(load_model(engine.model), load_gpu(engine.gpu), engine.precision, engine.parallel, costs)
