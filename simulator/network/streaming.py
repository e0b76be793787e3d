"""Streaming a KV cache chunk by chunk, each at the level that the bandwidth seen and the deadline allow (CacheGen).

Before each chunk: if computing all that is left from its text makes the deadline, text is sent, which loses nothing;
else the finest level at which all that is left would be there in time at the bandwidth last seen; else whatever is
quickest. A chunk is decoded (or computed) while the next one travels, in order.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from simulator.network.bandwidth import BandwidthTrace
from simulator.network.compression import Ladder, Level

#: A token's number in a message.
TEXT_BYTES_PER_TOKEN = 4.0
TEXT = "text"


@dataclass(frozen=True)
class Context:
    """What is streamed. ``numbers_per_token``: of KV, copies counted. ``recompute_s``: seconds to compute tokens after
    others, as (computed before, new)."""

    tokens: int
    numbers_per_token: float
    recompute_s: Callable[[int, int], float]


@dataclass(frozen=True)
class Chunk:
    """One chunk on its way. ``undo_s``: decoding it, or computing it from text."""

    tokens: int
    level: str
    size_bytes: float
    undo_s: float


class Streamer:
    """Chooses chunk after chunk. ``ready_s``: when what has arrived so far can be used."""

    def __init__(self, ladder: Ladder, context: Context, bytes_per_s: float, deadline_at_s: float) -> None:
        """``bytes_per_s``: what the link is taken to move before anything has been seen."""
        self._ladder, self._context = ladder, context
        self._bytes_per_s, self._deadline_at_s = bytes_per_s, deadline_at_s
        self._sent = 0
        self.ready_s = 0.0

    def next_chunk(self, now_s: float) -> Chunk | None:
        """The next chunk, at the level chosen now; None when all has been sent."""
        left = self._context.tokens - self._sent
        if left <= 0:
            return None
        tokens = min(self._ladder.chunk_tokens, left)
        level = self._choose(left, now_s)
        if level is None:
            undo = self._context.recompute_s(self._sent, tokens)
            chunk = Chunk(tokens, TEXT, tokens * TEXT_BYTES_PER_TOKEN, undo)
        else:
            chunk = Chunk(tokens, level.name, self._size(tokens, level), tokens * level.decode_s_per_token)
        self._sent += tokens
        return chunk

    def arrived(self, chunk: Chunk, start_s: float, end_s: float) -> None:
        """A chunk travelled from ``start_s`` to ``end_s``."""
        if chunk.level != TEXT and end_s > start_s:  # a text is too short to tell bandwidth by
            self._bytes_per_s = chunk.size_bytes / (end_s - start_s)
        self.ready_s = max(self.ready_s, end_s) + chunk.undo_s

    def _size(self, tokens: int, level: Level) -> float:
        return tokens * self._context.numbers_per_token * level.bits / 8.0

    def _until_ready(self, size_bytes: float, chunk: float, undo_s: tuple[float, float], now_s: float) -> float:
        """Seconds until all that is left can be used, if it is sent one way: travelling, or undoing, is the slower.

        ``chunk``: a chunk's part of it; ``undo_s``: of all of it, and of its last chunk.
        """
        travel = size_bytes / self._bytes_per_s if self._bytes_per_s > 0 else float("inf")
        behind = max(self.ready_s - now_s, travel * chunk)
        return max(travel + undo_s[1], behind + undo_s[0])

    def _choose(self, left: int, now_s: float) -> Level | None:
        """The level of the next chunk, None for text, if ``left`` tokens are still to be sent."""
        last = min(self._ladder.chunk_tokens, left)
        options: list[tuple[float, Level | None]] = []
        if self._ladder.text:
            recompute, total = self._context.recompute_s, self._context.tokens
            undo = recompute(self._sent, left), recompute(total - last, last)
            options.append((self._until_ready(left * TEXT_BYTES_PER_TOKEN, last / left, undo, now_s), None))
        for level in self._ladder.levels:
            undo = left * level.decode_s_per_token, last * level.decode_s_per_token
            options.append((self._until_ready(self._size(left, level), last / left, undo, now_s), level))
        time_left = self._deadline_at_s - now_s
        in_time = [level for seconds, level in options if seconds <= time_left]
        return in_time[0] if in_time else min(options, key=lambda option: option[0])[1]


@dataclass(frozen=True)
class Loaded:
    """A context that was loaded. ``ready_s``: from the start until all of it can be used."""

    ready_s: float
    size_bytes: float
    chunks: tuple[Chunk, ...]


def load_context(
    ladder: Ladder, context: Context, link: BandwidthTrace, *, setup_s: float = 0.0, bytes_per_s: float | None = None
) -> Loaded:
    """Load a stored context alone over a link whose bandwidth is known, from moment 0 on, by ``ladder.deadline_s``.

    ``bytes_per_s``: what the link is taken to move at first; else what it does.
    """
    known = link.bytes_per_s[0] if bytes_per_s is None else bytes_per_s
    streamer, now = Streamer(ladder, context, known, ladder.deadline_s), setup_s
    chunks = []
    while (chunk := streamer.next_chunk(now)) is not None:
        end = link.end_s(chunk.size_bytes, now)
        streamer.arrived(chunk, now, end)
        chunks.append(chunk)
        now = end
    return Loaded(streamer.ready_s, sum(chunk.size_bytes for chunk in chunks), tuple(chunks))
