"""KV caches made smaller for the wire: how many times fewer bytes, and what undoing it costs."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Compression:
    """One way to shrink KV. ``ratio``: bytes before / bytes on the wire. Decoding is pipelined with the transfer by
    chunks of ``chunk_tokens``: only the last chunk's decode shows, unless decoding is slower than the wire.
    """

    name: str
    ratio: float
    encode_s_per_token: float = 0.0
    decode_s_per_token: float = 0.0
    chunk_tokens: int = 1500
    quality: str = "exact"
    source: str = ""


#: Ratios are against the KV cache as it lies in memory (bf16).
_KNOWN = {
    "none": Compression("none", 1.0),
    "fp8": Compression("fp8", 2.0, quality="KV rounded to 8 bits", source="1 byte for 2"),
    "cachegen": Compression(
        "cachegen",
        7.0,
        quality="at most 2 % lower scores on the paper's tasks",
        source="arXiv 2310.07240: 3.5 to 4.3 times fewer bytes than 8-bit KV; the low end, times 2 for bf16",
    ),
}


def compression_names() -> list[str]:
    """Names a topology may give."""
    return list(_KNOWN)


def named_compression(name: str) -> Compression:
    """The compression called ``name``."""
    return _KNOWN[name]
