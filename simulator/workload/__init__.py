"""Requests: traces read, generated, offered at a rate, and written."""

from simulator.workload.arrivals import Arrivals, apply_arrivals, parse_arrivals
from simulator.workload.generate import generate_trace
from simulator.workload.load import load_trace
from simulator.workload.measure import measure_spec
from simulator.workload.trace import Trace, same_requests
from simulator.workload.write import write_trace

__all__ = [
    "Arrivals",
    "Trace",
    "apply_arrivals",
    "generate_trace",
    "load_trace",
    "measure_spec",
    "parse_arrivals",
    "same_requests",
    "write_trace",
]
