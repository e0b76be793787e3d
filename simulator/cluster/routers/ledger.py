"""Prompts on their way: what a router adds up itself about the work it has sent to each worker."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


class Ledger:
    """Predicted seconds of the prompts that were sent to each worker and are not yet computed.

    Nothing is known of how far the prompt under way is, only since when it can have been: that time is taken off the
    oldest one's.
    """

    def __init__(self, workers: int) -> None:
        self._open: list[dict[int, float]] = [{} for _ in range(workers)]
        self._sum_s = np.zeros(workers)
        self._since_s = np.zeros(workers)

    def succeed(self, old: Ledger, here: list[int]) -> None:
        """Take over another ledger's workers; ``here``: where each of them stands now, -1 where it does not."""
        for i, position in enumerate(here):
            if position >= 0:
                self._open[position] = old._open[i]
                self._sum_s[position], self._since_s[position] = old._sum_s[i], old._since_s[i]

    def sent(self, position: int, row: int, seconds: float, now: float) -> None:
        """A prompt that will take ``seconds`` goes to a worker."""
        if not self._open[position]:
            self._since_s[position] = now
        self._open[position][row] = seconds
        self._sum_s[position] += seconds

    def computed(self, position: int, row: int, now: float) -> None:
        """It is computed, or was lost."""
        seconds = self._open[position].pop(row, None)
        if seconds is None:
            return
        self._since_s[position] = now
        self._sum_s[position] = self._sum_s[position] - seconds if self._open[position] else 0.0

    def done_within(self, seconds: float, now: float) -> int:
        """Prompts that will be computed within so many seconds from now, each worker taking its own in order."""
        done = 0
        for position, waiting in enumerate(self._open):
            end = now - min(now - self._since_s[position], next(iter(waiting.values()), 0.0))
            for prompt_s in waiting.values():
                end += prompt_s
                if end > now + seconds:
                    break
                done += 1
        return done

    def queue_s(self, position: int, now: float) -> float:
        """Seconds of prompts ahead of a new one."""
        waiting = self._open[position]
        if not waiting:
            return 0.0
        oldest = next(iter(waiting.values()))
        return float(self._sum_s[position] - min(now - self._since_s[position], oldest))
