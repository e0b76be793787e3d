"""Links between GPUs, hosts and nodes: line rate, what is reached of it, and the cost of starting a transfer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import Field

from simulator.errors import TopologyError, unknown
from simulator.resources import shipped
from simulator.schema import Schema, check, read_yaml

_NUMBERS = (
    "bandwidth_bytes_per_s",
    "efficiency",
    "setup_s",
    "per_descriptor_s",
    "posting",
    "cpu_s_per_byte",
    "beside_work",
)


@dataclass(frozen=True)
class Link:
    """One link, one direction. A transfer on an idle link takes ``setup_s`` plus ``per_descriptor_s`` for each
    contiguous piece plus bytes / ``effective_bandwidth_bytes_per_s``.

    ``kind``: nvlink, pcie, rdma or ethernet. ``bandwidth_bytes_per_s`` is the line rate of one GPU's link or one card;
    ``efficiency`` the part of it a long transfer reaches. ``posting``: the part of ``per_descriptor_s`` for which an
    engine whose own loop posts its reads stands still; the rest passes on the way. ``cpu_s_per_byte``: time of a core
    for each byte, at either end, 0 where cards move bytes by themselves. ``beside_work``: how many times longer the
    bytes of a transfer take while the GPUs at its ends compute, as they do in an engine at work. ``by_name_only``: one
    system's figures, which stand for no other link of that kind. ``sources``: field -> where it is from; "estimate"
    where nobody has published one.
    """

    name: str
    kind: str
    bandwidth_bytes_per_s: float
    efficiency: float
    setup_s: float
    per_descriptor_s: float
    posting: float = 1.0
    cpu_s_per_byte: float = 0.0
    beside_work: float = 1.0
    by_name_only: bool = False
    sources: Mapping[str, str] = field(default_factory=dict)

    @property
    def reached(self) -> float:
        """Part of the line rate that a long transfer reaches beside the work of an engine."""
        return self.efficiency / self.beside_work

    @property
    def effective_bandwidth_bytes_per_s(self) -> float:
        """What a long transfer reaches beside the work of an engine."""
        return self.bandwidth_bytes_per_s * self.reached

    @property
    def source(self) -> str:
        """All sources on one line."""
        return "; ".join(f"{key}: {text}" for key, text in self.sources.items())


class LinkFile(Schema):
    """A link profile as it is written."""

    kind: str = Field(pattern="^(nvlink|pcie|rdma|ethernet)$")
    aliases: tuple[str, ...] = ()
    bandwidth_bytes_per_s: float = Field(ge=1e6, le=1e15)
    efficiency: float = Field(gt=0, le=1)
    setup_s: float = Field(ge=0, le=60)
    per_descriptor_s: float = Field(ge=0, le=1)
    posting: float = Field(default=1.0, ge=0, le=1)
    cpu_s_per_byte: float = Field(default=0.0, ge=0, le=1)
    beside_work: float = Field(default=1.0, ge=1, le=100)
    by_name_only: bool = False
    sources: dict[str, str]


def _read_link(name: str, data: Any, place: str) -> tuple[Link, tuple[str, ...]]:
    entry = check(LinkFile, data, place, TopologyError)
    for key in entry.sources:
        if key not in _NUMBERS:
            raise TopologyError(unknown(f"{place}: sources", "key", key, _NUMBERS))
    for key in _NUMBERS:
        if key not in entry.sources and getattr(entry, key) != LinkFile.model_fields[key].default:
            raise TopologyError(f"{place}: key 'sources.{key}' is missing; say where {key} comes from")
    values = {key: getattr(entry, key) for key in ("kind", "by_name_only", *_NUMBERS)}
    return Link(name=name, sources=dict(entry.sources), **values), (name, *entry.aliases)


def _plain(name: str) -> str:
    return "".join(c for c in name.lower() if c.isalnum())


@cache
def _links() -> dict[str, Link]:
    """Links by name and alias, compared without case and punctuation."""
    links: dict[str, Link] = {}
    for path in sorted((shipped("hardware_profiles") / "links").glob("*.yaml")):
        for name, data in read_yaml(path, TopologyError).items():
            link, names = _read_link(name, data, f"{path}: {name}")
            for alias in names:
                if links.setdefault(_plain(alias), link) is not link:
                    raise TopologyError(f"{path}: '{alias}' names two links")
    return links


def list_links() -> list[str]:
    """Names of the shipped links, sorted."""
    return sorted({link.name for link in _links().values()})


def load_link(name_or_path: str | Path) -> Link:
    """A link by name, or the only link of a YAML file of one's own. Raises TopologyError."""
    text = str(name_or_path)
    path = Path(text).expanduser()
    if path.suffix.lower() in (".yaml", ".yml"):
        data = read_yaml(path, TopologyError)
        if len(data) != 1:
            raise TopologyError(f"{path}: found {len(data)} links; a file named as a link holds one, 'name: {{...}}'")
        ((name, entry),) = data.items()
        return _read_link(name, entry, f"{path}: {name}")[0]
    known = _links().get(_plain(text))
    if known is None:
        raise TopologyError(unknown("link", "link", text, list_links()))
    return known
