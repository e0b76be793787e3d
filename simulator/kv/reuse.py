"""What a cache of a given size would find of a trace's prompts: one pool, requests in their order, no time.

The analysis of Mooncake (FAST 2025, section 4): each request asks for its prefix blocks, finds a leading run of them,
and leaves all of them in the pool. Published figures count such hits by token.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from simulator.errors import TraceError
from simulator.kv.eviction import PageCache
from simulator.workload.trace import Trace


@dataclass(frozen=True)
class Reuse:
    """Prompt tokens found in the pool and asked for; the same in blocks."""

    hit_tokens: int
    tokens: int
    hit_blocks: int
    blocks: int

    @property
    def token_ratio(self) -> float:
        """Share of prompt tokens that were found."""
        return self.hit_tokens / self.tokens if self.tokens else 0.0

    @property
    def block_ratio(self) -> float:
        """Share of prefix blocks that were found, a started last block counting as one."""
        return self.hit_blocks / self.blocks if self.blocks else 0.0


#: Pools whose finds ``describe`` tells, in tokens.
POOLS = {"1M": 1e6, "3M": 3e6, "10M": 10e6, "50M": 50e6, "all": math.inf}
#: Prefix blocks above which a trace is not replayed for a description: that would take minutes.
MAX_BLOCKS = 2_000_000


def reuse_by_pool(trace: Trace) -> dict[str, float]:
    """Share of prompt tokens that an LRU pool of each size of ``POOLS`` finds, up to one that holds all.

    Empty for traces without prefix blocks, and for very long ones.
    """
    if trace.hash_ids is None or not 0 < trace.hash_ids.size <= MAX_BLOCKS:
        return {}
    unique = len(np.unique(trace.hash_ids)) * trace.block_tokens
    return {
        name: reuse(trace, tokens).token_ratio for name, tokens in POOLS.items() if tokens < unique or name == "all"
    }


def reuse(trace: Trace, capacity_tokens: float = math.inf, policy: str = "lru") -> Reuse:
    """Replay the trace's prefix blocks against one pool of ``capacity_tokens`` (infinite allowed).

    A request's blocks are used from the last to the first, so that its beginning, which others need first, is the most
    recent. Raises TraceError where the trace has no prefix blocks.
    """
    if trace.hash_ids is None or trace.hash_offsets is None or not trace.hash_ids.size:
        raise TraceError(f"{trace.source}: no prefix blocks (hash_ids): nothing to find in a cache")
    size = trace.block_tokens
    pool = PageCache(capacity_tokens // size if math.isfinite(capacity_tokens) else math.inf, policy)
    ids, offsets = trace.hash_ids.tolist(), trace.hash_offsets.tolist()
    hit_tokens = hit_blocks = 0
    for row, tokens in enumerate(trace.input_tokens.tolist()):
        blocks = ids[offsets[row] : offsets[row + 1]]
        found = 0
        while found < len(blocks) and blocks[found] in pool:
            found += 1
        hit_blocks += found
        hit_tokens += min(found * size, tokens)
        for depth in range(len(blocks) - 1, -1, -1):
            pool.add(blocks[depth], depth)
    return Reuse(hit_tokens, int(trace.input_tokens[np.diff(trace.hash_offsets) > 0].sum()), hit_blocks, len(ids))
