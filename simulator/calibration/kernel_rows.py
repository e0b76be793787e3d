"""Measured kernel latencies as rows to fit: reads the CSV tables of AIConfigurator, one ``Rows`` a kernel.

The column meanings are those of the extract's README: microseconds for one call on one GPU; fp8 GEMM rows include the
quantisation of bf16 activations; MoE tokens are those entering the layer over all expert-parallel ranks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from simulator.calibration.row_repairs import repaired_gemms, with_engine_choice
from simulator.cost.collectives import RING, link_bandwidth
from simulator.cost.kernels import gemm_format
from simulator.cost.roofline import (
    AttentionShape,
    Chunks,
    MoeShape,
    active_experts,
    collective_time,
    decode_attention_time,
    gemm_time,
    moe_time,
    prefill_attention_time,
)
from simulator.errors import InputError
from simulator.hardware.gpu import Gpu

Floats = NDArray[np.float64]
Columns = Mapping[str, Floats]

US = 1e-6
FORMATS = {"bfloat16": "bf16", "fp8": "fp8", "fp8_block": "fp8_block", "nvfp4": "nvfp4"}
ROUTING = {"balanced": "balanced", "power_law_1.2": "skewed"}
#: GEMM rows measured without CUDA graphs on Hopper: a floor of 59 us of host time hides the kernel (README).
HOST_BOUND = (("vllm", "fp8_block"),)
#: Host work to launch experts outside CUDA graphs: Triton kernels are launched one by one from Python (sorting, two
#: GEMMs, activation, sum), others by one call; the engine profile's ``eager_moe_layer_s`` is that of Triton.
TRITON, ONE_CALL = 1.0, 0.3
#: A collective this many times slower than both neighbouring sizes is a disturbed measurement.
SPIKE = 1.5


@dataclass(frozen=True)
class Parameter:
    """One fitted number: start, bounds."""

    start: float
    low: float
    high: float


@dataclass(frozen=True)
class Rows:
    """Measurements of one kernel. ``columns``: one array a number of a shape or count, all of one length;
    ``shape``: names of the columns that make a shape, with their weights in its distance; ``x`` (and ``y``): the
    counts along which a shape was measured; ``roofline(parameters, columns)``: seconds; ``parameters``: what to fit;
    ``fixed``: parameters that are given."""

    name: str
    columns: Columns
    measured_s: Floats
    shape: Mapping[str, float]
    x: str
    y: str | None
    roofline: Callable[[Mapping[str, float], Columns], Floats]
    parameters: Mapping[str, Parameter]
    fixed: Mapping[str, float]
    source: str

    def __len__(self) -> int:
        return self.measured_s.size

    def take(self, chosen: NDArray[np.bool_]) -> Rows:
        """The rows where ``chosen`` is true."""
        columns = {name: values[chosen] for name, values in self.columns.items()}
        return replace(self, columns=columns, measured_s=self.measured_s[chosen])


def read_table(folder: Path, gpu: str, table: str) -> pd.DataFrame:
    path = folder / f"{gpu}_{table}.csv"
    try:
        return pd.read_csv(path)
    except (OSError, ValueError) as e:
        raise InputError(f"{path}: cannot be read as a kernel table ({e})") from e


def columns_of(frame: pd.DataFrame, names: Mapping[str, str]) -> dict[str, Floats]:
    return {ours: frame[theirs].to_numpy(np.float64) for ours, theirs in names.items()}


def seconds_of(frame: pd.DataFrame) -> Floats:
    return frame["latency_us"].to_numpy(np.float64) * US


def source_of(table: str, sources: object) -> str:
    kernels = ", ".join(sorted({str(s) for s in np.unique(np.asarray(sources, dtype=str))}))
    return f"fitted on aiconfigurator 0.12.0 {table} ({kernels})"


GEMM = {
    "t0_s": Parameter(3e-6, 0.3e-6, 3e-5),
    "compute": Parameter(0.75, 0.2, 1.05),
    "memory": Parameter(0.8, 0.3, 1.05),
    "p": Parameter(2.5, 1.0, 8.0),
    "wave": Parameter(0.3, 0.0, 1.0),
}
TILES = {"tile_m": 128.0, "tile_n": 128.0}


def gemm_rows(folder: Path, gpu: Gpu) -> Iterator[Rows]:
    """GEMMs of each backend and format."""
    read = cache(lambda name: read_table(folder, name, "gemm"))
    for (backend, kind), group in read(gpu.name).groupby(["backend", "gemm_dtype"]):
        if (backend, kind) in HOST_BOUND:
            continue
        rows = repaired_gemms((gpu.name, str(backend), str(kind)), read)
        stored = FORMATS[str(kind)]
        arithmetic = {"bf16": "bf16", "nvfp4": "nvfp4"}.get(stored, "fp8")
        _, form = gemm_format(gpu, stored, arithmetic)
        parameters = GEMM | ({"quantise": Parameter(0.5, 0.05, 3.0)} if form.quantised else {})

        def roofline(p: Mapping[str, float], c: Columns, form: object = form) -> Floats:
            return _gemm(gpu, p, form, c)

        yield Rows(
            f"gemm/{backend}/{stored}",
            columns_of(rows, {"m": "m", "n": "n", "k": "k"}),
            seconds_of(rows),
            {"n": 1.0, "k": 0.5},
            "m",
            None,
            roofline,
            parameters,
            TILES,
            source_of("GEMM", group["kernel_source"]),
        )


def _gemm(gpu: Gpu, p: Mapping[str, float], form: object, c: Columns) -> Floats:
    return gemm_time(gpu, p, form, c["m"], (c["n"], c["k"])).seconds  # type: ignore[arg-type]


HEADS = {"heads": 1.0, "kv_heads": 1.0, "head_dim": 2.0}
_ATTENTION_COLUMNS = {
    "heads": "num_heads",
    "kv_heads": "num_key_value_heads",
    "head_dim": "head_dim",
    "batch": "batch_size",
}


def gqa_shape(c: Columns, kv_number_bytes: float, arithmetic: str) -> AttentionShape:
    kv_bytes = 2.0 * c["kv_heads"] * c["head_dim"] * kv_number_bytes
    return AttentionShape(c["heads"], c["kv_heads"], c["head_dim"], c["head_dim"], kv_bytes, arithmetic)  # type: ignore[arg-type]


def with_units(columns: dict[str, Floats], heads: str) -> dict[str, Floats]:
    """Adds ``units``: sequences times heads, the pieces of work a kernel deals out to processors. Residuals of
    different head counts line up along it."""
    return {**columns, "units": columns["batch"] * columns[heads]}


PREFILL = {
    "t0_s": Parameter(5e-6, 1e-6, 6e-5),
    "compute": Parameter(0.6, 0.1, 1.05),
    "memory": Parameter(0.6, 0.05, 1.05),
    "p": Parameter(1.3, 1.0, 6.0),
    "wave": Parameter(0.3, 0.0, 1.0),
    "dim": Parameter(0.5, 0.0, 1.5),
}
DECODE = {
    "t0_s": Parameter(5e-6, 1e-6, 6e-5),
    "compute": Parameter(0.4, 0.02, 1.05),
    "memory": Parameter(0.8, 0.2, 1.05),
    "p": Parameter(2.0, 1.0, 6.0),
    "fill": Parameter(0.3, 0.0, 4.0),
    "unit_s": Parameter(3e-6, 0.0, 3e-5),
    "l2_share": Parameter(0.9, 0.3, 1.5),
    "l2_speed": Parameter(2.0, 1.0, 6.0),
}
#: Query tokens that fill a GPU: chunks of a step with fewer are costed as part of a batch that does.
#: Efficiency of prefill attention over earlier tokens, read page by page, beside that over a chunk's own: no table has
#: it; the value brings lone prompts of 8,192 to 30,000 tokens of vLLM 0.25.1 on H100 and H200 into line (docs/cost.md).
PAST = 0.78
FILL_TOKENS = {"fill_tokens": 4096.0, "past": PAST}
#: Tokens of one piece of split-KV decoding.
SPLIT = {"split_tokens": 256.0}


def prefill_rows(folder: Path, gpu: Gpu) -> Iterator[Rows]:
    """Prefill attention without a past, by arithmetic and KV format."""
    frame = read_table(folder, gpu.name, "context_attention")
    frame = frame[frame["kernel_source"] != "flashinfer"]  # SGLang's default on Blackwell is trtllm_mha
    for (backend, kind, kv), group in frame.groupby(["backend", "attn_dtype", "kv_cache_dtype"]):
        arithmetic, kv_format = FORMATS[str(kind)], FORMATS[str(kv)]
        number = 2.0 if kv_format == "bf16" else 1.0

        def roofline(p: Mapping[str, float], c: Columns, a: str = arithmetic, b: float = number) -> Floats:
            n, s = c["batch"], c["isl"]
            found = prefill_attention_time(gpu, p, gqa_shape(c, b, a), Chunks(n * s, n * s * (s + 1) / 2, n * s))
            return found.seconds

        yield Rows(
            f"prefill_attention/{backend}/{arithmetic}-{kv_format}",
            with_units(columns_of(group, {**_ATTENTION_COLUMNS, "isl": "isl"}), "heads"),
            seconds_of(group),
            HEADS,
            "units",
            "isl",
            roofline,
            PREFILL,
            FILL_TOKENS,
            source_of("context attention", group["kernel_source"]),
        )


def decode_rows(folder: Path, gpu: Gpu) -> Iterator[Rows]:
    """Decode attention by KV format."""
    frame = read_table(folder, gpu.name, "generation_attention")
    frame = frame[frame["kernel_source"] != "flashinfer"]
    for (backend, kv), group in frame.groupby(["backend", "kv_cache_dtype"]):
        kv_format = FORMATS[str(kv)]
        number = 2.0 if kv_format == "bf16" else 1.0

        def roofline(p: Mapping[str, float], c: Columns, b: float = number) -> Floats:
            return decode_attention_time(gpu, p, gqa_shape(c, b, "bf16"), (c["batch"], c["kv_len"]), warm=True).seconds

        yield Rows(
            f"decode_attention/{backend}/{kv_format}",
            with_units(columns_of(group, {**_ATTENTION_COLUMNS, "kv_len": "kv_len"}), "kv_heads"),
            seconds_of(group),
            HEADS,
            "units",
            "kv_len",
            roofline,
            DECODE,
            SPLIT,
            source_of("generation attention", group["kernel_source"]),
        )


MOE = {
    "t0_s": Parameter(1.5e-5, 1e-6, 2e-4),
    "compute": Parameter(0.5, 0.05, 1.05),
    "memory": Parameter(0.7, 0.1, 1.05),
    "p": Parameter(2.0, 1.0, 6.0),
    "pad": Parameter(4.0, 0.0, 128.0),
    "activation": Parameter(1.0, 0.0, 10.0),
    "global": Parameter(0.5, 0.0, 10.0),
}


def _dealt(gpu: Gpu, rows: pd.DataFrame, weight_bytes: float) -> Floats:
    """Fraction of the experts that the collector's tokens went to: all, or half where reading all in the measured
    time would take more than the memory's datasheet bandwidth (its balanced routing of 256 experts does this)."""
    shape = ["hidden_size", "width", "topk", "num_experts", "local"]
    weights = 3.0 * rows["hidden_size"] * rows["width"] * rows["local"] * weight_bytes
    enough = rows["num_tokens"] * rows["topk"] >= rows["num_experts"]
    rate = np.where(enough, weights / (rows["latency_us"] * US), 0.0) / gpu.memory_bandwidth_bytes_per_s
    fastest = pd.Series(rate, index=rows.index).groupby([rows[c] for c in shape]).transform("max")
    return np.where((fastest > 1.0) & (weights > 8.0 * gpu.l2_bytes), 0.5, 1.0)


