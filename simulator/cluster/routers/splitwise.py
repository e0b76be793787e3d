"""Splitwise's cluster scheduler: a prompt machine and a token machine at arrival, a mixed pool, borrowing.

ISCA 2024 (arXiv 2311.18677), section IV; limits and order of choice as in its simulator (``MixedPoolScheduler`` of
``Mutinifni/splitwise-sim``). Memory is judged by prompts, not by outputs to come, which no scheduler knows.
"""

from __future__ import annotations

from collections.abc import Sequence

from simulator.cluster.routers.base import BLOCKS, PENDING_TOKENS, WAITING, Asked, Decision, Front

#: Pending prompt tokens that a queue may hold before others are tried.
_MAX_PENDING_TOKENS = 8192


def splitwise(front: Front, request: Asked) -> Decision:
    """Shortest queue of pending tokens for the prompt, most free memory for the tokens; option
    ``max_pending_tokens``."""
    pool = front.everyone
    gauges = pool.look(request.now_s)
    return_home(front)
    pending = gauges[:, PENDING_TOKENS]
    memory = pool.used_blocks() + front.assigned_blocks
    limit = front.options.max_pending_tokens or _MAX_PENDING_TOKENS
    prompts, tokens, mixed = machines(front)

    def best_prompt(among: Sequence[int]) -> int | None:
        choice = min(among, key=pending.__getitem__, default=None)
        if choice is None or (gauges[choice, WAITING] > 0 and pending[choice] + request.input_tokens > limit):
            return None
        return choice

    def best_token(among: Sequence[int]) -> int | None:
        needed = -(-(request.input_tokens + 1) // pool.block_size)
        choice = min(among, key=memory.__getitem__, default=None)
        return None if choice is None or memory[choice] + needed >= gauges[choice, BLOCKS] else choice

    first = next((found for found in map(best_prompt, (prompts, mixed)) if found is not None), None)
    second = next((found for found in map(best_token, (tokens, mixed)) if found is not None), None)
    if first is None and tokens:
        first = min(tokens, key=pending.__getitem__)
        front.lent.add(first)
        tokens.remove(first)
    if second is None and prompts:
        second = min(prompts, key=memory.__getitem__)
        front.lent.add(second)
    if first is None or second is None:
        first = second = min(range(len(front.roles)), key=pending.__getitem__)
    return Decision(pool.workers[first].index, pool.workers[second].index)


def return_home(front: Front) -> None:
    """Lent machines that have nothing left to do go back to their own pool."""
    requests = front.everyone.requests()
    for i in sorted(front.lent):
        if requests[i] == 0 and front.assigned_blocks[i] == 0:
            front.lent.discard(i)


def machines(front: Front) -> tuple[list[int], list[int], list[int]]:
    """The prompt, token and mixed pools as they are now, by position."""
    home: dict[str, list[int]] = {"prefill": [], "decode": [], "mixed": []}
    for i, role in enumerate(front.roles):
        home["mixed" if i in front.lent else role].append(i)
    return home["prefill"], home["decode"], home["mixed"]
