"""Catalogue against published parameter counts and bytes of KV cache."""

import pytest

from simulator.errors import TopologyError
from simulator.models import Parallel, Precision, list_models, load_model

# name: parameters (1e9), KV bytes a token in bf16, both as published
PUBLISHED = {
    "llama-3.1-8b": (8.03, 131_072),
    "llama-3.1-70b": (70.6, 327_680),
    "llama-3.1-405b": (405.9, 516_096),
    "llama-2-7b": (6.74, 524_288),
    "llama-2-70b": (69.0, 327_680),
    "qwen2.5-7b": (7.62, 57_344),
    "qwen2.5-72b": (72.7, 327_680),
    "qwen3-8b": (8.2, 147_456),
    "qwen3-32b": (32.8, 262_144),
    "opt-13b": (12.85, 819_200),  # the paper rounds to 13
    "opt-66b": (66, 2_359_296),
    "opt-175b": (175, 4_718_592),
    "bloom-176b": (176.25, 4_014_080),
    "mixtral-8x7b": (46.7, 131_072),
    "qwen3-30b-a3b": (30.5, 98_304),
    "qwen3-235b-a22b": (235, 192_512),
    "deepseek-v2-lite": (15.7, 31_104),
    "deepseek-v3": (671, 70_272),
    "kimi-k2": (1026.4, 70_272),  # of the checkpoint's shapes; the paper says 1.04e12
    "gpt-oss-120b": (116.83, 36_864),
    "gpt-oss-20b": (20.91, 24_576),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters_and_kv_as_published(name):
    model = load_model(name)
    parameters, kv = PUBLISHED[name]
    assert model.parameters() == pytest.approx(parameters * 1e9, rel=0.01)
    assert model.kv_bytes_per_token("bf16") == kv
    assert model.kv_bytes_per_token("fp8") == kv / 2


@pytest.mark.parametrize(
    ("name", "embedding", "active"),
    [
        ("mixtral-8x7b", True, 12.9),
        ("qwen3-30b-a3b", True, 3.35),
        ("qwen3-235b-a22b", True, 22.2),
        ("deepseek-v3", True, 37.5),
        ("kimi-k2", True, 32.9),
        ("deepseek-v2-lite", False, 2.4),
        ("gpt-oss-120b", False, 5.13),
        ("gpt-oss-20b", False, 3.61),
    ],
)
def test_active_parameters_as_published(name, embedding, active):
    assert load_model(name).active_parameters(embedding=embedding) == pytest.approx(active * 1e9, rel=0.025)


def test_exact_counts():
    assert load_model("llama-3.1-8b").parameters() == 8_030_261_248
    assert load_model("mixtral-8x7b").parameters() == 46_702_792_704
    assert load_model("qwen2.5-7b").parameters() == 7_615_616_512


def test_multi_token_prediction_is_counted_apart():
    # arXiv 2412.19437 and the model's page: 11.5e9 of its own beside the shared embedding and head
    assert load_model("deepseek-v3").mtp_parameters() == pytest.approx(11.5e9, rel=0.02)
    assert load_model("llama-3.1-8b").mtp_parameters() == 0
    bf16 = Precision()
    v3, one = load_model("deepseek-v3"), Parallel()
    assert v3.weight_bytes(bf16, one, mtp=True) - v3.weight_bytes(bf16, one) == 2 * v3.mtp_parameters()


@pytest.mark.parametrize(
    ("alias", "name"),
    [
        ("meta-llama/Llama-3.1-8B", "llama-3.1-8b"),
        ("META-LLAMA/llama-3.1-8b-instruct", "llama-3.1-8b"),
        ("Llama-3.1-70B-Instruct", "llama-3.1-70b"),
        ("llama-3.3-70b", "llama-3.1-70b"),
        ("llama3-70b", "llama-3.1-70b"),
        ("deepseek-r1", "deepseek-v3"),
        ("bigscience/bloom", "bloom-176b"),
        (" Qwen/Qwen3-8B ", "qwen3-8b"),
    ],
)
def test_aliases(alias, name):
    assert load_model(alias).name == name


def test_every_model_is_whole():
    for name in list_models():
        model = load_model(name)
        assert model.source and model.max_context > 0 and len(model.windows) == model.layers
        assert model.active_parameters() <= model.parameters()
        assert model.dense_layers + model.moe_layers == model.layers


@pytest.mark.parametrize("name", ["llama-3.1-8", "gpt5", "no/such/config.json", ""])
def test_unknown_model_is_one_line(name):
    with pytest.raises(TopologyError) as e:
        load_model(name)
    assert "\n" not in str(e.value)


def test_unknown_model_names_the_nearest():
    with pytest.raises(TopologyError, match=r"did you mean 'llama-3.1-70b'"):
        load_model("lama-3.1-70b")


def test_gpt_oss_windows_alternate_and_begin_windowed():
    model = load_model("gpt-oss-120b")
    assert model.windows[:4] == (128, 0, 128, 0)
    assert model.kv_bytes(100) == 100 * 73_728
    assert model.kv_bytes(1_128) == 1_128 * 36_864 + 128 * 36_864
    # 1,630,790 tokens at 36,864 bytes beside 65 GB of weights fill an H200 (llm-d report)
    assert model.weight_bytes(Precision("mxfp4"), Parallel()) == pytest.approx(65e9, rel=0.01)
