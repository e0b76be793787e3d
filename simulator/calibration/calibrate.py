"""The whole of ``simulate calibrate``: measure (or take up what was measured), fit, write the profile."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from simulator.calibration.fit import Fitted
from simulator.calibration.link_fit import (
    LinkFit,
    beside_work,
    host_links,
    interference,
    layout_errors,
    peer_links,
    write_link,
)
from simulator.calibration.measure.ops import Ops
from simulator.calibration.measure.plan import Plan, read_plan, tiny_plan
from simulator.calibration.measure.run import GROUPS, RANKS, Budget, measure, store_at
from simulator.calibration.measured import MACHINE, Measured, read_measured, write_tables
from simulator.calibration.measured_fit import base_of, write_gpu
from simulator.errors import InputError, unknown
from simulator.hardware.gpu import Gpu
from simulator.hardware.profiles import load_gpu
from simulator.resources import shipped

#: Whose datasheet stands in where a CPU plays the GPU.
TINY_LIKE = "h100_sxm"
SHIPPED_PLAN = "measured/plan.json"


@dataclass(frozen=True)
class Calibration:
    """What was asked for. ``rows``: a folder measured before, elsewhere perhaps, in place of measuring; ``device``:
    'cuda', 'cpu' (torch) or 'numpy'; None: cuda, or with ``tiny`` what there is."""

    out: Path
    tiny: bool = False
    device: str | None = None
    rows: Path | None = None
    like: str | None = None
    groups: tuple[str, ...] = ()
    minutes: float = 2.5
    total_minutes: float = 60.0
    flash_attention: str | None = None


def calibrate(asked: Calibration, tell: Callable[[str], None]) -> list[Fitted]:
    """Measure, fit and write ``asked.out``; the rows stay beside it in ``<name>.measured``.

    Raises InputError for a device that is not there, an unknown group, and rows that cannot be read.
    """
    _check(asked)
    folder = asked.rows
    if folder is None:
        folder = asked.out.with_name(f"{asked.out.stem}.measured")
        _measure(asked, folder, tell)
    measured = read_measured(folder)
    like = asked.like or (TINY_LIKE if asked.tiny else None)
    base = base_of(measured, like)
    kernels = write_gpu(measured, base, asked.out)
    for fit, path in _write_links(measured, load_gpu(base), asked.out):
        name = fit.name if path is None else path.name
        tell(f"{name}: {_words(fit)}")
        if fit.name.startswith("peer/"):
            off = layout_errors(measured, fit).items()
            tell(f"{name}: median error by layout: {', '.join(f'{layout} {100 * e:.1f} %' for layout, e in off)}")
    for line in _beside(measured):
        tell(line)
    if asked.rows is None:
        write_tables(measured, folder)
    return kernels


def _write_links(measured: Measured, gpu: Gpu, out: Path) -> list[tuple[LinkFit, Path | None]]:
    """A link profile of the host's link and, with a second GPU, of that between them, where they were measured. All
    fits, with the profile if one was written of it: other ways to copy have laws of their own."""
    chosen = {"host_to_device/calls": ("pcie", gpu.pcie_bandwidth_bytes_per_s)}
    chosen["peer/calls"] = ("nvlink", gpu.nvlink_bandwidth_bytes_per_s)
    found: list[tuple[LinkFit, Path | None]] = []
    for fit in (*host_links(measured), *peer_links(measured)):
        path = None
        if fit.name in chosen:
            kind, line_rate = chosen[fit.name]
            path = out.with_name(f"{out.stem}.{kind}.yaml")
            # what starts copies, host or graph, does not change what they share with kernels beside them
            beside = beside_work(measured) if kind == "nvlink" else 1.0
            words = "; ".join(_beside(measured))
            write_link(fit, kind, line_rate, measured.about, path, beside=beside, words=words)
        found.append((fit, path))
    return found


def _beside(measured: Measured) -> list[str]:
    """What copies and work cost each other, a line a pair."""
    return [
        f"copies by {method} beside {work} on the {side}: {timed} takes {factor:.2f} times as long"
        for (method, work, side, timed), factor in interference(measured).items()
    ]


def _words(fit: LinkFit) -> str:
    rate = f"{fit.bandwidth_bytes_per_s / 1e9:.1f} GB/s"
    off = f"{100 * float(np.median(fit.held_back)):.1f} % off in the median of rows held back"
    return f"{fit.setup_s * 1e6:.1f} us to begin, {fit.per_piece_s * 1e6:.2f} us a piece, {rate}; {off}"


def _check(asked: Calibration) -> None:
    if asked.out.suffix.lower() not in (".yaml", ".yml"):
        raise InputError(f"--out: '{asked.out}' is no profile's name; write a file that ends in .yaml")
    known = [*(group.name for group in GROUPS), RANKS]
    for name in asked.groups:
        if name not in known:
            raise InputError(unknown("--groups", "group", name, known))
    for name, value in (("--minutes", asked.minutes), ("--total-minutes", asked.total_minutes)):
        if not value > 0:
            raise InputError(f"{name}: found {value:g}, expected more than 0")


def machine_of(asked: Calibration) -> Ops:
    """The machine to measure. Raises InputError if it is not there."""
    device = asked.device
    if device == "numpy" or (device is None and asked.tiny and not _has_torch()):
        from simulator.calibration.measure.numpy_ops import NumpyOps

        return NumpyOps()
    if not _has_torch():
        raise InputError("calibrate: torch is not installed; pip install 'pd-simulator[calibrate]', or try --tiny")
    import torch

    from simulator.calibration.measure.torch_ops import TorchOps

    device = device or ("cpu" if asked.tiny else "cuda")
    if device == "cuda" and not torch.cuda.is_available():
        raise InputError("calibrate: torch sees no GPU here; run it on a machine with one, or try --tiny")
    return TorchOps(device, flash=asked.flash_attention)


def _has_torch() -> bool:
    from importlib.util import find_spec

    return find_spec("torch") is not None


def _measure(asked: Calibration, folder: Path, tell: Callable[[str], None]) -> None:
    plan = _plan(asked)
    ops = machine_of(asked)
    store = store_at(folder)
    words = f"simulate calibrate --out {asked.out.name}" + (" --tiny" if asked.tiny else "")
    date = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    about = {**ops.machine(), "kernel_errors": ops.errors(), "date": date, "command": words}
    (folder / MACHINE).write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
    measure(ops, plan, store, Budget(60 * asked.minutes, 60 * asked.total_minutes), tell, asked.groups)


def _plan(asked: Calibration) -> Plan:
    return tiny_plan() if asked.tiny else read_plan(shipped("hardware_profiles") / SHIPPED_PLAN)
