"""Compares the fast kernels with plain ones: the time of a wrong kernel says nothing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from simulator.calibration.measure.flash3 import Flash3
from simulator.calibration.measure.ops import Paged
from simulator.calibration.measure.torch_kernels import PlainKernels, Tensor

#: Largest error of a right kernel on bf16 numbers, as a fraction of the result's norm.
TOLERANCE = 2e-2


@dataclass(frozen=True)
class _Place:
    device: torch.device
    kind: torch.dtype

    def random(self, *shape: int) -> Tensor:
        return torch.randn(shape, device=self.device).to(self.kind)

    def whole(self, values: list[int]) -> Tensor:
        return torch.tensor(values, dtype=torch.int32, device=self.device)


def kernel_errors(kernels: PlainKernels, device: torch.device, kind: torch.dtype) -> dict[str, float]:
    """Error of each kernel beside the plain one on the same random numbers; outputs begin as NaN."""
    place = _Place(device, kind)
    found = {}
    for name, make in _CHECKS.items():
        results = []
        for each in (PlainKernels(), kernels):
            torch.manual_seed(1)
            results.append(make(each, place).float())
        wanted, got = results
        found[name] = float((got - wanted).norm() / wanted.norm())
    return found


def flash_errors(flash: Flash3, device: torch.device) -> dict[str, float]:
    """The same for FlashAttention 3."""
    place, found = _Place(device, torch.bfloat16), {}
    for name in ("prefill", "decode"):
        torch.manual_seed(1)
        wanted = _CHECKS[name](PlainKernels(), place).float()
        torch.manual_seed(1)
        got = _CHECKS[name](_Flash3Kernels(flash), place).float()
        found[f"vllm {name}"] = float((got - wanted).norm() / wanted.norm())
    return found


class _Flash3Kernels(PlainKernels):
    def __init__(self, flash: Flash3) -> None:
        self.flash = flash

    def prefill(self, qkv: Tensor, starts: Tensor, longest: int, cache: Paged, out: Tensor) -> None:
        self.flash.attend(qkv, starts, longest, cache, out)

    def decode(self, qkv: Tensor, q_heads: int, cache: Paged, out: Tensor) -> None:
        self.flash.attend(qkv, None, 1, cache, out)


def _blank(like: Tensor, *shape: int) -> Tensor:
    return torch.full(shape, torch.nan, dtype=like.dtype, device=like.device)


def _norm(kernels: PlainKernels, place: _Place) -> Tensor:
    x, residual, weight = place.random(5, 96), place.random(5, 96), place.random(96)
    out = _blank(x, 5, 96)
    kernels.add_norm(x, residual, weight, out)
    return torch.cat([out, residual])


def _rotate(kernels: PlainKernels, place: _Place) -> Tensor:
    qkv = place.random(7, 8 * 32)
    kernels.rotate(qkv, place.whole(list(range(0, 21, 3))), 6, 32)
    return qkv


def _write(kernels: PlainKernels, place: _Place) -> Tensor:
    qkv = place.random(7, 8 * 32)
    k, v = (torch.zeros(8, 16, 2, 32, dtype=place.kind, device=place.device) for _ in range(2))
    kernels.write_cache(qkv, 4, Paged(k, v, None, None, 0), place.whole([5, 90, 17, 3, 64, 65, 127]))
    return torch.cat([k, v])


def _activate(kernels: PlainKernels, place: _Place) -> Tensor:
    x = place.random(5, 192)
    out = _blank(x, 5, 96)
    kernels.activate(x, out)
    return out


def _quantise(kernels: PlainKernels, place: _Place) -> Tensor:
    x = place.random(5, 96)
    out = torch.zeros(5, 96, dtype=torch.float8_e4m3fn, device=place.device)
    scales = torch.zeros(5, 1, device=place.device)
    kernels.quantise(x, out, scales)
    return out.float() * scales


def _cache(place: _Place, lengths: list[int]) -> Paged:
    pages = -(-max(lengths) // 16)
    count = pages * len(lengths)
    order = torch.randperm(count, device=place.device).to(torch.int32).view(len(lengths), pages)
    k, v = place.random(count, 16, 2, 64), place.random(count, 16, 2, 64)
    return Paged(k, v, order, place.whole(lengths), max(lengths))


def _prefill(kernels: PlainKernels, place: _Place) -> Tensor:
    cache = _cache(place, [70, 167, 203])
    qkv = place.random(203, 12 * 64)
    out = _blank(qkv, 203, 8 * 64)
    kernels.prefill(qkv, place.whole([0, 70, 200, 203]), 130, cache, out)
    return out


def _decode(kernels: PlainKernels, place: _Place) -> Tensor:
    cache = _cache(place, [70, 1167, 3])
    qkv = place.random(3, 12 * 64)
    out = _blank(qkv, 3, 8 * 64)
    kernels.decode(qkv, 8, cache, out)
    return out


def _experts(tokens: int, top_k: int, experts: int) -> Callable[[PlainKernels, _Place], Tensor]:
    def run(kernels: PlainKernels, place: _Place) -> Tensor:
        x = place.random(tokens, 128)
        ids = torch.stack([torch.randperm(experts, device=place.device)[:top_k] for _ in range(tokens)]).to(torch.int32)
        weights = place.random(experts, 96, 128), place.random(experts, 128, 48)
        shares = torch.rand(tokens, top_k, device=place.device)
        out = _blank(x, tokens, 128)
        kernels.experts(x, ids, shares, weights, out)
        return out

    return run


_CHECKS: dict[str, Callable[[PlainKernels, _Place], Tensor]] = {
    "add_norm": _norm,
    "rotate": _rotate,
    "write_cache": _write,
    "activate": _activate,
    "quantise": _quantise,
    "prefill": _prefill,
    "decode": _decode,
    "experts, few tokens": _experts(3, 2, 8),
    "experts, many tokens": _experts(600, 4, 8),
}
