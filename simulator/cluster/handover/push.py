"""The push of SGLang: memory at the decode engine first, then the prompt; each chunk leaves when it is done.

Both engines get the request together. The decode engine takes memory for the whole prompt and says so; only then does
the request join the prefill engine's queue. A decode engine without memory thus holds the prefill engine up, and memory
stands idle at the decode engine while a prompt waits and is computed (sglang/srt/disaggregation: PreallocQueue,
TransferQueue and BootstrapQueue).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial

from simulator.cluster.handover.streaming import Piece, Streaming
from simulator.cluster.processes import Worker
from simulator.engine.sglang.ranks import binding, bound_rank


@dataclass
class Push(Streaming):
    """Chunk by chunk, written by the prefill engine.

    With ``setup_in_turn`` one process of a prefill engine, or of each of its data-parallel ranks, sets up one piece
    after another (SGLang's scheduler with NIXL, until its transfers got threads of their own: sgl-project/sglang pull
    23967); bytes flow side by side.
    """

    _set_up_s: dict[tuple[int, int], float] = field(default_factory=dict)  # until when, by engine and rank

    def launch(self, row: int, piece: Piece, blocks: int, places: tuple[int, int], now: float) -> None:
        start = now
        if self.rooms.plan.setup_in_turn:
            spec = self.rooms.workers[places[0]].engine.spec
            at = places[0], bound_rank(row, spec.cost.ranks, binding(spec.settings))
            start = max(now, self._set_up_s.get(at, now))
            self._set_up_s[at] = start + self.delay_s(row, places, blocks)
        if start > now:
            self.later(row, start, partial(super().launch, row, piece, blocks, places))
        else:
            super().launch(row, piece, blocks, places, now)

    def begin(self, row: int, source: Worker, now: float) -> None:
        later = max(0.0, self.rooms.decode_before_s - float(self.rooms.entry_before_s[row]))
        self.columns.host_before_s[row] = later
        if later > 0:
            self.later(row, now + later, partial(self.ask_now, row))
        else:
            self.ask_now(row, now)

    def receive(self, row: int, dst: int, now: float) -> None:
        columns = self.columns
        columns.wait_before_s[row] = now - columns.entered_s[row] - columns.host_before_s[row]
        source = self.rooms.workers[int(self.rooms.prefill_worker[row])]
        self.let_plan(source, now)
        super().begin(row, source, now)

    def chunk(self, row: int, tokens: int, start_s: float, end_s: float) -> None:
        if tokens < self.rooms.input_tokens[row]:
            self.later(row, end_s, partial(self.offer, row, Piece(tokens, start_s, end_s, False)))

    def hand_over(self, row: int, now: float) -> None:
        self.offer(row, Piece(self.rooms.input_tokens[row], now, now, True), now)
