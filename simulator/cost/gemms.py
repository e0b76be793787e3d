"""Seconds of a GEMM as measured, and of one wider than all that were measured."""

from __future__ import annotations

import numpy as np

from simulator.cost.kernels import Kernel
from simulator.cost.roofline import Floats, GemmFormat, Time, gemm_time, weights_s
from simulator.hardware.gpu import Gpu

#: Of the datasheet bandwidth, what more weights are read at: from 8,192 to 16,384 columns of 7,168 numbers or more the
#: measured bf16 GEMMs of H100 and H200 read at 0.93, those in fp8 and of B200 at 0.83 to 0.92 (medians; aiconfigurator
#: 0.12.0 GEMM tables); from 16,384 to 28,672 and 128,256 columns of 4,096 numbers our own on an H200 read at 0.90.
#: Weights of fewer bytes stay in the L2 cache of the loop that measures them and seem to come faster.
GROWTH_BANDWIDTH = 0.9


def measured_gemm(gpu: Gpu, kernel: Kernel, form: GemmFormat, m: Floats, shape: tuple[int, int]) -> tuple[Time, Time]:
    """``out[m, n] = x[m, k] W[n, k]^T`` with ``shape`` n, k: by the roofline alone, and as measured.

    A shape beyond the measured ones keeps the residual of the nearest, but with few tokens takes no longer than the
    widest measured one and what is read and multiplied beyond it: the residuals of narrow shapes are latencies (a loop
    over k in one tile a processor), which wider ones do not have for every wave of tiles.
    """
    plain = gemm_time(gpu, kernel.parameters, form, m, shape)
    key = (float(shape[0]), float(shape[1]))
    whole = kernel.apply(plain, key, m)
    table = kernel.table
    if table is None or not table.covers(key) or not table.are_beyond(key).any():
        return plain, whole
    n, k = table.no_wider(key)
    more = key[0] * key[1] - n * k
    edge = kernel.apply(gemm_time(gpu, kernel.parameters, form, m, (n, k)), (n, k), m)
    read = {**kernel.parameters, "memory": min(kernel.parameters["memory"], GROWTH_BANDWIDTH)}
    rate = kernel.parameters["compute"] * form.compute_share * gpu.peak_flops[form.arithmetic]
    multiply_s = 2.0 * m * more / rate * table.ratio((n, k), m)  # as fast as the widest measured one, without padding
    most_s = edge.seconds + weights_s(gpu, read, form, more) + multiply_s
    return plain, whole.scaled(np.minimum(most_s / whole.seconds, 1.0))