def moe_rows(folder: Path, gpu: Gpu) -> Iterator[Rows]:
    """Fused experts by format and routing; where an engine has two kernels for a shape it takes the faster one."""
    frame = read_table(folder, gpu.name, "moe")
    frame["width"] = frame["inter_size"] / frame["moe_tp_size"]
    frame["local"] = frame["num_experts"] / frame["moe_ep_size"]
    shape = ["hidden_size", "width", "topk", "num_experts", "local", "num_tokens"]
    for (backend, kind, routing), group in frame.groupby(["backend", "moe_dtype", "distribution"]):
        stored = FORMATS[str(kind)]
        _, form = gemm_format(gpu, stored, {"bf16": "bf16", "nvfp4": "nvfp4"}.get(stored, "fp8"))
        rows = group.groupby(shape, as_index=False).agg(latency_us=("latency_us", "min"))
        triton = bool(group["kernel_source"].str.contains("triton").any())
        if backend == "vllm" and triton:
            rows = with_engine_choice(rows)
        rows["dealt"] = _dealt(gpu, rows, form.weight_bytes) if routing == "balanced" else 1.0

        def roofline(p: Mapping[str, float], c: Columns, form: object = form) -> Floats:
            shape = MoeShape(c["hidden"], c["width"], c["experts"], c["local"], c["top_k"])  # type: ignore[arg-type]
            active = active_experts(shape, c["tokens"], c["dealt"])
            return moe_time(gpu, p, form, shape, (c["tokens"], active)).seconds  # type: ignore[arg-type]

        yield Rows(
            f"moe/{backend}/{stored}-{ROUTING[str(routing)]}",
            columns_of(
                rows,
                {
                    "hidden": "hidden_size",
                    "width": "width",
                    "top_k": "topk",
                    "experts": "num_experts",
                    "local": "local",
                    "tokens": "num_tokens",
                    "dealt": "dealt",
                },
            ),
            seconds_of(rows),
            {"hidden": 2.0, "width": 1.0, "top_k": 1.0, "experts": 2.0, "local": 1.0},
            "tokens",
            None,
            roofline,
            MOE,
            {"launch": TRITON if triton else ONE_CALL},
            source_of("MoE", group["kernel_source"]),
        )


