"""Reads a topology: a shipped name, a YAML file, one word of shorthand, or plain values."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from simulator.cluster.checks import check
from simulator.cluster.overrides import apply_overrides
from simulator.cluster.schema import Topology
from simulator.cluster.shorthand import GRAMMAR, expand, is_shorthand
from simulator.cluster.validate import build
from simulator.errors import TopologyError, nearest
from simulator.resources import shipped
from simulator.schema import read_yaml

__all__ = ["Topology", "load_topology", "topology_names"]


def topology_names() -> list[str]:
    """Topologies that ship with the package."""
    return sorted(path.stem for path in _folder().glob("*.yaml"))


def load_topology(
    topology: str | Path | Mapping[str, Any] | Topology, overrides: Iterable[str] = (), name: str | None = None
) -> Topology:
    """The topology called ``topology``, checked; ``overrides`` are ``path.to.key=value``, ``name`` renames it.

    Raises TopologyError with the file, the key, what was found and what is allowed.
    """
    overrides = tuple(overrides)
    if isinstance(topology, Topology):
        values, source = topology.to_dict(), topology.source
    elif isinstance(topology, Mapping):
        found = topology.get("name")
        values, source = dict(topology), found if isinstance(found, str) and found else "topology"
    else:
        values, source = _find(str(topology))
    values = apply_overrides(values, overrides)
    if name is not None:
        values["name"] = name
    loaded = build(values, source)
    check(loaded)
    return loaded


def _folder() -> Path:
    return shipped("hardware_profiles") / "topologies"


def _find(name: str) -> tuple[dict[str, Any], str]:
    path = Path(name)
    if path.is_file():
        return read_yaml(path, TopologyError), name
    if name in topology_names():
        return read_yaml(_folder() / f"{name}.yaml", TopologyError), name
    if is_shorthand(name):
        return expand(name), name
    if path.suffix in (".yaml", ".yml"):
        raise TopologyError(f"{name}: no such file")
    names = topology_names()
    allowed = f"allowed: a YAML file, one of {', '.join(names)}, or {GRAMMAR}"
    raise TopologyError(f"unknown topology '{name}'{nearest(name, names)}; {allowed}")
