"""Front ends: processes through which every request and every token of an engine goes."""

from __future__ import annotations

import heapq
import math
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial

import numpy as np
from numpy.typing import NDArray

from simulator.cluster.plan import FrontWork, WorkerPlan
from simulator.cluster.processes import Clock, LoadSource, Worker
from simulator.compiled import compiled

#: Seconds over which the share of time that tokens take is averaged.
SMOOTHING_S = 0.05
#: Tokens come a step at a time: what they take is counted over no less than this.
LOOK_S = 0.02
#: Of the front end's time, tokens never take more than this: requests still get through.
MOST_FOR_TOKENS = 0.95
#: Once tokens are late, an event loop takes turns: each of its rounds has one message of tokens, and moves every
#: request that waits on by one stage (measured with SGLang 0.5.6: docs/sglang.md).
SHARE_WHEN_LATE = 0.5
#: Tokens that are later than this are worth a word.
WORTH_SAYING_S = 0.1
#: Work that is only a rounding error.
_DONE_S = 1e-12


class TokenLine:
    """Tokens of one engine, which one process sends one after another, and how late they are.

    A step's tokens come together and are sent until the next step ends; that is part of an engine's ordinary time from
    a token to its client. Late is what comes beyond it, where the engine makes tokens faster than they are sent.
    ``decoding``: how many sequences there are, which is how many tokens a step makes.
    """

    def __init__(self, work: FrontWork, decoding: Callable[[], int]) -> None:
        self.work, self._decoding = work, decoding
        self._now_s, self._tokens, self._backlog_s, self.late_s = 0.0, 0, 0.0, 0.0
        self._elsewhere_s = 0.0  # since then, for requests
        self._moments, self._lates = [0.0], [0.0]

    def look(self, now: float, tokens: int) -> float:
        """Seconds by which tokens made ``now`` are late. ``tokens``: made since the run began."""
        if self.work.merges or now <= self._now_s:
            return self.late_s
        token_s = self.work.token_s
        made_s = (tokens - self._tokens) * token_s
        given_s = max(0.0, now - self._now_s - self._elsewhere_s)
        self._backlog_s = max(0.0, self._backlog_s + made_s - given_s)
        self._elsewhere_s = 0.0
        late_s = max(0.0, self._backlog_s - self._decoding() * token_s) if self._backlog_s > 0.0 else 0.0
        if late_s > 0.0 or self.late_s > 0.0:
            if self.late_s == 0.0:  # until the look before
                self._note(self._now_s, 0.0)
            self._note(now, late_s)
        self._now_s, self._tokens, self.late_s = now, tokens, late_s
        return late_s

    def hold_up(self, seconds: float) -> None:
        """The process has done something else for so long."""
        self._elsewhere_s += seconds

    def _note(self, moment: float, late_s: float) -> None:
        self._moments.append(moment)
        self._lates.append(late_s)

    def late_at(self, moments_s: NDArray[np.float64]) -> NDArray[np.float64]:
        """By how much tokens made at these moments were late."""
        return np.interp(moments_s, self._moments, self._lates)

    @property
    def most_late_s(self) -> float:
        return max(self._lates)


