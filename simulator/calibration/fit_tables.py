"""Fits every kernel of a GPU from measured tables and writes its profile: parameters as YAML, residuals as ``.npz``."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from simulator.calibration import kernel_rows, measured_rows, mla_rows
from simulator.calibration.fit import Fitted, HeldBack, fit_kernel, fit_measured, held_back
from simulator.calibration.in_steps import as_in_steps, attention_in_steps
from simulator.calibration.kernel_rows import Rows
from simulator.calibration.measured import read_measured
from simulator.cost.kernels import TABLES_SUFFIX
from simulator.cost.residual import save_tables
from simulator.errors import InputError
from simulator.hardware.gpu import Gpu
from simulator.hardware.profiles import KERNELS_SUFFIX, load_gpu, read_kernels
from simulator.resources import shipped

Floats = NDArray[np.float64]

#: GPUs the tables were measured on.
MEASURED = ("h100_sxm", "h200_sxm", "b200_sxm")
_SOURCES: tuple[Callable[[Path, Gpu], Iterator[Rows]], ...] = (
    kernel_rows.gemm_rows,
    kernel_rows.prefill_rows,
    kernel_rows.decode_rows,
    kernel_rows.moe_rows,
    kernel_rows.collective_rows,
    kernel_rows.exchange_rows,
    mla_rows.kernel_rows,
)


@dataclass(frozen=True)
class Profile:
    """All kernels of one GPU, and their error on rows held back (empty unless asked for)."""

    gpu: str
    kernels: tuple[Fitted, ...]
    errors: tuple[HeldBack, ...]


#: Kernels of vLLM that this program measured as well, over cold paged caches, as an engine has them.
TAKEN = ("decode_attention/vllm/bf16",)
#: GPU -> the one whose rows of those it takes. An H100 is an H200 with slower memory: one chip, so one time a launch
#: and the same shares of either peak (docs/calibration.md).
MEASURED_ON = {"h200_sxm": "h200_sxm", "h100_sxm": "h200_sxm"}
#: Kernels of whole steps of vLLM: in them decode attention takes longer than alone.
STEPS = "h200_sxm_vllm"
DATA = "aiconfigurator 0.12.0 (NVIDIA, Apache-2.0), see NOTICE"


def write_profile(gpu: str, kernels: Iterable[Fitted], out: Path, data: str = DATA) -> None:
    """``<gpu>.kernels.yaml`` and ``<gpu>.kernels.npz`` in the folder ``out``; ``data``: where the rows are from."""
    lines = [
        f"# Kernels of {gpu}: roofline parameters, fitted by simulator.calibration.fit_tables. What they leave over",
        f"# lies in {gpu}{TABLES_SUFFIX}. Data: {data}.",
    ]
    found = sorted(kernels, key=lambda fitted: fitted.rows.name)
    for fitted in found:
        lines.append(f"{fitted.rows.name}:")
        lines += [f"  {name}: {value:.6g}" for name, value in fitted.parameters.items()]
        lines.append(f"  source: '{fitted.rows.source}'")
    (out / f"{gpu}{KERNELS_SUFFIX}").write_text("\n".join(lines) + "\n", encoding="utf-8")
    save_tables(str(out / f"{gpu}{TABLES_SUFFIX}"), {f.rows.name: f.table for f in found if f.table is not None})


def measured_here(gpu: str) -> list[Fitted]:
    """Kernels of the measuring program's shipped rows that stand in for those of the tables (docs/calibration.md says
    why these, and what they changed)."""
    on = MEASURED_ON.get(gpu)
    if on is None:
        return []
    folder, bare = shipped("hardware_profiles") / "measured", replace(load_gpu(on), kernels=None)
    rows = [r for r in measured_rows.decode_rows(read_measured(folder / on), bare) if r.name in TAKEN]
    steps = attention_in_steps(read_measured(folder / STEPS))
    found = [as_in_steps(fit_measured(r), steps, bare) for r in rows]
    return found if on == gpu else [_carried_over(fitted) for fitted in found]


def _carried_over(fitted: Fitted) -> Fitted:
    source = f"{fitted.rows.source}; carried over: one chip, other memory"
    return replace(fitted, rows=replace(fitted.rows, source=source))


def fit_gpu(folder: Path, gpu: str, out: Path, *, errors: bool = False) -> Profile:
    """Fit one GPU from the tables in ``folder`` and write its profile to ``out``.

    MLA blocks come last: their attention is what is left when the projections, as just fitted, are taken off.
    ``errors`` also fits each kernel without a fifth of its rows, and of its shapes, to measure its error.
    """
    bare = replace(load_gpu(gpu), kernels=None)
    rows = [r for source in _SOURCES for r in source(folder, bare)]
    own = measured_here(gpu)
    taken = {fitted.rows.name for fitted in own}
    kernels = [fit_kernel(r) for r in rows if r.name not in taken] + own
    write_profile(gpu, kernels, out)
    fitted = replace(bare, kernels=read_kernels(out / f"{gpu}{KERNELS_SUFFIX}", gpu))
    blocks = list(mla_rows.block_rows(folder, fitted))
    kernels += [fit_kernel(r) for r in blocks]
    write_profile(gpu, kernels, out)
    tested = [r for r in rows if r.name not in taken] + [fitted.rows for fitted in own] + blocks
    measured = tuple(held_back(r) for r in tested) if errors else ()
    return Profile(gpu, tuple(kernels), measured)


def fit_tables(
    folder: Path, out: Path | None = None, *, gpus: Iterable[str] = MEASURED, errors: bool = False
) -> list[Profile]:
    """Fit all measured GPUs. ``out`` None: into the shipped ``hardware_profiles``.

    Raises InputError if a table is missing or cannot be read.
    """
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; expected the kernel tables of aiconfigurator 0.12.0 as CSV")
    target = out or shipped("hardware_profiles")
    target.mkdir(parents=True, exist_ok=True)
    return [fit_gpu(folder, gpu, target, errors=errors) for gpu in gpus]


_HEADER = (
    "| GPU | {} | rows | roofline alone | with table, rows held back | with table, shapes held back |",
    "|---|---|---|---|---|---|",
)


def error_table(profiles: Iterable[Profile], *, by_operator: bool = False) -> str:
    """Held-back errors as a Markdown table, in per cent, median / 90th percentile: a line a kernel, or ``by_operator``
    one for all backends and formats of an operator together."""
    lines = [_HEADER[0].format("operator" if by_operator else "kernel"), _HEADER[1]]
    for profile in profiles:
        groups: dict[str, list[HeldBack]] = {}
        for error in profile.errors:
            groups.setdefault(error.name.split("/")[0] if by_operator else error.name, []).append(error)
        lines += [_line(profile.gpu, name, errors) for name, errors in groups.items()]
    return "\n".join(lines)


def _line(gpu: str, name: str, errors: list[HeldBack]) -> str:
    kinds = ("roofline", "table_rows", "table_shapes")
    cells = [_percent(np.concatenate([getattr(e, kind) for e in errors])) for kind in kinds]
    return "| " + " | ".join([gpu, name, str(sum(e.rows for e in errors)), *cells]) + " |"


def _percent(errors: Floats) -> str:
    if not errors.size:
        return ""
    return f"{100 * float(np.median(errors)):.1f} / {100 * float(np.quantile(errors, 0.9)):.1f}"
