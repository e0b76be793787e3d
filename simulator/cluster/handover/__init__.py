"""How a finished prompt's KV gets to the engine that decodes: the protocols, a line each."""

from __future__ import annotations

from simulator.cluster.handover.base import Handover, Rooms
from simulator.cluster.handover.columns import HandoverColumns
from simulator.cluster.handover.landing import LayerwiseToHost, Staged, Store
from simulator.cluster.handover.layerwise import Layerwise
from simulator.cluster.handover.pull import Pull
from simulator.cluster.handover.push import Push

__all__ = ["PROTOCOLS", "Handover", "HandoverColumns", "Rooms", "protocol"]

PROTOCOLS: dict[str, type[Handover]] = {
    "pull": Pull,
    "push": Push,
    "layerwise": Layerwise,
    "staged": Staged,
    "store": Store,
}


def protocol(mode: str, landing: str) -> type[Handover]:
    """The protocol of a mode; ``landing`` says where layers go first."""
    return LayerwiseToHost if mode == "layerwise" and landing == "host" else PROTOCOLS[mode]
