"""Two processes, a GPU each: sums and exchanges by size through NCCL (gloo on a CPU), and a step at TP 2.

NVLink multicast is off (NCCL_NVLS_ENABLE=0), as it is in serving engines' own processes more often than not.
"""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as processes

from simulator.calibration.measure.layer import StepRun
from simulator.calibration.measure.ops import Array, Work
from simulator.calibration.measure.plan import Plan
from simulator.calibration.measure.store import Case, Row

WORLD = 2
ROWS = "rows.json"
#: Seconds all of it may take: ranks that wait for one another for ever are ended, and what they had written is kept.
LONGEST_S = 240.0
#: Seconds each case is timed for, warm-up runs before, and fewest and most timed ones.
CASE_S, WARM, FEWEST, MOST = 0.02, 5, 7, 100
OPERATIONS = ("all_reduce", "all_to_all")


def measure_ranks(device: str, plan: Plan) -> list[Row]:
    """Rows of the groups ``collectives`` and ``tp_step``, as the first rank saw them; what there was, and a row that
    says why there is no more, where a rank fails or all of it takes too long."""
    with tempfile.TemporaryDirectory() as folder:
        failed = run_ranks(_rank, (device, plan, folder))
        path = Path(folder, ROWS)
        rows: list[Row] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else []
    return [*rows, {"group": "ranks", "case": {}, "error": failed}] if failed else rows


def run_ranks(run: Callable[..., None], given: tuple[object, ...], longest_s: float = LONGEST_S) -> str:
    """Run all ranks; what went wrong, or nothing."""
    context = processes.spawn(run, given, nprocs=WORLD, join=False)
    end = time.monotonic() + longest_s
    failed = ""
    try:
        while time.monotonic() < end:
            if context.join(timeout=1.0):
                return ""
        failed = f"not done after {longest_s:g} s"
    except Exception as e:  # a rank's error comes with its traceback, the last line of which says what it was
        failed = str(e).strip().splitlines()[-1][:200]
    for process in context.processes:
        if process.is_alive():
            process.kill()
        process.join()
    return failed


def _rank(rank: int, device: str, plan: Plan, folder: str) -> None:
    os.environ["NCCL_NVLS_ENABLE"] = "0"
    from simulator.calibration.measure.torch_ops import TorchOps

    cuda = device == "cuda"
    if cuda:
        torch.cuda.set_device(rank)
    meeting = f"file://{folder}/meeting"
    dist.init_process_group("nccl" if cuda else "gloo", init_method=meeting, rank=rank, world_size=WORLD)
    ops = TorchOps(f"cuda:{rank}" if cuda else "cpu")
    rows: list[Row] = []
    dense = next(model for model in plan.models if not model.experts)
    # launched by the host first: what a graph of collectives might do to the ranks then costs nothing that is known
    for mode in ("eager", "graph") if cuda else ("eager",):
        for operation in OPERATIONS:
            for size in plan.collective_bytes:
                case: Case = {"operation": operation, "bytes": size, "ranks": WORLD, "mode": mode}
                timed = _time(ops, _collective(ops, operation, size), graph=mode == "graph")
                rows.append({"group": "collectives", "case": case, **timed})
        _keep(rank, folder, rows)
        for step in plan.steps:
            run = StepRun(ops, dense.shard(WORLD), step, reduce=dist.all_reduce)
            case = {"model": dense.name, **asdict(step), "tp": WORLD, "mode": mode}
            rows.append({"group": "tp_step", "case": case, **_time(ops, run.step, graph=mode == "graph")})
        _keep(rank, folder, rows)
    dist.barrier()
    dist.destroy_process_group()


def _keep(rank: int, folder: str, rows: list[Row]) -> None:
    if rank == 0:
        partial = Path(folder, f"{ROWS}.partial")
        partial.write_text(json.dumps(rows), encoding="utf-8")
        partial.replace(Path(folder, ROWS))


def _collective(ops: object, operation: str, size: int) -> Callable[[], None]:
    assert hasattr(ops, "empty")
    message: Array = ops.empty((size // 2,))
    message.fill_(1.0)
    if operation == "all_reduce":
        return lambda: dist.all_reduce(message)
    received = torch.empty_like(message)
    return lambda: _exchange(message, received)


def _exchange(message: Array, received: Array) -> None:
    if message.is_cuda:
        dist.all_to_all_single(received, message)
        return
    # gloo has no all-to-all: every rank's part is gathered, and its own kept
    parts = [torch.empty_like(message) for _ in range(WORLD)]
    dist.all_gather(parts, message)
    received.copy_(parts[dist.get_rank()])


def _time(ops: object, run: Callable[[], None], *, graph: bool = False) -> dict[str, object]:
    """Timed launch by launch, or replayed from a graph; all ranks do the same number of runs."""
    from simulator.calibration.measure.torch_ops import TorchOps

    assert isinstance(ops, TorchOps)
    for _ in range(WARM):
        run()
    ops.finish()
    dist.barrier()
    if graph:
        run = ops.captured(run).replay
        run()
    rough = ops.time(Work(lambda i: run(), eager=True), 0.0).median_s
    agreed = torch.tensor([rough], device=ops.device)
    dist.all_reduce(agreed, op=dist.ReduceOp.MAX)
    count = max(FEWEST, min(MOST, int(CASE_S / float(agreed))))
    found = asdict(ops.repeat(run, count))
    return {name: value for name, value in found.items() if value is not None}
