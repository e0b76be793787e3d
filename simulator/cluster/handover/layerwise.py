"""Layer by layer, while the next layer is computed (Splitwise, Mooncake).

Layer l of L leaves when it is computed, at start + (l + 1) / L of the step, so an idle path shows the last layer only,
and a slow one what it cannot hide. Telling the network of a layer's pieces takes its share of the descriptors' time;
setting up shows once, at the end. Prompts shorter than ``layerwise_from_tokens`` go whole when they are done
(Splitwise: 512). The decode engine is asked for memory when the prompt begins; until it has some, layers wait.

With ``landing: host`` layers land in the decode node's host memory, which needs none of the decode engine's: only
then is it asked, and loads them (Mooncake, FAST'25, section 3).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial

from simulator.cluster.handover.streaming import Piece, Streaming
from simulator.network.fabric import Pace


@dataclass
class Layerwise(Streaming):
    """Layers as they are computed, written by the prefill engine."""

    _early: dict[int, tuple[tuple[int, int], int, float, float]] = field(default_factory=dict)

    def chunk(self, row: int, tokens: int, start_s: float, end_s: float) -> None:
        if self._goes_whole(row):
            return
        piece = Piece(tokens, start_s, end_s, tokens == self.rooms.input_tokens[row])
        self.later(row, start_s, partial(self._begin, row, piece))

    def _goes_whole(self, row: int) -> bool:
        return self.rooms.input_tokens[row] < self.rooms.plan.layerwise_from_tokens

    def _begin(self, row: int, piece: Piece, now: float) -> None:
        if self.rooms.decode_worker[row] < 0:
            self.find_room(row, now)
        self.offer(row, piece, now)

    def find_room(self, row: int, now: float) -> None:
        """Ask for memory; the decode engine's front end has run while the prompt waited, or goes on."""
        later = max(0.0, self.rooms.decode_before_s - float(self.rooms.entry_before_s[row]))
        ready = float(self.columns.entered_s[row]) + later
        if ready > now:
            self.choose(row, now)
            self.later(row, ready, partial(self.ask_now, row))
        else:
            self.let_plan(self.choose(row, now), now)
            self.ask_now(row, now)

    def receive(self, row: int, dst: int, now: float) -> None:
        self.send_next(row, now)

    def hand_over(self, row: int, now: float) -> None:
        if self._goes_whole(row):
            self.begin_whole(row, now)
            self.offer(row, Piece(self.rooms.input_tokens[row], now, now, True), now)
        elif row in self._early:
            places, blocks, start, end = self._early.pop(row)
            self.whole_sent(row, places, blocks, start, max(end, now))

    def begin_whole(self, row: int, now: float) -> None:
        """A prompt that is sent as a whole is done."""
        self.ask(row, now)

    def whole_sent(self, row: int, places: tuple[int, int], blocks: int, start: float, end: float) -> None:
        if not self.is_early(row, places, blocks, start, end):
            super().whole_sent(row, places, blocks, start, end)

    def is_early(self, row: int, places: tuple[int, int], blocks: int, start: float, end: float) -> bool:
        """Whether the prefill engine has yet to tell of the prompt's end, in the same instant; noted until then."""
        if self.columns.prefill_slot[row] >= 0:
            return False
        self._early[row] = (places, blocks, start, end)
        return True

    def launch(self, row: int, piece: Piece, blocks: int, places: tuple[int, int], now: float) -> None:
        if piece.start_s == piece.end_s:
            super().launch(row, piece, blocks, places, now)
            return
        plan = self.rooms.plan
        pace = self.pace(piece, blocks, places, now)
        over = partial(self.piece_over, row, piece, blocks, places, pace.from_s)
        since = max(now, piece.start_s + (piece.end_s - piece.start_s) / plan.layers)
        self.move(row, places, blocks, now, over, last=piece.last, pace=pace, since=since)

    def pace(self, piece: Piece, blocks: int, places: tuple[int, int], now: float) -> Pace:
        """When a step's layers can flow, if the first of them is told of at ``now`` at the earliest."""
        layers, route = self.rooms.plan.layers, self.rooms.plan.routes[places]
        tell = route.per_block_s * blocks / layers
        first = max(now, piece.start_s + (piece.end_s - piece.start_s) / layers)
        begin = first + route.setup_s + tell
        end = max(piece.end_s + route.setup_s + tell, begin + (layers - 1) * tell)
        return Pace(begin, end, (layers - 1) / layers)

    def forget(self, row: int, now: float) -> None:
        super().forget(row, now)
        self._early.pop(row, None)
