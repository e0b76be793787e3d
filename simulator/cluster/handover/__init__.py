"""How a finished prompt's KV gets to the engine that decodes: the protocols, a line each."""

from __future__ import annotations

from simulator.cluster.handover.base import Handover, Rooms
from simulator.cluster.handover.columns import HandoverColumns
from simulator.cluster.handover.layerwise import Layerwise
from simulator.cluster.handover.pull import Pull
from simulator.cluster.handover.push import Push

__all__ = ["PROTOCOLS", "Handover", "HandoverColumns", "Rooms"]

PROTOCOLS: dict[str, type[Handover]] = {
    "pull": Pull,
    "push": Push,
    "layerwise": Layerwise,
}
