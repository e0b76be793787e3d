"""A prefill engine of SGLang with attention data parallelism: each prompt is bound to one rank.

Its rank is the remainder of its bootstrap room, so that the decode engine knows where its KV comes from
(``DataParallelController.follow_bootstrap_room_scheduler``; until 0.5.6 the round robin of such engines). Rooms are
random numbers, or given out in turn (``SGLANG_HACK_SEQ_BOOTSTRAP_ROOM`` of Dynamo's recipes). Every rank plans for
itself, with its own share of the chunk, of ``max_prefill_tokens`` and of running requests, and all of them take the
step together: it lasts as long as the fullest one's part. KV memory is one pool here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from simulator.compiled import compiled
from simulator.engine.sglang.admission import CONTINUE, NO_TOKEN, OTHER, budget_state, continue_chunked, try_admit
from simulator.engine.sglang.memory import checkpoint
from simulator.engine.sglang.state import seen

_WORD = 0xFFFFFFFF
_MIX = 0x45D9F3B
#: How prompts find their rank: there is one queue for all, rooms are random, or given out in turn.
UNBOUND, BY_ROOM, IN_TURN = range(3)


def binding(settings: Mapping[str, Any]) -> int:
    """How the prompts of a prefill engine with these settings find their rank."""
    return IN_TURN if settings.get("load_balance_method") == "round_robin" else BY_ROOM


@compiled
def bound_rank(row, ranks, binding):  # type: ignore[no-untyped-def]
    """The rank of a row's prompt. By room it is as good as random, and the same in every run."""
    if binding == IN_TURN:
        return row % ranks
    mixed = ((row + 1) * _MIX) & _WORD
    mixed = ((mixed ^ (mixed >> 16)) * _MIX) & _WORD
    mixed = ((mixed ^ (mixed >> 16)) * _MIX) & _WORD
    return (mixed ^ (mixed >> 16)) % ranks


@compiled
def rank_of(e, s):  # type: ignore[no-untyped-def]
    """The rank of a waiting prompt."""
    return bound_rank(e.row[s], e.cost.ranks, e.binding)


@compiled
def go_on_with_cuts(e):  # type: ignore[no-untyped-def]
    """What has been computed of the prompts under way goes to the tree."""
    for k in range(e.cost.ranks):
        s = e.rank_cut[k]
        if s >= 0:
            checkpoint(e, s, e.extend_end[s])
            e.prefix[s] = e.extend_end[s]


@compiled
def fill_ranks(e):  # type: ignore[no-untyped-def]
    """Each rank's prompt under way, then the waiting queue in order: a prompt that its rank has no room for is passed
    over, and so are those behind it of the same rank. Those admitted become the head of the queue."""
    open_ranks(e)
    for k in range(e.cost.ranks):
        if e.rank_cut[k] >= 0:
            continue_cut(e, k)
    taken, passed, shut = 0, 0, False
    for i in range(e.waiting_head, e.waiting_head + seen(e)):
        s = e.waiting[i]
        admitted = e.admitted_count
        if not shut:
            shut = take_for_rank(e, s, rank_of(e, s)) == NO_TOKEN
        if e.admitted_count > admitted:
            e.waiting[e.waiting_head + taken] = s
            taken += 1
        else:
            e.scratch[passed] = s
            passed += 1
    for i in range(passed):
        e.waiting[e.waiting_head + taken + i] = e.scratch[i]
    e.fullest = 0
    for k in range(e.cost.ranks):
        e.fullest = max(e.fullest, e.max_prefill // e.cost.ranks - e.rank_input_left[k])


@compiled
def open_ranks(e):  # type: ignore[no-untyped-def]
    """Every rank's share of the step. Requests whose KV is still being sent do not count as running."""
    ranks = e.cost.ranks
    for k in range(ranks):
        e.rank_chunk_left[k] = e.chunk_size // ranks
        e.rank_input_left[k] = e.max_prefill // ranks
        e.rank_places[k] = max(e.max_running // ranks, 1)


@compiled
def continue_cut(e, k):  # type: ignore[no-untyped-def]
    """The next piece of a rank's prompt under way."""
    e.chunk_left, e.input_left = e.rank_chunk_left[k], e.rank_input_left[k]
    e.chunked = e.rank_cut[k]
    e.rank_places[k] -= 1
    continue_chunked(e)
    if e.chunked < 0:
        e.cut_count -= 1
    e.rank_cut[k], e.chunked = e.chunked, -1
    e.rank_chunk_left[k], e.rank_input_left[k] = e.chunk_left, e.input_left


@compiled
def forget_cut(e, s):  # type: ignore[no-untyped-def]
    """A prompt under way will not be gone on with."""
    for k in range(e.cost.ranks):
        if e.rank_cut[k] == s:
            e.rank_cut[k] = -1
            e.cut_count -= 1


@compiled
def take_for_rank(e, s, k):  # type: ignore[no-untyped-def]
    """Try a waiting prompt in what its rank has left; a rank that cannot take it takes no other in this step."""
    if e.rank_places[k] <= 0:
        return OTHER
    e.chunk_left, e.input_left = e.rank_chunk_left[k], e.rank_input_left[k]
    verdict, admitted = budget_state(e), e.admitted_count
    if verdict == CONTINUE:
        verdict = try_admit(e, s)
    e.rank_places[k] = e.rank_places[k] - 1 if e.admitted_count > admitted and verdict != OTHER else 0
    if e.new_chunked >= 0:
        e.rank_cut[k], e.new_chunked = e.new_chunked, -1
        e.cut_count += 1
    e.rank_chunk_left[k], e.rank_input_left[k] = e.chunk_left, e.input_left
    return verdict
