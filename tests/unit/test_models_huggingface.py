"""Reading config.json: the shapes agree with the catalogue, and damage is named."""

import dataclasses
import json

import pytest

from simulator.errors import TopologyError
from simulator.models import load_model

LLAMA = {
    "model_type": "llama",
    "num_hidden_layers": 32,
    "hidden_size": 4096,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "intermediate_size": 14336,
    "vocab_size": 128256,
    "max_position_embeddings": 131072,
    "tie_word_embeddings": False,
}
QWEN_MOE = {
    **LLAMA,
    "model_type": "qwen3_moe",
    "num_hidden_layers": 48,
    "hidden_size": 2048,
    "num_key_value_heads": 4,
    "head_dim": 128,
    "intermediate_size": 6144,
    "moe_intermediate_size": 768,
    "num_experts": 128,
    "num_experts_per_tok": 8,
    "decoder_sparse_step": 1,
    "mlp_only_layers": [],
    "vocab_size": 151936,
    "max_position_embeddings": 40960,
    "use_sliding_window": False,
    "sliding_window": None,
}
DEEPSEEK = {
    "model_type": "deepseek_v3",
    "num_hidden_layers": 61,
    "hidden_size": 7168,
    "num_attention_heads": 128,
    "num_key_value_heads": 128,
    "intermediate_size": 18432,
    "moe_intermediate_size": 2048,
    "n_routed_experts": 256,
    "n_shared_experts": 1,
    "num_experts_per_tok": 8,
    "n_group": 8,
    "topk_group": 4,
    "topk_method": "noaux_tc",
    "first_k_dense_replace": 3,
    "moe_layer_freq": 1,
    "kv_lora_rank": 512,
    "q_lora_rank": 1536,
    "qk_rope_head_dim": 64,
    "qk_nope_head_dim": 128,
    "v_head_dim": 128,
    "num_nextn_predict_layers": 1,
    "vocab_size": 129280,
    "max_position_embeddings": 163840,
    "tie_word_embeddings": False,
}
LITE = {
    **DEEPSEEK,
    "model_type": "deepseek_v2",
    "num_hidden_layers": 27,
    "hidden_size": 2048,
    "num_attention_heads": 16,
    "num_key_value_heads": 16,
    "intermediate_size": 10944,
    "moe_intermediate_size": 1408,
    "n_routed_experts": 64,
    "n_shared_experts": 2,
    "num_experts_per_tok": 6,
    "n_group": 1,
    "topk_group": 1,
    "topk_method": "greedy",
    "first_k_dense_replace": 1,
    "q_lora_rank": None,
    "num_nextn_predict_layers": 0,
    "vocab_size": 102400,
}
GPT_OSS = {
    "model_type": "gpt_oss",
    "num_hidden_layers": 36,
    "hidden_size": 2880,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "head_dim": 64,
    "intermediate_size": 2880,
    "num_local_experts": 128,
    "num_experts_per_tok": 4,
    "sliding_window": 128,
    "layer_types": ["sliding_attention", "full_attention"] * 18,
    "vocab_size": 201088,
    "max_position_embeddings": 131072,
    "tie_word_embeddings": False,
}
MIXTRAL = {
    **LLAMA,
    "model_type": "mixtral",
    "num_local_experts": 8,
    "num_experts_per_tok": 2,
    "vocab_size": 32000,
    "max_position_embeddings": 32768,
    "sliding_window": None,
}
OPT = {
    "model_type": "opt",
    "num_hidden_layers": 40,
    "hidden_size": 5120,
    "num_attention_heads": 40,
    "ffn_dim": 20480,
    "word_embed_proj_dim": 5120,
    "vocab_size": 50272,
    "max_position_embeddings": 2048,
}
BLOOM = {"model_type": "bloom", "n_layer": 70, "hidden_size": 14336, "n_head": 112, "vocab_size": 250880}
GPT2 = {"model_type": "gpt2", "n_layer": 12, "n_embd": 768, "n_head": 12, "n_positions": 1024, "vocab_size": 50257}
QWEN2 = {
    **LLAMA,
    "model_type": "qwen2",
    "num_hidden_layers": 28,
    "hidden_size": 3584,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "intermediate_size": 18944,
    "vocab_size": 152064,
    "use_sliding_window": False,
    "sliding_window": 131072,
    "max_window_layers": 28,
}
QWEN3 = {
    **LLAMA,
    "model_type": "qwen3",
    "num_hidden_layers": 36,
    "head_dim": 128,
    "intermediate_size": 12288,
    "vocab_size": 151936,
    "max_position_embeddings": 40960,
    "attention_bias": False,
}


