"""The front end of an engine: one process through which every request and every token goes."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from simulator.cluster.processes import Clock, LoadSource, Sleeper

#: Seconds over which the share of time that tokens take is averaged.
SMOOTHING_S = 0.05
#: Tokens come a step at a time: what they take is counted over no less than this.
LOOK_S = 0.02
#: Of the front end's time, tokens never take more than this: requests still get through.
MOST_FOR_TOKENS = 0.95
#: Work that is only a rounding error.
_DONE_S = 1e-12


@dataclass(frozen=True)
class FrontWork:
    """The front end's own work, in seconds: on a request as it comes (reading, parsing), on its way to the engine
    (beside tokenising), and on a token sent to a client. All zero where nobody waits for anybody."""

    accept_s: float = 0.0
    request_s: float = 0.0
    token_s: float = 0.0

    @property
    def queues(self) -> bool:
        """Whether requests can wait for one another here."""
        return self.accept_s > 0.0 or self.request_s > 0.0


@dataclass(frozen=True)
class FrontStays:
    """Seconds each request (by row) stays at the front end if it need not wait, and of these the work on its prompt
    (tokenising), which others wait for as well."""

    before_s: NDArray[np.float64]
    prompt_s: NDArray[np.float64]


@dataclass
class _Waiting:
    row: int
    work_s: float  # left to do in turn
    rest_s: float  # what passes then without work


class FrontDesk(Sleeper):
    """Lets requests through to their engine, by calling ``leave`` with a row and the moment.

    It is one process, an event loop: tokens go first; then what comes in is read, which it does for all that are there
    before it goes on with any of them; what time is left serves requests in the order in which they came. So the first
    of a burst leaves after all of it has been read. ``tokens``: how many have been sent by a moment.
    """

    def __init__(
        self,
        clock: Clock,
        work: FrontWork,
        stays: FrontStays,
        tokens: Callable[[float], int],
        leave: Callable[[int, float], None],
    ) -> None:
        self._work, self._stays, self._tokens, self._leave = work, stays, tokens, leave
        self._door = LoadSource(clock, [], [], self._come)
        self._now_s, self._looked_s, self._seen_tokens = 0.0, 0.0, 0
        self._reading_s = 0.0  # work for what has come in, not yet done
        self._line: deque[_Waiting] = deque()
        self._share = 0.0  # of its time that tokens take
        super().__init__(clock)

    def send(self, row: int, at: float) -> None:
        """A request will come in at ``at``, which may lie ahead: clients are told of an end as soon as it is known."""
        if self._work.queues:
            self._door.add(row, at)
        else:
            self._leave(row, at + float(self._stays.before_s[row]))

    def _come(self, row: int, now: float) -> None:
        self._pass(now)
        in_turn_s = self._work.request_s + float(self._stays.prompt_s[row])
        rest_s = float(self._stays.before_s[row]) - self._work.accept_s - in_turn_s
        self._reading_s += self._work.accept_s
        self._line.append(_Waiting(row, in_turn_s, max(rest_s, 0.0)))
        self.reconsider()

    def next_s(self) -> float:
        if not self._line:
            return float("inf")
        return self._now_s + (self._reading_s + self._line[0].work_s) / (1.0 - self._share)

    def get_up(self, now: float) -> None:
        self._pass(now)

    def _pass(self, now: float) -> None:
        """Do what is done by ``now``, and let go who is served."""
        self._look(now)
        left_s = max(now - self._now_s, 0.0) * (1.0 - self._share)
        self._now_s = max(now, self._now_s)
        read_s = min(left_s, self._reading_s)
        self._reading_s -= read_s
        left_s -= read_s
        line = self._line
        while line and self._reading_s <= _DONE_S:
            served_s = min(left_s, line[0].work_s)
            line[0].work_s -= served_s
            left_s -= served_s
            if line[0].work_s > _DONE_S:
                break
            done = line.popleft()
            self._leave(done.row, self._now_s + done.rest_s)

    def _look(self, now: float) -> None:
        """How much of its time tokens take."""
        passed = now - self._looked_s
        if self._work.token_s == 0.0 or passed < LOOK_S:
            return
        tokens = self._tokens(now)
        busy = min((tokens - self._seen_tokens) * self._work.token_s / passed, MOST_FOR_TOKENS)
        self._share += (busy - self._share) * -math.expm1(-passed / SMOOTHING_S)
        self._looked_s, self._seen_tokens = now, tokens
