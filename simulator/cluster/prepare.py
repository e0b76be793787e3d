"""What a run works out from its trace before the clock starts: content of prompts, limits, turns, who can never fit."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from simulator.cluster.plan import WorkerPlan
from simulator.kv.content import OUTPUT_CONTENT, PRIVATE_CONTENT, SESSION_CONTENT, make_content
from simulator.workload.trace import Trace

_NO_BLOCKS = np.zeros(0, np.int64)


def content_columns(trace: Trace, one_output_content: int | None) -> object:
    """What the prompts and outputs hold, as far as prefix caches can tell."""
    rows = np.arange(len(trace), dtype=np.int64)
    prompt, output = PRIVATE_CONTENT + rows, OUTPUT_CONTENT + rows
    if one_output_content is not None:
        output = np.full(len(trace), one_output_content, np.int64)
    if trace.session is not None and trace.turn is not None:
        shared = trace.session >= 0
        prompt = np.where(shared, SESSION_CONTENT + trace.session, prompt)
        output = np.where(shared, SESSION_CONTENT + trace.session, output)
    ids, offsets = trace.hash_ids, trace.hash_offsets
    if ids is None or offsets is None:
        ids, offsets = _NO_BLOCKS, np.zeros(len(trace) + 1, np.int64)
    if ids.size and (int(ids.max()) >= PRIVATE_CONTENT or int(ids.min()) < 0):
        ids = np.unique(ids, return_inverse=True)[1].astype(np.int64)
    return make_content(
        np.array(trace.input_tokens), np.array(ids), np.array(offsets), trace.block_tokens, prompt, output
    )


def private_rows(trace: Trace) -> NDArray[np.bool_]:
    """Which prompts share nothing with any other."""
    alone = np.ones(len(trace), np.bool_)
    if trace.session is not None and trace.turn is not None:
        alone &= trace.session < 0
    if trace.hash_offsets is not None:
        alone &= np.diff(trace.hash_offsets) == 0
    return alone


def allowed_output(trace: Trace, default: int) -> NDArray[np.int64]:
    """Tokens each client allows, as engines see them; the topology's default, or what comes if more, where not said."""
    given = trace.max_output_tokens
    return np.where(given >= 0, given, np.maximum(default, trace.output_tokens)).astype(np.int64)


def followers(trace: Trace) -> dict[int, int]:
    """Row of a session's turn -> row of its next turn."""
    if trace.session is None or trace.turn is None:
        return {}
    rows = np.flatnonzero(trace.session >= 0)
    order = rows[np.lexsort((trace.turn[rows], trace.session[rows]))]
    same = np.diff(trace.session[order]) == 0
    return dict(zip(order[:-1][same].tolist(), order[1:][same].tolist(), strict=True))


def misfits(
    trace: Trace, plans: Sequence[WorkerPlan], kind: str, longest: int | None
) -> list[tuple[NDArray[np.bool_], str]]:
    """Requests that none of a pool's workers could ever hold, each group with its reason.

    ``kind``: the pool in words; ``longest``: prompt tokens that a worker's step can take, where it cannot be cut.
    """
    prompts_only = all(plan.role == "prefill" for plan in plans)
    tokens = trace.input_tokens + (1 if prompts_only else trace.output_tokens)
    room = max(plan.kv_blocks * plan.block_size for plan in plans)
    found = [(tokens - 1 > room, f"needs more KV cache than a {kind}worker has ({room:,} tokens)")]
    if longest is not None and kind == "":
        why = f"prompt longer than a {kind}worker's step, and not to be cut ({longest:,} tokens)"
        found.append((trace.input_tokens > longest, why))
    limit = max(plan.max_context for plan in plans)
    found.append((tokens > limit, f"longer than the {kind}worker's context limit of {limit:,} tokens"))
    return found
