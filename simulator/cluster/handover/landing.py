"""KV that lands outside the decode engine's memory first: host memory or a remote store.

The prefill engine is free of it early, and the decode engine is asked for memory only when all of it has landed; then
it is loaded. Both copies cost time on their links.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial

from simulator.cluster.handover.base import Handover
from simulator.cluster.handover.layerwise import Layerwise


@dataclass
class Landing(Handover):
    """The last leg: from where KV has landed into the decode engine's memory."""

    _landed: dict[int, tuple[int, float]] = field(default_factory=dict)

    def land(self, row: int, place: int, now: float) -> None:
        """All KV lies in ``place``: ask the decode engine for memory, as soon as its front end is done."""
        ready = max(now, self.told_s(row) + self.rooms.decode_before_s)
        self.columns.host_s[row] = ready - now
        self._landed[row] = place, ready
        if ready > now:
            self.later(row, ready, partial(self.ask_now, row))
        else:
            self.ask_now(row, now)

    def told_s(self, row: int) -> float:
        """When the decode engine's front end gets the request."""
        return float(self.columns.prompt_done_s[row])

    def receive(self, row: int, dst: int, now: float) -> None:
        self.take_turn(row, partial(self._load, row), now)

    def _load(self, row: int, now: float) -> None:
        place, asked = self._landed.pop(row)
        self.columns.wait_after_s[row] += now - asked
        places = place, int(self.rooms.decode_worker[row])
        blocks = int(self.columns.blocks[row])
        start = now + self.delay_s(row, places, blocks)

        def over(end: float) -> None:
            self.give_turn(row, end)
            self.arrived(row, places, blocks, start, end)

        self.fetch(row, places, blocks, now, over)

    def forget(self, row: int, now: float) -> None:
        super().forget(row, now)
        self._landed.pop(row, None)

    def prompt_blocks(self, row: int) -> int:
        """Blocks of the whole prompt: what the decode engine has cached is not known yet."""
        size = self.rooms.workers[int(self.rooms.prefill_worker[row])].engine.block_size
        return -(-self.rooms.input_tokens[row] // size)


class Staged(Landing):
    """Whole prompts through host memory on both sides: PCIe, cards, PCIe (Mooncake's engine without GPUDirect)."""

    def hand_over(self, row: int, now: float) -> None:
        rooms = self.rooms
        self.choose(row, now)
        self.columns.read_start_s[row] = now
        source = int(rooms.prefill_worker[row])
        self.move(row, (source, rooms.plan.places.host(source)), self.prompt_blocks(row), now, partial(self._out, row))

    def _out(self, row: int, now: float) -> None:
        """The prompt is in its node's host memory."""
        self.source_done(row, now)
        host = self.rooms.plan.places.host
        places = host(int(self.rooms.prefill_worker[row])), host(int(self.rooms.decode_worker[row]))
        if places in self.rooms.plan.routes:
            self.move(row, places, self.prompt_blocks(row), now, partial(self.land, row, places[1]))
        else:  # one node, one memory
            self.land(row, places[1], now)


class Store(Landing):
    """Whole prompts into a remote store, and out of it."""

    def hand_over(self, row: int, now: float) -> None:
        self.columns.read_start_s[row] = now
        places = int(self.rooms.prefill_worker[row]), self.rooms.plan.places.store
        self.move(row, places, self.prompt_blocks(row), now, partial(self._written, row))

    def _written(self, row: int, now: float) -> None:
        self.source_done(row, now)
        self.land(row, self.rooms.plan.places.store, now)


@dataclass
class LayerwiseToHost(Landing, Layerwise):
    """Layer by layer into the decode node's host memory, then into the decode engine (Mooncake, FAST'25)."""

    def target_place(self, row: int) -> int | None:
        worker = int(self.rooms.decode_worker[row])
        return self.rooms.plan.places.host(worker) if worker >= 0 else None

    def find_room(self, row: int, now: float) -> None:
        self.choose(row, now)

    def told_s(self, row: int) -> float:
        return float(self.columns.entered_s[row]) - float(self.rooms.entry_before_s[row])

    def begin_whole(self, row: int, now: float) -> None:
        self.choose(row, now)

    def _there_already(self, row: int) -> int:
        return 0

    def whole_sent(self, row: int, places: tuple[int, int], blocks: int, start: float, end: float) -> None:
        if self.is_early(row, places, blocks, start, end):
            return
        self.source_done(row, end)
        self.land(row, places[1], end)