def write(tmp_path, config):
    path = tmp_path / "config.json"
    path.write_text(config if isinstance(config, str) else json.dumps(config))
    return path


@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("llama-3.1-8b", LLAMA),
        ("qwen2.5-7b", QWEN2),
        ("qwen3-8b", QWEN3),
        ("qwen3-30b-a3b", QWEN_MOE),
        ("mixtral-8x7b", MIXTRAL),
        ("deepseek-v3", DEEPSEEK),
        ("deepseek-v2-lite", LITE),
        ("gpt-oss-120b", GPT_OSS),
        ("opt-13b", OPT),
        ("bloom-176b", BLOOM),
    ],
)
def test_config_and_catalogue_agree(tmp_path, name, config):
    known, read = load_model(name), load_model(write(tmp_path, config))
    assert dataclasses.replace(read, name=known.name, source=known.source) == known


def test_gpt2_has_its_published_size(tmp_path):
    assert load_model(write(tmp_path, GPT2)).parameters() == 124_439_808


def test_name_and_folder(tmp_path):
    folder = tmp_path / "my-model"
    folder.mkdir()
    write(folder, LLAMA)
    assert load_model(folder).name == load_model(folder / "config.json").name == "my-model"


def test_text_part_of_a_multimodal_config(tmp_path):
    path = write(tmp_path, {"model_type": "mistral3", "text_config": {**LLAMA, "model_type": "mistral"}})
    assert load_model(path).parameters() == 8_030_261_248


def test_mistral_window_holds_in_all_layers(tmp_path):
    model = load_model(write(tmp_path, {**LLAMA, "model_type": "mistral", "sliding_window": 4096}))
    assert model.windows == (4096,) * 32
    assert model.kv_bytes_per_token() == 0
    assert model.kv_bytes(10_000) == 4096 * 131_072


def test_qwen2_windows_begin_late(tmp_path):
    config = {**QWEN2, "use_sliding_window": True, "sliding_window": 4096, "max_window_layers": 20}
    assert load_model(write(tmp_path, config)).windows == (0,) * 20 + (4096,) * 8


@pytest.mark.parametrize("key", ["num_hidden_layers", "hidden_size", "num_attention_heads", "intermediate_size"])
def test_missing_key_is_named(tmp_path, key):
    path = write(tmp_path, {k: v for k, v in LLAMA.items() if k != key})
    with pytest.raises(TopologyError, match=f"config.json: key '{key}' is missing"):
        load_model(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_hidden_layers": -3}, "num_hidden_layers: found -3"),
        ({"num_hidden_layers": 10**6}, "expected a whole number 1 to"),
        ({"num_hidden_layers": "32"}, "num_hidden_layers: found '32'"),
        ({"hidden_size": 1e30}, "hidden_size: found"),
        ({"hidden_size": True}, "hidden_size: found True"),
        ({"vocab_size": 10**12}, "vocab_size: found"),
        ({"num_key_value_heads": 5}, "not a multiple"),
        ({"model_type": "lama"}, "did you mean 'llama'"),
        ({"model_type": ["llama"]}, "unknown model family"),
        ({"model_type": None}, "'model_type' is missing"),
        ({"tie_word_embeddings": "no"}, "expected true or false"),
        ({"layer_types": ["full_attention"]}, "1 entries for 32 layers"),
        ({"layer_types": ["linear_attention"] * 32}, "unknown attention 'linear_attention'"),
    ],
)
def test_damaged_config(tmp_path, change, message):
    with pytest.raises(TopologyError, match=message) as e:
        load_model(write(tmp_path, {**LLAMA, **change}))
    assert "\n" not in str(e.value) and "config.json" in str(e.value)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({**QWEN_MOE, "decoder_sparse_step": 2}, "decoder_sparse_step"),
        ({**QWEN_MOE, "mlp_only_layers": [5]}, "only the first layers"),
        ({**QWEN_MOE, "num_experts_per_tok": 200}, "num_experts_per_tok: found 200"),
        ({**DEEPSEEK, "moe_layer_freq": 2}, "moe_layer_freq"),
        ({**DEEPSEEK, "kv_lora_rank": None}, "'kv_lora_rank' is missing"),
        ({**OPT, "word_embed_proj_dim": 512}, "word_embed_proj_dim"),
        ("{", "line 1: not valid JSON"),
        ("[]", "found list"),
        ("", "not valid JSON"),
    ],
)
def test_what_is_not_modelled_or_not_json(tmp_path, config, message):
    with pytest.raises(TopologyError, match=message):
        load_model(write(tmp_path, config))


def test_binary_file(tmp_path):
    path = tmp_path / "config.json"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(TopologyError, match="not a text file"):
        load_model(path)
