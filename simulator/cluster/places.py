"""Places between which KV moves, by number, and the legs of a way from one engine to another."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Pair = tuple[int, int]
#: What a leg goes over: GPUs' ports or cards; a GPU's PCIe lanes to or from its node's host memory; cards from GPU to
#: another node's host memory, or between two hosts; cards to or from the remote store.
Kind = Literal["gpus", "to_host", "from_host", "gpu_to_host", "hosts", "to_store", "from_store"]


@dataclass(frozen=True)
class Leg:
    """One hop of a handover between two places."""

    places: Pair
    kind: Kind


@dataclass(frozen=True)
class Places:
    """Numbers: a worker's GPUs its own index, then each worker's host memory, then the remote store."""

    workers: int

    def host(self, worker: int) -> int:
        """The host memory of the node a worker runs on."""
        return self.workers + worker

    @property
    def store(self) -> int:
        """The remote store."""
        return 2 * self.workers

    def legs(self, mode: str, landing: str, pair: Pair) -> tuple[Leg, ...]:
        """The way of a handover from one worker to another, hop by hop."""
        src, dst = pair
        last = Leg((self.host(dst), dst), "from_host")
        if mode == "staged":
            return Leg((src, self.host(src)), "to_host"), Leg((self.host(src), self.host(dst)), "hosts"), last
        if mode == "store":
            return Leg((src, self.store), "to_store"), Leg((self.store, dst), "from_store")
        if mode == "layerwise" and landing == "host":
            return Leg((src, self.host(dst)), "gpu_to_host"), last
        return (Leg(pair, "gpus"),)
