"""FlashAttention 3 as vLLM ships it: found in an installed vLLM, which need not be importable, or at a given path."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass, field
from pathlib import Path

import torch

from simulator.calibration.measure.ops import Array, Paged

LIBRARY = "_vllm_fa3_C.abi3.so"
#: Pieces a context is split into at most where the launch is part of a CUDA graph (vLLM's default).
GRAPH_SPLITS = 32


def find_library(given: str | None) -> Path | None:
    """The library ``given``, or that of the installed vLLM; None without one."""
    if given is not None:
        return Path(given)
    try:
        spec = importlib.util.find_spec("vllm")
    except (ImportError, ValueError):
        return None
    for place in spec.submodule_search_locations or () if spec is not None else ():
        path = Path(place) / "vllm_flash_attn" / LIBRARY
        if path.is_file():
            return path
    return None


@dataclass(eq=False)
class Flash3:
    """Launches of the library. The plan of a launch is made once for each batch, as an engine makes one for all layers
    of a step."""

    path: Path
    _plans: dict[tuple[object, ...], Array] = field(default_factory=dict)
    _starts: dict[int, Array] = field(default_factory=dict)

    def __post_init__(self) -> None:
        torch.ops.load_library(str(self.path))

    def forget(self) -> None:
        """Drop the plans: arrays of another case may lie where these were."""
        self._plans.clear()

    def attend(self, qkv: Array, starts: Array | None, longest: int, cache: Paged, out: Array) -> None:
        """Causal attention; ``starts`` None: one query a sequence."""
        _, page, kv_heads, width = cache.k.shape
        heads, batch = out.shape[1] // width, cache.table.shape[0]
        splits = GRAPH_SPLITS if starts is None else 0
        if starts is None:
            starts, longest = self._one_each(batch, out.device), 1
        key = (starts.data_ptr(), cache.lengths.data_ptr(), longest, cache.longest, heads, kv_heads, width)
        call = torch.ops._vllm_fa3_C
        if key not in self._plans:
            about = (batch, longest, cache.longest, heads, kv_heads, width, width, qkv.dtype, cache.lengths, starts)
            self._plans[key] = call.get_scheduler_metadata(
                *about, None, None, None, None, page, 0, True, -1, -1, False, splits, None, 0
            )
        q = qkv[:, : heads * width].unflatten(1, (heads, width))
        target = out.unflatten(1, (heads, width))
        nothing = (None,) * 3
        # arguments: q, k, v, new k, v, q_v, out, starts, ..., lengths, longest, table, ..., scale, causal, window
        call.fwd(
            *(q, cache.k, cache.v, None, None, None, target, starts, *nothing, cache.lengths, longest, cache.longest),
            *(cache.table, None, None, *nothing, *nothing, width**-0.5, True, -1, -1, 0.0, True),
            *(self._plans[key], splits, None, 0, None, 1, 0, None),
        )

    def _one_each(self, batch: int, device: torch.device) -> Array:
        if batch not in self._starts:
            self._starts[batch] = torch.arange(batch + 1, dtype=torch.int32, device=device)
        return self._starts[batch]
