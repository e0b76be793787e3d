"""What all handover protocols share: asking a decode engine, turns, moving bytes, the end, and giving up.

A protocol hears of four moments: a request enters (``enter``), a chunk of its prompt is being computed (``chunk``),
its prompt is done (``prompt_done``), the decode engine has taken memory for it (``memory_taken``). It says when either
engine is done with the KV. Places between which KV moves are numbers: a worker's GPUs its own, its host memory and
the remote store those that the plan gives.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from simulator.cluster.handover.columns import HandoverColumns
from simulator.cluster.plan import KvTransferPlan
from simulator.cluster.processes import Agenda, Transfers, Worker
from simulator.cost.table import prompt_seconds
from simulator.engine.state import INSTANT_S
from simulator.network.compression import Ladder
from simulator.network.fabric import Pace
from simulator.network.streaming import Context, Streamer

Moment = Callable[[float], None]

TIMED_OUT = "its KV cache was under way for too long"


@dataclass(frozen=True)
class Rooms:
    """What of the cluster a handover works with.

    ``choose_decode``: asks the router. ``fail``: the request ends without an answer. ``entry_before_s``,
    ``decode_before_s``: host time before an engine sees a request. ``kv_runs``: of the memory taken for each request
    (``DeskColumns``). ``transfers``: None where times are explicit.
    ``timeout_s``: how long bytes may take.
    """

    plan: KvTransferPlan
    workers: list[Worker]
    prefill_worker: NDArray[np.int32]
    decode_worker: NDArray[np.int32]
    input_tokens: list[int]
    output_tokens: list[int]
    agenda: Agenda
    transfers: Transfers | None
    choose_decode: Callable[[int, float], Worker]
    fail: Callable[[int, float, str], None]
    entry_before_s: NDArray[np.float64]
    kv_runs: NDArray[np.float64]
    decode_before_s: float
    timeout_s: float | None = None


@dataclass
class Handover:
    """One protocol at work."""

    rooms: Rooms
    columns: HandoverColumns
    tells_chunks: ClassVar[bool] = False  # whether prefill engines have to tell of each chunk when it is planned
    _busy: dict[int, int] = field(default_factory=dict)
    _queued: dict[int, deque[tuple[int, Moment]]] = field(default_factory=dict)
    _has_turn: dict[int, int] = field(default_factory=dict)
    _moving: dict[int, int] = field(default_factory=dict)
    _given_up: set[int] = field(default_factory=set)
    _begun_anew: dict[int, int] = field(default_factory=dict)  # how often, by row
    _let_plan: dict[int, float] = field(default_factory=dict)
    _ready: dict[int, float] = field(default_factory=dict)
    levels: Counter[str] = field(default_factory=Counter)  # chunks sent at each level

    # What it hears

    def enter(self, row: int, source: Worker, now: float) -> None:
        """A request has come out of the front end, and its prompt is for ``source``."""
        self.columns.entered_s[row] = now
        self.begin(row, source, now)

    def begin(self, row: int, source: Worker, now: float) -> None:
        """What a protocol does then: hand the prompt to the prefill engine, or see to something else first."""
        source.submit(row, self.rooms.input_tokens[row], 1, now, hand_over=True)

    def chunk(self, row: int, tokens: int, start_s: float, end_s: float) -> None:
        """A step from ``start_s`` to ``end_s`` has been planned that brings a prompt up to ``tokens`` tokens."""

    def prompt_done(self, row: int, slot: int, now: float) -> None:
        """The prefill engine has the whole prompt's KV, and keeps it in ``slot`` until told."""
        self.columns.prefill_slot[row] = slot
        self.columns.prompt_done_s[row] = now
        if row in self._given_up:
            self._free_source(row, now)
        else:
            self.hand_over(row, now)

    def hand_over(self, row: int, now: float) -> None:
        """What a protocol does once the prompt is done."""
        raise NotImplementedError

    def memory_taken(self, dst: int, row: int, slot: int, blocks: int, now: float) -> None:
        """The decode engine ``dst`` has memory for the prompt in ``slot``; ``blocks`` of it have to come."""
        self.columns.decode_slot[row] = slot
        self.columns.blocks[row] = blocks
        if row in self._given_up:
            self._leave_target(row, False, now)
        else:
            self.receive(row, dst, now)

    def receive(self, row: int, dst: int, now: float) -> None:
        """What a protocol does once the decode engine has memory."""
        raise NotImplementedError

    def not_needed(self, row: int, slot: int, now: float) -> None:
        """The prompt, in ``slot``, was all: nothing is to be decoded."""
        self.columns.prefill_slot[row] = slot
        self.give_up(row, now)

    # What protocols are made of

    def ask(self, row: int, now: float) -> None:
        """Tell a decode engine of the request, through its front end; it answers with ``memory_taken``."""
        before = self.rooms.decode_before_s
        self.columns.host_s[row] += before
        if before > 0:
            self.later(row, now + before, partial(self.ask_now, row))
        else:
            self.ask_now(row, now)

    def ask_now(self, row: int, now: float) -> None:
        """The same, past the front end."""
        rooms = self.rooms
        worker = self.choose(row, now)
        worker.submit(row, rooms.input_tokens[row], rooms.output_tokens[row], now, remote=True)

    def choose(self, row: int, now: float) -> Worker:
        """The row's decode engine; the router is asked once."""
        rooms = self.rooms
        chosen = int(rooms.decode_worker[row])
        if chosen >= 0:
            return rooms.workers[chosen]
        worker = rooms.choose_decode(row, now)
        rooms.decode_worker[row] = worker.index
        return worker

    def let_plan(self, worker: Worker, now: float) -> None:
        """Have an engine plan what it plans in this instant, before it hears of what another one's planning brings."""
        if now - self._let_plan.get(worker.index, -1.0) >= INSTANT_S:
            self._let_plan[worker.index] = now
            worker.catch_up(now + 2 * INSTANT_S)

    def later(self, row: int, at: float, action: Moment) -> None:
        """Do something at a moment, unless the request has been given up by then."""

        attempt = self._begun_anew.get(row, 0)

        def unless_given_up(now: float) -> None:
            if self._goes_on(row, attempt):
                action(now)

        self.rooms.agenda.add(at, unless_given_up)

    def take_turn(self, row: int, start: Moment, now: float) -> None:
        """``start`` now, or when fewer requests than allowed have KV under way to the row's decode engine."""
        limit, dst = self.rooms.plan.max_in_flight, int(self.rooms.decode_worker[row])
        if limit is not None and self._busy.get(dst, 0) >= limit:
            self._queued.setdefault(dst, deque()).append((row, start))
            return
        self._busy[dst] = self._busy.get(dst, 0) + 1
        self._has_turn[row] = dst
        start(now)

    def give_turn(self, row: int, now: float) -> None:
        """The request's KV is no longer under way."""
        dst = self._has_turn.pop(row)
        self._busy[dst] -= 1
        waiting = self._queued.get(dst)
        while waiting:
            row, start = waiting.popleft()
            if row not in self._given_up:
                self.take_turn(row, start, now)
                return

    def move(
        self,
        row: int,
        places: tuple[int, int],
        blocks: int,
        now: float,
        done: Moment,
        *,
        last: bool = True,
        pace: Pace | None = None,
        since: float | None = None,
    ) -> None:
        """Move blocks between two places; ``done`` hears of the end. ``last``: nothing of the request follows.

        With a ``pace`` the setting up is in it; with explicit times it ends with the pace. ``since``: when the first
        bytes were there, if not now.
        """
        route = self.rooms.plan.routes[places]
        size = route.wire_bytes(blocks, last=last)
        if pace is None:
            delay = self.delay_s(row, places, blocks)
        else:
            delay = pace.until_s - now if self.rooms.transfers is None else 0.0
        self.send(row, places, (size, delay, now), self.timed(row, now if since is None else since, done), pace)

    def delay_s(self, row: int, places: tuple[int, int], blocks: int) -> float:
        """Seconds before the bytes of so many of a request's blocks flow; of its runs they have their share."""
        route = self.rooms.plan.routes[places]
        if route.per_run_s == 0.0:
            return route.delay_s(blocks)
        whole = max(int(self.columns.blocks[row]), 1)
        return route.delay_s(blocks, max(float(self.rooms.kv_runs[row]) * blocks / whole, 1.0))

    def timed(self, row: int, start: float, done: Moment) -> Moment:
        """``done``, unless the request has been given up by then; and the time taken is noted."""

        attempt = self._begun_anew.get(row, 0)

        def over(end: float) -> None:
            if self._goes_on(row, attempt):
                self._moving.pop(row, None)
                self.columns.busy_s[row] += end - start
                done(end)

        return over

    def _goes_on(self, row: int, attempt: int) -> bool:
        """Whether the row's handover is the one it was, and has not been given up."""
        return row not in self._given_up and self._begun_anew.get(row, 0) == attempt

    def send(
        self,
        row: int,
        places: tuple[int, int],
        sending: tuple[float, float, float],
        over: Moment,
        pace: Pace | None = None,
    ) -> None:
        """Send bytes after a delay from a moment on; without a network (explicit times) the delay is all."""
        size, delay, now = sending
        if self.rooms.transfers is None:
            self.rooms.agenda.add(now + delay, over)
            return
        self.columns.wire_bytes[row] += size
        moving = self._moving[row] = self.rooms.transfers.start(*places, size, delay, now, over, pace)
        if self.rooms.timeout_s is not None:
            self.later(row, now + delay + self.rooms.timeout_s, partial(self._timed_out, row, moving))

    def _timed_out(self, row: int, moving: int, now: float) -> None:
        """Bytes have been under way for too long: the transfer fails."""
        transfers = self.rooms.transfers
        if self._moving.get(row) == moving and transfers is not None and transfers.under_way(moving):
            self.failed(row, now, TIMED_OUT)

    def failed(self, row: int, now: float, reason: str) -> None:
        """The row's KV will not come; where the decode engine has a slot and may, it computes the prompt itself."""
        self.abort(row, now, reason)

    def source_done(self, row: int, now: float) -> None:
        """The prefill engine may free the prompt's memory."""
        source = self.rooms.workers[int(self.rooms.prefill_worker[row])]
        began = max(float(self.columns.read_start_s[row]), float(self.columns.prompt_done_s[row]))
        if now - began < INSTANT_S:
            source.catch_up(now + 2 * INSTANT_S)  # begun and over in an instant: its planning does not know of it yet
        self._free_source(row, now)

    def target_done(self, row: int, now: float) -> None:
        """All KV is there: the decode engine may begin."""
        self.columns.read_end_s[row] = now
        slot = int(self.columns.decode_slot[row])
        self.columns.decode_slot[row] = -1
        self.rooms.workers[int(self.rooms.decode_worker[row])].transfer_ended(slot, now)

    def fetch(self, row: int, places: tuple[int, int], blocks: int, now: float, done: Moment) -> None:
        """Move all blocks; where there is a choice of encodings, chunk by chunk, each at the level that suits."""
        ladder = self.rooms.plan.compression.ladder
        if ladder is None:
            self.move(row, places, blocks, now, done)
        else:
            self._next_chunk(row, places, self._streamer(row, places, blocks, ladder), now, done)

    def _streamer(self, row: int, places: tuple[int, int], blocks: int, ladder: Ladder) -> Streamer:
        rooms = self.rooms
        engine = rooms.workers[int(rooms.decode_worker[row])].engine
        route, network = rooms.plan.routes[places], rooms.plan.network
        size = engine.block_size
        numbers = route.wire_bytes(blocks) / max(blocks * size, 1) * 8.0 / rooms.plan.kv_bits
        context = Context(blocks * size, numbers, partial(prompt_seconds, engine.spec.cost))
        speed = network.paths[places].alone_bytes_per_s(network.links)
        arrived = float(self.columns.entered_s[row]) - float(rooms.entry_before_s[row])
        return Streamer(ladder, context, speed, arrived + ladder.deadline_s)

    def _next_chunk(
        self, row: int, places: tuple[int, int], streamer: Streamer, now: float, done: Moment, first: bool = True
    ) -> None:
        chunk = streamer.next_chunk(now)
        if chunk is None:
            self._ready[row] = streamer.ready_s
            done(now)
            return
        self.levels[chunk.level] += 1

        def over(end: float) -> None:
            streamer.arrived(chunk, now, end)
            self._next_chunk(row, places, streamer, end, done, first=False)

        route = self.rooms.plan.routes[places]
        size = self.rooms.workers[int(self.rooms.decode_worker[row])].engine.block_size
        delay = route.per_block_s * chunk.tokens / size + (route.setup_s if first else 0.0)
        self.send(row, places, (chunk.size_bytes, delay, now), self.timed(row, now, over))

    def arrived(self, row: int, places: tuple[int, int], blocks: int, start: float, end: float) -> None:
        """The last bytes are in: the KV can be used as soon as its compression has been undone."""
        ready = self._ready.pop(row, None)
        if ready is None:
            ready = self.rooms.plan.routes[places].ready_s(start, end, blocks)
        if ready > end:
            self.later(row, ready, partial(self.target_done, row))
        else:
            self.target_done(row, end)

    # Giving up

    def forget(self, row: int, now: float) -> None:
        """The request begins anew: nothing is left of what was. Slots at engines are the caller's to free."""
        self.stop(row, now)
        for waiting in self._queued.values():
            for entry in [entry for entry in waiting if entry[0] == row]:
                waiting.remove(entry)
        self._given_up.discard(row)
        self._ready.pop(row, None)
        self._begun_anew[row] = self._begun_anew.get(row, 0) + 1
        self.columns.begin_anew(row)

    def source_lost(self, row: int, now: float) -> bool:
        """The prefill engine has died. Whether the decode engine sees to the request itself; else it begins anew."""
        return False

    def prompt_slot(self, row: int) -> int:
        """The slot in which the prefill engine keeps the prompt, -1 where it does not; the caller sees to it."""
        slot = int(self.columns.prefill_slot[row])
        self.columns.prefill_slot[row] = -1
        return slot

    def is_given_up(self, row: int) -> bool:
        """Whether nothing more is done for the row's handover."""
        return row in self._given_up

    def abort(self, row: int, now: float, reason: str) -> None:
        """Stop a handover: what moves is cancelled, both engines give back what they hold, the request fails."""
        self.give_up(row, now)
        self.rooms.fail(row, now, reason)

    def give_up(self, row: int, now: float, *, recompute: bool = False) -> None:
        """Forget the request's KV. With ``recompute`` the decode engine computes the prompt itself."""
        self.stop(row, now)
        if self.columns.prefill_slot[row] >= 0:
            self._free_source(row, now)
        if self.columns.decode_slot[row] >= 0:
            self._leave_target(row, recompute, now)

    def stop(self, row: int, now: float) -> None:
        """Cancel what moves of the request, and what would."""
        self._given_up.add(row)
        moving = self._moving.pop(row, None)
        if moving is not None and self.rooms.transfers is not None:
            self.rooms.transfers.cancel(moving, now)
        if row in self._has_turn:
            self.give_turn(row, now)

    def _free_source(self, row: int, now: float) -> None:
        slot = self.prompt_slot(row)
        source = self.rooms.workers[int(self.rooms.prefill_worker[row])]
        if source.at is not None:
            source.at.discard(row)
        source.transfer_ended(slot, now)

    def _leave_target(self, row: int, recompute: bool, now: float) -> None:
        slot = int(self.columns.decode_slot[row])
        self.columns.decode_slot[row] = -1
        target = self.rooms.workers[int(self.rooms.decode_worker[row])]
        if target.at is not None and not recompute:
            target.at.discard(row)
        target.abandon(slot, recompute, now)
