"""A file of faults, to be tried on any topology: the keys of ``faults``, and ``client`` beside them."""

from __future__ import annotations

from pathlib import Path

from simulator.cluster.faults.parts import ClientPart, FaultsPart
from simulator.cluster.schema import Topology
from simulator.errors import TopologyError, unknown
from simulator.schema import check, read_yaml


def with_faults(topology: Topology, path: str) -> Topology:
    """The topology with the faults of a file in place of its own. Raises TopologyError for what cannot be used."""
    values = read_yaml(Path(path), TopologyError)
    allowed = (*FaultsPart.model_fields, "client")
    for key in values:
        if key not in allowed:
            raise TopologyError(unknown(path, "key", key, allowed))
    client = values.pop("client", None)
    changed: dict[str, object] = {"faults": check(FaultsPart, values, path, TopologyError)}
    if client is not None:
        changed["client"] = check(ClientPart, client, f"{path}: client", TopologyError)
    return topology.model_copy(update=changed)
