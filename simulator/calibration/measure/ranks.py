"""Two processes, a GPU each: sums and exchanges by size through NCCL (gloo on a CPU), and a step at TP 2.

NVLink multicast is off (NCCL_NVLS_ENABLE=0), as it is in serving engines' own processes more often than not.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as processes

from simulator.calibration.measure.layer import StepRun
from simulator.calibration.measure.ops import Array, Work
from simulator.calibration.measure.plan import ModelShape, Plan
from simulator.calibration.measure.store import Case, Row

WORLD = 2
#: Seconds each case is timed for, warm-up runs before, and fewest and most timed ones.
CASE_S, WARM, FEWEST, MOST = 0.02, 5, 7, 100
OPERATIONS = ("all_reduce", "all_to_all")


def shard(model: ModelShape, ranks: int) -> ModelShape:
    """One tensor-parallel rank's part of a dense model."""
    return replace(
        model,
        q_heads=model.q_heads // ranks,
        kv_heads=max(1, model.kv_heads // ranks),
        ffn=model.ffn // ranks,
        vocab=model.vocab // ranks,
    )


def measure_ranks(device: str, plan: Plan) -> list[Row]:
    """Rows of the groups ``collectives`` and ``tp_step``, as the first rank saw them."""
    with tempfile.TemporaryDirectory() as folder:
        processes.spawn(_rank, (device, plan, folder), nprocs=WORLD)
        rows: list[Row] = json.loads(Path(folder, "rows.json").read_text(encoding="utf-8"))
    return rows


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
    for operation in OPERATIONS:
        for size in plan.collective_bytes:
            case: Case = {"operation": operation, "bytes": size, "ranks": WORLD}
            rows.append({"group": "collectives", "case": case, **_time(ops, _collective(ops, operation, size))})
    dense = next(model for model in plan.models if not model.experts)
    for step in plan.steps:
        run = StepRun(ops, shard(dense, WORLD), step, reduce=dist.all_reduce)
        case = {"model": dense.name, **asdict(step), "tp": WORLD}
        rows.append({"group": "tp_step", "case": case, **_time(ops, run.step)})
    if rank == 0:
        Path(folder, "rows.json").write_text(json.dumps(rows), encoding="utf-8")
    dist.barrier()
    dist.destroy_process_group()


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


def _time(ops: object, run: Callable[[], None]) -> dict[str, object]:
    """Timed launch by launch; all ranks do the same number of runs."""
    from simulator.calibration.measure.torch_ops import TorchOps

    assert isinstance(ops, TorchOps)
    for _ in range(WARM):
        run()
    ops.finish()
    dist.barrier()
    rough = ops.time(Work(lambda i: run(), eager=True), 0.0).median_s
    agreed = torch.tensor([rough], device=ops.device)
    dist.all_reduce(agreed, op=dist.ReduceOp.MAX)
    count = max(FEWEST, min(MOST, int(CASE_S / float(agreed))))
    found = asdict(ops.repeat(run, count))
    return {name: value for name, value in found.items() if value is not None}
