"""Engine profiles: a scheduling policy's name, an engine's own defaults, how it budgets memory, its host costs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from simulator.cluster.settings import FAMILIES, Family, Value
from simulator.errors import TopologyError, unknown
from simulator.resources import shipped
from simulator.schema import read_yaml
from simulator.units import GIB

_KEYS = ("name", "extends", "policy", "family", "version", "settings", "gpu_settings", "kv_transfer", "memory", "costs")


@dataclass(frozen=True)
class GpuSettings:
    """Defaults an engine takes on GPUs of at least this memory, those named in ``but_not`` left out."""

    memory_at_least_gib: float
    memory_below_gib: float
    but_not: tuple[str, ...]
    settings: Mapping[str, object]

    def applies(self, gpu: str, memory_bytes: float) -> bool:
        """Whether a GPU of this name and memory gets these defaults."""
        in_range = self.memory_at_least_gib * GIB <= memory_bytes < self.memory_below_gib * GIB
        return in_range and not any(part in gpu for part in self.but_not)


@dataclass(frozen=True)
class EngineProfile:
    """One engine as data. ``costs`` and ``memory`` are read by the rooms that use them."""

    name: str
    policy: str
    family: Family
    version: str
    settings: Mapping[str, object]
    gpu_settings: tuple[GpuSettings, ...]
    transfer_mode: str
    transfer_link: Mapping[str, float]
    layerwise_from_tokens: int
    memory: Mapping[str, Any]
    costs: Mapping[str, Any]
    source: str = field(compare=False, default="")

    def resolve(
        self, gpu: str | None, memory_bytes: float, *layers: tuple[str, Mapping[str, object]]
    ) -> dict[str, Value]:
        """Every setting's value on this GPU: table, profile, profile for the GPU, then the topology's layers."""
        matching = [g.settings for g in self.gpu_settings if gpu is not None and g.applies(gpu, memory_bytes)]
        by_gpu = [(f"{self.source}: gpu_settings", settings) for settings in matching[:1]]
        return self.family.resolve((f"{self.source}: settings", self.settings), *by_gpu, *layers)


def profile_names() -> list[str]:
    """Engine profiles that ship with the package."""
    return sorted(path.stem for path in _folder().glob("*.yaml"))


@cache
def load_profile(name: str, place: str = "engine") -> EngineProfile:
    """The engine profile called ``name``, or read from the YAML file ``name``."""
    path = Path(name) if name.endswith((".yaml", ".yml")) else _folder() / f"{name}.yaml"
    if not path.is_file():
        raise TopologyError(unknown(place, "engine profile", name, profile_names()))
    values = _merged(path, ())
    family = str(values.get("family"))
    if family not in FAMILIES:
        raise TopologyError(unknown(str(path), "engine family", family, FAMILIES))
    transfer = _transfer(values, path)
    return EngineProfile(
        name=str(values.get("name", name)),
        policy=str(values.get("policy", family)),
        family=FAMILIES[family],
        version=str(values.get("version", "")),
        settings=_mapping(values, "settings", path),
        gpu_settings=tuple(_gpu_settings(entry, path) for entry in values.get("gpu_settings", [])),
        transfer_mode=str(transfer.get("mode", "pull")),
        transfer_link={key: float(value) for key, value in transfer.items() if key.endswith("_s")},
        layerwise_from_tokens=int(transfer.get("layerwise_from_tokens", 0)),
        memory=_mapping(values, "memory", path),
        costs=_mapping(values, "costs", path),
        source=path.name,
    )


def _folder() -> Path:
    return shipped("hardware_profiles") / "engines"


def _merged(path: Path, seen: tuple[Path, ...]) -> dict[str, Any]:
    """The file's keys over those of the profile it extends (mappings are merged one level deep)."""
    if path in seen:
        raise TopologyError(f"{path}: extends itself")
    values = read_yaml(path, TopologyError)
    for key in values:
        if key not in _KEYS:
            raise TopologyError(unknown(str(path), "key", key, _KEYS))
    if "extends" not in values:
        return values
    base = _merged(path.parent / f"{values['extends']}.yaml", (*seen, path))
    for key, value in values.items():
        both = isinstance(value, dict) and isinstance(base.get(key), dict)
        base[key] = {**base[key], **value} if both else value
    return base


def _mapping(values: Mapping[str, Any], key: str, path: Path) -> dict[str, Any]:
    found = values.get(key) or {}
    if not isinstance(found, dict):
        raise TopologyError(f"{path}: {key}: a mapping is needed, found {found!r}")
    return found


def _transfer(values: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """The profile's ``kv_transfer``: its mode, and times that replace the link profile's, with their source."""
    transfer = _mapping(values, "kv_transfer", path)
    allowed = ("mode", "setup_s", "per_descriptor_s", "layerwise_from_tokens", "source")
    for key in transfer:
        if key not in allowed:
            raise TopologyError(unknown(f"{path}: kv_transfer", "key", key, allowed))
    if any(key not in ("mode", "source") for key in transfer) and "source" not in transfer:
        raise TopologyError(f"{path}: kv_transfer: key 'source' is missing; say where its numbers come from")
    return transfer


def _gpu_settings(entry: Mapping[str, Any], path: Path) -> GpuSettings:
    allowed = ("memory_at_least_gib", "memory_below_gib", "but_not", "settings", "source")
    for key in entry:
        if key not in allowed:
            raise TopologyError(unknown(f"{path}: gpu_settings", "key", key, allowed))
    return GpuSettings(
        float(entry.get("memory_at_least_gib", 0.0)),
        float(entry.get("memory_below_gib", "inf")),
        tuple(entry.get("but_not", ())),
        entry["settings"],
    )
