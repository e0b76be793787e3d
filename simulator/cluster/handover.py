"""How a finished prompt's KV gets to the engine that decodes: the pull of vLLM's NIXL connector.

The decode engine hears of the request when its prompt is done, takes blocks for the whole prompt as soon as it can,
and reads them; the prefill engine's blocks stay taken until the read is over, and both engines hear of its end with
the next batch they plan. The last prompt token is computed again where decoding goes on.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from simulator.cluster.plan import KvTransferPlan
from simulator.cluster.processes import Agenda, Transfers, Worker
from simulator.engine.state import INSTANT_S

Floats = NDArray[np.float64]


class HandoverColumns:
    """What was noted of each request on its way over: moments (s), slots, bytes."""

    def __init__(self, rows: int) -> None:
        self.read_start_s = np.full(rows, np.nan)
        self.read_end_s = np.full(rows, np.nan)
        self.blocks = np.zeros(rows, np.int64)
        self.wire_bytes = np.zeros(rows)
        self.prefill_slot = np.full(rows, -1, np.int64)


@dataclass
class Pull:
    """Reads under way and reads that wait for their turn, by decode worker."""

    plan: KvTransferPlan
    workers: list[Worker]
    prefill_worker: NDArray[np.int32]
    agenda: Agenda
    transfers: Transfers | None
    columns: HandoverColumns
    _busy: dict[int, int] = field(default_factory=dict)
    _queued: dict[int, deque[tuple[int, int, int]]] = field(default_factory=dict)

    def read(self, dst: int, row: int, slot: int, blocks: int, now: float) -> None:
        """The decode engine ``dst`` has blocks for the row's prompt and wants its KV."""
        limit = self.plan.max_in_flight
        if limit is not None and self._busy.get(dst, 0) >= limit:
            self._queued.setdefault(dst, deque()).append((row, slot, blocks))
            return
        self._start(dst, row, slot, blocks, now)

    def _start(self, dst: int, row: int, slot: int, blocks: int, now: float) -> None:
        self._busy[dst] = self._busy.get(dst, 0) + 1
        src = int(self.prefill_worker[row])
        route = self.plan.route(src, dst)
        self.columns.read_start_s[row] = now
        self.columns.blocks[row] = blocks
        delay = route.delay_s(blocks)

        def done(end: float) -> None:
            self._end(src, dst, row, slot, end)

        if self.plan.explicit or self.transfers is None:
            self.agenda.add(now + delay, done)
            return
        size = route.wire_bytes(blocks)
        self.columns.wire_bytes[row] = size
        self.transfers.start(src, dst, size, delay, now, done)

    def _end(self, src: int, dst: int, row: int, slot: int, end: float) -> None:
        self.columns.read_end_s[row] = end
        self._busy[dst] -= 1
        waiting = self._queued.get(dst)
        if waiting:
            following = waiting.popleft()
            self._start(dst, *following, end)
        if end - self.columns.read_start_s[row] < INSTANT_S:
            # begun and over within an instant's planning: what the prefill engine plans in it does not know of it yet
            self.workers[src].catch_up(end + 2 * INSTANT_S)
        self.workers[src].transfer_ended(int(self.columns.prefill_slot[row]), end)
        self.workers[dst].transfer_ended(slot, end)
