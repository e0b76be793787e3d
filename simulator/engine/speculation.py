"""Speculative decoding: draft tokens that one step verifies, and how many of them it keeps.

Whether the draft of a request's token number t is right is a fixed property of the request (a hash of seed, row and t),
so that the outcome does not hang on the schedule. The scheduler does not know it: it gives every decoding request room
for all its drafts. A decoding request is SPECULATING: its tokens count as received, and their KV as computed, from the
planning on; the client gets them when the batch ends. Batches are planned one by one: no macro-steps.
"""

from __future__ import annotations

from simulator.compiled import compiled
from simulator.cost.table import at_count, decode_attention_seconds, decode_step_seconds, mixed_step_seconds
from simulator.engine.columns import RING
from simulator.engine.state import COLOCATED, LEAVING, SPECULATING, count_gap, prompt_done

_WORD = (1 << 32) - 1


@compiled
def scrambled(word):  # type: ignore[no-untyped-def]
    """A 32-bit hash: xor-shifts and odd factors below 2^31, so that no product overflows 63 bits."""
    x = word & _WORD
    x = ((x ^ (x >> 16)) * 0x7FEB352D) & _WORD
    x = ((x ^ (x >> 15)) * 0x31848BAB) & _WORD
    return x ^ (x >> 16)


@compiled
def draft_draw(seed, row, token):  # type: ignore[no-untyped-def]
    """A number in [0, 1) that belongs to a token of a request: its draft is right if this is below the acceptance."""
    return scrambled(scrambled(scrambled(seed + 1) + row) + token) / (_WORD + 1.0)


@compiled
def tokens_kept(e, s, drafts):  # type: ignore[no-untyped-def]
    """Tokens the request makes in a step that verifies ``drafts`` drafts: the leading right ones, and one more."""
    made = 1
    for j in range(drafts):
        if draft_draw(e.rules.seed, e.row[s], e.received[s] + j + 1) >= e.rules.acceptance[j]:
            break
        made += 1
    return min(made, e.target[s] - e.received[s])


@compiled
def note_made(e, s, made):  # type: ignore[no-untyped-def]
    """The batch being planned makes so many tokens of the request; with its last one it leaves."""
    r = e.planned % RING
    i = e.batch_made[r]
    e.made_slot[r, i], e.made_tokens[r, i] = s, made
    e.batch_made[r] += 1
    e.first_batch[s], e.last_batch[s] = e.planned, e.planned
    e.received[s] += made
    if e.received[s] < e.target[s]:
        e.status[s] = SPECULATING
        return
    e.status[s] = LEAVING
    e.leaving[r, e.batch_leaving[r]] = s
    e.batch_leaving[r] += 1


@compiled
def write_made(e, r, end):  # type: ignore[no-untyped-def]
    """A batch has ended: its tokens reach the client, those of one request all at once."""
    for i in range(e.batch_made[r]):
        s, made = e.made_slot[r, i], e.made_tokens[r, i]
        row = e.row[s]
        if e.desk.first_token_s[row] != e.desk.first_token_s[row]:
            e.desk.first_token_s[row] = end
            if e.part[s] == COLOCATED:
                prompt_done(e, s, end)
        else:
            count_gap(e, end - e.last_token[s], 1)
        if made > 1:
            count_gap(e, 0.0, made - 1)
        e.token_sum[s] += made * end
        e.last_token[s] = end
    e.batch_made[r] = 0


@compiled
def verification_seconds(cost, rules, drafted, work):  # type: ignore[no-untyped-def]
    """Seconds of a step with ``drafted`` draft tokens on top of its ``work``.

    Verifying takes a forward pass over all tokens, while attention reads each sequence's KV once. Drafting takes
    ``draft_cost`` of a decode step of the same sequences for each draft.
    """
    singles, context, chunks, new, past, attention, finished = work
    drafting = rules.draft_cost * rules.drafts * decode_step_seconds(cost, singles, context)
    if chunks > 0 or cost.affine:
        return drafting + mixed_step_seconds(cost, singles, context, chunks, new + drafted, past, attention, finished)
    gpu = at_count(cost.decode_s, singles + drafted) + decode_attention_seconds(cost, singles, context)
    return drafting + max(at_count(cost.decode_floor_s, singles), gpu) + at_count(cost.decode_add_s, singles)
