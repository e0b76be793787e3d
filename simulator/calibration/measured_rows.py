"""Rows of the measuring program as rows to fit, one ``Rows`` a kernel, in the forms of ``kernel_rows``.

Backends: ``torch`` for this program's own kernels and the framework's, ``vllm`` for its FlashAttention 3. Data are cold
throughout: kernels rotate through several sets of weights and caches.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

import numpy as np
import pandas as pd

from simulator.calibration.kernel_rows import (
    COLLECTIVE,
    DECODE,
    FILL_TOKENS,
    GEMM,
    HEADS,
    MOE,
    ONE_CALL,
    PREFILL,
    SPLIT,
    TILES,
    Columns,
    Floats,
    Parameter,
    Rows,
    columns_of,
    gqa_shape,
    with_units,
)
from simulator.calibration.measured import Measured
from simulator.cost.collectives import RING, link_bandwidth
from simulator.cost.kernels import gemm_format, kernels_of
from simulator.cost.roofline import (
    Chunks,
    MoeShape,
    active_experts,
    collective_time,
    decode_attention_time,
    gemm_time,
    moe_time,
    prefill_attention_time,
    stream_time,
)
from simulator.hardware.gpu import Gpu

US = 1e-6
BF16 = 2.0
#: Whose kernels a library's rows are.
BACKEND = {"own": "torch", "vllm": "vllm"}
#: Efficiency over earlier tokens beside that over a chunk's own, where both were measured.
PAST = Parameter(0.95, 0.3, 1.3)
_HEAD_COLUMNS = {"heads": "heads", "kv_heads": "kv_heads", "head_dim": "width", "batch": "batch"}
#: Cold data never come out of the L2: these say nothing, and keep what the tables of others have.
_COLD = {"l2_share": 0.9, "l2_speed": 2.0}


def seconds(table: pd.DataFrame) -> Floats:
    """Seconds of each row. What computes much was timed in a short burst and after a while of nothing else: a step,
    where products take turns with work that needs less power, lies between (docs/calibration.md). So does this,
    the geometric mean of both."""
    burst = table["median_us"].to_numpy(np.float64) * US
    if "steady_us" not in table:
        return burst
    steady = table["steady_us"].to_numpy(np.float64) * US
    return np.sqrt(burst * np.where(np.isnan(steady), burst, steady))


def gemm_rows(measured: Measured, gpu: Gpu) -> Iterator[Rows]:
    """Projections in bf16; in fp8 with a scale a row, quantisation included."""
    for kind in ("bf16", "fp8"):
        table = measured.table(f"gemm_{kind}")
        if table.empty or kind not in gpu.peak_flops:
            continue
        if kind == "fp8":
            table = table[table["scales"] == "row"]
        _, form = gemm_format(gpu, kind, kind)
        parameters = GEMM | ({"quantise": Parameter(0.5, 0.05, 3.0)} if form.quantised else {})

        def roofline(p: Mapping[str, float], c: Columns, form: object = form) -> Floats:
            return gemm_time(gpu, p, form, c["m"], (c["n"], c["k"])).seconds  # type: ignore[arg-type]

        columns = columns_of(table, {"m": "m", "n": "n", "k": "k"})
        shape = {"n": 1.0, "k": 0.5}
        name = f"gemm/torch/{kind}"
        yield Rows(name, columns, seconds(table), shape, "m", None, roofline, parameters, TILES, measured.about)


def prefill_rows(measured: Measured, gpu: Gpu) -> Iterator[Rows]:
    """Attention of chunks, with and without a past; ``isl`` is the length of the chunk."""
    table = measured.table("prefill_attention")
    for library, group in table.groupby("library") if not table.empty else ():

        def roofline(p: Mapping[str, float], c: Columns) -> Floats:
            n, s, before = c["batch"], c["isl"], c["past"]
            own = n * s * (s + 1) / 2
            work = Chunks(n * s, own + n * s * before, n * (s + before), n * s * before)
            return prefill_attention_time(gpu, p, gqa_shape(c, BF16, "bf16"), work).seconds

        columns = with_units(columns_of(group, {**_HEAD_COLUMNS, "isl": "new", "past": "past"}), "heads")
        fixed = {"fill_tokens": FILL_TOKENS["fill_tokens"]}
        name = f"prefill_attention/{BACKEND[str(library)]}/bf16-bf16"
        parameters = {**PREFILL, "past": PAST}
        yield Rows(name, columns, seconds(group), HEADS, "units", "isl", roofline, parameters, fixed, measured.about)


def decode_rows(measured: Measured, gpu: Gpu) -> Iterator[Rows]:
    """Decode attention over paged caches."""
    table = measured.table("decode_attention")
    for library, group in table.groupby("library") if not table.empty else ():

        def roofline(p: Mapping[str, float], c: Columns) -> Floats:
            shape = gqa_shape(c, BF16, "bf16")
            return decode_attention_time(gpu, p, shape, (c["batch"], c["kv_len"]), warm=False).seconds

        columns = with_units(columns_of(group, {**_HEAD_COLUMNS, "kv_len": "context"}), "kv_heads")
        parameters = {name: p for name, p in DECODE.items() if name not in _COLD}
        name = f"decode_attention/{BACKEND[str(library)]}/bf16"
        fixed = {**SPLIT, **_COLD}
        yield Rows(name, columns, seconds(group), HEADS, "units", "kv_len", roofline, parameters, fixed, measured.about)


def moe_rows(measured: Measured, gpu: Gpu) -> Iterator[Rows]:
    """Fused experts: choices even (and independent), or skewed."""
    table = measured.table("experts")
    _, form = gemm_format(gpu, "bf16", "bf16")
    for skew, group in table.groupby("skew") if not table.empty else ():
        even = float(str(skew)) == 0.0

        def roofline(p: Mapping[str, float], c: Columns, even: bool = even) -> Floats:
            shape = MoeShape(c["hidden"], c["width"], c["experts"], c["experts"], c["top_k"])  # type: ignore[arg-type]
            active = active_experts(shape, c["tokens"], None if even else 1.0)
            return moe_time(gpu, p, form, shape, (c["tokens"], active)).seconds

        names = ("hidden", "width", "top_k", "experts", "tokens")
        columns = columns_of(group, {n: n for n in names}) | {"local": group["experts"].to_numpy(np.float64)}
        shape = {"hidden": 2.0, "width": 1.0, "top_k": 1.0, "experts": 2.0, "local": 1.0}
        name = f"moe/torch/bf16-{'balanced' if even else 'skewed'}"
        fixed = {"launch": ONE_CALL}
        yield Rows(name, columns, seconds(group), shape, "tokens", None, roofline, MOE, fixed, measured.about)


#: Collectives as the tables of kernels call them.
_KINDS = {"all_reduce": "all_reduce", "all_to_all": "alltoall"}


def collective_rows(measured: Measured, gpu: Gpu) -> Iterator[Rows]:
    """Sums and exchanges through NCCL, from a graph where they were: launched one by one, a small one takes as long as
    its launch (30 us on an H200, where a graph's takes 6 to 9). What each further rank costs takes more than one count
    of ranks to tell: with two it is part of the fixed time."""
    table = measured.table("collectives")
    if "mode" in table and (table["mode"] == "graph").any():
        table = table[table["mode"] == "graph"]
    for operation, group in table.groupby("operation") if not table.empty else ():
        kind = _KINDS[str(operation)]

        def roofline(p: Mapping[str, float], c: Columns, kind: str = kind) -> Floats:
            n = c["ranks"]
            share = RING[kind] * (n - 1) / n
            return collective_time(link_bandwidth(gpu), p, n, c["bytes"], share).seconds  # type: ignore[arg-type]

        columns = columns_of(group, {"ranks": "ranks", "bytes": "bytes"})
        fixed = {"t0_rank_s": 0.0} if group["ranks"].nunique() == 1 else {}
        kept = {name: p for name, p in COLLECTIVE.items() if name not in fixed}
        shape, name = {"ranks": 1.0}, f"{kind}/nccl/nccl"
        yield Rows(name, columns, seconds(group), shape, "bytes", None, roofline, kept, fixed, measured.about)


def _moved(row: Mapping[str, float], op: str) -> float:
    """Bytes a token of a memory-bound pass, as the operators of a step count them."""
    if op == "add_norm":
        return 4 * row["hidden"] * BF16
    if op == "activate":
        return 3 * row["hidden"] * BF16
    if op == "rotate":
        return 2 * (row["heads"] + row["kv_heads"]) * row["width"] * BF16
    return 4 * row["kv_heads"] * row["width"] * BF16


def element_rows(measured: Measured, gpu: Gpu) -> Iterator[Rows]:
    """Norms, rotary embedding, cache writes and activations as one memory-bound kernel, without a table."""
    table = measured.table("elements")
    if table.empty:
        return
    table = table[table["op"].isin(["add_norm", "activate", "rotate", "write_cache"])]
    per_token = np.array([_moved(row, str(row["op"])) for row in table.to_dict("records")])  # type: ignore[arg-type]
    moved = per_token * table["tokens"].to_numpy(np.float64)

    def roofline(p: Mapping[str, float], c: Columns) -> Floats:
        return stream_time(gpu, p, c["moved"]).seconds

    parameters = {"t0_s": Parameter(2e-6, 2e-7, 1e-4), "memory": Parameter(0.8, 0.05, 1.5)}
    columns = {"moved": moved, "width": per_token}
    name = "elementwise/any/any"
    # what small passes find in the L2, in a step as in a loop on the same data, is every profile's
    shipped = kernels_of(replace(gpu, kernels=None)).find("elementwise", "any", "any").parameters
    fixed = {key: shipped[key] for key in ("l2_share", "cached_bytes_per_sm_s")}
    shape = {"width": 1.0}
    yield Rows(name, columns, seconds(table), shape, "moved", None, roofline, parameters, fixed, measured.about)
