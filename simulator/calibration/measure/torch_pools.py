"""Large arrays of random numbers that weights and caches are taken from, so that none need be filled anew."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property

import torch

from simulator.calibration.measure.ops import Array

#: Numbers filled at once.
_PART = 2**28
#: Sizes of weights and of what caches hold, and what brings weights to the middle of fp8's range.
_WEIGHT, _CACHED, _FP8_SCALE = 0.02, 1.0, 50.0


class Pools:
    """``count`` numbers a kind, made when they are first asked for; half as many in fp8."""

    def __init__(self, device: torch.device, count: int) -> None:
        self.device, self.count = device, count

    def view(self, shape: Sequence[int], kind: str, index: int) -> Array:
        """The ``index``-th array of this shape; arrays do not overlap until the pool is used up."""
        pool = {"fp8": self._fp8, "kv": self._kv}.get(kind, self._weights)()
        size = math.prod(shape)
        step = -(-size // 128) * 128
        slots = max(pool.numel() // step, 1)
        at = index % slots * step
        if at + size > pool.numel():
            raise RuntimeError(f"{tuple(shape)} does not fit into a pool of {pool.numel()} numbers")
        return pool[at : at + size].view(tuple(shape))

    def _filled(self, size: float) -> torch.Tensor:
        pool = torch.empty(self.count, dtype=torch.bfloat16, device=self.device)
        for part in pool.split(_PART):
            part.uniform_(-size, size)
        return pool

    def _weights(self) -> torch.Tensor:
        return self._pool

    def _kv(self) -> torch.Tensor:
        return self._pool_kv

    def _fp8(self) -> torch.Tensor:
        return self._pool8

    @cached_property
    def _pool(self) -> torch.Tensor:
        return self._filled(_WEIGHT)

    @cached_property
    def _pool_kv(self) -> torch.Tensor:
        return self._filled(_CACHED)

    @cached_property
    def _pool8(self) -> torch.Tensor:
        part = self._pool[: self._pool.numel() // 2]
        return torch.cat([(p * _FP8_SCALE).to(torch.float8_e4m3fn) for p in part.split(_PART)])
