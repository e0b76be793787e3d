"""Finds the measured kernel an engine uses, or the nearest one to derive it from, and says which it was."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike

from simulator.cost.residual import ResidualTable, load_table
from simulator.cost.roofline import Floats, GemmFormat, Time
from simulator.errors import TopologyError
from simulator.hardware.gpu import Gpu
from simulator.hardware.profiles import KERNELS_SUFFIX, load_gpu, read_kernels
from simulator.resources import shipped
from simulator.units import BYTES_PER_NUMBER

TABLES_SUFFIX = ".kernels.npz"
#: Parameters of operators that no table measured, for every GPU.
DEFAULTS_FILE = f"default{KERNELS_SUFFIX}"
#: The measured GPU whose efficiencies stand in where a profile names none.
NEAREST_MEASURED = "h100_sxm"
#: How far processors, and FLOP a byte, may differ between two variants of one chip.
SAME_CHIP_SMS, SAME_CHIP_BALANCE = 0.05, 0.15
#: Where a kernel is looked for when the engine's own was not measured.
BACKENDS = ("vllm", "sglang", "trtllm", "torch")
#: Formats a kernel may be derived from, nearest first.
_NEAREST = {
    "fp8_block": ("fp8_block", "fp8", "bf16"),
    "fp8": ("fp8", "fp8_block", "bf16"),
    "nvfp4": ("nvfp4", "fp8", "fp8_block", "bf16"),
    "mxfp4": ("mxfp4", "nvfp4", "fp8", "bf16"),
    "int8": ("int8", "fp8", "bf16"),
}


@dataclass(frozen=True, eq=False)
class Kernel:
    """Parameters of one kernel on one GPU, its residual table if there is one, and where both come from."""

    name: str
    parameters: Mapping[str, float]
    source: str
    derived: bool
    table: ResidualTable | None = None

    def apply(self, time: Time, shape: tuple[float, ...], x: ArrayLike, y: ArrayLike | None = None) -> Time:
        """``time`` with the measured residual of ``shape`` at counts ``x`` (and ``y``)."""
        return time if self.table is None else time.scaled(self.table.ratio(shape, x, y))

    def counts(self) -> Floats:
        """Measured counts of the second axis (context, prompt length); empty without a table."""
        return np.zeros(0) if self.table is None or self.table.y is None else np.exp(self.table.y)

    def origin(self, shape: tuple[float, ...] | None = None) -> str:
        """Short words on how far the figure is from a measurement."""
        if self.derived:
            return f"derived: {self.name} ({self.source})"
        if self.table is None or shape is None:
            return f"roofline: {self.name} ({self.source})"
        if not self.table.covers(shape):
            where = "roofline, shape outside the table"
        elif self.table.are_beyond(shape).any():
            where = "beyond the measured shapes, by the nearest"
        else:
            where = "measured"
        return f"{where}: {self.name} ({self.source})"


@dataclass(frozen=True, eq=False)
class Kernels:
    """All kernels of one GPU."""

    gpu: Gpu
    operators: Mapping[str, Mapping[str, float]]
    sources: Mapping[str, str]
    derived_from: str | None
    tables: str | None
    _found: dict[tuple[str, str, tuple[str, ...]], Kernel] = field(default_factory=dict, repr=False)

    def find(self, operator: str, backend: str, *formats: str) -> Kernel:
        """The kernel ``operator/backend/format``; then the same format of another backend, then the next format.

        Raises TopologyError if not even a default exists.
        """
        key = (operator, backend, formats)
        if key not in self._found:
            self._found[key] = self._search(operator, backend, formats)
        return self._found[key]

    def _search(self, operator: str, backend: str, formats: tuple[str, ...]) -> Kernel:
        for i, kind in enumerate(formats):
            for other in (backend, *(b for b in BACKENDS if b != backend)):
                name = f"{operator}/{other}/{kind}"
                if name in self.operators:
                    return self._kernel(name, stands_in=i > 0)
        if operator in self.operators:
            return self._kernel(operator, stands_in=False)
        defaults = _defaults()
        if operator not in defaults.operators:
            raise TopologyError(f"{self.gpu.name}: no kernel parameters for operator '{operator}'")
        return Kernel(operator, defaults.operators[operator], defaults.sources[operator], True)

    def _kernel(self, name: str, *, stands_in: bool) -> Kernel:
        table = load_table(self.tables, name) if self.tables is not None else None
        derived = stands_in or self.derived_from is not None
        source = self.sources.get(name, "")
        if self.derived_from is not None:
            source = f"efficiencies of {self.derived_from}; {source}"
        return Kernel(name, self.operators[name], source, derived, table)


@lru_cache(maxsize=1)
def _defaults() -> Kernels:
    profile = read_kernels(shipped("hardware_profiles") / DEFAULTS_FILE, "default")
    return Kernels(load_gpu("h100_sxm"), profile.operators, profile.sources, None, None)


def _same_chip(gpu: Gpu, donor: Gpu) -> bool:
    """Nearly as many processors, and nearly as much arithmetic for a byte: residuals are about these two."""
    balance = [g.peak_flops["bf16"] / g.memory_bandwidth_bytes_per_s for g in (gpu, donor)]
    return abs(gpu.sms / donor.sms - 1) <= SAME_CHIP_SMS and abs(balance[0] / balance[1] - 1) <= SAME_CHIP_BALANCE


def _tables(gpu: Gpu) -> str | None:
    """The residual tables beside the GPU's kernels; borrowed only from the same chip."""
    profile = gpu.kernels
    if profile is None or profile.path is None:
        return None
    if profile.derived_from is not None and not _same_chip(gpu, load_gpu(profile.derived_from)):
        return None
    path = profile.path.with_name(profile.path.name.removesuffix(KERNELS_SUFFIX) + TABLES_SUFFIX)
    return str(path) if path.is_file() else None


