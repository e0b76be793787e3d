"""What pushes share: a prompt's KV leaves piece by piece, one piece of a request at a time, in order."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from functools import partial
from typing import ClassVar

from simulator.cluster.handover.base import Handover


@dataclass(frozen=True)
class Piece:
    """KV up to ``tokens`` tokens of a prompt, computed from ``start_s`` to ``end_s``. ``last``: the prompt's end."""

    tokens: int
    start_s: float
    end_s: float
    last: bool


@dataclass
class Streaming(Handover):
    """Pieces offered while a prompt is being computed."""

    tells_chunks: ClassVar[bool] = True
    _pieces: dict[int, deque[Piece]] = field(default_factory=dict)
    _sent_blocks: dict[int, int] = field(default_factory=dict)
    _on_the_way: set[int] = field(default_factory=set)
    _all_sent: set[int] = field(default_factory=set)

    def offer(self, row: int, piece: Piece, now: float) -> None:
        """A piece may leave as soon as those before it have, and the decode engine has room."""
        if row in self._all_sent:  # a preempted prompt is computed again: its KV has gone already
            return
        self._pieces.setdefault(row, deque()).append(piece)
        self.send_next(row, now)

    def target_place(self, row: int) -> int | None:
        """Where KV is sent; None while it has nowhere to go."""
        return int(self.rooms.decode_worker[row]) if self.columns.decode_slot[row] >= 0 else None

    def send_next(self, row: int, now: float) -> None:
        """Send the oldest piece, unless one of the request is on its way or nothing may leave yet."""
        if row in self._on_the_way or not self._pieces.get(row) or self.target_place(row) is None:
            return
        if row in self._has_turn:
            self._send(row, now)
        elif row not in self._sent_blocks:
            self._sent_blocks[row] = self._there_already(row)
            self.take_turn(row, partial(self._first, row), now)

    def _there_already(self, row: int) -> int:
        """Leading blocks that need not be sent: the decode engine has them cached."""
        return self._blocks_up_to(row, self.rooms.input_tokens[row], True) - int(self.columns.blocks[row])

    def _blocks_up_to(self, row: int, tokens: int, last: bool) -> int:
        """Whole blocks; a prompt's last one may be partly filled."""
        size = self.rooms.workers[int(self.rooms.prefill_worker[row])].engine.block_size
        return -(-tokens // size) if last else tokens // size

    def _first(self, row: int, now: float) -> None:
        columns = self.columns
        columns.read_start_s[row] = now
        waited = now - columns.prompt_done_s[row] - columns.host_s[row]
        columns.wait_after_s[row] = waited if waited > 0 else 0.0  # not a number while the prompt is computed
        self._send(row, now)

    def _send(self, row: int, now: float) -> None:
        piece = self._pieces[row].popleft()
        upto = self._blocks_up_to(row, piece.tokens, piece.last)
        blocks = max(upto - self._sent_blocks[row], 0)
        if blocks == 0 and not piece.last:
            self.send_next(row, now)
            return
        self._sent_blocks[row] = max(upto, self._sent_blocks[row])
        self._on_the_way.add(row)
        target = self.target_place(row)
        assert target is not None, "checked by send_next"
        self.launch(row, piece, blocks, (int(self.rooms.prefill_worker[row]), target), now)

    def launch(self, row: int, piece: Piece, blocks: int, places: tuple[int, int], now: float) -> None:
        """Move a piece that is there as a whole."""
        start = now + self.delay_s(row, places, blocks)
        over = partial(self.piece_over, row, piece, blocks, places, start)
        self.move(row, places, blocks, now, over, last=piece.last)

    def piece_over(
        self, row: int, piece: Piece, blocks: int, places: tuple[int, int], start: float, now: float
    ) -> None:
        """A piece has left; the next one follows."""
        self._on_the_way.discard(row)
        if not piece.last:
            self.send_next(row, now)
            return
        self.give_turn(row, now)
        self._all_sent.add(row)
        del self._pieces[row], self._sent_blocks[row]
        self.whole_sent(row, places, blocks, start, now)

    def whole_sent(self, row: int, places: tuple[int, int], blocks: int, start: float, end: float) -> None:
        """All KV of the request has left the prefill engine."""
        self.source_done(row, end)
        self.arrived(row, places, blocks, start, end)

    def stop(self, row: int, now: float) -> None:
        super().stop(row, now)
        self._pieces.pop(row, None)
        self._sent_blocks.pop(row, None)
        self._on_the_way.discard(row)

    def forget(self, row: int, now: float) -> None:
        super().forget(row, now)
        self._all_sent.discard(row)
