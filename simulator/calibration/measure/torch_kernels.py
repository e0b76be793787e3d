"""Small kernels, attention and experts: in plain torch, or in Triton where there is a GPU and Triton."""

from __future__ import annotations

import math
from functools import cache

import torch
import torch.nn.functional as F  # noqa: N812

from simulator.calibration.measure.ops import Array, Paged

Tensor = Array
#: Largest value of fp8 (e4m3).
FP8_MAX = 448.0
#: Base of rotary embedding, and epsilon of norms; neither changes a time.
ROTARY_BASE, EPSILON = 5e5, 1e-6


@cache
def ones(count: int, device: torch.device) -> Tensor:
    """Scales of weights, (1, count)."""
    return torch.ones((1, count), dtype=torch.float32, device=device)


def choose(kind: str) -> PlainKernels:
    """The kernels for a device."""
    if kind == "cuda":
        try:
            from simulator.calibration.measure.triton_kernels import TritonKernels
        except ImportError:
            return PlainKernels()
        return TritonKernels()
    return PlainKernels()


class PlainKernels:
    """In plain torch: right, and slow. See ``Ops`` for what each does."""

    name = "torch"

    def quantise(self, x: Tensor, out: Tensor, scales: Tensor) -> None:
        top = (x.float().abs().amax(dim=-1, keepdim=True) / FP8_MAX).clamp_min(1e-12)
        scales.copy_(top)
        out.copy_((x.float() / top).to(out.dtype))

    def add_norm(self, x: Tensor, residual: Tensor, weight: Tensor, out: Tensor) -> None:
        residual.copy_(x.float() + residual.float())
        total = residual.float()
        out.copy_(total * torch.rsqrt(total.square().mean(-1, keepdim=True) + EPSILON) * weight.float())

    def rotate(self, qkv: Tensor, positions: Tensor, heads: int, width: int) -> None:
        part = qkv[:, : heads * width].view(len(qkv), heads, 2, width // 2)
        angle = positions.float()[:, None] * torch.exp2(
            -torch.arange(width // 2, device=qkv.device).float() / (width // 2) * math.log2(ROTARY_BASE)
        )
        cos, sin = angle.cos()[:, None, :], angle.sin()[:, None, :]
        a, b = part[:, :, 0].float(), part[:, :, 1].float()
        part[:, :, 0], part[:, :, 1] = (a * cos - b * sin).to(qkv.dtype), (b * cos + a * sin).to(qkv.dtype)

    def write_cache(self, qkv: Tensor, q_heads: int, cache: Paged, slots: Tensor) -> None:
        pages, page, heads, width = cache.k.shape
        first, size = q_heads * width, heads * width
        for i, target in enumerate((cache.k, cache.v)):
            rows = qkv[:, first + i * size : first + (i + 1) * size].reshape(-1, heads, width)
            target.view(pages * page, heads, width)[slots.long()] = rows

    def activate(self, x: Tensor, out: Tensor) -> None:
        gate, up = x.float().chunk(2, dim=-1)
        out.copy_(F.silu(gate) * up)

    def gather(self, source: Tensor, target: Tensor, block: int, order: Tensor) -> None:
        count = order.numel()
        target.view(-1, block)[:count] = source.view(-1, block)[order.long().to(source.device)].to(target.device)

    def nothing(self, device: torch.device) -> None:
        ones(1, device).fill_(1.0)

    # -- attention -----------------------------------------------------------------------------------------------

    def _history(self, cache: Paged, sequence: int) -> tuple[Tensor, Tensor]:
        page = cache.k.shape[1]
        length = int(cache.lengths[sequence])
        pages = cache.table[sequence, : -(-length // page)].long()
        k, v = (c[pages].flatten(0, 1)[:length].float() for c in (cache.k, cache.v))
        return k, v

    def _attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Queries (tokens, heads, width) at the end of keys (length, kv heads, width)."""
        tokens, heads, width = q.shape
        length, kv_heads, _ = k.shape
        k, v = (x.repeat_interleave(heads // kv_heads, dim=1) for x in (k, v))
        score = torch.einsum("qhd,khd->hqk", q.float(), k) / math.sqrt(width)
        at = torch.arange(length, device=q.device)
        seen = at[None, :] <= (length - tokens + torch.arange(tokens, device=q.device))[:, None]
        share = torch.softmax(score.masked_fill(~seen, -torch.inf), dim=-1)
        return torch.einsum("hqk,khd->qhd", share, v)

    def prefill(self, qkv: Tensor, starts: Tensor, longest: int, cache: Paged, out: Tensor) -> None:
        width = cache.k.shape[3]
        heads = out.shape[1] // width
        for b, (first, last) in enumerate(zip(starts[:-1].tolist(), starts[1:].tolist(), strict=True)):
            q = qkv[first:last, : heads * width].reshape(-1, heads, width)
            out[first:last] = self._attend(q, *self._history(cache, b)).flatten(1).to(out.dtype)

    def decode(self, qkv: Tensor, q_heads: int, cache: Paged, out: Tensor) -> None:
        width = cache.k.shape[3]
        for b in range(len(out)):
            q = qkv[b : b + 1, : q_heads * width].reshape(1, q_heads, width)
            out[b] = self._attend(q, *self._history(cache, b)).flatten().to(out.dtype)

    # -- experts -------------------------------------------------------------------------------------------------

    def experts(self, x: Tensor, ids: Tensor, shares: Tensor, weights: tuple[Tensor, Tensor], out: Tensor) -> None:
        total = torch.zeros(x.shape, dtype=torch.float32, device=x.device)
        for expert in range(len(weights[0])):
            token, slot = torch.where(ids == expert)
            if token.numel():
                gate, up = (x[token].float() @ weights[0][expert].float().t()).chunk(2, dim=-1)
                rows = (F.silu(gate) * up) @ weights[1][expert].float().t()
                total.index_add_(0, token, rows * shares[token, slot][:, None])
        out.copy_(total)
