"""The hosts of measured machines: how fast their processors are, and how often something else keeps them.

The two machines of the vLLM 0.25.1 measurements are shipped (``hardware_profiles/hosts``); a row of ``workloads.csv``
that has ``host_speed``, ``host_step_gap_s``, ``host_stall_rate_hz`` or ``host_stall_s`` states its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

import pandas as pd
from pydantic import Field

from simulator.cluster.schema import HostPart
from simulator.errors import InputError
from simulator.resources import shipped
from simulator.schema import Schema, check, read_yaml

COLUMNS = {f"host_{name}": name for name in ("speed", "step_gap_s", "stall_rate_hz", "stall_s")}
_FILE = "hardware_profiles/hosts/vllm-0.25.1.yaml"


class Machine(Schema):
    """One machine: its GPU's profile and what is known of its host; ``identical_routing``: models whose random weights
    made all sequences choose the same experts there, and where that is seen."""

    gpu: str
    host: HostPart
    source: str
    identical_routing: dict[str, str] = Field(default_factory=dict)


class MachinesFile(Schema):
    """A file of measured machines."""

    machines: list[Machine]


@cache
def _machines() -> dict[str, Machine]:
    path = shipped(_FILE)
    found = check(MachinesFile, read_yaml(path, InputError), str(path), InputError)
    return {machine.gpu: machine for machine in found.machines}


def routes_alike(model: str, gpu: str) -> bool:
    """Whether all sequences of this model chose the same experts on the shipped machine with this GPU."""
    return gpu in _machines() and model in _machines()[gpu].identical_routing


def host_of(row: Mapping[str, Any], gpu: str, place: str) -> dict[str, Any]:
    """The ``host`` of the topology of a measured run: what its row states, else that of the machine with this GPU."""
    stated = {key: row[column] for column, key in COLUMNS.items() if not pd.isna(row.get(column))}
    if not stated:
        return _machines()[gpu].host.model_dump(exclude_defaults=True) if gpu in _machines() else {}
    return check(HostPart, stated, f"{place}: host", InputError).model_dump(exclude_defaults=True)
