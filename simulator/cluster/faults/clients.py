"""Clients that do not wait for ever: time-outs, and those who change their mind."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from simulator.cluster.faults.desk import FaultDesk
from simulator.cluster.faults.parts import ClientPart
from simulator.cluster.result import CANCELLED, TIMED_OUT, UNFINISHED

if TYPE_CHECKING:
    from simulator.cluster.run import Cluster

#: Sets these draws apart from others under the same seed.
_STREAM = 0xC11E

CANCELLED_BY_CLIENT = "its client cancelled it"


class Clients:
    """One client a request: how long each of them waits."""

    def __init__(self, cluster: Cluster, desk: FaultDesk, seed: int) -> None:
        self._cluster, self._desk, self._part = cluster, desk, desk.plan.client
        rows = len(cluster.trace)
        self._cancels_s = np.full(rows, np.inf)
        if self._part.cancel_share > 0 and self._part.cancel_after_s is not None:
            random = np.random.default_rng([seed, _STREAM])
            cancels = random.random(rows) < self._part.cancel_share
            self._cancels_s[cancels] = random.exponential(self._part.cancel_after_s, rows)[cancels]
        if self._part != ClientPart():
            followers = set(cluster.follow_up_rows())
            for row in np.flatnonzero(~np.isnan(cluster.arrival_s)).tolist():
                if row not in followers:
                    self.sent(row, float(cluster.arrival_s[row]))

    def sent(self, row: int, now: float) -> None:
        """A client sends its request."""
        part, add = self._part, self._cluster.agenda.add
        if self._cancels_s[row] < np.inf:
            add(now + self._cancels_s[row], partial(self._leave, row, CANCELLED, CANCELLED_BY_CLIENT))
        if part.first_token_timeout_s is not None:
            reason = f"no first token within {part.first_token_timeout_s:g} s"
            add(now + part.first_token_timeout_s, partial(self._leave_without_token, row, reason))
        if part.timeout_s is not None:
            add(now + part.timeout_s, partial(self._leave, row, TIMED_OUT, f"no answer within {part.timeout_s:g} s"))

    def _leave_without_token(self, row: int, reason: str, now: float) -> None:
        self._catch_up(row, now)
        if np.isnan(self._cluster.desk.first_token_s[row]) and not self._desk.attempts.kept_tokens[row]:
            self._leave(row, TIMED_OUT, reason, now)

    def _leave(self, row: int, state: int, reason: str, now: float) -> None:
        """A client goes, unless its request is over: engines and links have nothing to do with it any more."""
        self._catch_up(row, now)
        cluster = self._cluster
        if cluster.state[row] == UNFINISHED and np.isnan(cluster.desk.last_token_s[row]):
            self._desk.withdraw(row, now)
            self._desk.end(row, state, reason, now)

    def _catch_up(self, row: int, now: float) -> None:
        for column in (self._cluster.prefill_worker, self._cluster.decode_worker):
            if column[row] >= 0:
                self._cluster.workers[int(column[row])].catch_up(now)
