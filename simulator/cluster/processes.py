"""The clock: SimPy processes around things that have none. One a worker, one a fabric, one a load source.

A worker sleeps until its engine says that something may happen, and is woken early by an arrival. Moments that belong
to the model (ends of batches, arrivals, ends of transfers) are carried as they were computed; SimPy's own clock, which
adds up delays, only orders them.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable

import simpy

from simulator.engine.engine import Engine, News
from simulator.engine.state import NEVER
from simulator.network.fabric import Fabric, Pace

#: Events between two looks at a run's limits: some milliseconds.
_EVENTS_A_LOOK = 512


class Clock:
    """SimPy's environment, as the rest of the cluster sees it."""

    def __init__(self) -> None:
        self.env = simpy.Environment()

    def run(self, look: Callable[[], None] | None = None) -> None:
        """Until nothing is left to happen. ``look`` is called now and then, and may raise to stop."""
        if look is None:
            self.env.run()
            return
        while self.env.peek() < float("inf"):
            for _ in range(_EVENTS_A_LOOK):
                if self.env.peek() == float("inf"):
                    break
                self.env.step()
            look()


class Sleeper:
    """A process that sleeps until ``next_s()`` and can be told to get up earlier.

    It is written as callbacks on SimPy's time-outs, not as a generator: being told costs one more time-out and an old
    one that finds itself superseded, where an interrupted generator costs three events.
    """

    def __init__(self, clock: Clock) -> None:
        self._env = clock.env
        self._until = float("inf")
        self._up = False
        self.reconsider()

    def next_s(self) -> float:
        """When to get up next; ``NEVER`` or more for only when told."""
        raise NotImplementedError

    def get_up(self, now: float) -> None:
        """What to do then."""
        raise NotImplementedError

    def reconsider(self) -> None:
        """Get up earlier if there is reason to."""
        until = self.next_s()
        if self._up or until >= NEVER or until >= self._until:
            return
        self._until = until
        timeout = self._env.timeout(max(0.0, until - self._env.now), until)
        timeout.callbacks.append(self._rings)

    def _rings(self, timeout: simpy.Event) -> None:
        if timeout.value != self._until:  # an earlier one was set after it
            return
        self._until = float("inf")
        self._up = True
        now = timeout.value
        while True:
            self.get_up(now)
            now = self.next_s()
            if now >= min(self._env.peek(), NEVER):
                break  # else nothing happens before: no need to lie down
        self._up = False
        self.reconsider()


class Worker(Sleeper):
    """One engine with a clock. ``hear`` is called with (this worker, news) as soon as they are known."""

    def __init__(
        self,
        clock: Clock,
        index: int,
        engine: Engine,
        prefill_tokens_per_s: float,
        hear: Callable[[Worker, News], None],
    ) -> None:
        self.index = index
        self.engine = engine
        self._hear = hear
        self._prefill_tokens_per_s = prefill_tokens_per_s
        #: Prompt tokens that caches below the engine seem to hold, where there are any: (worker, row) -> tokens.
        self.outside: Callable[[Worker, int], int] | None = None
        #: Rows that are here; kept only where something may fail.
        self.at: set[int] | None = None
        self.down = False
        self.unanswered: Callable[[int, float], None] = lambda row, now: None  # told of what comes while it is down
        self.lives: list[Engine] = []  # engines that ran here and died
        super().__init__(clock)

    @property
    def prefill_tokens_per_s(self) -> float:
        """Prompt tokens a second with full batches."""
        return self._prefill_tokens_per_s

    def next_s(self) -> float:
        return self.engine.wake_s

    def get_up(self, now: float) -> None:
        self.catch_up(now)

    def catch_up(self, now: float) -> None:
        """Bring the engine to ``now`` and pass its news on."""
        if self.down:
            return
        news = self.engine.advance(now)
        if news is not None:
            self._hear(self, news)

    def pass_on(self) -> None:
        """The engine has been looked at from outside and has news."""
        self._hear(self, self.engine.take_news())

    def submit(
        self,
        row: int,
        prompt_tokens: int,
        target_tokens: int,
        now: float,
        *,
        remote: bool = False,
        hand_over: bool = False,
    ) -> None:
        """A request comes in; see ``Engine.submit``."""
        if self.at is not None:
            self.at.add(row)
            if self.down:
                self.unanswered(row, now)
                return
        if self.engine.seen_s != now:  # a router may have looked at this very moment
            self.catch_up(now)
        outside = 0 if remote or self.outside is None else self.outside(self, row)
        self.engine.submit(row, prompt_tokens, target_tokens, now, remote=remote, hand_over=hand_over, outside=outside)
        self.reconsider()

    def transfer_ended(self, slot: int, now: float) -> None:
        """A read of KV has ended."""
        if self.down:
            return
        self.catch_up(now)
        self.engine.transfer_ended(slot, now)
        self.reconsider()

    def abandon(self, slot: int, recompute: bool, now: float) -> None:
        """The KV that a slot waits for will not come."""
        if self.down:
            return
        self.catch_up(now)
        self.engine.abandon(slot, recompute, now)
        self.reconsider()

    def withdraw(self, row: int, now: float) -> bool:
        """Take a row's request out, whatever is being done of it; whether the engine had it and could."""
        if self.down:
            return False
        self.catch_up(now)
        found = self.engine.withdraw(row, now)
        self.reconsider()
        return found

    def die(self, now: float) -> None:
        """Everything here is lost; what ended by now has been told."""
        self.catch_up(now)
        self.down = True
        self.engine.wake_s = float("inf")

    def live(self, engine: Engine, now: float) -> None:
        """A new engine, empty, in place of the dead one."""
        self.lives.append(self.engine)
        self.engine, self.down = engine, False
        engine.advance(now)
        self.reconsider()

    def set_pace(self, factor: float, now: float) -> None:
        """Steps planned from now on take ``factor`` times as long."""
        self.catch_up(now)
        self.engine.set_pace(factor)
        self.reconsider()


