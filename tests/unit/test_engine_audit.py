"""The books of every engine add up at every moment, whatever comes and goes."""

from __future__ import annotations

from dataclasses import replace

import engine_audit
import engine_audit_sglang
import numpy as np
import pytest
from engine_play import Play, Seen
from test_engine_sums import EVERY, FIRST_STAGE, drawn, named


class Audited(Seen):
    """Lives from one end of a step to the next, and looks at the books after each thing that happens."""

    def look(self) -> None:
        (engine_audit_sglang if self.play.policy == "sglang" else engine_audit).audit(self.engine.state)

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
