"""How a batch starts: behind the one that runs, and no faster than the host can launch it."""

from __future__ import annotations

import math

from simulator.compiled import compiled
from simulator.cost.power import limited_step
from simulator.cost.table import launch_seconds
from simulator.engine.speculation import scrambled

_WORDS = float(1 << 32)


@compiled
def exponential(word):  # type: ignore[no-untyped-def]
    """A draw of an exponential distribution of mean 1 that belongs to a 32-bit word."""
    return -math.log((word + 0.5) / _WORDS)


@compiled
def drawn_launch_s(e, now, tokens, seqs):  # type: ignore[no-untyped-def]
    """Host seconds to launch the batch being planned: ``seqs`` sequences, whose ``tokens`` hold some of prompts.

    The draws belong to the run's seed, the number of the batch and its tokens: the same run gives the same times. The
    host's pace belongs to the seed and to the stretch of time that ``now`` is in. A Poisson stream of stalls hits the
    launch or not; only the first one counts.
    """
    mean, jitter = launch_seconds(e.cost, tokens, seqs), e.cost.launch_jitter
    if mean == 0.0:
        return mean
    word = scrambled(scrambled(scrambled(e.cost.launch_seed + 1) + e.planned) + tokens)
    if e.cost.launch_swing > 0.0:
        stretch = int(now / e.cost.launch_stretch_s)
        place = (scrambled(scrambled(e.cost.launch_seed + 1) ^ scrambled(stretch)) + 0.5) / _WORDS
        mean *= 1.0 + e.cost.launch_swing * (2.0 * place - 1.0)
    drawn = mean * (1.0 - jitter) + mean * jitter * exponential(word)
    if e.cost.stall_rate_hz == 0.0:
        return drawn
    word = scrambled(word)
    if exponential(word) < e.cost.stall_rate_hz * drawn:
        drawn += e.cost.stall_s * exponential(scrambled(word))
    return drawn


@compiled
def hold_results(e, now, until):  # type: ignore[no-untyped-def]
    """One loop launches a batch, then looks at the results of the one before: these wait until the launch is over."""
    if until > now and e.planned > e.completed:
        before = (e.planned - 1) % e.batch_end_s.size
        e.batch_end_s[before] = max(e.batch_end_s[before], until)


@compiled
def first_kernel_s(e, begin, launch):  # type: ignore[no-untyped-def]
    """When the GPU gets to a batch whose ``launch`` (seconds, see ``start_batch``) begins at ``begin``."""
    return max(begin + (e.cost.mixed_prepare_s if launch > 0.0 else 0.0), e.gpu_free_s)


@compiled
def start_batch(e, now, begin, seconds, launch):  # type: ignore[no-untyped-def]
    """Place the batch being planned on the GPU; returns its start. ``launch``: host seconds from ``begin`` on, of which
    the first go by before anything runs; ``begin``: when the host gets to it.
    """
    start = first_kernel_s(e, begin, launch)
    end = max(start + seconds, begin + launch)
    hold_results(e, now, begin + launch)
    e.batch_end_s[e.planned % e.batch_end_s.size] = end
    e.gpu_free_s = end
    e.busy_s += end - start
    return start


@compiled
def start_decode(e, now, begin, seconds, launch):  # type: ignore[no-untyped-def]
    """``start_batch`` for a batch of pure decode: one CUDA graph, which runs once ``launch`` is over."""
    return start_batch(e, now, begin + launch, seconds, 0.0)


@compiled
def limited_s(e, begin, seconds, energy_s, launch, prompts):  # type: ignore[no-untyped-def]
    """Seconds of the batch being planned on a GPU that keeps to its power limit; ``begin`` and ``launch`` as in
    ``start_batch``, ``energy_s`` as in ``simulator.cost.power``."""
    start = first_kernel_s(e, begin, launch) if prompts else first_kernel_s(e, begin + launch, 0.0)
    seconds, e.pressure, e.worked_s = limited_step(e.cost, start, seconds, energy_s, e.pressure, e.worked_s)
    return seconds
