"""GEMM rows of the public tables that measure something else than the kernel, and what stands in for them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd

#: GEMM rows in which some take a launch of the quantisation kernel more than larger ones do, at random (README).
JUMPS = (("vllm", "fp8"),)
JUMP = 1.25
#: GEMM rows bound by arithmetic that take up to 15 % longer on an H100 than on an H200, which has the same processors
#: at the same limit; those of all other backends and formats agree to 0 to 4 % in the median. From so many rows on
#: they are taken to be no slower.
SAME_CHIP = {("h100_sxm", "vllm", "fp8"): "h200_sxm"}
SAME_CHIP_ROWS = 512
#: (GPU, backend, format) -> the backend that timed the same products of the same library and whose rows are steady.
#: A fifth of vLLM's bf16 rows on Hopper take 5 to 18 % longer than their neighbours, at random: other ones on an H100
#: than on an H200, and none of those of TensorRT-LLM or of our own H200 (docs/calibration.md).
STEADY = {("h100_sxm", "vllm", "bfloat16"): "trtllm", ("h200_sxm", "vllm", "bfloat16"): "trtllm"}
#: Rows up to which weights, not arithmetic, take the time, of so many numbers.
STEADY_ROWS, STEADY_WEIGHTS = 128, 20e6
#: Columns from which the time does not depend on how many tiles the library makes of them, rows from which it does: so
#: far times between those of two counts of rows say little.
MANY_COLUMNS, TILE_ROWS = 4096, 8
SLOW = 1.04
#: Microseconds by which the router's choice that vLLM's rows of Triton experts begin with is longer than an engine's:
#: it takes 9.9 in the rows (Qwen3-30B-A3B on an H200, beside fused_experts alone), 3.9 in steps (docs/calibration.md).
CHOICE_US = 6.0


def repaired_gemms(name: tuple[str, str, str], read: Callable[[str], pd.DataFrame]) -> pd.DataFrame:
    """Least microseconds of each product of one GPU, backend and format, ``name``, with what rows are known to measure
    beside the kernel taken off. ``read``: the GEMM table of a GPU."""
    gpu, backend, kind = name

    def least(gpu: str, backend: str) -> pd.DataFrame:
        table = read(gpu)
        own = table[(table["backend"] == backend) & (table["gemm_dtype"] == kind)]
        return own.groupby(["m", "n", "k"], as_index=False).agg(latency_us=("latency_us", "min"))

    rows = least(gpu, backend)
    if (backend, kind) in JUMPS:
        rows = without_jumps(rows)
    if name in SAME_CHIP:
        rows = no_slower(rows, least(SAME_CHIP[name], backend).rename(columns={"latency_us": "other"}))
    if name in STEADY:
        rows = without_slow_rows(rows, least(gpu, STEADY[name]))
    return rows


def without_jumps(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows that take much longer than more rows of the same weights do, brought down to those."""
    wide = rows.pivot_table(index=["n", "k"], columns="m", values="latency_us").sort_index(axis=1, ascending=False)
    below = wide.cummin(axis=1).shift(1, axis=1)
    least = below.reset_index().melt(id_vars=["n", "k"], var_name="m", value_name="least")
    least["m"] = least["m"].astype(rows["m"].dtype)
    both = rows.merge(least, on=["n", "k", "m"], how="left")
    jump = both["latency_us"] > JUMP * both["least"]
    return both.assign(latency_us=both["latency_us"].mask(jump, both["least"])).drop(columns="least")


def no_slower(rows: pd.DataFrame, other: pd.DataFrame) -> pd.DataFrame:
    """Large products, brought down to the time that a GPU of the same chip takes for them."""
    both = rows.merge(other, on=["m", "n", "k"], how="left")
    slower = (both["m"] >= SAME_CHIP_ROWS) & (both["latency_us"] > both["other"])
    return both.assign(latency_us=both["latency_us"].mask(slower, both["other"])).drop(columns="other")


def without_slow_rows(rows: pd.DataFrame, steady: pd.DataFrame) -> pd.DataFrame:
    """Rows that take longer, beside the same product of ``steady``, than is usual for their weights: brought down to
    what is. Between the counts of rows that ``steady`` has it is interpolated, both in logarithms."""
    wide = steady.pivot_table(index=["n", "k"], columns="m", values="latency_us")
    counts, known = np.sort(rows["m"].unique()), np.log(wide.columns.to_numpy(dtype=np.float64))
    times = [np.exp(np.interp(np.log(counts), known, line)) for line in np.log(wide.to_numpy(dtype=np.float64))]
    usual = pd.DataFrame(times, index=wide.index, columns=counts).reset_index()
    usual = usual.melt(id_vars=["n", "k"], var_name="m", value_name="usual_us").astype({"m": rows["m"].dtype})
    both = rows.merge(usual, on=["n", "k", "m"], how="left")
    few = (both["m"] <= STEADY_ROWS) & (both["n"] * both["k"] > STEADY_WEIGHTS)
    sure = (both["n"] > MANY_COLUMNS) | (both["m"] < TILE_ROWS) | both["m"].isin(steady["m"])
    ratio = (both["latency_us"] / both["usual_us"]).where(few)
    share = ratio.groupby([both["n"], both["k"]]).transform("median")
    slow = few & sure & (ratio > SLOW * share)
    return both.assign(latency_us=both["latency_us"].mask(slow, both["usual_us"] * share)).drop(columns="usual_us")


def with_engine_choice(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows of experts that begin with the router's choice, with what it takes in an engine's step."""
    return rows.assign(latency_us=rows["latency_us"] - CHOICE_US)
