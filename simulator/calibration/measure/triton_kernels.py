"""Launches the Triton kernels: tile sizes, grids and work space."""

from __future__ import annotations

import math

import torch
import triton

from simulator.calibration.measure import triton_attention, triton_moe, triton_small
from simulator.calibration.measure.ops import Paged
from simulator.calibration.measure.torch_kernels import ROTARY_BASE, PlainKernels, Tensor, ones

#: Programs that fill a GPU a few times over, and the most pieces a context is split into.
FILL, MOST_SPLITS = 4 * 132, 64
#: Tokens of a piece are read in steps of this many.
DECODE_STEP = 64
#: Tiles of experts that one program finds the owners of.
FEW_TILES, MANY_TILES = 8, 64
LOG2_E = 1.4426950408889634


def _power(n: int) -> int:
    return int(triton.next_power_of_2(n))


class TritonKernels(PlainKernels):
    """See ``PlainKernels``; everything that costs time in a step is a Triton kernel here."""

    name = "torch and triton"

    def __init__(self) -> None:
        self._space: dict[tuple[str, tuple[int, ...]], Tensor] = {}

    def _room(self, what: str, shape: tuple[int, ...], kind: torch.dtype, device: torch.device) -> Tensor:
        """Work space, kept from call to call: graphs must find it where it was."""
        found = self._space.get((what, shape))
        if found is None:
            found = self._space[what, shape] = torch.empty(shape, dtype=kind, device=device)
        return found

    def forget(self) -> None:
        """Give work space back."""
        self._space.clear()

    def quantise(self, x: Tensor, out: Tensor, scales: Tensor) -> None:
        width = x.shape[1]
        block = _power(width)
        triton_small.quantise[(len(x),)](x, out, scales, width, BLOCK=block, num_warps=8)

    def add_norm(self, x: Tensor, residual: Tensor, weight: Tensor, out: Tensor) -> None:
        width = x.shape[1]
        triton_small.add_norm[(len(x),)](x, residual, weight, out, width, BLOCK=_power(width), num_warps=8)

    def rotate(self, qkv: Tensor, positions: Tensor, heads: int, width: int) -> None:
        part = math.gcd(heads, 8)
        base = math.log2(ROTARY_BASE)
        grid = (len(qkv), heads // part)
        triton_small.rotate[grid](qkv, positions, qkv.stride(0), base, WIDTH=width, HEADS=part, num_warps=4)

    def write_cache(self, qkv: Tensor, q_heads: int, cache: Paged, slots: Tensor) -> None:
        width = cache.k.shape[2] * cache.k.shape[3]
        first = q_heads * cache.k.shape[3]
        triton_small.write_cache[(len(qkv),)](
            qkv, cache.k, cache.v, slots, qkv.stride(0), first, width, BLOCK=_power(width), num_warps=4
        )

    def activate(self, x: Tensor, out: Tensor) -> None:
        width, block = out.shape[1], 1024
        triton_small.activate[(len(x), triton.cdiv(width, block))](x, out, width, BLOCK=block, num_warps=4)

    def gather(self, source: Tensor, target: Tensor, block: int, order: Tensor) -> None:
        words, step = block // 8, 2048
        grid = (order.numel(), triton.cdiv(words, step))
        triton_small.gather[grid](
            source.view(torch.int64), target.view(torch.int64), order, words, BLOCK=step, num_warps=8
        )

    def nothing(self, device: torch.device) -> None:
        triton_small.nothing[(1,)](ones(1, device))

    # -- attention -----------------------------------------------------------------------------------------------

    def prefill(self, qkv: Tensor, starts: Tensor, longest: int, cache: Paged, out: Tensor) -> None:
        _, page, kv_heads, width = cache.k.shape
        heads = out.shape[1] // width
        rows = 128 if longest > 64 else 64
        grid = (triton.cdiv(longest, rows), heads, starts.numel() - 1)
        triton_attention.prefill[grid](
            qkv,
            cache.k,
            cache.v,
            out,
            cache.table,
            starts,
            cache.lengths,
            qkv.stride(0),
            cache.table.stride(0),
            LOG2_E / math.sqrt(width),
            HEADS=heads,
            KV_HEADS=kv_heads,
            D=width,
            PAGE=page,
            M=rows,
            N=64,
            num_warps=8 if rows == 128 else 4,
            num_stages=3,
        )

    def decode(self, qkv: Tensor, q_heads: int, cache: Paged, out: Tensor) -> None:
        _, page, kv_heads, width = cache.k.shape
        batch, group = len(out), q_heads // kv_heads
        steps = triton.cdiv(cache.longest, DECODE_STEP)
        splits = max(1, min(triton.cdiv(FILL, batch * kv_heads), MOST_SPLITS, triton.cdiv(steps, 2)))
        part = self._room("part", (batch * q_heads, splits, width), torch.float32, out.device)
        logs = self._room("logs", (batch * q_heads, splits), torch.float32, out.device)
        triton_attention.decode[(batch, kv_heads, splits)](
            qkv,
            cache.k,
            cache.v,
            out,
            part,
            logs,
            cache.table,
            cache.lengths,
            qkv.stride(0),
            cache.table.stride(0),
            LOG2_E / math.sqrt(width),
            splits,
            GROUP=group,
            ROWS=max(16, _power(group)),
            KV_HEADS=kv_heads,
            D=width,
            PAGE=page,
            N=DECODE_STEP,
            num_warps=4,
            num_stages=3,
        )
        if splits > 1:
            grid = (batch * q_heads,)
            triton_attention.combine[grid](part, logs, out, splits, D=width, SPLITS=_power(splits), num_warps=4)

    # -- experts -------------------------------------------------------------------------------------------------

    def experts(self, x: Tensor, ids: Tensor, shares: Tensor, weights: tuple[Tensor, Tensor], out: Tensor) -> None:
        tokens, hidden = x.shape
        top_k, (count, width) = ids.shape[1], (weights[0].shape[0], weights[1].shape[2])
        total = tokens * top_k
        rows = _tile_rows(total / count)
        tiles = min(total, triton.cdiv(total + count * (rows - 1), rows))
        limit = FEW_TILES if tiles <= FEW_TILES else MANY_TILES
        tiles = triton.cdiv(tiles, limit) * limit
        counts = self._room("counts", (count,), torch.int32, x.device).zero_()
        ranks = self._room("ranks", (total,), torch.int32, x.device)
        offsets = self._room("offsets", (count,), torch.int32, x.device)
        owner = self._room("tiles", (tiles,), torch.int32, x.device)
        order = self._room("order", (tiles * rows + rows * count,), torch.int32, x.device)
        triton_moe.count[(triton.cdiv(total, 256),)](ids, counts, ranks, total, BLOCK=256)
        triton_moe.lay_out[(tiles // limit,)](
            counts, offsets, owner, count, rows, EXPERTS=_power(count), LIMIT=limit, num_warps=4
        )
        triton_moe.place[(triton.cdiv(total, 256),)](ids, ranks, offsets, order, counts, total, BLOCK=256)
        wide = self._room("wide", (total, 2 * width), x.dtype, x.device)
        narrow = self._room("narrow", (total, width), x.dtype, x.device)
        parts = self._room("parts", (total, hidden), x.dtype, x.device)
        about = (owner, order, offsets, counts)
        self._product(x, weights[0], wide, shares, about, rows=rows, per_row=top_k)
        self.activate(wide, narrow)
        self._product(narrow, weights[1], parts, shares, about, rows=rows, per_row=1)
        grid = (tokens, triton.cdiv(hidden, 1024))
        triton_moe.add_up[grid](parts, out, hidden, TOP=top_k, BLOCK=1024)

    def _product(
        self,
        x: Tensor,
        w: Tensor,
        out: Tensor,
        shares: Tensor,
        about: tuple[Tensor, ...],
        *,
        rows: int,
        per_row: int,
    ) -> None:
        owner, order, offsets, counts = about
        _, n, k = w.shape
        cols = 64 if rows == 16 else 128
        triton_moe.product[(triton.cdiv(n, cols), owner.numel())](
            x,
            w,
            out,
            shares,
            owner,
            order,
            offsets,
            counts,
            n,
            k,
            per_row,
            WEIGHTED=per_row == 1,
            M=rows,
            N=cols,
            K=128 if rows == 16 else 64,
            num_warps=8 if rows == 128 else 4,
            num_stages=4,
        )


def _tile_rows(rows_per_expert: float) -> int:
    """Rows of a tile: small ones where experts have few rows."""
    return next((size for size in (16, 32, 64) if rows_per_expert <= size), 128)
