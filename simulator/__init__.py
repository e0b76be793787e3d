"""Discrete-event simulator of LLM serving clusters, colocated and prefill-decode disaggregated.

>>> from simulator import simulate, compare, load_trace, load_topology, SLO  # doctest: +SKIP
>>> result = simulate("chat.jsonl", "colocated.yaml", slo="ttft=2s,tpot=50ms")  # doctest: +SKIP
>>> result.summary()["slo_attainment"]  # doctest: +SKIP

The names in ``__all__`` are the public API; everything else is private by convention.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

#: Public name -> module that has it. Loaded on first use, so that ``simulate --help`` does not wait for numba.
_HOMES = {
    "simulate": "simulator.api",
    "compare": "simulator.api",
    "check": "simulator.planning.check",
    "CheckResult": "simulator.planning.check",
    "plan": "simulator.planning.plan",
    "PlanResult": "simulator.planning.plan",
    "sweep": "simulator.planning.sweep",
    "SweepResult": "simulator.planning.sweep",
    "Result": "simulator.api",
    "Comparison": "simulator.api",
    "load_trace": "simulator.workload.load",
    "Trace": "simulator.workload.trace",
    "load_topology": "simulator.cluster.topology",
    "validate_run": "simulator.validation.measured_run",
    "SLO": "simulator.metrics.slo",
    "SimulatorError": "simulator.errors",
    "InputError": "simulator.errors",
}

__all__ = [
    "SLO",
    "CheckResult",
    "Comparison",
    "InputError",
    "PlanResult",
    "Result",
    "SimulatorError",
    "SweepResult",
    "Trace",
    "__version__",
    "check",
    "compare",
    "load_topology",
    "load_trace",
    "plan",
    "simulate",
    "sweep",
    "validate_run",
]

if TYPE_CHECKING:
    from simulator.api import Comparison, Result, compare, simulate
    from simulator.cluster.topology import load_topology
    from simulator.errors import InputError, SimulatorError
    from simulator.metrics.slo import SLO
    from simulator.planning.check import CheckResult, check
    from simulator.planning.plan import PlanResult, plan
    from simulator.planning.sweep import SweepResult, sweep
    from simulator.validation.measured_run import validate_run
    from simulator.workload.load import load_trace
    from simulator.workload.trace import Trace


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'simulator' has no attribute '{name}'")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
