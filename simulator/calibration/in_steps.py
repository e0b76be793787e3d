"""What decode attention takes among the other kernels of an engine's step, from what it takes alone.

A kernel that is timed alone follows its own like: launches overlap, and caches lie close together. In a step of vLLM's
it comes behind the write of the cache and before a kernel that puts its splits together, and reads blocks from all over
the GPU's memory. Both were measured on one chip (docs/calibration.md).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from simulator.calibration.fit import Fitted, fit_measured, predict
from simulator.calibration.measured import Measured
from simulator.calibration.measured_rows import decode_rows
from simulator.hardware.gpu import Gpu
from simulator.models import load_model

#: Kernels of a step that are its decode attention: a launch a layer, and one that puts the splits together.
ATTENTION = ("flash::FlashAttnFwdSm90", "flash::FlashAttnFwdCombine")


@dataclass(frozen=True)
class InSteps:
    """``share`` times as long as alone, and ``launch_s`` seconds more a launch."""

    share: float
    launch_s: float


def attention_in_steps(measured: Measured) -> pd.DataFrame:
    """Decode attention of whole steps as rows of the measuring program: a line a batch, microseconds a layer.

    From the table ``kernels``: model, seqs, context, kernel, launches of a step and mean_us. MLA models are left out.
    """
    table = measured.table("kernels")
    lines = []
    for (name, seqs, context), group in table[table["kernel"].isin(ATTENTION)].groupby(["model", "seqs", "context"]):
        model = load_model(str(name))
        if model.mla is None:
            spent_us = float((group["launches"] * group["mean_us"]).sum()) / model.layers
            shape = {"heads": model.q_heads, "kv_heads": model.kv_heads, "width": model.head_dim}
            lines.append({**shape, "batch": seqs, "context": context, "library": "vllm", "median_us": spent_us})
    return pd.DataFrame(lines)


def in_steps(alone: Fitted, steps: pd.DataFrame, gpu: Gpu) -> InSteps:
    """Least squares over ``steps`` (of ``attention_in_steps``, on ``gpu``), each batch by its own size."""
    (rows,) = decode_rows(Measured({"decode_attention": steps}, {}), gpu)
    foretold, found = predict(alone, rows), rows.measured_s
    terms = np.stack([foretold, np.ones_like(foretold)], axis=1) / found[:, None]
    (share, launch_s), *_ = np.linalg.lstsq(terms, np.ones_like(found), rcond=None)
    return InSteps(float(share), float(launch_s))


def as_in_steps(alone: Fitted, steps: pd.DataFrame, gpu: Gpu) -> Fitted:
    """``alone`` fitted anew to what its rows take in a step."""
    more = in_steps(alone, steps, gpu)
    source = (
        f"{alone.rows.source}; as long as in steps of vLLM: {more.share:.3f} times and {more.launch_s * 1e6:.1f} us"
    )
    rows = replace(alone.rows, measured_s=more.share * alone.rows.measured_s + more.launch_s, source=source)
    return fit_measured(rows)
