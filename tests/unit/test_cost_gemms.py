"""GEMMs wider than all that were measured grow by what they read and multiply, not by the latencies of narrow ones."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from simulator.cost.gemms import GROWTH_BANDWIDTH, measured_gemm
from simulator.cost.kernels import Kernel, gemm_format, kernels_of
from simulator.cost.roofline import Floats, GemmFormat
from simulator.hardware.profiles import load_gpu

B200 = load_gpu("b200_sxm")
WIDEST = 16384


def nvfp4() -> tuple[Kernel, GemmFormat]:
    kind, form = gemm_format(B200, "nvfp4", "nvfp4")
    return kernels_of(B200).find("gemm", "trtllm", kind), form


def seconds(m: Floats, n: int, k: int) -> tuple[Floats, Floats]:
    """As before the rule (residual of the nearest shape alone), and with it."""
    kernel, form = nvfp4()
    plain, whole = measured_gemm(B200, kernel, form, m, (n, k))
    return kernel.apply(plain, (float(n), float(k)), m).seconds, whole.seconds


@pytest.mark.parametrize(("n", "k"), [(1024, 1024), (8192, 7168), (WIDEST, WIDEST), (640, 8192), (5000, 3000)])
def test_a_shape_no_wider_than_the_measured_ones_keeps_its_residual(n: int, k: int) -> None:
    by_residual, found = seconds(np.array([1.0, 64.0, 4096.0]), n, k)
    assert found == pytest.approx(by_residual, rel=1e-12)


@pytest.mark.parametrize(("n", "k"), [(57344, 8192), (28672, 8192), (8192, 28672)])
def test_few_tokens_add_the_reading_of_what_is_beyond_the_edge(n: int, k: int) -> None:
    kernel, form = nvfp4()
    m = np.array([4.0])
    by_residual, found = seconds(m, n, k)
    _, edge = seconds(m, min(n, WIDEST), min(k, WIDEST))
    more = n * k - min(n, WIDEST) * min(k, WIDEST)
    read_s = more * form.weight_bytes / (GROWTH_BANDWIDTH * B200.memory_bandwidth_bytes_per_s)
    multiply_s = 2.0 * m * more / (kernel.parameters["compute"] * B200.peak_flops["nvfp4"])
    assert edge + read_s < found < edge + read_s + 2.0 * multiply_s
    assert found < by_residual


def test_many_tokens_are_bound_by_arithmetic_and_nearly_keep_the_residual() -> None:
    by_residual, found = seconds(np.array([2048.0, 4096.0, 16384.0]), 57344, 8192)
    assert np.all(found <= by_residual)
    assert found == pytest.approx(by_residual, rel=0.05)


@pytest.mark.parametrize("m", [1.0, 16.0, 128.0, 1024.0])
def test_wider_never_takes_less(m: float) -> None:
    widths = [WIDEST, 18000, 24576, 28672, 40000, 57344, 4 * WIDEST]
    found = [float(seconds(np.array([m]), n, 8192)[1][0]) for n in widths]
    assert all(later >= sooner * 0.999 for sooner, later in pairwise(found))


def test_the_origin_says_that_a_shape_lies_beyond_the_measured_ones() -> None:
    kernel, _ = nvfp4()
    assert kernel.origin((8192.0, 8192.0)).startswith("measured: ")
    assert kernel.origin((57344.0, 8192.0)).startswith("beyond the measured shapes, by the nearest: ")
    assert kernel.origin((4.1 * WIDEST, 8192.0)).startswith("roofline, shape outside the table: ")
