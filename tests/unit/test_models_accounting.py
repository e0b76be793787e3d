"""Bytes on each GPU: how tensor, pipeline, data and expert parallelism share a model."""

import dataclasses

import pytest

from simulator.errors import TopologyError
from simulator.models import Model, Moe, Parallel, Precision, load_model

BF16 = Precision()


def test_kv_heads_are_replicated_beyond_their_number():
    # Mooncake's table of Qwen3-235B at TP8 moves 12.62 GB for 32,768 tokens, twice what the 4 KV heads need
    model = load_model("qwen3-235b-a22b")
    assert 8 * model.kv_bytes_per_token("bf16", tp=8) == 2 * 192_512
    assert 8 * model.kv_bytes_per_token("bf16", tp=8) == pytest.approx(12.62e9 / 32_768, rel=1e-3)
    assert 4 * model.kv_bytes_per_token("bf16", tp=4) == 192_512


def test_latent_is_copied_on_every_tensor_rank():
    model = load_model("deepseek-v3")
    assert model.kv_bytes_per_token("bf16", tp=1) == model.kv_bytes_per_token("bf16", tp=8) == 70_272
    assert model.kv_bytes_per_token("fp8_ds_mla") == 61 * 656 == 40_016


def test_fp8_ds_mla_needs_a_latent():
    with pytest.raises(TopologyError, match="no MLA"):
        load_model("llama-3.1-8b").kv_bytes_per_token("fp8_ds_mla")


def test_tensor_parallel_splits_linears_and_copies_norms():
    model = load_model("llama-3.1-8b")
    one, eight = model.weight_bytes(BF16, Parallel()), model.weight_bytes(BF16, Parallel(tp=8))
    norms = 2 * (2 * 32 + 1) * 4096
    assert one == 2 * model.parameters()
    assert 8 * (eight - norms) == one - norms


def test_kv_projections_grow_with_replication():
    model = load_model("qwen2.5-7b")  # 28 query heads, 4 KV heads
    total = [tp * model.weight_bytes(BF16, Parallel(tp=tp)) for tp in (1, 4, 28)]
    assert total[0] < total[1] < total[2]
    extra = 28 * model.layers * 2 * model.hidden * model.head_dim * 2 - model.layers * 2 * model.hidden * 4 * 128 * 2
    assert total[2] - total[0] > extra


def test_pipeline_stages_hold_all_layers_once_and_ends_hold_embedding_and_head():
    model = load_model("llama-3.1-70b")
    stages = model.stage_layers(3)
    assert [i for s in stages for i in s] == list(range(80))
    assert [len(s) for s in stages] == [27, 27, 26]
    assert model.kv_bytes_per_token("bf16", pp=3) == 27 * 4096
    assert model.weight_bytes(BF16, Parallel(pp=2)) < model.weight_bytes(BF16, Parallel()) * 0.52


def test_tied_embedding_is_stored_twice_when_stages_part():
    model = load_model("opt-13b")
    one, two = model.weight_bytes(BF16, Parallel()), model.weight_bytes(BF16, Parallel(pp=2))
    assert 2 * two - one == pytest.approx(2 * 50272 * 5120, rel=0.05)


def test_quantised_weights_leave_embeddings_norms_and_router_in_bf16():
    model = load_model("mixtral-8x7b")
    plain = 2 * 32000 * 4096 + 65 * 4096 + 32 * 8 * 4096
    assert model.weight_bytes(Precision("fp8"), Parallel()) == model.parameters() + plain


def test_mxfp4_leaves_attention_in_bf16_unless_told():
    model = load_model("gpt-oss-120b")
    attention = 36 * (2880 * 64 * (64 + 16) + 64 * 64 * 2880)
    default = model.weight_bytes(Precision("mxfp4"), Parallel())
    told = model.weight_bytes(Precision("mxfp4", attention_weights="fp8"), Parallel())
    assert default - told == attention


def test_data_parallel_attention_copies_attention_and_shares_experts():
    model = load_model("deepseek-v3")
    fp8 = Precision("fp8")
    whole = model.weight_bytes(fp8, Parallel())
    experts = 58 * 256 * 3 * 7168 * 2048
    shared = model.weight_bytes(fp8, Parallel(dp=8, ep=8))
    assert shared == whole - experts + experts // 8
    assert model.weight_bytes(fp8, Parallel(dp=8)) == shared  # each expert cut in 8 instead
    assert model.weight_bytes(fp8, Parallel(tp=8)) < shared


