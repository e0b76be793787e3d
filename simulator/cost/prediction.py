"""Step costs as a router would predict them: a prompt alone on a worker, a decode step of so many."""

from __future__ import annotations

from simulator.compiled import compiled
from simulator.cost.table import chunk_attention_seconds, decode_step_seconds, mixed_step_seconds


@compiled
def prompt_seconds(cost, tokens, past, step_tokens):  # type: ignore[no-untyped-def]
    """Seconds to compute ``tokens`` prompt tokens behind ``past`` ones, alone, ``step_tokens`` a step at most."""
    total = 0.0
    while tokens > 0:
        new = min(tokens, step_tokens)
        tokens -= new
        attention = 0.0 if cost.affine else chunk_attention_seconds(cost, new, past)
        total += mixed_step_seconds(cost, 0, 0, 1, new, past, attention, 1 if tokens == 0 else 0)
        past += new
    return total


@compiled
def decode_seconds(cost, sequences, context):  # type: ignore[no-untyped-def]
    """Seconds of a decode step of ``sequences`` requests that hold ``context`` tokens in all."""
    return decode_step_seconds(cost, sequences, context)
