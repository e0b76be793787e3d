"""Norms and quantisation that are part of another kernel, whose GEMMs and experts an engine runs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from simulator.cost.engine_costs import EngineCosts, load_engine_costs
from simulator.cost.experts import aligned_rows
from simulator.cost.fusion import fused_norm_bytes, gemm_kernels, quantised_before
from simulator.cost.operators import Step
from simulator.errors import TopologyError
from simulator.hardware.profiles import load_gpu
from simulator.models.catalogue import load_model
from simulator.models.precision import Parallel, Precision

FUSED = load_engine_costs("vllm-0.10-decode-graphs")
#: Tokens of Llama-3.1-70B (16 KiB of activations each) on either side of 8 MiB.
SMALL, LARGE = np.array([16.0]), np.array([4096.0])


def llama(costs: EngineCosts, tp: int = 8, weights: str = "fp8") -> Step:
    gpu, precision = load_gpu("b200_sxm"), Precision(weights, kv_cache="fp8")
    return Step(load_model("llama-3.1-70b"), gpu, precision, Parallel(tp=tp), costs)


def seconds(step: Step, name: str, tokens: np.ndarray[tuple[int], np.dtype[np.float64]]) -> float:
    found = {op.name: op for op in step.token_operators}
    return float(found[name].total(tokens).seconds[0]) if name in found else 0.0


def test_the_limit_of_fused_norms_is_that_of_the_largest_number_of_ranks_not_above() -> None:
    assert [fused_norm_bytes(FUSED, ranks) for ranks in (1, 2, 4, 8, 16)] == [0.0, 33.5e6, 33.5e6, 8.4e6, 8.4e6]
    assert fused_norm_bytes(replace(FUSED, fused_norm_bytes=()), 8) == np.inf
    assert fused_norm_bytes(replace(FUSED, fused_norm_all_reduce=False), 8) == 0.0


def test_small_messages_take_the_fused_all_reduce_and_no_norm_and_large_ones_the_engines_own() -> None:
    fused, apart = llama(FUSED), llama(replace(FUSED, fused_norm_all_reduce=False))
    for name in ("all-reduce after attention", "attention norm"):
        assert seconds(fused, name, SMALL) < seconds(apart, name, SMALL)
        assert seconds(fused, name, LARGE) == seconds(apart, name, LARGE)
    assert seconds(fused, "attention norm", SMALL) == 0.0
    # 32 tokens on eight GPUs: vLLM's own takes 33 us there, the fused one 11
    ratio = seconds(apart, "all-reduce after attention", np.array([32.0])) / seconds(
        fused, "all-reduce after attention", np.array([32.0])
    )
    assert 2.0 < ratio < 4.0


def test_quantisation_is_saved_where_the_kernel_before_does_it() -> None:
    message = np.array([1e6, 1e8])
    assert quantised_before(FUSED, "norm", 8, message).tolist() == [1.0, 0.0]
    assert quantised_before(FUSED, "norm", 1, message).tolist() == [0.0, 0.0]
    assert quantised_before(FUSED, "attention", 1, message).tolist() == [1.0, 1.0]
    assert quantised_before(FUSED, "activation", 8, message).tolist() == [0.0, 0.0]
    plain = llama(replace(FUSED, fused_quantisation=()))
    saved = {
        name: seconds(plain, name, SMALL) - seconds(llama(FUSED), name, SMALL)
        for name in ("qkv projection", "output projection", "MLP gate and up", "MLP down")
    }
    assert saved.pop("MLP down") == 0.0
    assert min(saved.values()) > 0


def test_true_means_every_kernel_before() -> None:
    assert load_engine_costs("tensorrt-llm").fused_quantisation == ("norm", "attention", "activation")
    assert load_engine_costs("vllm-0.25").fused_quantisation == ()


def test_gemms_of_one_format_may_be_those_of_another_library() -> None:
    assert gemm_kernels(FUSED, "nvfp4") == "trtllm"
    assert gemm_kernels(FUSED, "fp8") == "vllm"
    own = llama(replace(FUSED, gemm_kernels=()), weights="nvfp4")
    assert seconds(llama(FUSED, weights="nvfp4"), "MLP down", SMALL) > seconds(own, "MLP down", SMALL)


def test_widened_experts_compute_equally_fast_on_gpus_of_equal_arithmetic() -> None:
    def prompt_s(gpu: str, engine: str) -> float:
        model, precision = load_model("gpt-oss-120b"), Precision("mxfp4")
        step = Step(model, load_gpu(gpu), precision, Parallel(tp=2), load_engine_costs(engine))
        return seconds(step, "experts", np.array([8192.0]))

    assert prompt_s("h200_sxm", "vllm-0.25") == pytest.approx(prompt_s("h100_sxm", "vllm-0.25"), rel=0.01)
    # bf16 Triton rows, tuned apart for each GPU, differ by more
    assert prompt_s("h200_sxm", "sglang") < 0.95 * prompt_s("h100_sxm", "sglang")


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("fused_quantisation: [norms]", "fused_quantisation"),
        ("fused_norm_bytes: {1: 1.0e6}", "fused_norm_bytes"),
        ("fused_norm_bytes: {2: -1.0}", "fused_norm_bytes"),
    ],
)
def test_what_a_profile_cannot_mean_is_refused_in_one_line(tmp_path: Path, line: str, says: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(f"extends: vllm\nname: mine\ncosts: {{{line}, sources: {{}}}}\n", encoding="utf-8")
    with pytest.raises(TopologyError, match=says) as caught:
        load_engine_costs(path)
    assert "\n" not in str(caught.value)


def test_experts_of_a_worst_case_layout_take_as_long_for_few_tokens_as_for_many() -> None:
    model, precision = load_model("qwen3-235b-a22b"), Precision("fp8_block")
    costs = load_engine_costs("vllm-0.12")
    shape = Step(model, load_gpu("h200_sxm"), precision, Parallel(tp=2), costs).moe_shape()
    assert aligned_rows(shape, 16, 128) == 128 * 128  # 128 rows and 128 x 127 of padding
    # what is left of measured steps (TPOT of Qwen3-235B, 50 and 30 ms) beside their other kernels
    for parallel, low, high in ((Parallel(tp=2), 38e-3, 45e-3), (Parallel(tp=4), 19e-3, 23e-3)):
        step = Step(model, load_gpu("h200_sxm"), precision, parallel, costs)
        few, many = (seconds(step, "experts", np.array([float(n)])) for n in (6, 16))
        assert low < few < many < high and many < 1.15 * few
        tables = replace(step, costs=replace(costs, expert_block_rows=0))
        assert seconds(tables, "experts", np.array([6.0])) < 0.5 * few
    bf16 = Step(load_model("qwen3-235b-a22b"), load_gpu("h200_sxm"), Precision(), Parallel(tp=8), costs)
    plain = replace(bf16, costs=replace(costs, expert_block_rows=0))
    assert seconds(bf16, "experts", SMALL) == seconds(plain, "experts", SMALL)
