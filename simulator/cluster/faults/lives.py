"""What a worker did in all its lives: sums and series of the engines that ran on it one after another."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from simulator.cluster.processes import Worker
from simulator.engine.engine import Totals

_LARGEST = ("peak_blocks", "gap_max_s")


def totals_of(worker: Worker) -> Totals:
    """Sums over the run."""
    if not worker.lives:
        return worker.engine.totals()
    each = [engine.totals() for engine in (*worker.lives, worker.engine)]
    return Totals(*((max if name in _LARGEST else sum)(getattr(one, name) for one in each) for name in Totals._fields))


def series(worker: Worker) -> tuple[NDArray[Any], ...]:
    """Time series one after another, and all token gaps in one histogram."""
    if not worker.lives:
        return worker.engine.series()
    each = [engine.series() for engine in (*worker.lives, worker.engine)]
    return (*(np.concatenate([one[i] for one in each]) for i in range(4)), np.sum([one[4] for one in each], axis=0))


def step_log(worker: Worker) -> tuple[NDArray[Any], ...]:
    """All batches, in order."""
    if not worker.lives:
        return worker.engine.step_log()
    each = [engine.step_log() for engine in (*worker.lives, worker.engine)]
    before = np.cumsum([0] + [one[3].size for one in each[:-1]])
    firsts = np.concatenate([one[2] + start for one, start in zip(each, before, strict=True)])
    start, end, row, tokens = (np.concatenate([one[i] for one in each]) for i in (0, 1, 3, 4))
    return start, end, firsts, row, tokens
