"""Front ends: processes through which every request and every token of an engine goes."""

from __future__ import annotations

import heapq
import math
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from simulator.cluster.plan import WorkerPlan
from simulator.cluster.processes import Clock, LoadSource, Worker
from simulator.compiled import compiled

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

    def rest_s(self, before_s: float) -> float:
        """Of the time that a lone request of no tokens takes, what is nobody's work: it passes first, on the way."""
        return max(before_s - self.accept_s - self.request_s, 0.0)


class FrontDesk:
    """Lets requests through to their engine, by calling ``leave`` with a row and the moment.

    It is one process, an event loop: tokens go first; then what comes in is read, which it does for all that are there
    before it goes on with any of them; what time is left serves requests in the order in which they came. So the first
    of a burst leaves after all of it has been read. ``in_turn_s``: seconds of that last work, by row (tokenising and
    passing on). ``tokens``: how many have been sent by a moment.
    """

    def __init__(
        self,
        work: FrontWork,
        in_turn_s: Sequence[float],
        tokens: Callable[[float], int],
        leave: Callable[[int, float], None],
    ) -> None:
        self._work, self._in_turn_s, self._tokens, self._leave = work, in_turn_s, tokens, leave
        self._now_s, self._looked_s, self._seen_tokens = 0.0, 0.0, 0
        self._reading_s = 0.0  # work for what has come in, not yet done
        self._line: deque[int] = deque()  # rows
        self._first_s = 0.0  # work left for the first of them
        self._share = 0.0  # of its time that tokens take

    def come(self, row: int, now: float) -> None:
        """A request has come in."""
        self.serve(now)
        self._reading_s += self._work.accept_s
        if not self._line:
            self._first_s = self._in_turn_s[row]
        self._line.append(row)

    def next_s(self) -> float:
        """When the first of the line leaves, unless more comes in."""
        if not self._line:
            return math.inf
        return self._now_s + (self._reading_s + self._first_s) / (1.0 - self._share)

    def serve(self, now: float) -> None:
        """Do what is done by ``now``, and let go who is served."""
        if self._work.token_s > 0.0 and now - self._looked_s >= LOOK_S:
            self._look(now)
        left_s = (now - self._now_s) * (1.0 - self._share)
        self._now_s = now
        line = self._line
        if not line:  # what there is to read belongs to somebody in line
            return
        read_s = min(left_s, self._reading_s)
        self._reading_s -= read_s
        left_s -= read_s
        while line and self._reading_s <= _DONE_S:
            if self._first_s > left_s + _DONE_S:
                self._first_s -= left_s
                break
            left_s -= self._first_s
            row = line.popleft()
            self._first_s = self._in_turn_s[line[0]] if line else 0.0
            self._leave(row, now)

    def _look(self, now: float) -> None:
        """How much of its time tokens take."""
        passed, tokens = now - self._looked_s, self._tokens(now)
        busy = min((tokens - self._seen_tokens) * self._work.token_s / passed, MOST_FOR_TOKENS)
        self._share += (busy - self._share) * -math.expm1(-passed / SMOOTHING_S)
        self._looked_s, self._seen_tokens = now, tokens


class FrontDoor(LoadSource):
    """Requests and the moments at which they come to front ends, in turn, and when they leave them.

    All desks in one process: as long as nothing else happens in between, it goes on without an event of the clock.
    ``desks``: by the index of their engine. ``reachable``: which of them there are now, where they come and go.
    """

    def __init__(
        self,
        clock: Clock,
        desks: Mapping[int, FrontDesk],
        times_s: list[float],
        rows: list[int],
        reachable: Callable[[], Sequence[int]] | None = None,
    ) -> None:
        self._desks, self._turn, self._reachable = desks, 0, reachable
        self._all = list(desks)
        self._due: list[tuple[float, int]] = []  # when a desk is to be looked at; some find that it is too early
        super().__init__(clock, times_s, rows, self._come)

    def next_s(self) -> float:
        coming = super().next_s()
        return min(coming, self._due[0][0]) if self._due else coming

    def get_up(self, now: float) -> None:
        super().get_up(now)
        while self._due and self._due[0][0] <= now:
            _, index = heapq.heappop(self._due)
            self._desks[index].serve(now)
            self._look_again(index)

    def _come(self, row: int, now: float) -> None:
        there = self._all if self._reachable is None else self._reachable() or self._all
        index = there[self._turn % len(there)]
        self._turn += 1
        self._desks[index].come(row, now)
        self._look_again(index)

    def _look_again(self, index: int) -> None:
        due_s = self._desks[index].next_s()
        if due_s < math.inf:
            heapq.heappush(self._due, (due_s, index))


