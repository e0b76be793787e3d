"""Steps: the table of counts against direct evaluation, the explained lines against their sum, and known limits."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from simulator.cost import table as compiled
from simulator.cost.engine_costs import load_engine_costs
from simulator.cost.launches import block_gemms, eager_launch_s
from simulator.cost.operators import Step
from simulator.cost.roofline import stream_time
from simulator.cost.step import (
    build_step_cost,
    decode_step_seconds,
    explain_step,
    mixed_step_seconds,
    padded_batch,
)
from simulator.hardware.profiles import list_gpus, load_gpu
from simulator.models.catalogue import load_model
from simulator.models.precision import Parallel, Precision

CASES = [
    ("llama-3.1-8b", "h100_sxm", Precision(), Parallel(), "vllm-0.25"),
    ("llama-3.1-70b", "h200_sxm", Precision("fp8", kv_cache="fp8"), Parallel(tp=4), "tensorrt-llm"),
    ("qwen3-30b-a3b", "h200_sxm", Precision(), Parallel(), "sglang"),
    ("deepseek-v3", "b200_sxm", Precision("nvfp4", kv_cache="fp8"), Parallel(tp=1, dp=8, ep=8), "vllm-0.12"),
    ("gpt-oss-120b", "h100_sxm", Precision("mxfp4"), Parallel(tp=2), "vllm-0.25"),
    ("llama-3.1-70b", "a100_80gb_sxm", Precision("int4"), Parallel(tp=2, pp=2), "vllm-0.25"),
    ("deepseek-v3", "gb200", Precision("fp8_block"), Parallel(tp=16, ep=16), "tensorrt-llm"),
    ("llama-3.1-70b", "b200_sxm", Precision("nvfp4", kv_cache="fp8"), Parallel(tp=8), "vllm-0.10-decode-graphs"),
    ("deepseek-v3", "b200_sxm", Precision("nvfp4"), Parallel(tp=8, ep=8), "tensorrt-llm-dependent-launch"),
]
SIZES = {"max_tokens": 8192, "max_seqs": 256, "max_context": 65536}


def step_of(case: tuple[str, str, Precision, Parallel, str]) -> Step:
    model, gpu, precision, parallel, engine = case
    return Step(load_model(model), load_gpu(gpu), precision, parallel, load_engine_costs(engine))


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case[0]}-{case[1]}")
def test_the_table_agrees_with_direct_evaluation_at_random_shapes(
    case: tuple[str, str, Precision, Parallel, str],
) -> None:
    step = step_of(case)
    table = build_step_cost(step.model, step.gpu, step.precision, step.parallel, step.costs, **SIZES)
    cost = compiled.step_cost_record(table)
    rng = np.random.default_rng(0)
    for _ in range(30):
        seqs = int(rng.integers(1, 257))
        context = int(seqs * np.exp(rng.uniform(np.log(4), np.log(60000))))
        direct = decode_step_seconds(step, seqs, context)
        assert compiled.decode_step_seconds(cost, seqs, context) == pytest.approx(direct, rel=0.005)
        new, past = (int(np.exp(rng.uniform(np.log(low), np.log(high)))) for low, high in ((8, 7000), (1, 50000)))
        attention = compiled.chunk_attention_seconds(cost, new, past)
        decodes = int(rng.integers(0, 200))
        got = compiled.mixed_step_seconds(cost, decodes, decodes * 900, 1, new, past, attention, 1)
        got = max(got + table.mixed_prepare_s, compiled.launch_seconds(cost, decodes + new, decodes + 1))
        want = mixed_step_seconds(step, [(new, past)], decodes, decodes * 900)
        assert got == pytest.approx(want, rel=0.005)


def test_equal_calls_share_one_table() -> None:
    step = step_of(CASES[0])
    args = (step.model, step.gpu, step.precision, step.parallel, step.costs)
    assert build_step_cost(*args, **SIZES) is build_step_cost(*args, **SIZES)


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case[0]}-{case[1]}")
def test_explained_lines_add_up_to_the_step(case: tuple[str, str, Precision, Parallel, str]) -> None:
    step = step_of(case)
    args = (step.model, step.gpu, step.precision, step.parallel, step.costs)
    decode = explain_step(*args, decode=(48, 48 * 1500))
    assert sum(line.seconds for line in decode) == pytest.approx(decode_step_seconds(step, 48, 48 * 1500))
    mixed = explain_step(*args, prefill=[(2048, 0), (512, 3000)], decode=(48, 48 * 1500))
    direct = mixed_step_seconds(step, [(2048, 0), (512, 3000)], 48, 48 * 1500)
    assert sum(line.seconds for line in mixed) == pytest.approx(direct)
    kinds = ("memory", "compute", "latency", "host", "overlap")
    assert all(line.source and line.bound_by in kinds for line in decode + mixed)


def test_launching_kernel_by_kernel_is_a_floor_under_large_steps_alone() -> None:
    step = step_of(CASES[0])
    slow = replace(step, costs=replace(step.costs, eager_layer_s=10e-3))
    small, large = step.costs.mixed_graph_tokens, step.costs.mixed_graph_tokens + 1
    assert mixed_step_seconds(slow, [(small, 0)]) == mixed_step_seconds(step, [(small, 0)])
    assert mixed_step_seconds(slow, [(large, 0)]) > 32 * 10e-3
    lines = explain_step(slow.model, slow.gpu, slow.precision, slow.parallel, slow.costs, prefill=[(large, 0)])
    assert sum(line.seconds for line in lines) == pytest.approx(mixed_step_seconds(slow, [(large, 0)]))
    assert any(line.operator == "launching kernel by kernel" for line in lines)


def test_the_gpu_idles_between_kernels_that_are_launched_one_by_one() -> None:
    step = step_of(CASES[0])
    without, gaps = (replace(step, costs=replace(step.costs, eager_gap_s=s)) for s in (0.0, 1e-3))
    small, large = step.costs.mixed_graph_tokens, 8 * step.costs.mixed_graph_tokens
    assert mixed_step_seconds(gaps, [(small, 0)]) == mixed_step_seconds(without, [(small, 0)])
    longer = mixed_step_seconds(gaps, [(large, 0)]) - mixed_step_seconds(without, [(large, 0)])
    assert longer == pytest.approx(step.model.layers * 1e-3 * (1 + step.costs.mixed_slower))
    assert step.model.layers * 1e-3 == pytest.approx(
        next(
            line.seconds
            for line in explain_step(
                gaps.model, gaps.gpu, gaps.precision, gaps.parallel, gaps.costs, prefill=[(large, 0)]
            )
            if line.operator == "gaps between kernels"
        )
    )


def test_a_power_limit_slows_kernels_not_launches() -> None:
    step = step_of(("deepseek-v3", "b200_sxm", Precision("nvfp4", kv_cache="fp8"), Parallel(tp=8), "tensorrt-llm"))
    slow = replace(step, costs=replace(step.costs, mixed_slower=0.5, full_clock_formats=()))
    cool = replace(step, costs=replace(step.costs, mixed_slower=0.5, full_clock_formats=("nvfp4",)))
    # 61 layers are launched in 0.13 s, whatever their kernels take meanwhile; attention over the cache comes after
    few = [(64, 0)]
    attention_s = float(step.attention.chunk_seconds(np.array([64.0]), np.array([0.0]))[0])
    assert mixed_step_seconds(step, few) > eager_launch_s(step) > 0.1
    most = eager_launch_s(step) + 1.5 * attention_s + 2e-3
    assert mixed_step_seconds(slow, few) < most
    many = [(8192, 0)] * 4
    assert step.costs.mixed_slower > 0
    assert mixed_step_seconds(step, many) == mixed_step_seconds(cool, many)
    assert mixed_step_seconds(slow, many) / mixed_step_seconds(cool, many) == pytest.approx(1.5, rel=0.01)
    other = replace(cool, precision=Precision("fp8", kv_cache="fp8"))
    asked = replace(slow, precision=other.precision)
    assert mixed_step_seconds(other, many) == mixed_step_seconds(asked, many)


def test_a_limit_that_was_measured_stands_in_for_the_share_of_others() -> None:
    steps = [
        step_of(("deepseek-v3", gpu, Precision("fp8_block"), Parallel(tp=8), "sglang"))
        for gpu in ("h200_sxm", "b200_sxm")
    ]
    known, unknown = (
        replace(step, costs=replace(step.costs, mixed_slower=0.1, power_slower=0.2, power_limit=True)) for step in steps
    )
    assert (known.slower, unknown.slower) == (0.1, pytest.approx(0.3))
    assert replace(known, costs=replace(known.costs, power_limit=False)).slower == pytest.approx(0.3)


def test_prompts_wait_for_the_gpu_whose_experts_have_most_to_do() -> None:
    def experts_s(step: Step, decode: bool) -> float:
        operators = step.decode_token_operators if decode else step.token_operators
        return float(next(op for op in operators if op.name == "experts").total(np.array([8192.0])).seconds[0])

    for spread, slower in ((8, "balanced"), (1, "by_groups")):
        case = ("deepseek-v3", "b200_sxm", Precision("fp8_block"), Parallel(tp=8, ep=spread), "sglang")
        busiest, even, grouped = (
            replace(step_of(case), costs=replace(step_of(case).costs, routing=way))
            for way in ("busiest", "balanced", "by_groups")
        )
        expected = {"balanced": even, "by_groups": grouped}[slower]
        assert experts_s(busiest, decode=False) == experts_s(expected, decode=False)
        assert experts_s(busiest, decode=True) == experts_s(grouped, decode=True)
        assert experts_s(even, decode=False) != experts_s(grouped, decode=False)


def test_few_tokens_take_the_kernels_made_for_them() -> None:
    step = step_of(
        ("deepseek-v3", "b200_sxm", Precision("nvfp4", attention_weights="bf16"), Parallel(tp=8), "tensorrt-llm")
    )
    plain = replace(step, costs=replace(step.costs, low_latency_tokens=0))

    def seconds(of: Step, name: str, tokens: float) -> float:
        found = next(op for op in of.decode_token_operators if op.name == name)
        return float(found.total(np.array([tokens])).seconds[0])

    for name, most in (("router", 0.7), ("q and kv compression", 0.9)):
        assert seconds(step, name, 16) < most * seconds(plain, name, 16)
        assert seconds(step, name, 17) == seconds(plain, name, 17)
    read = step.model.layers * 2112 * 7168 * 2 / step.gpu.memory_bandwidth_bytes_per_s
    assert seconds(step, "q and kv compression", 16) > read
    assert seconds(step, "output projection", 16) == seconds(plain, "output projection", 16)
    quantised = replace(step, precision=Precision("fp8_block"))
    assert seconds(quantised, "q and kv compression", 16) == pytest.approx(
        seconds(replace(plain, precision=Precision("fp8_block")), "q and kv compression", 16)
    )


def test_a_router_with_a_bias_has_a_kernel_for_few_tokens_of_its_own() -> None:
    step = step_of(("gpt-oss-120b", "b200_sxm", Precision("mxfp4", activations="fp8"), Parallel(tp=4), "tensorrt-llm"))
    plain = replace(step, costs=replace(step.costs, low_latency_router_tokens=0))

    def seconds(of: Step, tokens: float) -> float:
        found = next(op for op in of.decode_token_operators if op.name == "router")
        return float(found.total(np.array([tokens])).seconds[0])

    assert seconds(step, 128) < seconds(plain, 128)
    assert seconds(step, 129) == seconds(plain, 129)
    qwen = step_of(("qwen3-235b-a22b", "b200_sxm", Precision("fp8_block"), Parallel(tp=4), "tensorrt-llm"))
    assert seconds(qwen, 8) == seconds(replace(qwen, costs=plain.costs), 8)


def test_experts_that_choose_for_themselves_leave_no_kernel_for_it() -> None:
    step = step_of(("gpt-oss-120b", "b200_sxm", Precision("mxfp4", activations="fp8"), Parallel(tp=4), "tensorrt-llm"))
    inside = replace(step, costs=replace(step.costs, router_choice_inside=True))
    names = [[op.name for op in of.token_operators] for of in (step, inside)]
    assert set(names[0]) - set(names[1]) == {"top-k of the router"}


@pytest.mark.parametrize(
    ("model", "gpu", "weights", "inside"),
    [
        ("qwen3-30b-a3b", "h200_sxm", "bf16", True),
        ("qwen3-235b-a22b", "h200_sxm", "fp8_block", True),
        ("gpt-oss-120b", "h200_sxm", "mxfp4", False),  # widened in registers: derived from other rows
        ("gpt-oss-120b", "b200_sxm", "mxfp4", False),
    ],
)
def test_rows_of_experts_that_begin_with_the_routers_logits_have_its_choice(
    model: str, gpu: str, weights: str, inside: bool
) -> None:
    step = step_of((model, gpu, Precision(weights), Parallel(tp=2), "vllm-0.25"))
    apart = replace(step, costs=replace(step.costs, router_choice_in_rows=False))
    names = [{op.name for op in of.token_operators} for of in (step, apart)]
    assert names[1] - names[0] == ({"top-k of the router"} if inside else set())
    assert "top-k of the router" in names[1]


@pytest.mark.parametrize(
    ("model", "plain"), [("deepseek-v2-lite", True), ("deepseek-v3", False), ("qwen3-30b-a3b", False)]
)
def test_softmax_scores_in_groups_are_chosen_from_without_a_kernel(model: str, plain: bool) -> None:
    step = step_of((model, "h200_sxm", Precision("bf16"), Parallel(tp=8), "vllm-0.25"))
    found = [op for op in step.token_operators if op.name == "choice among groups"]
    assert [op.launches for op in found] == ([step.model.moe_layers] if plain else [])
    assert all(float(op.total(np.array([64.0])).seconds[0]) == pytest.approx(6e-6 * op.launches) for op in found)


def test_small_passes_move_at_the_speed_of_the_second_level_cache_and_large_ones_at_the_memory_s() -> None:
    gpu, kernels = load_gpu("h200_sxm"), step_of(CASES[0]).kernels
    parameters = kernels.find("elementwise", "any", "any").parameters
    small, large = (float(stream_time(gpu, parameters, size).seconds) - parameters["t0_s"] for size in (20e6, 500e6))
    assert 20e6 / small == pytest.approx(parameters["cached_bytes_per_sm_s"] * gpu.sms, rel=0.01)
    assert 500e6 / large == pytest.approx(parameters["memory"] * gpu.memory_bandwidth_bytes_per_s, rel=0.01)
    plain = {name: parameters[name] for name in ("t0_s", "memory")}
    assert float(stream_time(gpu, plain, 20e6).seconds) > parameters["t0_s"] + small
    sizes = np.geomspace(1e5, 1e9, 200)
    seconds = stream_time(gpu, parameters, sizes).seconds
    assert (np.diff(seconds) > 0).all()


def test_fewer_experts_are_read_where_some_are_popular() -> None:
    step = step_of(("qwen3-235b-a22b", "h100_sxm", Precision("fp8_block"), Parallel(tp=4, ep=4), "tensorrt-llm-1.0"))
    alike = replace(step, costs=replace(step.costs, experts=replace(step.costs.experts, skew=0.0)))

    def seconds(of: Step, tokens: float) -> float:
        found = next(op for op in of.decode_token_operators if op.name == "experts")
        return float(found.total(np.array([tokens])).seconds[0])

    assert 0.7 < seconds(step, 16) / seconds(alike, 16) < 0.85
    assert seconds(step, 8192) == pytest.approx(seconds(alike, 8192), rel=1e-3)


def test_ranks_wait_for_one_another_at_every_all_reduce_of_a_step() -> None:
    step = step_of(("llama-3.1-70b", "b200_sxm", Precision("fp8", kv_cache="fp8"), Parallel(tp=8), "tensorrt-llm"))
    together = replace(step, costs=replace(step.costs, all_reduce_wait_s=0.0))
    longer = decode_step_seconds(step, 8, 8000) - decode_step_seconds(together, 8, 8000)
    assert longer == pytest.approx((2 * 80 + 1) * step.costs.all_reduce_wait_s)
    alone = replace(step, parallel=Parallel())
    assert decode_step_seconds(alone, 8, 8000) == decode_step_seconds(replace(alone, costs=together.costs), 8, 8000)


def test_attention_ranks_tell_one_another_what_a_step_holds() -> None:
    for parallel, gap_s in ((Parallel(dp=8, ep=8), 3e-3), (Parallel(tp=8, ep=8), 0.0)):
        plain = step_of(("deepseek-v3", "b200_sxm", Precision("nvfp4", kv_cache="fp8"), parallel, "tensorrt-llm"))
        telling = replace(plain, costs=replace(plain.costs, rank_gap_s=3e-3))
        decode = [decode_step_seconds(step, 64, 64 * 2000) for step in (plain, telling)]
        mixed = [mixed_step_seconds(step, [(1024, 0)], 64, 64 * 2000) for step in (plain, telling)]
        assert decode[1] - decode[0] == pytest.approx(gap_s, abs=1e-9)
        assert mixed[1] - mixed[0] == pytest.approx(gap_s, abs=1e-9)
    assert load_engine_costs("tensorrt-llm-1.1-first").rank_gap_s == 2.5e-3


def test_kernels_that_begin_early_shorten_steps_of_decode_alone_by_as_much_each() -> None:
    early = step_of(
        ("deepseek-v3", "b200_sxm", Precision("nvfp4"), Parallel(tp=8, ep=8), "tensorrt-llm-dependent-launch")
    )
    late = replace(early, costs=replace(early.costs, dependent_launch_s=0.0))
    lines = explain_step(
        *(getattr(late, n) for n in ("model", "gpu", "precision", "parallel", "costs")), decode=(4, 6000)
    )
    kernels = sum(line.launches for line in lines if line.bound_by != "host")
    saved = decode_step_seconds(late, 4, 6000) - decode_step_seconds(early, 4, 6000)
    assert saved == pytest.approx(kernels * early.costs.dependent_launch_s)
    assert 900 < kernels < 1300
    assert mixed_step_seconds(late, [(1024, 0)], 4, 6000) == mixed_step_seconds(early, [(1024, 0)], 4, 6000)


def test_each_product_in_blocks_quantises_its_activations() -> None:
    step = step_of(
        ("qwen3-32b", "h100_sxm", Precision("fp8_block", kv_cache="fp8"), Parallel(tp=8), "tensorrt-llm-1.0")
    )
    free = replace(step, costs=replace(step.costs, block_quantise_s=0.0))
    longer = decode_step_seconds(step, 8, 8000) - decode_step_seconds(free, 8, 8000)
    assert longer == pytest.approx(4 * 64 * step.costs.block_quantise_s)
    whole = [replace(of, precision=Precision("fp8", kv_cache="fp8")) for of in (step, free)]
    assert decode_step_seconds(whole[0], 8, 8000) == decode_step_seconds(whole[1], 8, 8000)


def test_lone_decode_is_bound_by_reading_the_weights() -> None:
    step = step_of(CASES[0])
    weights = step.model.weight_bytes(step.precision, step.parallel) / step.gpu.memory_bandwidth_bytes_per_s
    assert weights < decode_step_seconds(step, 1, 100) < 1.6 * weights


def test_more_work_never_takes_less_time_but_for_measured_wiggles() -> None:
    step = step_of(CASES[0])
    times = [decode_step_seconds(step, n, n * 1000) for n in (1, 8, 64, 256)]
    assert times == sorted(times)
    chunks = [mixed_step_seconds(step, [(1024, past)]) for past in (0, 1000, 10000, 100000)]
    assert chunks == sorted(chunks)


def test_a_window_bounds_decode_attention() -> None:
    attention = step_of(CASES[4]).attention
    assert dict(attention.layers) == {0: 18, 128: 18}
    at = [float(attention.decode(np.array([32.0]), c, 128).seconds[0]) for c in (127.0, 5000.0)]
    assert at[0] == pytest.approx(at[1])


def test_tensor_parallel_ranks_add_all_reduces_and_data_parallel_ones_an_exchange() -> None:
    names = {op.name for op in step_of(CASES[1]).token_operators}
    assert {"all-reduce after attention", "all-reduce after feed-forward"} <= names
    spread = {op.name for op in step_of(CASES[3]).token_operators}
    assert {"all-gather to experts", "reduce-scatter from experts"} <= spread
    assert "handover to the next stage" in {op.name for op in step_of(CASES[5]).token_operators}


@pytest.mark.parametrize(("ranks", "megabytes"), [(2, 16), (4, 8)])
def test_a_norm_is_part_of_the_all_reduce_before_it_as_far_as_the_buffers_reach(ranks: int, megabytes: int) -> None:
    case = ("llama-3.1-70b", "h200_sxm", Precision("fp8"), Parallel(tp=ranks), "tensorrt-llm")
    step = step_of(case)
    norm = next(op for op in step.token_operators if op.name == "attention norm")
    last = megabytes * 10**6 // (step.model.hidden * 2)
    within, beyond = norm.total(np.array([float(last), float(last + 1)])).seconds
    whole = step_of((*case[:4], "tensorrt-llm-1.0"))
    apart = next(op for op in whole.token_operators if op.name == "attention norm")
    assert within == 0.0 and beyond == apart.total(np.array([float(last + 1)])).seconds[0] > 80 * 5e-6
    assert apart.total(np.array([1.0])).seconds[0] > 0
    args = (step.model, step.gpu, step.precision, step.parallel, step.costs)
    names = [line.operator for line in explain_step(*args, decode=(8, 8000.0))]
    assert "attention norm" not in names


def test_attention_that_rotates_leaves_no_pass_for_it_but_one_for_norms_of_q_and_k() -> None:
    for model, passes in (("llama-3.1-8b", 0), ("qwen3-32b", 64)):
        step = step_of((model, "h100_sxm", Precision("bf16"), Parallel(), "tensorrt-llm"))
        launches = {op.name: op.launches for op in step.token_operators}
        assert launches.get("rotary embedding", 0) == passes and launches.get("KV cache write", 0) == 0
    apart = step_of(("llama-3.1-8b", "h100_sxm", Precision("bf16"), Parallel(), "vllm-0.25"))
    assert {op.name: op.launches for op in apart.token_operators}["KV cache write"] == 32


def test_attention_ranks_share_sequences_and_experts_see_all_tokens() -> None:
    step = step_of(CASES[3])
    one = replace(step, parallel=Parallel())
    qkv = {op.name: op for op in step.token_operators}["q and kv compression"]
    alone = {op.name: op for op in one.token_operators}["q and kv compression"]
    assert qkv.time(np.array([64.0])).flops == pytest.approx(alone.time(np.array([8.0])).flops)
    shape = step.moe_shape()
    assert (shape.local_experts, shape.width) == (32, 2048)


def test_identical_routing_reads_one_set_of_experts() -> None:
    step = step_of(CASES[2])
    same = replace(step, costs=replace(step.costs, decode_routing="identical"))
    assert decode_step_seconds(same, 64, 64 * 500) < 0.6 * decode_step_seconds(step, 64, 64 * 500)
    assert mixed_step_seconds(same, [(256, 0)]) == mixed_step_seconds(step, [(256, 0)])


def test_fusing_quantisation_saves_time() -> None:
    step = step_of(CASES[1])
    apart = replace(step, costs=replace(step.costs, fused_quantisation=()))
    assert decode_step_seconds(step, 8, 8000) < decode_step_seconds(apart, 8, 8000)


def test_batches_run_at_the_next_captured_size() -> None:
    assert padded_batch([1, 3, 9, 600], (1, 2, 4, 8, 16)).tolist() == [1, 4, 16, 600]
    assert padded_batch([3], ()).tolist() == [3]


def test_steps_without_asynchronous_scheduling_wait_for_the_host() -> None:
    step = step_of(CASES[0])
    waits = replace(step, costs=replace(step.costs, overlap=False))
    extra = decode_step_seconds(waits, 32, 32000) - decode_step_seconds(step, 32, 32000)
    assert extra == pytest.approx(step.costs.host_step_s + 32 * step.costs.host_seq_s)


@pytest.mark.parametrize("gpu", list_gpus())
def test_every_gpu_has_a_cost_and_says_when_it_is_derived(gpu: str) -> None:
    lines = explain_step(
        load_model("llama-3.1-8b"), load_gpu(gpu), Precision(), Parallel(), load_engine_costs("vllm"), decode=(8, 8000)
    )
    measured = gpu in ("h100_sxm", "h200_sxm", "b200_sxm")
    gemm = next(line for line in lines if line.operator == "output projection")
    assert gemm.source.startswith("measured" if measured else "derived")


@pytest.mark.parametrize("weights", ["bf16", "fp8", "fp8_block", "nvfp4", "mxfp4", "int4", "int8"])
@pytest.mark.parametrize("gpu", ["h100_sxm", "b200_sxm", "a100_80gb_sxm"])
def test_every_weight_format_runs_and_fewer_bytes_decode_faster(weights: str, gpu: str) -> None:
    step = Step(
        load_model("llama-3.1-70b"), load_gpu(gpu), Precision(weights), Parallel(tp=4), load_engine_costs("vllm")
    )
    plain = replace(step, precision=Precision())
    seconds = decode_step_seconds(step, 4, 4000)
    assert seconds <= decode_step_seconds(plain, 4, 4000) * 1.001
    assert mixed_step_seconds(step, [(1000, 0)]) > 0


def test_shared_experts_beside_the_routed_ones_cost_their_bytes_in_decode_alone() -> None:
    step = step_of(CASES[3])
    apart = replace(step, costs=replace(step.costs, shared_experts="apart"))
    beside = replace(step, costs=replace(step.costs, shared_experts="beside"))
    count = np.array([64.0])
    own = [op.total(count) for op in apart.decode_token_operators if op.name.startswith("shared experts")]
    saved = sum(float(time.seconds[0] - min(time.memory_s[0], time.seconds[0])) for time in own)
    assert saved > 0.0
    gone = decode_step_seconds(apart, 64, 64 * 500) - decode_step_seconds(beside, 64, 64 * 500)
    assert gone == pytest.approx(saved)
    assert mixed_step_seconds(beside, [(256, 0)]) == mixed_step_seconds(apart, [(256, 0)])


def test_gemms_scaled_by_blocks_take_the_host_longer_to_launch() -> None:
    step = step_of(("deepseek-v3", "b200_sxm", Precision("fp8_block"), Parallel(tp=8), "tensorrt-llm"))
    assert block_gemms(step) == 3 * 61 + 2 * (3 + 58)
    fp4 = replace(step, precision=Precision("nvfp4", attention_weights="bf16"))
    assert block_gemms(fp4) == 0
    more = eager_launch_s(step) - eager_launch_s(fp4)
    assert more == pytest.approx(block_gemms(step) * step.hosted.eager_block_gemm_s) and more > 0.01
    dense = step_of(("qwen3-32b", "h100_sxm", Precision("fp8_block"), Parallel(), "tensorrt-llm"))
    assert block_gemms(dense) == 4 * 64


def test_what_an_expert_backend_takes_beside_its_kernels() -> None:
    step = step_of(("deepseek-v3", "b200_sxm", Precision("fp8_block"), Parallel(tp=8, ep=8), "tensorrt-llm"))
    slow = replace(step, costs=replace(step.costs, expert_routing_s=1e-5, expert_token_s=1e-6))
    for seqs in (1, 64):
        slower, plain = (decode_step_seconds(s, seqs, seqs * 1000) for s in (slow, step))
        assert slower - plain == pytest.approx(58 * (1e-5 + 1e-6 * seqs))


def test_experts_that_widen_faster_are_bound_by_memory() -> None:
    step = step_of(("gpt-oss-120b", "h200_sxm", Precision("mxfp4"), Parallel(tp=2), "tensorrt-llm"))
    times = [
        decode_step_seconds(replace(step, costs=replace(step.costs, expert_widening=w)), 64, 64_000)
        for w in (0.5, 1.0, 9.0, 10.0)
    ]
    assert times[0] > times[1] > times[2] == times[3]
