"""Reads GPU profiles: YAML in which every number states its source."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import Field, field_validator

from simulator.errors import TopologyError, unknown
from simulator.hardware.gpu import Gpu, KernelProfile
from simulator.resources import shipped
from simulator.schema import Schema, check, read_yaml

KERNELS_SUFFIX = ".kernels.yaml"
ARITHMETIC = ("bf16", "fp8", "nvfp4", "mxfp4", "int8", "fp32")
_ABOUT = ("name", "aliases", "kernels_from", "sources", "notes")


class GpuFile(Schema):
    """A GPU profile as it is written. Bounds refuse numbers in the wrong unit (GB for bytes, TFLOPS for FLOP/s)."""

    name: str
    aliases: tuple[str, ...] = ()
    kernels_from: str | None = None
    notes: str = ""
    memory_bytes: int = Field(ge=10**9, le=10**13)
    memory_bandwidth_bytes_per_s: float = Field(ge=1e10, le=1e15)
    peak_flops: dict[str, float]
    sms: int = Field(ge=1, le=10_000)
    l2_bytes: int = Field(ge=10**5, le=10**11)
    nvlink_bandwidth_bytes_per_s: float = Field(ge=0, le=1e14)
    nvlink_domain_gpus: int = Field(ge=1, le=100_000)
    pcie_bandwidth_bytes_per_s: float = Field(ge=1e8, le=1e13)
    nic_bandwidth_bytes_per_s: float = Field(ge=0, le=1e13)
    power_watts: float = Field(gt=0, le=1e5)
    idle_power_watts: float = Field(ge=0, le=1e5)
    usd_per_hour: float | None = Field(None, ge=0, le=1e4)
    host_speed: float | None = Field(None, ge=0.05, le=20)
    sources: dict[str, str]

    @field_validator("peak_flops")
    @classmethod
    def _peaks(cls, peaks: dict[str, float]) -> dict[str, float]:
        for arithmetic, flops in peaks.items():
            if arithmetic not in ARITHMETIC:
                raise ValueError(unknown("peak_flops", "arithmetic", arithmetic, ARITHMETIC))
            if not 1e11 <= flops <= 1e18:
                raise ValueError(f"peak_flops.{arithmetic} {flops:g} is not between 1e11 and 1e18 FLOP/s")
        if "bf16" not in peaks:
            raise ValueError("peak_flops needs at least bf16")
        return peaks

    def numbers(self) -> Iterator[str]:
        """Fields that carry a number, and so need a source."""
        for field in type(self).model_fields:
            if field not in _ABOUT and getattr(self, field) is not None:
                yield field


def _check_sources(profile: GpuFile, place: str) -> None:
    numbers = list(profile.numbers())
    peaks = [f"peak_flops.{a}" for a in profile.peak_flops]
    for key in profile.sources:
        if key not in (*numbers, *peaks, "all"):
            raise TopologyError(unknown(f"{place}: sources", "key", key, (*numbers, *peaks, "all")))
    for field in numbers:
        named = field in profile.sources or (field == "peak_flops" and all(p in profile.sources for p in peaks))
        if not named and "all" not in profile.sources:
            raise TopologyError(f"{place}: key 'sources.{field}' is missing; say where {field} comes from")


def _read_gpu(path: Path) -> GpuFile:
    place = str(path)
    profile = check(GpuFile, read_yaml(path, TopologyError), place, TopologyError)
    _check_sources(profile, place)
    return profile


def read_kernels(path: Path, gpu: str, derived_from: str | None = None) -> KernelProfile:
    """Kernel parameters: operator -> {parameter: number, ..., source: text}."""
    operators: dict[str, dict[str, float]] = {}
    sources: dict[str, str] = {}
    for operator, data in read_yaml(path, TopologyError).items():
        if not isinstance(data, dict):
            raise TopologyError(f"{path}: {operator}: found {data!r}, expected 'parameter: number' lines and a source")
        operators[operator], sources[operator] = _kernel(f"{path}: {operator}", data)
    return KernelProfile(gpu, operators, sources, derived_from, path)


def _kernel(place: str, data: dict[Any, Any]) -> tuple[dict[str, float], str]:
    numbers = {}
    for key, value in data.items():
        if key == "source":
            continue
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise TopologyError(f"{place}.{key}: found {value!r}, expected a number")
        numbers[str(key)] = float(value)
    source = data.get("source")
    if not isinstance(source, str) or not source.strip():
        raise TopologyError(f"{place}: key 'source' is missing; say where the numbers come from")
    return numbers, source


def _find_kernels(profile: GpuFile, file: Path) -> KernelProfile | None:
    """The GPU's own kernels if they lie beside its profile, else those of the GPU it names as ``kernels_from``, or of
    the one that GPU names in turn."""
    own = file.parent / f"{profile.name}{KERNELS_SUFFIX}"
    if own.is_file():
        return read_kernels(own, profile.name)
    names = _names()
    donor, seen = profile.kernels_from, {profile.name}
    while donor is not None and donor not in seen:
        path = names.get(plain_name(donor))
        if path is None:
            raise TopologyError(unknown(f"{file}: kernels_from", "GPU", donor, list_gpus()))
        measured = path.with_name(f"{path.stem}{KERNELS_SUFFIX}")
        if measured.is_file():
            return read_kernels(measured, profile.name, path.stem)
        seen.add(donor)
        donor = _read_gpu(path).kernels_from
    return None


def _gpu(path: Path) -> Gpu:
    profile = _read_gpu(path)
    kernels = _find_kernels(profile, path)
    values = {field: getattr(profile, field) for field in GpuFile.model_fields if field not in _ABOUT}
    return Gpu(
        name=profile.name,
        sources=dict(profile.sources),
        kernels=kernels,
        derived_from=kernels.derived_from if kernels else None,
        **values,
    )


def plain_name(name: str) -> str:
    """Names compare without case, blanks and punctuation: 'H100 SXM' is h100_sxm."""
    return "".join(c for c in name.lower() if c.isalnum())


@cache
def _names() -> dict[str, Path]:
    names: dict[str, Path] = {}
    for path in sorted(shipped("hardware_profiles").glob("*.yaml")):
        if path.name.endswith(KERNELS_SUFFIX):
            continue
        profile = _read_gpu(path)
        for name in (profile.name, *profile.aliases):
            if names.setdefault(plain_name(name), path) != path:
                raise TopologyError(f"{path}: '{name}' also names {names[plain_name(name)].stem}")
    return names


def list_gpus(*, aliases: bool = False) -> list[str]:
    """Names of the shipped GPU profiles, sorted; with ``aliases``, their other names too (case and blanks left out)."""
    return sorted(_names()) if aliases else sorted({path.stem for path in _names().values()})


def gpu_file(name: str) -> Path:
    """The file of a shipped GPU profile, by its name or an alias. Raises TopologyError if there is none."""
    found = _names().get(plain_name(name))
    if found is None:
        raise TopologyError(unknown("gpu", "GPU", name, list_gpus()))
    return found


@cache
def _shipped_gpu(path: Path) -> Gpu:
    return _gpu(path)


def load_gpu(name_or_path: str | Path) -> Gpu:
    """A GPU by name (case and punctuation do not matter) or path of a profile of one's own.

    Raises TopologyError if the name is unknown or the profile does not follow its schema.
    """
    text = str(name_or_path)
    path = Path(text).expanduser()
    if path.suffix.lower() in (".yaml", ".yml"):
        return _gpu(path)
    return _shipped_gpu(gpu_file(text))
