"""How far the requests of an SGLang engine have got."""

from __future__ import annotations

import numpy as np

from simulator.compiled import compiled
from simulator.engine.sglang.state import DROPPED, FREE, HELD, outputs_now


@compiled
def progress(e):  # type: ignore[no-untyped-def]
    """Rows of the requests that are here, and the output tokens of each that have reached its client."""
    n = 0
    rows = np.zeros(e.row.size, np.int64)
    tokens = np.zeros(e.row.size, np.int64)
    for s in range(e.row.size):
        if e.status[s] == FREE:
            continue
        rows[n] = e.row[s]
        if e.status[s] == DROPPED:  # in no further step, as its last token is on its way
            tokens[n] = e.final[s] - 1
        elif e.status[s] != HELD:
            tokens[n] = outputs_now(e, s)
        n += 1
    return rows[:n], tokens[:n]
