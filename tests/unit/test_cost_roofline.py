"""Roofline formulas: limits, monotony, and counts checked by brute force."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulator.cost.attention import chunk_pairs
from simulator.cost.roofline import (
    AttentionShape,
    Chunks,
    GemmFormat,
    MoeShape,
    active_experts,
    decode_attention_time,
    gemm_time,
    moe_time,
    p_norm,
    prefill_attention_time,
    wave_padding,
)
from simulator.hardware.profiles import load_gpu

GPU = load_gpu("h100_sxm")
BF16 = GemmFormat(2.0, 2.0, "bf16", quantised=False)
GEMM = {
    "t0_s": 3e-6,
    "compute": 0.8,
    "memory": 0.8,
    "p": 3.0,
    "tile_m": 128.0,
    "tile_n": 128.0,
    "wave": 0.0,
    "quantise": 0.5,
}
ATTENTION = {
    "t0_s": 0.0,
    "compute": 1.0,
    "memory": 1.0,
    "p": 8.0,
    "wave": 0.0,
    "dim": 0.0,
    "past": 1.0,
    "fill_tokens": 1.0,
}
DECODE = {
    "t0_s": 0.0,
    "compute": 1.0,
    "memory": 1.0,
    "p": 8.0,
    "fill": 0.0,
    "unit_s": 0.0,
    "l2_share": 1.0,
    "l2_speed": 4.0,
    "split_tokens": 256.0,
}
MOE = {"t0_s": 0.0, "compute": 1.0, "memory": 1.0, "p": 8.0, "pad": 0.0, "activation": 0.0, "global": 0.0}


@given(st.floats(1e-9, 1.0), st.floats(1e-9, 1.0), st.floats(1.0, 8.0))
def test_p_norm_lies_between_the_larger_part_and_the_sum(a: float, b: float, p: float) -> None:
    value = float(p_norm(a, b, p))
    assert max(a, b) * (1 - 1e-12) <= value <= (a + b) * (1 + 1e-12)


def test_gemm_of_one_row_is_bound_by_its_weights_and_of_many_rows_by_arithmetic() -> None:
    small = gemm_time(GPU, GEMM, BF16, np.array([1.0]), (8192, 8192))
    large = gemm_time(GPU, GEMM, BF16, np.array([8192.0]), (8192, 8192))
    assert small.bound_by() == "memory"
    assert small.memory_s[0] == pytest.approx((8192 * 8192 + 2 * 8192) * 2 / (0.8 * 3.35e12))
    assert large.bound_by() == "compute"
    assert large.compute_s[0] == pytest.approx(2 * 8192**3 / (0.8 * 989e12))
    assert large.flops[0] == 2 * 8192**3


def test_quantising_activations_costs_time_and_widening_weights_bounds_their_rate() -> None:
    plain = gemm_time(GPU, GEMM, GemmFormat(1.0, 1.0, "fp8", quantised=False), np.array([4096.0]), (4096, 4096))
    quantised = gemm_time(GPU, GEMM, GemmFormat(1.0, 1.0, "fp8", quantised=True), np.array([4096.0]), (4096, 4096))
    assert quantised.seconds[0] - plain.seconds[0] == pytest.approx(4096 * 4096 * 3 / (0.5 * 3.35e12))
    slow = GemmFormat(0.53, 2.0, "bf16", quantised=False, widened_per_s=1e12)
    assert gemm_time(GPU, GEMM, slow, np.array([1.0]), (8192, 8192)).memory_s[0] > 8192**2 / 1e12


def test_the_last_wave_of_tiles_is_padded() -> None:
    assert wave_padding(132, 132, 1.0) == pytest.approx(1.0)
    assert wave_padding(133, 132, 1.0) == pytest.approx(264 / 133)
    assert wave_padding(133, 132, 0.5) == pytest.approx(1 + 0.5 * (264 / 133 - 1))


@given(st.integers(1, 60), st.integers(0, 90), st.sampled_from([0, 1, 7, 32, 64]))
def test_chunk_pairs_counts_what_each_query_sees(new: int, past: int, window: int) -> None:
    pairs, attended = chunk_pairs(new, past, window)
    seen = [min(past + i, window) if window else past + i for i in range(1, new + 1)]
    assert float(pairs) == sum(seen)
    assert float(attended) == new + (min(past, window) if window else past)


def test_prefill_attention_counts_four_flops_a_pair_and_dimension_and_reads_a_past_more_slowly() -> None:
    shape = AttentionShape(32, 8, 128, 128, 4096.0)
    time = prefill_attention_time(GPU, ATTENTION, shape, Chunks(1000.0, 500_500.0, 1000.0))
    assert time.flops == pytest.approx(4 * 32 * 128 * 500_500)
    paged = {**ATTENTION, "past": 0.5}
    own = Chunks(1000.0, 1e6, 1000.0, 0.0)
    all_past = Chunks(1000.0, 1e6, 1000.0, 1e6)
    ratio = (
        prefill_attention_time(GPU, paged, shape, all_past).compute_s
        / prefill_attention_time(GPU, paged, shape, own).compute_s
    )
    assert ratio == pytest.approx(2.0)


def test_decode_attention_reads_the_cache_once_and_faster_only_where_a_benchmark_keeps_it_in_l2() -> None:
    shape = AttentionShape(32, 8, 128, 128, 4096.0)
    cold = decode_attention_time(GPU, DECODE, shape, (4.0, 1000.0), warm=False)
    assert cold.memory_s == pytest.approx((4 * 1000 * 4096 + 4 * 32 * 256 * 2) / 3.35e12)
    warm = decode_attention_time(GPU, DECODE, shape, (4.0, 1000.0), warm=True)
    assert warm.memory_s < 0.3 * cold.memory_s
    large = [decode_attention_time(GPU, DECODE, shape, (512.0, 4096.0), warm=w).memory_s for w in (True, False)]
    assert large[0] == pytest.approx(large[1], rel=1e-6)


def test_pieces_too_few_to_fill_the_gpu_wait_as_long_as_was_measured() -> None:
    shape, starved = AttentionShape(8, 1, 128, 128, 512.0), {**DECODE, "fill": 4.0}
    few = [decode_attention_time(GPU, starved, shape, (2.0, 512.0), warm=w).memory_s for w in (True, False)]
    assert few[1] == pytest.approx(few[0], rel=1e-3)  # latency: not a matter of L2
    full = {**DECODE, "fill": 0.01}  # where the same pieces do fill it, it is
    many = [decode_attention_time(GPU, full, shape, (2.0, 512.0), warm=w).memory_s for w in (True, False)]
    assert many[1] > 1.5 * many[0]
    assert few[1] > (2 * 512 * 512 + 2 * 8 * 256 * 2) / 3.35e12


def test_distinct_experts_are_those_of_independent_choices() -> None:
    shape = MoeShape(64, 32, 16, 16, 2)
    rng = np.random.default_rng(0)
    tokens = 9
    drawn = [len({e for _ in range(tokens) for e in rng.permutation(16)[:2]}) for _ in range(4000)]
    assert float(active_experts(shape, tokens)) == pytest.approx(np.mean(drawn), rel=0.01)
    assert float(active_experts(shape, tokens, 1.0)) == 16.0
    assert float(active_experts(shape, 4, 1.0)) == 8.0
    assert float(active_experts(shape, 64, 0.5)) == 8.0


def test_fewer_distinct_experts_are_chosen_where_they_are_not_equally_popular() -> None:
    shape = MoeShape(64, 32, 256, 256, 8)
    rng = np.random.default_rng(0)
    load = np.exp(0.9 * rng.standard_normal((400, 256)))
    chance = np.minimum(8 * load / load.sum(axis=1, keepdims=True), 1.0)
    drawn = [(rng.random((16, 256)) < row).any(axis=0).sum() for row in chance]
    assert float(active_experts(shape, 16, skew=0.9)) == pytest.approx(np.mean(drawn), rel=0.02)
    assert float(active_experts(shape, 16, skew=0.9)) < 0.9 * float(active_experts(shape, 16))
    assert float(active_experts(shape, 1, skew=0.9)) == pytest.approx(8.0)


def test_expert_weights_are_read_only_where_an_expert_is_active() -> None:
    shape = MoeShape(4096, 1024, 64, 64, 4)
    few = moe_time(GPU, MOE, BF16, shape, (1.0, np.array(4.0)))
    all_of_them = moe_time(GPU, MOE, BF16, shape, (1.0, np.array(64.0)))
    assert all_of_them.memory_s == pytest.approx(16 * few.memory_s)
    assert few.memory_s == pytest.approx(4 * 3 * 4096 * 1024 * 2 / 3.35e12)
