"""MLA kernels as rows: attention alone where it was measured, else a whole MLA block less its projections."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

from simulator.calibration.kernel_rows import (
    DECODE,
    FILL_TOKENS,
    FORMATS,
    PREFILL,
    SPLIT,
    Columns,
    Floats,
    Rows,
    columns_of,
    read_table,
    seconds_of,
    source_of,
    with_units,
)
from simulator.cost.engine_costs import EngineCosts
from simulator.cost.operators import Step
from simulator.cost.roofline import AttentionShape, Chunks, decode_attention_time, prefill_attention_time
from simulator.hardware.gpu import Gpu
from simulator.models.catalogue import load_model
from simulator.models.model import Mla
from simulator.models.precision import Parallel, Precision

#: The model whose MLA was measured; its blocks were run with fewer heads to stand for tensor-parallel ranks.
MEASURED_MODEL = "deepseek-v3"
#: GPUs on which vLLM's MLA blocks were measured bound by the host: some 40 us more than TensorRT-LLM's at every small
#: size, where a vLLM engine with CUDA graphs takes 0.14 ms for a whole layer of DeepSeek-V2-Lite, experts included.
HOST_BOUND_BLOCKS = ("h100_sxm", "h200_sxm")
#: Attention is at least this part of a block's roofline: a difference of two measurements must not vanish.
LEAST = 0.5


def _mla() -> Mla:
    mla = load_model(MEASURED_MODEL).mla
    assert mla is not None
    return mla


def _prefill_rows(gpu: Gpu, name: str, frame: pd.DataFrame, measured: Floats, source: str) -> Rows:
    mla = _mla()
    qk = float(mla.nope_dim + mla.rope_dim)

    def roofline(p: Mapping[str, float], c: Columns) -> Floats:
        n, s = c["batch"], c["isl"]
        kv_bytes = c["heads"] * (qk + mla.v_dim) * 2.0
        shape = AttentionShape(c["heads"], c["heads"], qk, mla.v_dim, kv_bytes)  # type: ignore[arg-type]
        return prefill_attention_time(gpu, p, shape, Chunks(n * s, n * s * (s + 1) / 2, n * s)).seconds

    columns = with_units(columns_of(frame, {"heads": "num_heads", "batch": "batch_size", "isl": "isl"}), "heads")
    return Rows(name, columns, measured, {"heads": 1.0}, "units", "isl", roofline, PREFILL, FILL_TOKENS, source)


def _decode_rows(gpu: Gpu, name: str, frame: pd.DataFrame, measured: Floats, source: str) -> Rows:
    mla = _mla()
    latent = float(mla.kv_rank + mla.rope_dim)
    number = 1.0 if name.endswith("fp8") else 2.0

    def roofline(p: Mapping[str, float], c: Columns) -> Floats:
        shape = AttentionShape(c["heads"], 1.0, latent, mla.kv_rank, latent * number)  # type: ignore[arg-type]
        return decode_attention_time(gpu, p, shape, (c["batch"], c["kv_len"]), warm=True).seconds

    columns = columns_of(frame, {"heads": "num_heads", "batch": "batch_size", "kv_len": "kv_len"})
    return Rows(name, columns, measured, {"heads": 1.0}, "batch", "kv_len", roofline, DECODE, SPLIT, source)


def kernel_rows(folder: Path, gpu: Gpu) -> Iterator[Rows]:
    """The attention kernels that were measured alone (TensorRT-LLM)."""
    frame = read_table(folder, gpu.name, "mla")
    for phase, make in (("prefill", _prefill_rows), ("decode", _decode_rows)):
        table = {"prefill": "context_mla", "decode": "generation_mla"}[phase]
        for (backend, kv), group in frame[frame["table"] == table].groupby(["backend", "kv_cache_dtype"]):
            kind = FORMATS[str(kv)] if phase == "decode" else f"bf16-{FORMATS[str(kv)]}"
            source = source_of("MLA attention", group["kernel_source"])
            yield make(gpu, f"mla_{phase}/{backend}/{kind}", group, seconds_of(group), source)


def block_rows(folder: Path, gpu: Gpu, backends: tuple[str, ...] = ("vllm",)) -> Iterator[Rows]:
    """Attention of blocks measured whole (projections in bf16), less the projections as ``gpu``'s kernels have them.

    Where that leaves less than half the attention's roofline, half the roofline is kept.
    """
    frame = read_table(folder, gpu.name, "mla")
    frame = frame[(frame["gemm_type"] == "bfloat16") & (frame["mla_dtype"] == "bfloat16")]
    for phase, make in (("prefill", _prefill_rows), ("decode", _decode_rows)):
        table = {"prefill": "mla_context_module", "decode": "mla_generation_module"}[phase]
        for (backend, kv), group in frame[frame["table"] == table].groupby(["backend", "kv_cache_dtype"]):
            if backend not in backends or gpu.name in HOST_BOUND_BLOCKS:
                continue
            keys = ["num_heads", "batch_size", "isl", "kv_len"]
            rows = group.groupby(keys, as_index=False).agg(latency_us=("latency_us", "min"))
            kind = FORMATS[str(kv)] if phase == "decode" else f"bf16-{FORMATS[str(kv)]}"
            others = projections(gpu, str(backend), rows, Precision())
            source = source_of("MLA block less its projections", group["kernel_source"])
            bare = make(gpu, f"mla_{phase}/{backend}/{kind}", rows, seconds_of(rows), source)
            start = {name: p.start for name, p in bare.parameters.items()} | dict(bare.fixed)
            least = LEAST * bare.roofline(start, bare.columns)
            yield replace(bare, measured_s=np.maximum(bare.measured_s - others, least))


def projections(gpu: Gpu, backend: str, rows: pd.DataFrame, precision: Precision) -> Floats:
    """Seconds of all but attention in one MLA block, for each row's heads and tokens."""
    tokens = rows["batch_size"].to_numpy(np.float64) * rows["isl"].to_numpy(np.float64)
    heads = rows["num_heads"].to_numpy()
    model, costs = load_model(MEASURED_MODEL), bare_costs(backend)
    total = np.zeros(len(rows))
    for count in np.unique(heads):
        part = replace(model, q_heads=int(count), kv_heads=int(count), layers=1, windows=(0,))
        step = Step(part, gpu, precision, Parallel(), costs)
        mine = heads == count
        total[mine] = sum(op.total(tokens[mine]).seconds for op in step.mla_operators())
    return total


def bare_costs(backend: str) -> EngineCosts:
    """An engine without host work: kernels alone."""
    return EngineCosts(name=backend, kernels=backend, all_reduce=backend, overlap=True)
