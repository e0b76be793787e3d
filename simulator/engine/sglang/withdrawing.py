"""A client of an SGLang engine goes, at any moment; and how far the requests have got."""

from __future__ import annotations

import numpy as np

from simulator.compiled import compiled
from simulator.engine.sglang.posting import plan_if_idle
from simulator.engine.sglang.state import DROPPED, FREE, GONE, HELD, STAYS, outputs_now
from simulator.engine.sglang.steps import next_wake


@compiled
def withdraw(e, row, now):  # type: ignore[no-untyped-def]
    """Nobody waits for this row's request any more: nothing is told or written down of it from here on.

    The scheduler hears of it when it next looks for new requests (``aborting``). A prompt that is kept for another
    engine is not looked at: its end is told by its slot. Call after ``advance(now)``. Returns whether the request was
    there, and when to look next.
    """
    for s in range(e.row.size):
        if e.row[s] == row and e.status[s] != FREE and e.status[s] != HELD and e.gone[s] == STAYS:
            e.gone[s] = GONE
            e.aborts += 1
            plan_if_idle(e, now)
            return True, next_wake(e)
    return False, next_wake(e)


@compiled
def progress(e):  # type: ignore[no-untyped-def]
    """Rows of the requests that are here, and the output tokens of each that have reached its client."""
    n = 0
    rows = np.zeros(e.row.size, np.int64)
    tokens = np.zeros(e.row.size, np.int64)
    for s in range(e.row.size):
        if e.status[s] == FREE or e.gone[s] != STAYS:
            continue
        rows[n] = e.row[s]
        if e.status[s] == DROPPED:  # in no further step, as its last token is on its way
            tokens[n] = e.final[s] - 1
        elif e.status[s] != HELD:
            tokens[n] = outputs_now(e, s)
        n += 1
    return rows[:n], tokens[:n]
