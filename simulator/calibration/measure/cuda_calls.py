"""What torch does not offer: the driver's readings, and the runtime's plain copy."""

from __future__ import annotations

import ctypes
import subprocess
from collections.abc import Callable
from contextlib import suppress
from functools import cache

import torch


def smi(query: str) -> list[str] | None:
    """Values of ``nvidia-smi`` for the first GPU; None where it cannot be asked."""
    try:
        asked = ["nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader,nounits", "--id=0"]
        text = subprocess.run(asked, capture_output=True, text=True, timeout=20, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return None
    return [part.strip() for part in text.strip().split(",")]


@cache
def memcpy() -> Callable[..., int]:
    """``cudaMemcpyAsync`` of the CUDA runtime torch has loaded."""
    major = str(torch.version.cuda).split(".", maxsplit=1)[0]
    for name in (f"libcudart.so.{major}", "libcudart.so"):
        with suppress(OSError):
            return ctypes.CDLL(name).cudaMemcpyAsync
    raise RuntimeError("the CUDA runtime library is not loaded")