def test_experts_that_do_not_divide_go_to_the_fullest_rank():
    model = load_model("mixtral-8x7b")  # 8 experts
    one_expert = 32 * 3 * 4096 * 14336 * 2
    full = model.weight_bytes(BF16, Parallel(dp=16, ep=16))
    assert full == model.weight_bytes(BF16, Parallel(dp=8, ep=8))
    assert model.weight_bytes(BF16, Parallel(dp=4, ep=4)) - full == one_expert


@pytest.mark.parametrize(
    ("name", "parallel", "message"),
    [
        ("llama-3.1-8b", Parallel(tp=3), "parallel.tp: 3 .* allowed: 1, 2, 4, 8, 16, 32"),
        ("qwen2.5-7b", Parallel(tp=7), "allowed: 1, 2, 4, 28"),
        ("llama-3.1-8b", Parallel(pp=33), "allowed: 1 to 32"),
        ("llama-3.1-8b", Parallel(tp=2, ep=2), "no experts"),
    ],
)
def test_splits_that_cannot_be(name, parallel, message):
    with pytest.raises(TopologyError, match=message):
        load_model(name).check_parallel(parallel)


def test_odd_splits_that_can_be():
    load_model("opt-175b").check_parallel(Parallel(tp=3, pp=3))
    load_model("opt-175b").check_parallel(Parallel(tp=4, pp=3))


@pytest.mark.parametrize("kwargs", [{"tp": 0}, {"pp": -1}, {"tp": 2.0}, {"dp": True}, {"tp": 4, "ep": 2}])
def test_parallel_refuses(kwargs):
    with pytest.raises(TopologyError, match=r"^parallel\."):
        Parallel(**kwargs)


def test_gpus():
    assert Parallel(tp=2, pp=3, dp=4, ep=8).gpus == 24
    assert Parallel(tp=2, pp=3, dp=4, ep=8).expert_gpus == 8


@pytest.mark.parametrize(
    "kwargs", [{"weights": "fp7"}, {"kv_cache": None}, {"activations": "fp16"}, {"attention": "x"}]
)
def test_precision_refuses(kwargs):
    with pytest.raises(TopologyError, match=r"^precision\."):
        Precision(**kwargs)


def test_precision_arithmetic():
    assert Precision("fp8").gemm_arithmetic == "fp8"
    assert Precision("int4").gemm_arithmetic == Precision("mxfp4").gemm_arithmetic == "bf16"
    assert Precision("fp8", activations="bf16").gemm_arithmetic == "bf16"
    assert Precision("nvfp4", attention_weights="fp8").attention_gemm_arithmetic == "fp8"
    assert Precision("fp8").attention_arithmetic == "bf16"


def _tiny(**changes):
    base = {"layers": 2, "hidden": 8, "q_heads": 2, "kv_heads": 1, "head_dim": 4, "vocab": 10, "ffn": 16, "gated": True}
    return Model(**{"name": "tiny", "windows": (0, 0), **base, **changes})


def test_tiny_model_by_hand():
    attention = 8 * (2 + 2) * 4 + 8 * 8
    assert _tiny().parameters() == 2 * (attention + 3 * 8 * 16 + 16) + 2 * 80 + 8
    moe = Moe(experts=4, top_k=1, shared_experts=1, expert_ffn=4)
    mixture = 8 * 4 + 4 * 96 + 96
    model = _tiny(moe=moe, ffn=0)
    assert model.parameters() == 2 * (attention + mixture + 16) + 168
    assert model.active_parameters() == model.parameters() - 2 * 3 * 96
    assert model.active_parameters(embedding=False) == model.active_parameters() - 80


@pytest.mark.parametrize(
    "changes",
    [
        {"layers": 0},
        {"kv_heads": 3},
        {"windows": (0,)},
        {"ffn": 0},
        {"moe": Moe(2, 3, 0, 4)},
        {"moe": Moe(4, 2, 0, 4, groups=2, top_groups=3)},
    ],
)
def test_shapes_that_cannot_be(changes):
    with pytest.raises(TopologyError, match=r"^tiny: "):
        _tiny(**changes)


def test_models_do_not_change():
    with pytest.raises(dataclasses.FrozenInstanceError):
        load_model("llama-3.1-8b").layers = 1
