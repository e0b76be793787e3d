"""Requests whose prompt was computed by another engine, which passes the first token on with the KV."""

from __future__ import annotations

from simulator.compiled import compiled
from simulator.engine.blocks import blocks_for, cached_blocks, register_blocks, share_blocks, take_blocks
from simulator.engine.queues import leave_holding, leave_waiting
from simulator.engine.rules import AT_DECODE
from simulator.engine.state import LOAD, READ, REMOTE, tell
from simulator.engine.vllm import admit, compute_chunk


@compiled
def hold(e, s, tokens, needed):  # type: ignore[no-untyped-def]
    """Take blocks for ``tokens`` tokens now, and have the rest of ``needed`` promised (where the policy promises)."""
    if e.rules.reserving:
        e.pledge[s] = needed
        e.promised += needed - e.held_blocks[s]
    take_blocks(e, s, tokens)


@compiled
def ask_for_kv(e, s, needed, now):  # type: ignore[no-untyped-def]
    """Take blocks for a prompt computed elsewhere and the token that came with it, and ask for the KV."""
    hits, _ = cached_blocks(e, s, e.prompt[s])
    if hits > 0:
        share_blocks(e, s, hits)
    hold(e, s, e.prompt[s] + e.received[s], needed)
    e.computed[s] = e.prompt[s]
    e.status[s] = REMOTE
    e.unread -= 1
    e.first_batch[s], e.last_token[s] = e.planned, now
    e.holding[e.holding_count] = s
    e.holding_count += 1
    tell(e, READ, s, blocks_for(e, e.prompt[s]) - hits, now)


@compiled
def ask_for_prefix(e, s, position, needed, now):  # type: ignore[no-untyped-def]
    """Take blocks for a prompt and ask caches below for its beginning. False where they have no more than is here."""
    hits, _ = cached_blocks(e, s, e.prompt[s])
    if e.outside[s] <= hits * e.block_size:
        e.remote[s] = 0
        e.unread -= 1
        return False
    leave_waiting(e, position)
    if hits > 0:
        share_blocks(e, s, hits)
    hold(e, s, e.prompt[s], needed)
    e.computed[s] = e.prompt[s]  # until it is known how much comes
    e.status[s] = REMOTE
    e.unread -= 1
    e.first_batch[s], e.last_token[s] = e.planned, now
    e.holding[e.holding_count] = s
    e.holding_count += 1
    tell(e, LOAD, s, hits, now)
    return True


@compiled
def begin_loaded(e, budget, work, now, most):  # type: ignore[no-untyped-def]
    """Requests whose KV is there, in the order in which it was asked for, as long as fewer than ``most`` run: their
    next token is an ordinary decode."""
    i = 0
    while i < e.holding_count and budget > 0 and e.running_count < most:
        s = e.holding[i]
        if e.remote[s] != 2 or e.outside[s] > 0:
            i += 1
            continue
        leave_holding(e, i)
        register_blocks(e, s, e.prompt[s])
        e.computed[s] = e.prompt[s] + e.received[s] - 1
        e.pending_prompt_tokens += 1
        admit(e, s, now)
        if e.rules.first_token == AT_DECODE:
            e.desk.first_token_s[e.row[s]] = now
        e.last_token[s] = e.desk.first_token_s[e.row[s]]
        e.token_sum[s] = e.last_token[s]
        work = compute_chunk(e, s, 1, work)
        budget -= 1
    return budget, work
