"""The pull of vLLM's NIXL connector: the decode engine reads a whole prompt when it is done.

The decode engine hears of the request when its prompt is done, takes blocks for the whole prompt as soon as it can,
and reads them; the prefill engine's blocks stay taken until the read is over, and both engines hear of its end with
the next batch they plan. The last prompt token is computed again where decoding goes on.

The prefill engine keeps blocks on a lease, which the decode engine renews from the moment the request is in its queue.
Where it does not (older connectors), a request that has not been read when its lease ends loses its KV: it fails, or
its prompt is computed again at the decode engine (``kv_load_failure_policy``).
"""

from __future__ import annotations

from functools import partial

from simulator.cluster.handover.base import Handover

LOST = "its KV cache was given up before it was read: the lease ended"
SOURCE_LOST = "its KV cache was lost with the prefill worker"


class Pull(Handover):
    """Whole requests, read by the decode engine."""

    def hand_over(self, row: int, now: float) -> None:
        lease = self.rooms.plan.lease
        if not lease.heartbeats or self.rooms.decode_before_s >= lease.seconds:
            attempt = self._begun_anew.get(row, 0)
            self.rooms.agenda.add(now + lease.seconds, partial(self._lease_ends, row, attempt))
        self.ask(row, now)

    def receive(self, row: int, dst: int, now: float) -> None:
        self.take_turn(row, partial(self._read, row), now)

    def _read(self, row: int, now: float) -> None:
        columns, rooms = self.columns, self.rooms
        columns.read_start_s[row] = now
        columns.wait_after_s[row] = now - columns.prompt_done_s[row] - columns.host_s[row]
        places = int(rooms.prefill_worker[row]), int(rooms.decode_worker[row])
        blocks = int(columns.blocks[row])
        start = now + self.delay_s(row, places, blocks)

        def over(end: float) -> None:
            self.give_turn(row, end)
            self.source_done(row, end)
            self.arrived(row, places, blocks, start, end)

        self.fetch(row, places, blocks, now, over)

    def _lease_ends(self, row: int, attempt: int, now: float) -> None:
        """Unless its KV has been read or is kept by heartbeats, the request has lost it."""
        columns, lease = self.columns, self.rooms.plan.lease
        if self._begun_anew.get(row, 0) != attempt:
            return
        if columns.prefill_slot[row] < 0 or (lease.heartbeats and self.rooms.decode_worker[row] >= 0):
            return
        self.stop(row, now)
        self._free_source(row, now)
        if columns.decode_slot[row] >= 0:
            self._lost(row, now)

    def memory_taken(self, dst: int, row: int, slot: int, blocks: int, now: float) -> None:
        if row not in self._given_up:
            super().memory_taken(dst, row, slot, blocks, now)
            return
        self.columns.decode_slot[row] = slot
        self._lost(row, now)

    def failed(self, row: int, now: float, reason: str) -> None:
        self.stop(row, now)
        if self.columns.prefill_slot[row] >= 0:
            self._free_source(row, now)
        self._lost(row, now, reason)

    def source_lost(self, row: int, now: float) -> bool:
        """The prefill engine has died. Whether the decode engine has the request and sees to it itself, now or when it
        asks for KV."""
        if self.rooms.decode_worker[row] < 0:
            return False
        if self.columns.decode_slot[row] >= 0:
            self._lost(row, now, SOURCE_LOST)
        return True

    def _lost(self, row: int, now: float, reason: str = LOST) -> None:
        """The decode engine finds nothing to read."""
        recompute = self.rooms.plan.lease.recompute
        self._leave_target(row, recompute, now)
        if not recompute:
            self.rooms.fail(row, now, reason)
            return
        self.columns.read_start_s[row] = self.columns.read_end_s[row] = now
        self.columns.wait_after_s[row] = now - self.columns.prompt_done_s[row] - self.columns.host_s[row]
