"""The machine itself: bandwidth and arithmetic it reaches, gaps between launches, power under steady work."""

from __future__ import annotations

import threading
import time
from dataclasses import asdict

from simulator.calibration.measure.cases import CASE_S, Group, numbers
from simulator.calibration.measure.ops import Ops, Work
from simulator.calibration.measure.plan import Plan
from simulator.calibration.measure.store import Case

#: Launches that are timed together, to see the gap between two.
LAUNCHES = 100
#: Bytes a program of the streaming kernel copies.
STREAM_BLOCK = 2**16
#: Seconds of work between looks at the reader, seconds before its first reading (the meter averages), and readings.
STEADY_S, SETTLE_S, READINGS = 0.3, 1.2, 3


def _cases(plan: Plan, ops: Ops) -> list[Case]:
    found: list[Case] = [
        {"what": "stream", "bytes": size, "method": method}
        for method in ("copy", "kernel")
        for size in plan.stream_bytes
    ]
    found += [{"what": "product", "size": plan.peak_size, "format": f} for f in ("bf16", "fp8")]
    return [*found, {"what": "launch", "mode": "graph"}, {"what": "launch", "mode": "eager"}]


def _prepare(ops: Ops, case: Case) -> Work:
    if case["what"] == "stream":
        (size,) = numbers(case, "bytes")
        source, target = ops.device_buffer(size), ops.device_buffer(size)
        if case["method"] == "kernel":
            order = ops.integers(list(range(size // STREAM_BLOCK)))
            return Work(lambda i: ops.gather_bytes(source, target, STREAM_BLOCK, order))
        return Work(lambda i: ops.stream(source, target))
    if case["what"] == "launch":
        return Work(lambda i: _launches(ops), eager=case["mode"] == "eager")
    (size,) = numbers(case, "size")
    if case["format"] == "bf16":
        x, w, out = ops.random((size, size)), ops.weights((size, size), "bf16", 0), ops.empty((size, size))
        return Work(lambda i: ops.matmul(x, w, out))
    small, scales, out = ops.empty((size, size), "fp8"), ops.empty((size, 1), "fp32"), ops.empty((size, size))
    ops.quantise(ops.random((size, size)), small, scales)
    w8 = ops.weights((size, size), "fp8", 0)
    return Work(lambda i: ops.matmul_fp8(small, scales, w8, out))


def _launches(ops: Ops) -> None:
    for _ in range(LAUNCHES):
        ops.empty_kernel()


MACHINE = Group("machine", _cases, lambda plan, ops, case: _prepare(ops, case))


def _power_cases(plan: Plan, ops: Ops) -> list[Case]:
    if not ops.state():
        return []
    found: list[Case] = [{"what": "idle"}]
    found += [{"what": "product", "size": plan.peak_size, "format": f} for f in ("bf16", "fp8")]
    return [*found, {"what": "stream", "bytes": plan.stream_bytes[-1], "method": "kernel"}]


def _idle(ops: Ops, case: Case) -> Work:
    if case["what"] == "idle":
        return Work(lambda i: time.sleep(0.1), eager=True)
    return _prepare(ops, case)


def steady_power(ops: Ops, work: Work) -> dict[str, object]:
    """Readings of clocks and power while the work is repeated for a while."""
    found: dict[str, list[float]] = {}

    def read() -> None:
        time.sleep(SETTLE_S)
        for _ in range(READINGS):
            for name, value in ops.state().items():
                found.setdefault(name, []).append(value)

    reader = threading.Thread(target=read)
    reader.start()
    timing = ops.time(work, STEADY_S)
    while reader.is_alive():
        timing = ops.time(work, STEADY_S)
    reader.join()
    return {"steady_s": timing.median_s, **{f"{name}_readings": values for name, values in found.items()}}


def _power(ops: Ops, work: Work, case: Case) -> dict[str, object]:
    return {**asdict(ops.time(work, CASE_S)), **steady_power(ops, work)}


POWER = Group("power", _power_cases, lambda plan, ops, case: _idle(ops, case), _power)