_CUSTOM = {"vllm_custom": "vllm_graph", "sglang_custom": "sglang_graph", "trtllm_custom": "trtllm"}
COLLECTIVE = {
    "t0_s": Parameter(4e-6, 1e-6, 1e-4),
    "t0_rank_s": Parameter(0.2e-6, 0.0, 2e-5),
    "efficiency": Parameter(0.7, 0.05, 1.2),
}


def collective_rows(folder: Path, gpu: Gpu) -> Iterator[Rows]:
    """Collectives inside one node: the engines' all-reduces (inside CUDA graphs) and NCCL's."""
    frame = read_table(folder, gpu.name, "collectives")
    own = frame[frame["library"].isin(_CUSTOM) & (frame["variant"] == frame["library"].map(_CUSTOM))]
    for library, group in own.groupby("library"):
        yield _collective(gpu, f"all_reduce/{str(library).removesuffix('_custom')}/custom", "all_reduce", group)
    nccl = frame[frame["library"].str.startswith("nccl") & (frame["dtype"] == "half")]
    for kind, group in nccl.groupby("collective"):
        yield _collective(gpu, f"{kind}/nccl/nccl", str(kind), group)


def _collective(gpu: Gpu, name: str, kind: str, group: pd.DataFrame) -> Rows:
    group = group.sort_values(["num_gpus", "bytes"]).copy()
    for _, one in group.groupby("num_gpus"):
        around = np.maximum(one["latency_us"].shift(1), one["latency_us"].shift(-1))
        spike = one["latency_us"] > SPIKE * around
        group.loc[one.index[spike], "latency_us"] = around[spike]

    def roofline(p: Mapping[str, float], c: Columns) -> Floats:
        n = c["ranks"]
        share = RING[kind] * (n - 1) / n
        return collective_time(link_bandwidth(gpu), p, n, c["bytes"], share).seconds  # type: ignore[arg-type]

    columns = columns_of(group, {"ranks": "num_gpus", "bytes": "bytes"})
    source = source_of("collectives", group["library"])
    return Rows(name, columns, seconds_of(group), {"ranks": 1.0}, "bytes", None, roofline, COLLECTIVE, {}, source)


