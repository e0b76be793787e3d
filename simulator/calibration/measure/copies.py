"""Copies between host and device and within it, in blocks that lie together or scattered."""

from __future__ import annotations

from simulator.calibration.measure.cases import Group, numbers
from simulator.calibration.measure.ops import Array, Ops, Work
from simulator.calibration.measure.plan import Plan
from simulator.calibration.measure.store import Case

WAYS = ("host_to_device", "device_to_host", "device_to_device")
#: one: a single copy of all blocks; calls: one copy a block, started by the host; graph: the same, started by the
#: device; kernel: one kernel that fetches every block.
METHODS = ("one", "calls", "graph", "kernel")
#: A block and the gap after it, where blocks are scattered.
SPREAD = 2


def _cases(plan: Plan, ops: Ops) -> list[Case]:
    return [
        {"way": way, "method": method, "block_bytes": size, "blocks": blocks}
        for way in WAYS
        for method in METHODS
        for size, blocks in plan.copy_blocks
    ]


def _buffers(ops: Ops, way: str, sizes: tuple[int, int]) -> tuple[Array, Array]:
    source = ops.host_buffer if way == "host_to_device" else ops.device_buffer
    target = ops.host_buffer if way == "device_to_host" else ops.device_buffer
    return source(sizes[0]), target(sizes[1])


def _prepare(ops: Ops, case: Case) -> Work:
    size, blocks = numbers(case, "block_bytes", "blocks")
    method, total = str(case["method"]), size * blocks
    source, target = _buffers(ops, str(case["way"]), (total * SPREAD, total))
    order = ops.permutation(blocks * SPREAD)[:blocks]
    if method == "kernel":
        return Work(lambda i: ops.gather_bytes(source, target, size, order))
    places = [int(p) for p in order.tolist()]
    moves = [(p * size, i * size, size) for i, p in enumerate(places)] if method != "one" else [(0, 0, total)]
    return Work(lambda i: ops.copy_bytes(source, target, moves), eager=method != "graph")


COPIES = Group("copies", _cases, lambda plan, ops, case: _prepare(ops, case))