class FrontDesk:
    """Lets requests through to their engine, by calling ``leave`` with a row and the moment.

    It is one process, an event loop: tokens go first; then what comes in is read, which it does for all that are there
    before it goes on with any of them; what time is left serves requests in the order in which they came. So the first
    of a burst leaves after all of it has been read. ``in_turn_s``: seconds of that last work, by row (tokenising and
    passing on). ``made``: how many tokens the engine has made by a moment; ``decoding``: how many sequences it has.
    """

    def __init__(
        self,
        work: FrontWork,
        in_turn_s: Sequence[float],
        made: Callable[[float], int],
        decoding: Callable[[], int],
        leave: Callable[[int, float], None],
    ) -> None:
        self.tokens = TokenLine(work, decoding)
        self._work, self._in_turn_s, self._made, self._leave = work, in_turn_s, made, leave
        self._now_s, self._looked_s, self._seen_tokens = 0.0, 0.0, 0
        self._reading_s = 0.0  # work for what has come in, not yet done
        self._waiting: deque[int] = deque()  # rows
        self._first_s = 0.0  # work left for the first of them
        self._share = 0.0  # of its time that tokens take

    def come(self, row: int, now: float) -> None:
        """A request has come in."""
        self.serve(now)
        self._reading_s += self._work.accept_s
        if not self._waiting:
            self._first_s = self._in_turn_s[row]
        self._waiting.append(row)

    def next_s(self) -> float:
        """When the first of the line leaves, unless more comes in."""
        if not self._waiting:
            return math.inf
        return self._now_s + (self._reading_s + self._first_s) / (1.0 - self._share)

    def serve(self, now: float) -> None:
        """Do what is done by ``now``, and let go who is served."""
        if self._work.token_s > 0.0 and now - self._looked_s >= LOOK_S:
            self._look(now)
        left_s = (now - self._now_s) * (1.0 - self._share)
        self._now_s = now
        waiting = self._waiting
        if not waiting:  # what there is to read belongs to somebody who waits
            return
        given_s = left_s
        read_s = min(left_s, self._reading_s)
        self._reading_s -= read_s
        left_s -= read_s
        while waiting and self._reading_s <= _DONE_S:
            if self._first_s > left_s + _DONE_S:
                self._first_s -= left_s
                left_s = 0.0
                break
            left_s -= self._first_s
            row = waiting.popleft()
            self._first_s = self._in_turn_s[waiting[0]] if waiting else 0.0
            self._leave(row, now)
        self.tokens.hold_up(given_s - left_s)

    def _look(self, now: float) -> None:
        """How much of its time tokens take."""
        tokens = self._made(now)
        passed = now - self._looked_s
        if self.tokens.look(now, tokens) > 0.0:
            self._share = SHARE_WHEN_LATE
        else:
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
            due = heapq.heappop(self._due)
            while self._due and self._due[0] == due:  # all who wait lead to the same moment: one look does
                heapq.heappop(self._due)
            _, index = due
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
    ``lengths``: tokens of prompts and of answers. ``known``: whether all moments of sending are known beforehand.
    ``enter``: called with a row that is through.
    ``reachable``: indexes of the engines that there are now, where they come and go. Decode engines, to which requests
    come some other way, have lines of tokens.
    """

    def __init__(
        self,
        clock: Clock,
        plans: Sequence[WorkerPlan],
        workers: Sequence[Worker],
        lengths: tuple[NDArray[np.int64], NDArray[np.int64]],
        known: bool,
        enter: Callable[[int, float], None],
        reachable: Callable[[], Sequence[int]] | None,
    ) -> None:
        first = next(plan for plan in plans if plan.role != "decode")
        input_tokens, output_tokens = lengths
        sends = first.role != "prefill"  # there, others send the tokens
        self.work = _mean_token(first.front, output_tokens) if sends else replace(first.front, token_s=0.0)
        prompt_s = self.work.prompt_token_s * input_tokens.astype(np.float64)
        self._in_turn_s = self.work.request_s + prompt_s
        self.before_s = first.frontend_before_s + prompt_s
        rest_s = self.work.rest_s(first.frontend_before_s)
        self.way_s = np.full(len(input_tokens), rest_s) if self.work.queues else self.before_s
        self._clock, self._enter, self._reachable = clock, enter, reachable
        self._workers = [worker for worker, plan in zip(workers, plans, strict=True) if plan.role != "decode"]
        # where nothing is left to chance, who waits how long is worked out at once
        self._one_by_one = self.work.queues and not (known and self.work.token_s == 0.0)
        #: By index of the engine, where tokens can be late.
        self.lines: dict[int, TokenLine] = {
            worker.index: TokenLine(_mean_token(plan.front, output_tokens), partial(_sequences, worker))
            for worker, plan in zip(workers, plans, strict=True)
            if plan.role == "decode" and plan.front.queues_tokens
        }
        self._input_tokens, self._all = input_tokens, workers

    def open(self, sent_s: NDArray[np.float64], rows: NDArray[np.int64]) -> LoadSource:
        """Lets in requests sent at ``sent_s``; further ones may be added ``way_s`` after they are sent."""
        moments = sent_s + self.way_s[rows]
        order = np.argsort(moments, kind="stable")  # a long prompt may be overtaken by short ones
        moments, rows = moments[order], rows[order]
        if self._one_by_one:
            desks = self._desks()
            if self.work.queues_tokens:
                self.lines |= {index: desk.tokens for index, desk in desks.items()}
            return FrontDoor(self._clock, desks, moments.tolist(), rows.tolist(), self._reachable)
        if self.work.queues:
            in_turn_s, count = self._in_turn_s[rows], len(self._workers)
            for k in range(count):
                moments[k::count] = leave_moments(moments[k::count], self.work.accept_s, in_turn_s[k::count])
            order = np.argsort(moments, kind="stable")
            moments, rows = moments[order], rows[order]
        return LoadSource(self._clock, moments.tolist(), rows.tolist(), self._enter)

    def late_s(self, worker: Worker, now: float) -> float:
        """By how much a token that an engine has just made is late. The engine is at ``now`` already."""
        line = self.lines.get(worker.index)
        return 0.0 if line is None else line.look(now, _tokens_made(worker))

    def also_came(self, row: int, worker: Worker, now: float) -> None:
        """A request is at the engine that decodes it, too, whose own front end has read and tokenised it."""
        line = self.lines.get(worker.index)
        if line is not None:
            work = line.work
            line.hold_up(work.accept_s + work.request_s + work.prompt_token_s * float(self._input_tokens[row]))
            line.look(now, _tokens_made(worker))

    def settle(self, now: float) -> None:
        """The run is over: what tokens wait for since the last request came."""
        for worker in self._all:
            self.late_s(worker, now)

    def warnings(self, names: Sequence[str]) -> tuple[str, ...]:
        """What to say of front ends that cannot keep up. ``names`` of all engines."""
        late = {names[index]: line.most_late_s for index, line in self.lines.items()}
        late = {name: late_s for name, late_s in late.items() if late_s >= WORTH_SAYING_S}
        if not late:
            return ()
        worst = max(late, key=lambda name: late[name])
        others = f" and of {len(late) - 1} others" if len(late) > 1 else ""
        return (
            f"the front end of {worst}{others} cannot keep up: tokens reach clients up to {late[worst]:.2g} s late "
            "(inter-token latencies are the engine's own)",
        )

    def _desks(self) -> dict[int, FrontDesk]:
        in_turn_s = self._in_turn_s.tolist()  # one list for all: a row may come to any of them
        return {
            worker.index: FrontDesk(
                self.work, in_turn_s, partial(_tokens_by, worker), partial(_sequences, worker), self._enter
            )
            for worker in self._workers
        }


def _mean_token(work: FrontWork, output_tokens: NDArray[np.int64]) -> FrontWork:
    """The work with one number for a token: the mean over all, as they stand behind few or many of their answer."""
    total = float(output_tokens.sum())
    before = float((output_tokens * (output_tokens - 1.0)).sum()) / 2.0 / total if total > 0.0 else 0.0
    return replace(work, token_s=work.token_s + work.answer_token_s * before, answer_token_s=0.0)


def _tokens_by(worker: Worker, now: float) -> int:
    """As ``_tokens_made``, by ``now``: an engine lives ahead only when something comes to it."""
    worker.catch_up(now)
    return _tokens_made(worker)


def _tokens_made(worker: Worker) -> int:
    """Output tokens of an engine so far."""
    return sum(engine.totals().decode_tokens for engine in (*worker.lives, worker.engine))


def _sequences(worker: Worker) -> int:
    return worker.engine.load().running
