"""The books of every engine add up at every moment, whatever comes and goes."""

from __future__ import annotations

from dataclasses import replace

import engine_audit
import engine_audit_sglang
import numpy as np
import pytest
from engine_books import look
from engine_play import Play, Seen
from test_engine_sums import EVERY, FIRST_STAGE, drawn, named


class Audited(Seen):
    """Lives from one end of a step to the next, and looks at the books after each thing that happens."""

    def __init__(self, play: Play) -> None:
        self.steps, self.most = 0, 0
        super().__init__(play)
        peak = self.engine.totals().peak_blocks
        if play.role != "decode":  # there, what is taken without a step to follow is not looked at
            assert peak >= self.most
            assert peak == self.most or self.desk.preemptions.any() or play.withdrawn

    def look(self) -> None:
        (engine_audit_sglang if self.play.policy == "sglang" else engine_audit).audit(self.engine.state)
        load, steps = self.engine.load(), self.engine.totals().batches
        self.most = max(self.most, load.blocks - load.free_blocks)
        if steps > self.steps and not self.play.withdrawn:
            # nothing has been planned since that step's end, where a point of the series is due
            moments, running, waiting, blocks, _ = self.engine.series()
            computed_in_part = int(self.play.policy == "sglang" and look(self.engine.state, "chunked") >= 0)
            assert running[-1] == load.running - computed_in_part
            assert (waiting[-1], blocks[-1]) == (load.waiting, load.blocks - load.free_blocks)
            assert self.play.policy == "sglang" or moments[-1] == look(self.engine.state, "previous_end_s")
        self.steps = steps

    def hear(self, now: float) -> None:
        super().hear(now)
        self.look()

    def happen(self, now: float, what: int, row: int) -> None:
        super().happen(now, what, row)
        self.look()


@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("play", EVERY + FIRST_STAGE, ids=named)
def test_books_add_up(play: Play, seed: int) -> None:
    case = replace(drawn(play, seed), told=True, macro=False)
    Audited(case)
    rng = np.random.default_rng(seed + 100)
    going = tuple((case.arrivals[row][0] + float(rng.uniform(0.0, 0.5)), row) for row in (1, 3, 4, 7))
    Audited(replace(case, withdrawn=going))
