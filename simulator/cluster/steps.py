"""What a run tells of its way: when each request changed hands, and, where asked for, every batch of every engine."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

#: Entries (a request in a batch) that a run may write down: 16 bytes each.
MOST_ENTRIES = 40_000_000


@dataclass(frozen=True)
class Moments:
    """Moments of each request on the engines' clocks (s), one row a request; NaN where it did not get so far.

    ``kv_start_s`` to ``kv_end_s``: its KV cache travels from prefill to decode worker; ``kv_bytes`` on the wire.
    """

    prefill_start_s: Floats
    prefill_end_s: Floats
    kv_start_s: Floats
    kv_end_s: Floats
    kv_bytes: Floats


@dataclass(frozen=True)
class WorkerSteps:
    """Every batch of one engine, in order: start and end (s), and its entries ``first[i]:first[i + 1]``.

    An entry is a request's ``row`` and its new ``tokens`` in the batch; -1: preempted when the batch was planned.
    ``decode_tokens_at_most``: what a decoding request may have in one batch; more than one with speculation.
    """

    start_s: Floats
    end_s: Floats
    first: Ints
    row: Ints
    tokens: Ints
    decode_tokens_at_most: int = 1

    def __len__(self) -> int:
        return int(self.start_s.size)


@dataclass(frozen=True)
class BatchSums:
    """Per batch of one engine: sequences, prompt tokens, decode tokens, preempted requests."""

    sequences: Ints
    prompt_tokens: Ints
    decode_tokens: Ints
    preempted: Ints


def batch_sums(steps: WorkerSteps, worker: int, prefill_worker: NDArray[np.int32], prefill_end_s: Floats) -> BatchSums:
    """Sums over each batch's entries.

    Tokens are a prompt's on the request's prefill worker until its prompt is done; later ones are decoded, but for a
    prompt computed anew after a preemption, which shows as more tokens than decoding ever has.
    """
    sizes = np.diff(np.append(steps.first, steps.row.size))
    batch = np.repeat(np.arange(len(steps)), sizes)
    gone = steps.tokens < 0
    early = steps.end_s[batch] <= prefill_end_s[steps.row] + 1e-9
    prompt = ((prefill_worker[steps.row] == worker) & early) | (steps.tokens > steps.decode_tokens_at_most)

    def summed(values: NDArray[np.generic]) -> Ints:
        return np.bincount(batch, weights=values.astype(np.float64), minlength=len(steps)).astype(np.int64)

    return BatchSums(
        sequences=summed(~gone),
        prompt_tokens=summed(np.where(prompt & ~gone, steps.tokens, 0)),
        decode_tokens=summed(np.where(~prompt & ~gone, steps.tokens, 0)),
        preempted=summed(gone),
    )
