"""GEMM rows of the public tables that measure something else than the kernel, and what stands in for them."""

from __future__ import annotations

import pandas as pd

#: GEMM rows in which some take a launch of the quantisation kernel more than larger ones do, at random (README).
JUMPS = (("vllm", "fp8"),)
JUMP = 1.25
#: GEMM rows bound by arithmetic that take up to 15 % longer on an H100 than on an H200, which has the same processors
#: at the same limit; those of all other backends and formats agree to 0 to 4 % in the median. From so many rows on
#: they are taken to be no slower.
SAME_CHIP = {("h100_sxm", "vllm", "fp8"): "h200_sxm"}
SAME_CHIP_ROWS = 512


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
