"""KV blocks against what engines printed when they started."""

from __future__ import annotations

import pytest

from simulator.cluster.assembly import assemble
from simulator.cluster.topology import load_topology
from simulator.errors import TopologyError

MEASURED = ["engine.max_num_seqs=256", "engine.max_model_len=40960", "engine.max_num_batched_tokens=8192"]


def blocks(word: str, *overrides: str) -> int:
    return assemble(load_topology(word, overrides)).workers[0].kv_blocks


@pytest.mark.parametrize(
    ("word", "printed"),
    [
        ("llama-3.1-8b/h100_sxm/1c/vllm-0.25", 28_123),
        ("llama-3.1-8b/h200_sxm/1c/vllm-0.25", 56_057),
        ("qwen3-30b-a3b/h200_sxm/1c/vllm-0.25", 45_781),
        ("deepseek-v2-lite/h100_sxm/1c/vllm-0.25", 87_643),
    ],
)
def test_blocks_of_vllm_0_25_1(word: str, printed: int) -> None:
    """Printed by the engine of shared measurement runs (max_num_seqs 256, 8,192 tokens a step); one block is vLLM's."""
    assert blocks(word, *MEASURED) == pytest.approx(printed - 1, rel=0.005)


def test_smaller_steps_leave_room_until_the_logits_are_what_is_largest() -> None:
    """vLLM 0.25.1 on the H100: 28,123 blocks with 8,192 tokens a step, 28,171 with 2,048."""
    large = blocks("llama-3.1-8b/h100_sxm/1c", *MEASURED)
    small = blocks("llama-3.1-8b/h100_sxm/1c", *MEASURED, "engine.max_num_batched_tokens=2048")
    assert small - large == pytest.approx(48, abs=4)


def test_tokens_of_gpt_oss_with_sliding_windows() -> None:
    """A vLLM 0.27.1 prefill engine on an H200 said 1,630,790 tokens (llm-d's multi-tier report): only half of the
    layers grow with the context."""
    found = blocks("gpt-oss-120b@mxfp4/h200_sxm/1c", "engine.block_size=128")
    assert found * 128 == pytest.approx(1_630_790, rel=0.02)


def test_tensor_parallelism_splits_weights_and_heads() -> None:
    one, two = blocks("llama-3.1-8b/h100_sxm/1c"), blocks("llama-3.1-8b/h100_sxm:tp2/1c")
    assert two > 2 * one


def test_a_latent_is_not_split_by_tensor_parallelism() -> None:
    plans = [assemble(load_topology(f"deepseek-v2-lite/h100_sxm:tp{tp}/1c")) for tp in (1, 2)]
    per_block = [plan.workers[0].kv_bytes_per_block for plan in plans]
    assert per_block[1] == 2 * per_block[0]
    assert plans[1].workers[0].kv_blocks < 2 * plans[0].workers[0].kv_blocks


def test_data_parallel_ranks_are_one_pool_here() -> None:
    word = "deepseek-v3@fp8/h200_sxm:dp8:ep8/1c"
    worker = assemble(load_topology(word, ["engine.max_num_seqs=100"])).workers[0]
    assert worker.max_sequences == 800 and worker.settings["max_num_seqs"] == 800
    assert worker.max_step_tokens == 8 * 8192
    assert worker.kv_blocks % 8 == 0


def test_a_model_that_does_not_fit_says_by_how_much_and_what_would() -> None:
    with pytest.raises(TopologyError) as error:
        assemble(load_topology("llama-3.1-70b/h100_sxm/1c"))
    text = str(error.value)
    assert "pools.colocated: llama-3.1-70b does not fit: needs" in text and "\n" not in text
    assert "141.11 weights" in text and "short by" in text and "smallest tp that fits is 2" in text
    assemble(load_topology("llama-3.1-70b/h100_sxm:tp2/1c"))


def test_the_shortfall_is_to_the_byte() -> None:
    """With one byte of KV short of a block the model does not fit; the message says what is missing."""
    with pytest.raises(TopologyError) as error:
        assemble(load_topology("llama-3.1-70b/h100_sxm/1c"))
    short = int(str(error.value).split("short by ")[1].split(" bytes")[0])
    text = str(error.value)
    needs, offers = (float(text.split(word)[1].split(" GB", maxsplit=1)[0]) for word in ("needs ", "offers "))
    assert short == pytest.approx((needs - offers) * 1e9, abs=2e7)


def test_more_blocks_than_memory_holds_is_a_warning() -> None:
    plan = assemble(load_topology("llama-3.1-8b/h100_sxm/1c", ["kv_blocks=99999"]))
    assert plan.workers[0].kv_blocks == 99_999 and "memory holds" in plan.warnings[0]


def test_a_context_that_no_memory_holds_is_a_warning() -> None:
    plan = assemble(load_topology("llama-3.1-8b/rtx_4090/1c", ["precision.weights=fp8"]))
    assert "less than max_model_len 131072" in plan.warnings[0]
    assert not assemble(load_topology("llama-3.1-8b/h100_sxm/1c")).warnings


def test_sglang_keeps_what_has_left_a_window() -> None:
    word = "gpt-oss-120b@mxfp4/h200_sxm/1c"
    plans = [assemble(load_topology(f"{word}/{engine}")).workers[0] for engine in ("vllm", "sglang")]
    per_token = [worker.kv_bytes_per_block / worker.block_size for worker in plans]
    assert per_token == [36_864, 73_728]


def test_sglang_leaves_the_room_its_own_rule_asks_for() -> None:
    """512 MiB, 1.5 MiB for each of 8,192 tokens, 2 MiB for each of 256 graph sequences, GiB/8 for one GPU: 13.1 GiB."""
    worker = assemble(load_topology("llama-3.1-8b/h100_sxm/1c/sglang")).workers[0]
    assert worker.memory is not None
    left = worker.memory.total - worker.memory.usable
    assert left / 2**30 == pytest.approx(13.125, abs=0.05)
    given = assemble(load_topology("llama-3.1-8b/h100_sxm/1c/sglang", ["engine.mem_fraction_static=0.5"])).workers[0]
    assert given.kv_blocks < worker.kv_blocks / 2
