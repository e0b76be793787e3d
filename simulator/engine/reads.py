"""A decode engine asks for the KV of a prompt that was computed elsewhere."""

from __future__ import annotations

from simulator.compiled import compiled
from simulator.engine.blocks import blocks_for, share_blocks, take_blocks
from simulator.engine.queues import leave_waiting
from simulator.engine.state import PREFILLING, READ, REMOTE, tell


@compiled
def start_read(e, s, hits, idle, now):  # type: ignore[no-untyped-def]
    """Take blocks for the whole prompt and ask for its KV, leaving what a prompt under way still needs."""
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
    if hits > 0:
        share_blocks(e, s, hits)
    take_blocks(e, s, e.prompt[s])
    e.computed[s] = e.prompt[s]
    e.status[s] = REMOTE
    e.first_batch[s], e.last_token[s] = e.planned, now
    e.holding[e.holding_count] = s
    e.holding_count += 1
    tell(e, READ, s, wanted - hits, now)
    return True
