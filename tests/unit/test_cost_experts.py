"""Expert parallelism: loads of GPUs, exchanges between them, and steps of two micro-batches."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from measured_rows import MEASURED

from simulator.cost.deepep import ExpertExchange
from simulator.cost.engine_costs import load_engine_costs
from simulator.cost.experts import BY_CHANCE, ExpertParallelism, aligned_work, further_tiles, imbalance, padded
from simulator.cost.kernels import kernels_of
from simulator.cost.operator import Operator
from simulator.cost.operators import Step
from simulator.cost.roofline import MoeShape, active_experts
from simulator.cost.step import build_step_cost, decode_step_seconds, explain_step, mixed_step_seconds
from simulator.cost.table import decode_step_seconds as table_decode_seconds
from simulator.cost.table import step_cost_record
from simulator.hardware.profiles import load_gpu
from simulator.models.catalogue import load_model
from simulator.models.precision import Parallel, Precision

V3 = load_model("deepseek-v3")
PRECISION = Precision("fp8_block", "bf16")
SKEWED = ExpertParallelism(redundant=32, skew=0.9, drift=0.3)


def step_of(gpus: int, gpu: str = "h800_sxm", **changes: object) -> Step:
    costs = load_engine_costs("sglang-deepep")
    costs = replace(costs, experts=replace(costs.experts, **changes))  # type: ignore[arg-type]
    return Step(V3, load_gpu(gpu), PRECISION, Parallel(dp=gpus, ep=gpus), costs)


def exchange(ranks: int, way: str = "dispatch", *, low_latency: bool = True) -> ExpertExchange:
    gpu = load_gpu("h800_sxm")
    kernel = kernels_of(gpu).find("deepep_low_latency" if low_latency else "deepep_normal", "any", "any")
    assert V3.moe is not None
    return ExpertExchange(gpu, ranks, V3.hidden, V3.moe, kernel, way, low_latency)


def test_an_even_load_is_one_and_popular_experts_make_it_grow_with_the_gpus() -> None:
    assert imbalance(ExpertParallelism(), 256, 64) == pytest.approx(1.0)
    loads = [imbalance(replace(SKEWED, placement="static"), 256, gpus) for gpus in (8, 32, 72, 256)]
    assert all(a < b for a, b in itertools.pairwise(loads))
    # one expert a GPU: the most popular one, whose load is known in closed form but for drift
    alone = imbalance(ExpertParallelism(placement="static", skew=1.0), 256, 256)
    assert alone == pytest.approx(np.exp(2.8854 - 0.5), rel=0.05)  # normal quantile of 255.5 / 256


def test_copies_of_busy_experts_even_out_what_is_known_but_not_what_drifts() -> None:
    known = replace(SKEWED, drift=0.0, placement="balanced")
    assert imbalance(known, 256, 32) < 1.03
    assert imbalance(replace(known, drift=0.3), 256, 32) > 1.1
    assert imbalance(replace(SKEWED, placement="balanced"), 256, 32) < imbalance(
        replace(SKEWED, placement="static"), 256, 32
    )


def test_few_rows_a_gpu_are_uneven_by_chance() -> None:
    spread = replace(SKEWED, skew=0.0, drift=0.0, placement="static")
    few, many = spread.load(256, 64, 16), spread.load(256, 64, 16384)
    assert float(few) > 1.5 > 1.05 > float(many) > 1.0
    assert float(ExpertParallelism().load(256, 64, 16)) == 1.0


@pytest.mark.parametrize("low_latency", [True, False])
@pytest.mark.parametrize("way", ["dispatch", "combine"])
def test_bytes_that_leave_the_node_grow_with_the_nodes_and_stay_below_all_of_them(way: str, low_latency: bool) -> None:
    sizes = [exchange(ranks, way, low_latency=low_latency).bytes_a_token() for ranks in (8, 16, 32, 64, 128, 256)]
    far = [size[1] for size in sizes]
    assert far[0] == 0.0
    assert all(a < b for a, b in itertools.pairwise(far))
    assert far[-1] <= 8 * exchange(8, way).token_bytes


def test_low_latency_kernels_send_every_choice_but_the_own_one() -> None:
    found = exchange(16)
    assert sum(found.bytes_a_token()) == pytest.approx(8 * found.token_bytes * 15 / 16)


def test_a_token_goes_once_to_a_node_in_normal_kernels() -> None:
    # two nodes of four groups each, four of eight groups chosen: only 2 of 70 choices leave one node out
    assert exchange(16, low_latency=False).reached_nodes() == pytest.approx(2 * (1 - 1 / 70))
    assert exchange(64, low_latency=False).reached_nodes() == pytest.approx(4.0)


def test_two_micro_batches_hide_exchanges_of_large_batches_and_cost_time_in_small_ones() -> None:
    times = {}
    for batch in (16, 256):
        for parts in (1, 2):
            step = step_of(72, micro_batches=parts)
            times[batch, parts] = decode_step_seconds(step, batch * 72, batch * 72 * 2000.0)
    assert times[256, 2] < times[256, 1]
    assert times[16, 2] > times[16, 1]
    exchanges = [op for op in step_of(72).decode_token_operators if op.busy is not None]
    counts = np.array([128.0 * 72])
    least = 2 * sum(float(op.total(counts).seconds[0]) for op in exchanges)
    assert times[256, 2] >= least


def test_busy_experts_slow_a_step_and_copies_help() -> None:
    prompts = [(4096, 0)] * (4 * 32)
    even, static, balanced = (
        mixed_step_seconds(step_of(32, placement=placement), prompts) for placement in ("even", "static", "balanced")
    )
    assert even < balanced < static


@pytest.mark.parametrize("prefill", [[], [(2048, 0)] * 32])
def test_explained_lines_add_up_with_micro_batches(prefill: list[tuple[int, int]]) -> None:
    step = step_of(32)
    lines = explain_step(
        V3, step.gpu, PRECISION, step.parallel, step.costs, prefill=prefill, decode=(4096, 4096 * 3000.0)
    )
    direct = (
        mixed_step_seconds(step, prefill, 4096, 4096 * 3000.0)
        if prefill
        else decode_step_seconds(step, 4096, 4096 * 3000.0)
    )
    assert sum(line.seconds for line in lines) == pytest.approx(direct, rel=1e-9)
    hidden = next(line for line in lines if line.operator == "hidden by the other micro-batch")
    exchanged = sum(line.seconds for line in lines if line.operator in ("expert dispatch", "expert combine"))
    assert -exchanged <= hidden.seconds < 0.0


def test_the_table_of_an_expert_parallel_engine_agrees_with_direct_evaluation() -> None:
    step = step_of(72)
    table = build_step_cost(
        V3,
        step.gpu,
        PRECISION,
        step.parallel,
        step.costs,
        max_tokens=8192,
        max_seqs=4096,
        max_context=8192,
    )
    for seqs in (72, 720, 4096):
        direct = decode_step_seconds(step, seqs, seqs * 2000.0)
        assert float(table_decode_seconds(step_cost_record(table), seqs, seqs * 2000.0)) == pytest.approx(
            direct, rel=5e-3
        )


def test_drafts_read_the_cache_once_but_are_computed() -> None:
    step = step_of(128)
    plain, drafted = (decode_step_seconds(step, 128 * 128, 128 * 128 * 4096.0, queries) for queries in (1, 2))
    assert plain < drafted < 2 * plain


def test_a_latent_in_eight_bits_is_read_faster() -> None:
    bf16 = step_of(32)
    fp8 = replace(bf16, precision=Precision("fp8_block", "fp8"))
    assert fp8.attention.decode_seconds(np.array([4096.0]), 8000.0) < bf16.attention.decode_seconds(
        np.array([4096.0]), 8000.0
    )


def test_tokens_of_prompts_are_added_up_over_all_ranks_and_those_of_decodes_gathered() -> None:
    costs = replace(load_engine_costs("sglang"), prompt_exchange="all_reduce")
    assert costs == load_engine_costs("sglang")
    step = Step(V3, load_gpu("b200"), PRECISION, Parallel(1, 1, 8, 8), costs)
    plain = replace(step, costs=replace(costs, prompt_exchange="gather"))
    names = [
        [op.name for op in found if "experts" in op.name]
        for found in (step.token_operators, step.decode_token_operators)
    ]
    assert [n for n in names[0] if n.startswith("all-")] == ["all-reduce to experts", "all-reduce from experts"]
    assert "all-gather to experts" in names[1] and "reduce-scatter from experts" in names[1]
    prompts = [(8192, 0)] * 8
    assert mixed_step_seconds(step, prompts) > mixed_step_seconds(plain, prompts)
    assert decode_step_seconds(step, 64, 64 * 2000.0) == decode_step_seconds(plain, 64, 64 * 2000.0)


SHAPE = MoeShape(2880, 1440, 128, 128, 4)


def test_fewer_experts_are_chosen_where_some_are_popular() -> None:
    tokens = np.array([0.0, 1.0, 4.0, 16.0, 64.0, 4096.0])
    even = active_experts(SHAPE, tokens)
    assert active_experts(SHAPE, tokens, skew=1e-6) == pytest.approx(even)
    some, more = (active_experts(SHAPE, tokens, skew=skew) for skew in (0.5, 1.0))
    # one token always chooses four; thousands reach all of them
    assert some[[0, 1]] == pytest.approx([0.0, 4.0])
    assert (some[2:5] < even[2:5]).all() and (more[2:5] < some[2:5]).all()
    assert more[-1] > 127
    drawn = np.random.default_rng(0)
    popularity = np.exp(0.5 * drawn.standard_normal((200, 128)))
    counts = [
        len({e for _ in range(16) for e in drawn.choice(128, 4, replace=False, p=row / row.sum())})
        for row in popularity
    ]
    assert some[3] == pytest.approx(np.mean(counts), rel=0.03)
    half = replace(SHAPE, local_experts=64)
    assert active_experts(half, tokens, skew=1.0) == pytest.approx(more / 2)


def test_experts_in_mxfp4_are_laid_out_in_multiples_of_tiles() -> None:
    rules = (("marlin", 256, 128), ("native", 256, 256))
    assert padded(rules, "marlin", (2880, 1440)) == (3072, 1536)
    assert padded(rules, "native", (2880, 360)) == (3072, 512)
    assert padded(rules, "triton_kernels", (2880, 360)) == (2880, 360)
    costs, model = load_engine_costs("vllm-0.19"), load_model("gpt-oss-120b")
    found = {}
    for gpu, tp in (("h200_sxm", 2), ("b200_sxm", 8)):
        shape = Step(model, load_gpu(gpu), Precision("mxfp4"), Parallel(tp=tp), costs).moe_shape()
        found[gpu] = (shape.hidden, shape.width)
    assert found == {"h200_sxm": (3072, 1536), "b200_sxm": (3072, 512)}
    bf16 = Step(model, load_gpu("h200_sxm"), Precision(), Parallel(tp=2), costs).moe_shape()
    assert (bf16.hidden, bf16.width) == (2880, 1440)


def test_a_worst_case_layout_reads_all_experts_but_moves_the_chosen_rows_alone() -> None:
    work = aligned_work(SHAPE, np.array([16.0, 2048.0]), 128)
    assert work.chosen.tolist() == [64.0, 8192.0]
    assert work.rows.tolist() == [16384.0, 24448.0]  # 64 and 8,192 rows, and 127 of padding for each expert
    assert work.experts.tolist() == [128.0, 128.0]


def test_an_expert_that_all_tokens_choose_has_as_many_tiles_as_their_rows_fill() -> None:
    tokens = np.array([1.0, 16.0, 17.0, 32.0, 33.0, 96.0, 97.0, 128.0, 129.0, 512.0, 513.0, 1024.0])
    assert further_tiles(tokens).tolist() == [0, 0, 1, 1, 1, 2, 1, 1, 2, 7, 4, 7]


@pytest.mark.parametrize(("name", "model"), [("dsv2lite", "deepseek-v2-lite"), ("qwen3-30b", "qwen3-30b-a3b")])
def test_further_tiles_take_as_much_longer_as_measured(name: str, model: str) -> None:
    """Experts that all tokens chose, an H200: 16 of them fill one tile, more of them need further ones."""
    rows = pd.read_csv(MEASURED / "h200_sxm_vllm" / "experts.csv")
    rows = rows[(rows["model"] == name) & (rows["routing"] == "identical") & (rows["tiles"] == "default")]
    measured_us = rows.set_index("tokens")["median_us"]
    step = Step(load_model(model), load_gpu("h200_sxm"), Precision(), Parallel(), load_engine_costs("vllm-0.25"))
    tokens = np.array([16.0, 32.0, 64.0, 128.0])
    found_us = step.routed_experts(1, identical=True).time(tokens).seconds * 1e6
    longer_us = measured_us[tokens[1:]].to_numpy() - measured_us[16]
    assert found_us[1:] - found_us[0] == pytest.approx(longer_us, abs=6.0)
    assert (longer_us > 10.0).all()


RANDOM = {
    "qwen3-30b": ("qwen3-30b-a3b", "bf16", 1),
    "qwen3-235b-tp2": ("qwen3-235b-a22b", "fp8_block", 2),
    "qwen3-235b-tp4": ("qwen3-235b-a22b", "fp8_block", 4),
}


def steps_of_random_choices(name: str) -> tuple[Step, pd.DataFrame]:
    model, weights, tp = RANDOM[name]
    rows = pd.read_csv(MEASURED / "h200_sxm_vllm" / "experts.csv")
    rows = rows[(rows["model"] == name) & (rows["routing"] == "uniform") & (rows["tiles"] == "tuned")]
    costs = load_engine_costs("vllm-0.25")
    return Step(load_model(model), load_gpu("h200_sxm"), Precision(weights), Parallel(tp=tp), costs), rows


def of_a_step(step: Step, *, prompts: bool) -> Operator:
    return next(op for op in (step.token_operators if prompts else step.decode_token_operators) if op.name == "experts")


def test_random_choices_fill_tiles_worse_than_even_ones_as_measured() -> None:
    """Rows of the public tables give every expert equally many rows; random ones take longer from a full tile on."""
    even, chance = [], []
    for name in RANDOM:
        step, rows = steps_of_random_choices(name)
        rows = rows[rows["tokens"] >= 1024]
        tokens, measured_us = rows["tokens"].to_numpy(np.float64), rows["median_us"].to_numpy()
        even += list(of_a_step(step, prompts=False).time(tokens).seconds * 1e6 / measured_us - 1.0)
        chance += list(of_a_step(step, prompts=True).time(tokens).seconds * 1e6 / measured_us - 1.0)
    assert np.mean(even) < -0.06 and abs(np.mean(chance)) < 0.02
    assert np.mean(np.abs(chance)) < 0.65 * np.mean(np.abs(even))


def test_even_choices_are_quick_where_they_fill_their_tiles_and_nowhere_else() -> None:
    """One kernel, one GPU: what ``BY_CHANCE`` stands for, and why powers of two in the tables hide it."""
    rows = pd.read_csv(MEASURED / "h200_vllm_repeats" / "experts_even.csv")
    table = rows.pivot_table(
        index=["width", "hidden", "experts", "top_k", "tokens"], columns="choices", values="median_us"
    ).reset_index()
    share = table["tokens"] * table["top_k"] / table["experts"]
    chance, skew = table["random"] / table["even"] - 1.0, table["skewed"] / table["even"] - 1.0
    full = share.isin([64, 128, 256, 512, 1024])
    assert (chance[full] > 0.04).all() and chance[share.isin([48, 96, 192])].abs().max() < 0.01
    part = (chance * skew)[full].sum() / (skew**2)[full].sum()
    assert BY_CHANCE < part < 0.85  # with vLLM's kernel 0.56


def test_chance_is_part_of_the_way_to_skewed_choices_and_nothing_while_tiles_are_half_empty() -> None:
    step, _ = steps_of_random_choices("qwen3-235b-tp2")
    tokens = np.array([16.0, 128.0, 512.0, 768.0, 1024.0, 4096.0])  # 1, 8, 32, 48, 64 and 256 rows an expert
    even, skewed = (step.routed_experts(1, routing=name).time(tokens).seconds for name in ("balanced", "skewed"))
    part = (of_a_step(step, prompts=True).time(tokens).seconds - even) / np.maximum(skewed - even, 0.0).clip(1e-12)
    assert part == pytest.approx([0.0, 0.0, 0.0, BY_CHANCE / 2, BY_CHANCE, BY_CHANCE], abs=1e-9)
    assert of_a_step(step, prompts=False).time(tokens).seconds == pytest.approx(even, rel=1e-12)
    assert "part of the way" in of_a_step(step, prompts=True).origin


@pytest.mark.parametrize(
    ("engine", "model", "gpu", "weights"),
    [
        ("vllm-0.25", "gpt-oss-120b", "h100_sxm", "mxfp4"),  # Marlin's own rates
        ("sglang", "deepseek-v3", "h200_sxm", "fp8_block"),  # rows of skewed choices already
        ("vllm-0.12", "qwen3-235b-a22b", "h200_sxm", "fp8_block"),  # grouped products, laid out for the worst case
    ],
)
def test_chance_is_for_rows_of_even_choices_alone(engine: str, model: str, gpu: str, weights: str) -> None:
    step = Step(load_model(model), load_gpu(gpu), Precision(weights), Parallel(tp=8), load_engine_costs(engine))
    assert "part of the way" not in of_a_step(step, prompts=True).origin
