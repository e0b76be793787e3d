"""One kernel of a step, as a function of a count of tokens or sequences."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from simulator.cost.kernels import at_least_one
from simulator.cost.roofline import Floats, Time, either
from simulator.hardware.power import power_limit


@dataclass(frozen=True)
class Operator:
    """One kernel of a step. ``time`` maps counts of tokens (or sequences) in the whole engine to one launch's time on
    one GPU; it runs ``launches`` times a step. ``busy``: of an exchange that another micro-batch may hide, the seconds
    of computation one launch still costs; None for everything else. ``shared``: all ranks' tokens are in it, whosever
    they are (experts)."""

    name: str
    launches: float
    time: Callable[[Floats], Time]
    origin: str
    busy: Callable[[Floats], Floats] | None = None
    shared: bool = False

    def total(self, counts: Floats) -> Time:
        """All launches of a step; nothing for a count of zero."""
        found = self.time(at_least_one(counts)).times(self.launches)
        return found.scaled(np.where(np.asarray(counts) > 0, 1.0, 0.0))

    def longer(self, seconds: float) -> Operator:
        """The same kernel, each count taking so many seconds more."""
        return replace(self, time=lambda counts: self.time(counts).longer(counts * seconds))

    def or_slower(self, other: Operator) -> Operator:
        """This kernel, or ``other`` where that takes longer."""

        def time(counts: Floats) -> Time:
            one, two = self.time(counts), other.time(counts)
            return either(one.seconds >= two.seconds, one, two)

        return replace(self, time=time, origin=f"{self.origin}; or {other.origin} where it is slower")

    def towards_slower(self, other: Operator, share: Callable[[Floats], Floats]) -> Operator:
        """This kernel, and of what ``other`` takes beyond it the share that ``share`` says for each count."""

        def time(counts: Floats) -> Time:
            one = self.time(counts)
            return one.longer(share(counts) * np.maximum(other.time(counts).seconds - one.seconds, 0.0))

        return replace(self, time=time, origin=f"{self.origin}; part of the way to {other.origin} where it is slower")

    def at_full_clocks(self, ranks: int) -> Operator:
        """A product whose table rows beyond some count were measured at the power limit: more tokens (shared by
        ``ranks``) take as long for each as that count."""
        return self._as_so_many(float(power_limit().full_clock_rows * ranks))

    def no_slower_for_more(self, ranks: int) -> Operator:
        """A product that a step does not run at the power limit, as the loop that measured it did with many rows: no
        token (of those that ``ranks`` share) takes longer than with as many as ran at full clocks, or twice that.
        """
        rows = float(power_limit().full_clock_rows * ranks)

        def time(counts: Floats) -> Time:
            found = self.time(counts)
            for most in (rows, 2.0 * rows):
                spread = self._as_so_many(most).time(counts)
                found = either(found.seconds <= spread.seconds, found, spread)
            return found

        return replace(self, time=time)

    def _as_so_many(self, most: float) -> Operator:
        """The same kernel, but that more than ``most`` take as long for each as ``most`` do."""

        def time(counts: Floats) -> Time:
            return self.time(np.minimum(counts, most)).times(np.maximum(counts, most) / most)

        return replace(self, time=time)
