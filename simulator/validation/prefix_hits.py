"""Prompts that share prefixes, told from the cache hits of a measured run.

A table of requests says which prompts begin alike with ``hash_ids``. Without them, ``cached_tokens`` (what the engine
found in its prefix cache) says how much of each prompt an earlier one had brought: such a prompt is given the first
blocks of the latest earlier prompt that is long enough, and blocks of its own behind them. So as many tokens are shared
and the cache fills as fast as in the run; whether they are still there when looked for, the simulation decides.
"""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from simulator.errors import InputError

HASHES, BLOCK, CACHED = "hash_ids", "block_tokens", "cached_tokens"


def shared_prefixes(table: pd.DataFrame, block_tokens: int, place: str) -> dict[str, Any]:
    """Fields of ``Trace`` for the prefixes of requests in order of arrival; none where nothing is shared.

    ``block_tokens``: block size of the engine, in which hits are counted. Raises InputError for a cell that is wrong.
    """
    if HASHES in table:
        rows = [[int(x) for x in re.findall(r"\d+", str(cell))] for cell in table[HASHES]]
        stated = {} if BLOCK not in table else {BLOCK: int(table[BLOCK].iloc[0])}
        return _columns(rows) | stated
    if CACHED not in table:
        return {}
    cached = pd.to_numeric(table[CACHED], errors="coerce").fillna(0).clip(lower=0).to_numpy(np.int64)
    inputs = table["input_tokens"].to_numpy(np.int64)
    too_many = np.flatnonzero(cached > inputs)
    if too_many.size:
        row = int(too_many[0])
        raise InputError(f"{place}: {CACHED}: found {cached[row]}; allowed: at most the prompt's {inputs[row]} tokens")
    if not cached.any():
        return {}
    arrival = table["arrival_s"].to_numpy(np.float64)
    ready = table["first_token_s"].to_numpy(np.float64) if "first_token_s" in table else arrival
    return _columns(_chains(arrival, ready, inputs, cached // block_tokens, block_tokens)) | {BLOCK: block_tokens}


def _columns(rows: list[list[int]]) -> dict[str, Any]:
    ids = np.array([one for row in rows for one in row], np.int64)
    return {HASHES: ids, "hash_offsets": np.r_[0, np.cumsum([len(row) for row in rows])].astype(np.int64)}


def _chains(
    arrival_s: NDArray[np.float64],
    ready_s: NDArray[np.float64],
    inputs: NDArray[np.int64],
    shared: NDArray[np.int64],
    block_tokens: int,
) -> list[list[int]]:
    """Block ids of each prompt, of which the first ``shared`` are an earlier prompt's."""
    chains: list[list[int]] = []
    new = 0
    for row, blocks in enumerate(shared):
        start = _giver(row, int(blocks), arrival_s, ready_s, inputs // block_tokens)
        head = [] if start is None else chains[start][:blocks]
        own = -(-int(inputs[row]) // block_tokens) - len(head)
        chains.append(head + list(range(new, new + own)))
        new += own
    return chains


def _giver(
    row: int, blocks: int, arrival_s: NDArray[np.float64], ready_s: NDArray[np.float64], full: NDArray[np.int64]
) -> int | None:
    """The latest earlier prompt with so many full blocks; of those that were computed by then, if there is one."""
    long_enough = np.flatnonzero(full[:row] >= blocks) if blocks else np.empty(0, np.int64)
    if long_enough.size == 0:
        return None
    computed = long_enough[ready_s[long_enough] <= arrival_s[row]]
    return int(computed[-1] if computed.size else long_enough[-1])
