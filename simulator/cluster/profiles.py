"""Engine profiles: a scheduling policy's name, an engine's own defaults, how it budgets memory, its host costs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from simulator.cluster.schema import TransferMode
from simulator.cluster.settings import FAMILIES, Family, Value
from simulator.cost.engine_costs import extended
from simulator.engine.engine import POLICIES
from simulator.errors import TopologyError, unknown
from simulator.resources import shipped
from simulator.schema import Schema, check, read_yaml
from simulator.units import GIB

Gib = Annotated[float, Field(ge=0, le=1e6)]
Bytes = Annotated[float, Field(ge=0, le=1e15)]
Seconds = Annotated[float, Field(ge=0, le=60)]


class GpuSettings(Schema):
    """Defaults an engine takes on GPUs of at least this memory, those named in ``but_not`` left out."""

    memory_at_least_gib: Gib = 0.0
    memory_below_gib: Gib = 1e6
    but_not: tuple[str, ...] = ()
    settings: dict[str, Any]
    source: str = ""

    def applies(self, gpu: str, memory_bytes: float) -> bool:
        """Whether a GPU of this name and memory gets these defaults."""
        in_range = self.memory_at_least_gib * GIB <= memory_bytes < self.memory_below_gib * GIB
        return in_range and not any(part in gpu for part in self.but_not)


class TransferFile(Schema):
    """How an engine hands KV over unless a topology says otherwise; times replace those of the link's profile."""

    mode: TransferMode = "pull"
    setup_s: Seconds | None = None
    per_descriptor_s: Seconds | None = None
    setup_in_turn: bool | None = None
    merges_blocks: bool | None = None
    layerwise_from_tokens: Annotated[int, Field(ge=0, le=10**9)] | None = None
    source: str | None = None


class MemoryFile(Schema):
    """What beside weights and KV takes memory (``simulator.cluster.memory`` reads it)."""

    bytes_per_logit: Bytes | None = None
    runtime_bytes: Bytes | None = None
    graph_bytes_per_layer: Bytes | None = None
    communicator_bytes: Bytes | None = None
    whole_windows: bool | None = None
    sources: dict[str, str] = Field(default_factory=dict)


class ProfileFile(Schema):
    """The keys of an engine profile; ``costs`` are checked where they are read (``simulator.cost.engine_costs``)."""

    name: str = ""
    extends: str = ""
    policy: str = ""
    family: str
    version: str = ""
    settings: dict[str, Any] = Field(default_factory=dict)
    gpu_settings: tuple[GpuSettings, ...] = ()
    kv_transfer: TransferFile = TransferFile()
    memory: MemoryFile = MemoryFile()
    costs: dict[str, Any] = Field(default_factory=dict)


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
    setup_in_turn: bool
    merges_blocks: bool
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
    read = check(ProfileFile, _merged(path, ()), str(path), TopologyError)
    if read.family not in FAMILIES:
        raise TopologyError(unknown(str(path), "engine family", read.family, FAMILIES))
    policy = read.policy or read.family
    if policy not in POLICIES:
        raise TopologyError(unknown(str(path), "policy", policy, POLICIES))
    transfer = read.kv_transfer.model_dump(exclude_none=True)
    if transfer.keys() - {"mode", "source"} and read.kv_transfer.source is None:
        raise TopologyError(f"{path}: kv_transfer: key 'source' is missing; say where its numbers come from")
    return EngineProfile(
        name=read.name or name,
        policy=policy,
        family=FAMILIES[read.family],
        version=read.version,
        settings=read.settings,
        gpu_settings=read.gpu_settings,
        transfer_mode=read.kv_transfer.mode,
        transfer_link={key: value for key, value in transfer.items() if key.endswith("_s")},
        layerwise_from_tokens=read.kv_transfer.layerwise_from_tokens or 0,
        setup_in_turn=bool(read.kv_transfer.setup_in_turn),
        merges_blocks=bool(read.kv_transfer.merges_blocks),
        memory=read.memory.model_dump(exclude_none=True),
        costs=read.costs,
        source=path.name,
    )


def _folder() -> Path:
    return shipped("hardware_profiles") / "engines"


def _merged(path: Path, seen: tuple[Path, ...]) -> dict[str, Any]:
    """The file's keys over those of the profile it extends (mappings are merged one level deep)."""
    if path in seen:
        raise TopologyError(f"{path}: extends itself")
    values = read_yaml(path, TopologyError)
    if "extends" not in values:
        return values
    base = _merged(extended(path, values["extends"]), (*seen, path))
    for key, value in values.items():
        both = isinstance(value, dict) and isinstance(base.get(key), dict)
        base[key] = {**base[key], **value} if both else value
    return base
