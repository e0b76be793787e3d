"""Decoding when blocks are short, for the policies that do not look at prompts in the same walk."""

from __future__ import annotations

from simulator.compiled import compiled
from simulator.engine.state import DECODING, log_entry
from simulator.engine.vllm import leave_out_from, take_decode_block


@compiled
def decode_or_pause(e):  # type: ignore[no-untyped-def]
    """Too few blocks: in order of admission, pausing the newest until each has its block."""
    work = (0, 0, 0, 0, 0, 0.0, 0)
    i = 0
    while i < e.running_count:
        s = e.running[i]
        if e.status[s] == DECODING:
            if not take_decode_block(e, s):
                break
            work = (work[0] + 1, work[1] + e.planned + e.offset[s], 0, 0, 0, 0.0, 0)
            if e.logging:
                log_entry(e, s, 1)
        i += 1
    leave_out_from(e, i)
    return work
