"""Which GPU of one engine sends what to which GPU of another when a KV cache changes hands."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass


@dataclass(frozen=True)
class Split:
    """How an engine spreads a KV cache over its GPUs: ranks are numbered dp, then pp, then tp fastest.

    ``stages``: first and last-plus-one layer of each pipeline stage.
    """

    tp: int
    stages: tuple[tuple[int, int], ...]
    dp: int = 1

    def rank(self, dp: int, stage: int, tp: int) -> int:
        """Number of a GPU."""
        return (dp * len(self.stages) + stage) * self.tp + tp


@dataclass(frozen=True)
class Cache:
    """What is sent. ``kv_heads`` 0: a latent that every tensor-parallel rank holds whole (MLA).

    ``head_bytes``: bytes a token of one KV head (of the latent) in one layer, K and V together. ``tensors``: K and V
    lie apart (2) or the latent is one (1).
    """

    layers: int
    kv_heads: int
    head_bytes: float
    tensors: int


@dataclass(frozen=True)
class Stream:
    """Bytes a token from one GPU to another, and the contiguous pieces a block is cut into on the way."""

    src_rank: int
    dst_rank: int
    bytes_per_token: float
    pieces_per_block: int


def exchange(cache: Cache, src: Split, dst: Split) -> tuple[Stream, ...]:
    """Every stream of a handover, so that each GPU of ``dst`` gets all it holds.

    Heads that several source GPUs hold are taken from different ones by turns; heads that several destination GPUs
    hold are sent to each. A request lives on one data-parallel rank; over many requests the ranks take turns, so the
    bytes are spread evenly over them.
    """
    pairs = max(src.dp, dst.dp)
    streams: list[Stream] = []
    for turn in range(pairs):
        src_dp, dst_dp = turn * src.dp // pairs, turn * dst.dp // pairs
        for dst_stage, dst_layers in enumerate(dst.stages):
            for src_stage, src_layers in enumerate(src.stages):
                layers = min(src_layers[1], dst_layers[1]) - max(src_layers[0], dst_layers[0])
                if layers <= 0:
                    continue
                for tp in range(dst.tp):
                    for src_tp, heads in _sources(cache, src.tp, dst.tp, tp).items():
                        streams.append(
                            Stream(
                                src.rank(src_dp, src_stage, src_tp),
                                dst.rank(dst_dp, dst_stage, tp),
                                layers * heads * cache.head_bytes / pairs,
                                layers * cache.tensors,
                            )
                        )
    return tuple(streams)


def _sources(cache: Cache, src_tp: int, dst_tp: int, rank: int) -> dict[int, int]:
    """Source rank -> KV heads that destination ``rank`` takes from it."""
    if cache.kv_heads == 0:
        return {rank * src_tp // dst_tp: 1}
    held = cache.kv_heads / dst_tp
    first = int(rank * held)
    heads = range(first, first + max(1, int(held)))
    copies = max(1, src_tp // cache.kv_heads)
    sources: dict[int, int] = defaultdict(int)
    for head in heads:
        owner = head * copies + rank % copies if copies > 1 else head * src_tp // cache.kv_heads
        sources[owner] += 1
    return sources


def descriptors_per_block(streams: tuple[Stream, ...]) -> int:
    """Descriptors a block on the destination GPU that posts most; GPUs post side by side."""
    posted: dict[int, int] = defaultdict(int)
    for stream in streams:
        posted[stream.dst_rank] += stream.pieces_per_block
    return max(posted.values(), default=0)