@compiled
def leave_moments(come_s, accept_s, in_turn_s):  # type: ignore[no-untyped-def]
    """When each request leaves a desk that sends no tokens; moments of coming in order, work in turn for each."""
    left_s, line_s = np.empty(come_s.size), in_turn_s.copy()
    now_s, reading_s, head = 0.0, 0.0, 0
    for i in range(come_s.size + 1):
        until_s = come_s[i] if i < come_s.size else np.inf
        read_s = min(until_s - now_s, reading_s)
        reading_s -= read_s
        now_s += read_s
        while head < i and reading_s <= _DONE_S:
            if now_s + line_s[head] > until_s + _DONE_S:
                line_s[head] -= until_s - now_s
                break
            now_s += line_s[head]
            left_s[head] = now_s
            head += 1
        now_s = until_s
        reading_s += accept_s
    return left_s


class FrontEnds:
    """Every engine that clients send to has a front end of its own; a load balancer before them takes them in turn.

    By row, in seconds: ``before_s``, from the client's sending until an engine hears of a request that waits for
    nobody; ``way_s``, the part of it until the request comes to where it may wait (all of it where it cannot).
    ``known``: whether all moments of sending are known beforehand. ``enter``: called with a row that is through.
    ``reachable``: indexes of the engines that there are now, where they come and go.
    """

    def __init__(
        self,
        clock: Clock,
        plans: Sequence[WorkerPlan],
        workers: Sequence[Worker],
        input_tokens: NDArray[np.int64],
        known: bool,
        enter: Callable[[int, float], None],
        reachable: Callable[[], Sequence[int]] | None,
    ) -> None:
        first = next(plan for plan in plans if plan.role != "decode")
        token_s = 0.0 if first.role == "prefill" else first.frontend_token_s  # there, others send the tokens
        self.work = FrontWork(first.frontend_accept_s, first.frontend_request_s, token_s)
        prompt_s = first.frontend_prompt_token_s * input_tokens.astype(np.float64)
        self._in_turn_s = self.work.request_s + prompt_s
        self.before_s = first.frontend_before_s + prompt_s
        rest_s = self.work.rest_s(first.frontend_before_s)
        self.way_s = np.full(len(input_tokens), rest_s) if self.work.queues else self.before_s
        self._clock, self._enter, self._reachable = clock, enter, reachable
        self._workers = [worker for worker, plan in zip(workers, plans, strict=True) if plan.role != "decode"]
        # where nothing is left to chance, who waits how long is worked out at once
        self._one_by_one = self.work.queues and not (known and token_s == 0.0)

    def open(self, sent_s: NDArray[np.float64], rows: NDArray[np.int64]) -> LoadSource:
        """Lets in requests sent at ``sent_s``; further ones may be added ``way_s`` after they are sent."""
        moments = sent_s + self.way_s[rows]
        order = np.argsort(moments, kind="stable")  # a long prompt may be overtaken by short ones
        moments, rows = moments[order], rows[order]
        if self._one_by_one:
            return FrontDoor(self._clock, self._desks(), moments.tolist(), rows.tolist(), self._reachable)
        if self.work.queues:
            in_turn_s, count = self._in_turn_s[rows], len(self._workers)
            for k in range(count):
                moments[k::count] = leave_moments(moments[k::count], self.work.accept_s, in_turn_s[k::count])
            order = np.argsort(moments, kind="stable")
            moments, rows = moments[order], rows[order]
        return LoadSource(self._clock, moments.tolist(), rows.tolist(), self._enter)

    def _desks(self) -> dict[int, FrontDesk]:
        in_turn_s = self._in_turn_s.tolist()  # one list for all: a row may come to any of them
        return {
            worker.index: FrontDesk(self.work, in_turn_s, partial(_tokens_sent, worker), self._enter)
            for worker in self._workers
        }


def _tokens_sent(worker: Worker, now: float) -> int:
    """Output tokens of an engine by ``now``. It lives ahead only when something comes to it."""
    worker.catch_up(now)
    return sum(engine.totals().decode_tokens for engine in (*worker.lives, worker.engine))