class LoadSource(Sleeper):
    """Requests and the moments at which they reach the engines: those known beforehand, and a heap of later ones."""

    def __init__(self, clock: Clock, times_s: list[float], rows: list[int], send: Callable[[int, float], None]) -> None:
        """``times_s`` in order, with the row of each."""
        self._times, self._rows = times_s, rows
        self._next = 0
        self._heap: list[tuple[float, int]] = []
        self._send = send
        super().__init__(clock)

    def next_s(self) -> float:
        known = self._times[self._next] if self._next < len(self._times) else float("inf")
        return min(known, self._heap[0][0]) if self._heap else known

    def get_up(self, now: float) -> None:
        while self._heap and self._heap[0][0] <= now:
            at, row = heapq.heappop(self._heap)
            self._send(row, at)
        while self._next < len(self._times) and self._times[self._next] <= now:
            i = self._next
            self._next += 1
            self._send(self._rows[i], self._times[i])

    def add(self, row: int, at: float) -> None:
        """One more request."""
        heapq.heappush(self._heap, (at, row))
        self.reconsider()


class Agenda(Sleeper):
    """Things to be done at stated moments, in order of time and then of being noted (ends of transfers, hand-ons)."""

    def __init__(self, clock: Clock) -> None:
        self._heap: list[tuple[float, int, Callable[[float], None]]] = []
        self._noted = 0
        super().__init__(clock)

    def next_s(self) -> float:
        return self._heap[0][0] if self._heap else float("inf")

    def get_up(self, now: float) -> None:
        while self._heap and self._heap[0][0] <= now:
            at, _, action = heapq.heappop(self._heap)
            action(at)

    def add(self, at: float, action: Callable[[float], None]) -> None:
        """Do ``action(at)`` at the moment ``at``."""
        self._noted += 1
        heapq.heappush(self._heap, (at, self._noted, action))
        self.reconsider()


class Transfers(Sleeper):
    """The fabric with a clock: transfers that share its links. ``start`` calls ``done(end)`` at their end."""

    def __init__(self, clock: Clock, fabric: Fabric) -> None:
        self._fabric = fabric
        self._done: dict[int, Callable[[float], None]] = {}
        self._started = 0
        self._whole: dict[str, float] = {}  # capacities as they would be without what scales them
        self._scale: dict[str, float] = {}
        super().__init__(clock)

    def next_s(self) -> float:
        return self._fabric.next_completion()

    def get_up(self, now: float) -> None:
        for transfer, end in self._fabric.advance(now):
            self._done.pop(transfer)(end)

    def start(
        self,
        src: int,
        dst: int,
        size_bytes: float,
        delay_s: float,
        now: float,
        done: Callable[[float], None],
        pace: Pace | None = None,
    ) -> int:
        """Move bytes between two places, after ``delay_s`` of setting up; returns the transfer's number."""
        self.get_up(now)
        self._started += 1
        self._done[self._started] = done
        self._fabric.start(self._started, src, dst, size_bytes, now, delay_s=delay_s, pace=pace)
        self.reconsider()
        return self._started

    def cancel(self, transfer: int, now: float) -> None:
        """Give a transfer up; nothing if it has ended."""
        self.get_up(now)
        if self._done.pop(transfer, None) is not None:
            self._fabric.cancel(transfer, now)
            self.reconsider()

    def set_capacity(self, link: str, capacity_bytes_per_s: float, now: float) -> None:
        """A link gets faster or slower, or is cut (0)."""
        self.get_up(now)
        self._whole[link] = capacity_bytes_per_s
        self._fabric.set_capacity(link, capacity_bytes_per_s * self._scale.get(link, 1.0), now)
        self.reconsider()

    def scale(self, link: str, factor: float, now: float) -> None:
        """A link has this share of its capacity, whatever that is at the moment."""
        self._scale[link] = factor
        self.set_capacity(link, self._whole.get(link, self._fabric.capacity(link)), now)

    def under_way(self, transfer: int) -> bool:
        """Whether it has not ended."""
        return transfer in self._done
