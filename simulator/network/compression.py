"""KV caches made smaller for the wire: how many times fewer bytes, and what undoing it costs."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

from pydantic import Field

from simulator.errors import TopologyError
from simulator.resources import shipped
from simulator.schema import Schema, check, read_yaml


@dataclass(frozen=True)
class Level:
    """One encoding: bits of a number of KV on the wire, and the time to undo it."""

    name: str
    bits: float
    decode_s_per_token: float
    quality: str


@dataclass(frozen=True)
class Ladder:
    """Encodings to choose from, chunk by chunk, finest first. ``text``: a chunk may be sent as text and computed anew.

    ``deadline_s``: after its arrival a request should have all its KV.
    """

    levels: tuple[Level, ...]
    chunk_tokens: int
    deadline_s: float
    text: bool = True


@dataclass(frozen=True)
class Compression:
    """One way to shrink KV. ``ratio``: bytes before / bytes on the wire. Decoding is pipelined with the transfer by
    chunks of ``chunk_tokens``: only the last chunk's decode shows, unless decoding is slower than the wire. With a
    ``ladder`` each chunk has its own ratio.
    """

    name: str
    ratio: float
    encode_s_per_token: float = 0.0
    decode_s_per_token: float = 0.0
    chunk_tokens: int = 1500
    quality: str = "exact"
    source: str = ""
    ladder: Ladder | None = None


class LevelFile(Schema):
    """A level as it is written."""

    name: str
    bits: float = Field(gt=0, le=32)
    decode_s_per_token: float = Field(ge=0, le=1)
    quality: str


class LadderFile(Schema):
    """A ladder as it is written."""

    chunk_tokens: int = Field(ge=1, le=10**6)
    deadline_s: float = Field(gt=0, le=10**6)
    levels: tuple[LevelFile, ...] = Field(min_length=1)
    sources: dict[str, str]


#: Ratios are against the KV cache as it lies in memory (bf16).
_PLAIN = {
    "none": Compression("none", 1.0),
    "fp8": Compression("fp8", 2.0, quality="KV rounded to 8 bits", source="1 byte for 2"),
}


def compression_names() -> list[str]:
    """Names a topology may give."""
    return [*_PLAIN, "cachegen"]


@cache
def named_compression(name: str) -> Compression:
    """The compression called ``name``."""
    return _PLAIN[name] if name in _PLAIN else _cachegen()


def _cachegen() -> Compression:
    path = shipped("hardware_profiles") / "compression" / "cachegen.yaml"
    entry = check(LadderFile, read_yaml(path, TopologyError), str(path), TopologyError)
    levels = tuple(Level(level.name, level.bits, level.decode_s_per_token, level.quality) for level in entry.levels)
    source = "; ".join(f"{key}: {text}" for key, text in entry.sources.items())
    ladder = Ladder(levels, entry.chunk_tokens, entry.deadline_s)
    return Compression("cachegen", 1.0, quality="by level", source=source, ladder=ladder)
