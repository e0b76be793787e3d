"""Requests: traces read, generated, offered at a rate, and written."""

from simulator.workload.arrivals import Arrivals, apply_arrivals, parse_arrivals
from simulator.workload.load import load_trace
from simulator.workload.trace import Trace, same_requests
from simulator.workload.write import write_trace

__all__ = [
    "Arrivals",
    "Trace",
    "apply_arrivals",
    "load_trace",
    "parse_arrivals",
    "same_requests",
    "write_trace",
]
