"""From measured rows to a hardware profile: fits every kernel and writes what ``gpu: profile.yaml`` reads."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import yaml

from simulator.calibration import measured_rows
from simulator.calibration.fit import Fitted, fit_measured, residuals
from simulator.calibration.fit_tables import write_profile
from simulator.calibration.kernel_rows import Rows
from simulator.calibration.measured import Measured
from simulator.errors import InputError, unknown
from simulator.hardware.gpu import Gpu
from simulator.hardware.profiles import gpu_file, list_gpus, load_gpu, plain_name
from simulator.schema import read_yaml

SOURCES: tuple[Callable[[Measured, Gpu], Iterator[Rows]], ...] = (
    measured_rows.gemm_rows,
    measured_rows.prefill_rows,
    measured_rows.decode_rows,
    measured_rows.moe_rows,
    measured_rows.element_rows,
    measured_rows.collective_rows,
)
#: Parameters that rows of one kernel must outnumber, to be fitted at all.
LEAST_ROWS = 3


def fit_all(measured: Measured, gpu: Gpu) -> list[Fitted]:
    """Every kernel that was measured."""
    found = [rows for source in SOURCES for rows in source(measured, gpu)]
    return [fit_measured(rows) for rows in found if len(rows) >= LEAST_ROWS]


def base_of(measured: Measured, like: str | None) -> Path:
    """The shipped profile whose datasheet the measured GPU shares: ``like``, or the one its name begins with.

    Raises InputError if there is none.
    """
    if like is not None:
        return gpu_file(like)
    device = str(measured.machine.get("gpu", ""))
    words = plain_name(device).removeprefix("nvidia").removeprefix("amd")
    known = {plain_name(alias): alias for alias in list_gpus(aliases=True)}
    fitting = [name for name in known if words.startswith(name)]
    if not fitting:
        place = f"calibrate: the device calls itself '{device or measured.machine.get('host')}'"
        raise InputError(
            unknown(f"{place}; say with --like which profile has its datasheet", "GPU", device, list_gpus())
        )
    return gpu_file(known[max(fitting, key=len)])


def write_gpu(measured: Measured, base: Path, out: Path) -> list[Fitted]:
    """``out`` (a GPU profile) and, beside it, its kernels: parameters as YAML, residuals as ``.npz``.

    Datasheet numbers are those of ``base``, so that efficiencies are fractions of the same peaks.
    """
    data = read_yaml(base, InputError)
    name = out.stem
    data = {**data, "name": name, "aliases": [], "notes": f"{measured.about}; datasheet numbers of {base.stem}"}
    data.pop("kernels_from", None)
    gpu = replace(load_gpu(base), name=name, kernels=None)
    kernels = fit_all(measured, gpu)
    if not kernels:
        raise InputError("calibrate: no kernel has rows to fit; measure more groups")
    out.parent.mkdir(parents=True, exist_ok=True)
    write_profile(name, kernels, out.parent, data=measured.about)
    partial = out.with_name(out.name + ".partial")
    partial.write_text(yaml.safe_dump(data, sort_keys=False, allow_unicode=True), encoding="utf-8")
    partial.replace(out)
    return kernels


def fit_errors(kernels: list[Fitted]) -> dict[str, tuple[int, float, float]]:
    """Kernel -> rows, median and 90th percentile of the roofline's error on the rows it was fitted to."""
    found = {}
    for fitted in kernels:
        error = np.abs(np.expm1(-residuals(fitted.rows, fitted.parameters)))
        found[fitted.rows.name] = (len(fitted.rows), float(np.median(error)), float(np.quantile(error, 0.9)))
    return found
