"""How a batch starts: behind the one that runs, and no faster than the host can launch it."""

from __future__ import annotations

import math

from simulator.compiled import compiled
from simulator.cost.table import launch_seconds
from simulator.engine.speculation import scrambled

_WORDS = float(1 << 32)


@compiled
def drawn_launch_s(e, tokens):  # type: ignore[no-untyped-def]
    """Host seconds to launch the batch being planned, whose ``tokens`` hold some of prompts.

    The draw belongs to the number of the batch and its tokens: the same run gives the same times.
    """
    mean = launch_seconds(e.cost, tokens)
    jitter = e.cost.launch_jitter
    if mean == 0.0 or jitter == 0.0:
        return mean
    u = (scrambled(scrambled(e.planned) + tokens) + 0.5) / _WORDS
    return mean * (1.0 - jitter - jitter * math.log(u))


@compiled
def start_batch(e, now, begin, seconds, launch):  # type: ignore[no-untyped-def]
    """Place the batch being planned on the GPU; returns its start. ``launch``: host seconds from ``begin`` on, of which
    the first go by before anything runs; ``begin``: when the host gets to it.

    One loop launches a batch and then looks at the results of the one before: these wait until the launch is over.
    """
    if launch == 0.0:
        start = max(begin, e.gpu_free_s)
        end = start + seconds
    else:
        start = max(begin + e.cost.mixed_prepare_s, e.gpu_free_s)
        end = max(start + seconds, begin + launch)
    if begin + launch > now and e.planned > e.completed:
        before = (e.planned - 1) % e.batch_end_s.size
        e.batch_end_s[before] = max(e.batch_end_s[before], begin + launch)
    e.batch_end_s[e.planned % e.batch_end_s.size] = end
    e.gpu_free_s = end
    e.busy_s += end - start
    return start
