"""KV from outside the engine: of a prompt computed elsewhere, or of a prefix that a cache below this one holds."""

from __future__ import annotations

from simulator.compiled import compiled
from simulator.engine.blocks import blocks_for, share_blocks, take_blocks
from simulator.engine.queues import hold_by_priority, leave_waiting
from simulator.engine.state import LOAD, PREFILLING, READ, REMOTE, tell


@compiled
def start_read(e, s, hits, idle, now):  # type: ignore[no-untyped-def]
    """Take blocks for the whole prompt and ask for its KV, leaving what a prompt under way still needs.

    A prefix to be loaded takes the whole prompt's blocks, too, so that no two half-loaded prompts wait for the blocks
    that the other holds.
    """
    reserved = 0
    if e.partials > 0:
        for i in range(e.running_count):
            other = e.running[i]
            if e.status[other] == PREFILLING:
                reserved += blocks_for(e, e.prompt[other] + e.received[other]) - e.held_blocks[other]
    wanted = blocks_for(e, e.prompt[s])
    if wanted - hits + idle > e.pool.free or wanted - hits + idle > e.pool.free - reserved:
        return False
    leave_waiting(e, 0)
    e.unread -= 1
    if hits > 0:
        share_blocks(e, s, hits)
    take_blocks(e, s, e.prompt[s])
    e.computed[s] = e.prompt[s]
    e.status[s] = REMOTE
    e.first_batch[s], e.last_token[s] = e.planned, now
    if e.rules.by_priority:
        hold_by_priority(e, s)
    else:
        e.holding[e.holding_count] = s
        e.holding_count += 1
    if e.outside[s] > 0:
        tell(e, LOAD, s, hits, now)
    else:
        e.host_free_s = max(e.host_free_s, now) + e.rules.read_post_s * (wanted - hits)
        tell(e, READ, s, wanted - hits, now)
    return True


@compiled
def will_hold(e, s, tokens):  # type: ignore[no-untyped-def]
    """The load under way ends with the KV of the prompt's first ``tokens`` tokens here, those found here included."""
    e.computed[s] = tokens
    e.pending_prompt_tokens -= tokens
