"""What is kept of each request across its attempts: how often it was begun, what its client has, what was lost."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from simulator.cluster.cache.caches import LoadColumns
from simulator.cluster.handover.columns import HandoverColumns
from simulator.engine.state import DESK_FIELDS, DeskColumns

if TYPE_CHECKING:
    from simulator.cluster.run import Cluster

#: Sums over a run, which go on from attempt to attempt.
_SUMS = ("token_sum_s", "preemptions", "busy_s", "wire_bytes")
#: What desk columns hold before anything has come, where that is not NaN.
_BLANK = {"cached_tokens": -1, "kv_runs": 1.0}


class Attempts:
    """Columns over requests; ``number``: attempts given up so far, ``lost_tokens``: output tokens made in vain,
    ``kept_tokens``: output tokens a client has from attempts before, which the prompt of this one holds."""

    def __init__(self, rows: int, desk: DeskColumns, moved: HandoverColumns, loads: LoadColumns | None) -> None:
        self.number = np.zeros(rows, np.int64)
        self.lost_tokens = np.zeros(rows, np.int64)
        self.kept_tokens = np.zeros(rows, np.int64)
        self._desk, self._moved, self._loads = desk, moved, loads
        self._first: dict[int, list[tuple[Any, Any]]] = {}

    def begin_anew(self, row: int) -> None:
        """The columns that engines and handovers write are as before the request came."""
        for name in DESK_FIELDS:
            if name not in _SUMS:
                getattr(self._desk, name)[row] = _BLANK.get(name, np.nan)
        self._desk.token_sum_s[row] = 0.0
        self._moved.begin_anew(row)

    def keep_first(self, row: int) -> None:
        """The client has a first token: its way is told by this attempt, whatever comes later."""
        if row not in self._first:
            columns = [
                getattr(self._desk, name) for name in DESK_FIELDS if name not in ("last_token_s", "cached_tokens")
            ]
            columns += [column for name, column in vars(self._moved).items() if not name.endswith("_slot")]
            columns += [] if self._loads is None else [self._loads.start_s, self._loads.end_s]
            self._first[row] = [(column, column[row]) for column in columns]

    def restore_first(self) -> None:
        """At the end of a run: the way to each first token, as its client saw it."""
        sums = [
            getattr(holder, name) for holder in (self._desk, self._moved) for name in _SUMS if hasattr(holder, name)
        ]
        for row, kept in self._first.items():
            for column, value in kept:
                if not any(column is one for one in sums):
                    column[row] = value


def go_on(cluster: Cluster, row: int, made: int) -> bool:
    """A request that lost its worker goes on from the ``made`` tokens its client has: they become part of its prompt.
    False, with nothing changed, where no worker could take so long a prompt."""
    inputs, outputs = cluster.lengths
    tokens = inputs[row] + made
    plans = [plan for plan in cluster.plan.workers if plan.role != "decode"]
    longest = cluster.workers[plans[0].index].engine.longest_prompt
    room = max(min(plan.kv_blocks * plan.block_size, plan.max_context - 1) for plan in plans)
    if made >= outputs[row] or tokens > room or (longest is not None and tokens > longest):
        return False
    inputs[row], outputs[row] = tokens, outputs[row] - made
    cluster.dispatch.lengthen(row, tokens)
    return True