def kernels_of(gpu: Gpu) -> Kernels:
    """The kernels of ``gpu``: its own, those of the GPU that stands in for it, or the defaults."""
    profile = gpu.kernels
    if profile is None:
        donor = load_gpu(NEAREST_MEASURED).kernels
        if donor is None:
            return Kernels(gpu, {}, {}, None, None)
        return Kernels(gpu, donor.operators, donor.sources, NEAREST_MEASURED, None)
    return Kernels(gpu, profile.operators, profile.sources, profile.derived_from, _tables(gpu))


#: Bytes of a number that needs no widening to be multiplied as bf16.
WIDE = 2.0
#: Weight formats whose activations are quantised from bf16 by a pass of their own.
_ACTIVATION_FORMAT = {"fp8": "fp8", "fp8_block": "fp8", "int8": "int8", "nvfp4": "nvfp4", "mxfp4": "fp8"}


def gemm_format(gpu: Gpu, stored: str, arithmetic: str, *, experts: bool = False) -> tuple[str, GemmFormat]:
    """How a GPU multiplies weights stored as ``stored``: the kernel's format name, and bytes and arithmetic.

    Arithmetic the GPU lacks is replaced by bf16 with the weights widened in registers (as Marlin does), no faster than
    its processors can widen them.
    """
    weight_bytes = BYTES_PER_NUMBER[stored]
    if stored == "mxfp4" and stored in gpu.peak_flops:
        arithmetic = stored  # Blackwell's tensor cores take it as it is; elsewhere it is widened
    native = arithmetic in gpu.peak_flops
    if arithmetic == "bf16" or not native:
        if weight_bytes >= WIDE:
            return "bf16", GemmFormat(weight_bytes, 2.0, "bf16", quantised=False)
        widening = _defaults().operators["widening"]
        share = widening["experts_compute" if experts else "gemm_compute"]
        rate = widening["weights_per_sm_s"] * gpu.sms
        return "bf16", GemmFormat(weight_bytes, 2.0, "bf16", quantised=False, widened_per_s=rate, compute_share=share)
    activation = BYTES_PER_NUMBER[_ACTIVATION_FORMAT.get(stored, "bf16")]
    kind = stored if stored in _NEAREST else arithmetic
    return kind, GemmFormat(weight_bytes, activation, arithmetic, quantised=activation < 2.0)


def nearest_formats(kind: str) -> tuple[str, ...]:
    """Formats to look for a kernel of ``kind`` in, nearest first."""
    return _NEAREST.get(kind, (kind, "bf16") if kind != "bf16" else ("bf16",))


def at_least_one(count: ArrayLike) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    """Counts as floats, zero raised to one: formulas divide by them, and the caller zeroes the result."""
    return np.maximum(np.asarray(count, dtype=np.float64), 1.0)
