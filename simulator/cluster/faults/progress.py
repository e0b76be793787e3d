"""Whether anything still moves in a run, for what would otherwise go on for ever."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from simulator.cluster.faults.desk import FaultDesk

#: So many looks in a row between which nothing moved, with no request to come: the run is stuck.
_LOOKS_WITHOUT_PROGRESS = 1000


class Progress:
    """Looks now and then."""

    def __init__(self, desk: FaultDesk) -> None:
        self._desk = desk
        self._idle = 0
        self._seen: tuple[int, ...] = ()

    def is_stuck(self) -> bool:
        """One look."""
        cluster = self._desk.cluster
        if cluster.source.next_s() < math.inf:
            self._idle = 0
            return False
        totals = [engine.totals() for worker in cluster.workers for engine in (*worker.lives, worker.engine)]
        tokens = int(sum(t.prefill_tokens + t.decode_tokens for t in totals))
        seen = (self._desk.open, int(self._desk.attempts.number.sum()), tokens)
        self._idle = self._idle + 1 if seen == self._seen else 0
        self._seen = seen
        return self._idle >= _LOOKS_WITHOUT_PROGRESS