def exchange_rows(folder: Path, gpu: Gpu) -> Iterator[Rows]:
    """DeepEP dispatch and combine over eight GPUs; the faster of its modes at each count of tokens."""
    frame = read_table(folder, gpu.name, "moe_all2all")
    frame = frame[frame["comm_backend"].isin(["deepep_ht", "deepep_ll"])]
    for phase, group in frame.groupby("phase"):
        keys = ["hidden_size", "topk", "num_experts", "ep_size", "num_tokens"]
        rows = group.groupby(keys, as_index=False).agg(latency_us=("latency_us", "min"))
        number = 1.0 if phase == "dispatch" else 2.0

        def roofline(p: Mapping[str, float], c: Columns, number: float = number) -> Floats:
            n = c["ranks"]
            reached = (n - 1) * (1 - (1 - 1 / n) ** c["top_k"])
            message = c["tokens"] * c["hidden"] * number
            return collective_time(gpu.nvlink_bandwidth_bytes_per_s, p, n, message, reached).seconds  # type: ignore[arg-type]

        yield Rows(
            f"expert_{phase}/deepep/any",
            columns_of(
                rows,
                {
                    "hidden": "hidden_size",
                    "top_k": "topk",
                    "experts": "num_experts",
                    "ranks": "ep_size",
                    "tokens": "num_tokens",
                },
            ),
            seconds_of(rows),
            {"hidden": 1.0, "top_k": 1.0, "experts": 1.0},
            "tokens",
            None,
            roofline,
            {"t0_s": Parameter(5e-5, 1e-5, 4e-4), "efficiency": Parameter(0.3, 0.02, 1.5)},
            {},
            source_of("moe all2all", group["comm_backend"]),
        )
