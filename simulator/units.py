"""The few constants and conversions. Everywhere else a name carries its unit: ``ttft_s``, ``kv_bytes``."""

from __future__ import annotations

import re

from simulator.errors import InputError

KIB, MIB, GIB = 2**10, 2**20, 2**30
KB, MB, GB, TB = 10**3, 10**6, 10**9, 10**12
TERA = 10**12
MILLION = 10**6
BITS_PER_BYTE = 8
SECONDS_PER_HOUR = 3600.0

#: Two events closer than this are one instant (house rule 3).
SAME_INSTANT_S = 1e-9

#: Bytes of one stored number. 4-bit formats carry their block scales: nvfp4 one fp8 scale for 16 values,
#: mxfp4 one byte for 32, int4 (GPTQ/AWQ, group 128) one fp16 scale and a 4-bit zero for 128.
#: fp8_block: one fp32 scale for a 128x128 block.
BYTES_PER_NUMBER = {
    "fp32": 4.0,
    "bf16": 2.0,
    "fp16": 2.0,
    "fp8": 1.0,
    "fp8_block": 1.0 + 4.0 / (128 * 128),
    "int8": 1.0,
    "nvfp4": 0.5 + 1.0 / 16,
    "mxfp4": 0.5 + 1.0 / 32,
    "int4": 0.5 + 2.5 / 128,
}

_DURATION = re.compile(r"^\s*([0-9]*\.?[0-9]+(?:[eE][-+]?[0-9]+)?)\s*(us|ms|s|min|m|h)\s*$")
_SECONDS = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "min": 60.0, "m": 60.0, "h": 3600.0}


def parse_duration(text: str, place: str) -> float:
    """Seconds of ``"50ms"``, ``"2s"``, ``"1.5min"``. The unit is required; ``place`` names the source in errors."""
    match = _DURATION.match(str(text))
    if match is None:
        raise InputError(f"{place}: '{text}' is not a duration; write a number with a unit, as 50ms, 2s or 1min")
    return float(match.group(1)) * _SECONDS[match.group(2)]
