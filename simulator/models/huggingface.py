"""Reads a Hugging Face config.json. A family not known is refused: shapes are never guessed."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from simulator.errors import TopologyError, unknown
from simulator.models.model import Details, Mla, Model, Moe
from simulator.schema import read_text

#: Largest believable value of each quantity; above it the config is taken to be damaged.
MOST = {"layers": 2_000, "heads": 10_000, "head_dim": 10_000, "experts": 100_000, "vocab": 10_000_000}
MOST_WIDTH, MOST_CONTEXT = 10_000_000, 1_000_000_000
_REQUIRED = object()


@dataclass(frozen=True)
class Config:
    """A config.json with its path, for errors that say which file and key."""

    path: Path
    data: dict[str, Any]

    def count(self, *names: str, most: int = MOST_WIDTH, least: int = 1, default: Any = _REQUIRED) -> int:
        """The whole number under the first of ``names`` that is there (null counts as absent)."""
        for name in names:
            value = self.data.get(name)
            if value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
                raise TopologyError(f"{self.path}: {name}: found {value!r}, expected a whole number {least} to {most}")
            return value
        if default is _REQUIRED:
            others = f" (nor {', '.join(repr(n) for n in names[1:])})" if len(names) > 1 else ""
            raise TopologyError(f"{self.path}: key '{names[0]}' is missing{others}")
        return int(default)

    def flag(self, name: str, default: bool) -> bool:
        """A true or false."""
        value = self.data.get(name)
        if value is not None and not isinstance(value, bool):
            raise TopologyError(f"{self.path}: {name}: found {value!r}, expected true or false")
        return default if value is None else value

    def refuse_unless(self, name: str, allowed: tuple[Any, ...], why: str) -> None:
        """Refuse a config whose ``name`` asks for something that is not modelled."""
        if name in self.data and self.data[name] not in allowed:
            raise TopologyError(f"{self.path}: {name}: found {self.data[name]!r}; {why}")


def _windows(config: Config, layers: int) -> tuple[int, ...]:
    """Window of each layer: from ``layer_types`` if given, else from the older keys."""
    types = config.data.get("layer_types")
    if types is not None:
        if not isinstance(types, list) or len(types) != layers:
            found = len(types) if isinstance(types, list) else repr(types)
            raise TopologyError(f"{config.path}: layer_types: found {found} entries for {layers} layers")
        for kind in types:
            if kind not in ("full_attention", "sliding_attention"):
                raise TopologyError(unknown(f"{config.path}: layer_types", "attention", kind, _LAYER_TYPES))
        if "sliding_attention" not in types:
            return (0,) * layers
        window = config.count("sliding_window", most=MOST_CONTEXT)
        return tuple(window if kind == "sliding_attention" else 0 for kind in types)
    window = config.count("sliding_window", most=MOST_CONTEXT, least=0, default=0)
    if not window or not config.flag("use_sliding_window", True):
        return (0,) * layers
    first = config.count("max_window_layers", most=MOST["layers"], least=0, default=0)
    return tuple(window if i >= first else 0 for i in range(layers))


_LAYER_TYPES = ("full_attention", "sliding_attention")


def _shapes(config: Config) -> dict[str, Any]:
    """What the Llama-like families share."""
    layers = config.count("num_hidden_layers", most=MOST["layers"])
    hidden = config.count("hidden_size")
    heads = config.count("num_attention_heads", most=MOST["heads"])
    return {
        "layers": layers,
        "hidden": hidden,
        "q_heads": heads,
        "kv_heads": config.count("num_key_value_heads", most=MOST["heads"], default=heads),
        "head_dim": config.count("head_dim", most=MOST["head_dim"], default=max(hidden // heads, 1)),
        "vocab": config.count("vocab_size", most=MOST["vocab"]),
        "windows": _windows(config, layers),
        "max_context": config.count("max_position_embeddings", most=MOST_CONTEXT),
        "tie_embeddings": config.flag("tie_word_embeddings", False),
        "gated": True,
    }


def _llama(config: Config) -> dict[str, Any]:
    bias = config.flag("attention_bias", False)
    details = Details(qkv_bias=bias, out_bias=bias, mlp_bias=config.flag("mlp_bias", False))
    return {**_shapes(config), "ffn": config.count("intermediate_size"), "details": details}


def _qwen2(config: Config) -> dict[str, Any]:
    return {**_shapes(config), "ffn": config.count("intermediate_size"), "details": Details(qkv_bias=True)}


def _qwen3(config: Config) -> dict[str, Any]:
    bias = config.flag("attention_bias", False)
    details = Details(qkv_bias=bias, out_bias=bias, qk_norm=True)
    return {**_shapes(config), "ffn": config.count("intermediate_size"), "details": details}


def _experts(config: Config, name: str) -> tuple[int, int]:
    experts = config.count(name, most=MOST["experts"])
    return experts, config.count("num_experts_per_tok", "experts_per_token", most=experts)


def _first_dense(config: Config, layers: int) -> int:
    """Qwen MoE: every layer is MoE, but for the dense ones listed, which must be the first."""
    config.refuse_unless("decoder_sparse_step", (1, None), "only MoE in every layer (1) is modelled")
    dense = config.data.get("mlp_only_layers") or []
    if not isinstance(dense, list) or sorted(map(str, dense)) != sorted(map(str, range(len(dense)))):
        raise TopologyError(f"{config.path}: mlp_only_layers: found {dense!r}; only the first layers may be dense")
    return min(len(dense), layers)


def _qwen_moe(config: Config, *, qk_norm: bool) -> dict[str, Any]:
    shapes = _shapes(config)
    experts, top_k = _experts(config, "num_experts")
    shared = config.count("shared_expert_intermediate_size", least=0, default=0)
    first = _first_dense(config, shapes["layers"])
    width = config.count("moe_intermediate_size")
    moe = Moe(experts, top_k, 1 if shared else 0, width, first, shared_ffn=shared)
    bias = config.flag("attention_bias", False)
    details = Details(qkv_bias=bias or not qk_norm, out_bias=bias, qk_norm=qk_norm, shared_gate=shared > 0)
    ffn = config.count("intermediate_size") if first else 0
    return {**shapes, "ffn": ffn, "moe": moe, "details": details}


def _mixtral(config: Config) -> dict[str, Any]:
    experts, top_k = _experts(config, "num_local_experts")
    return {**_shapes(config), "ffn": 0, "moe": Moe(experts, top_k, 0, config.count("intermediate_size"))}


def _gpt_oss(config: Config) -> dict[str, Any]:
    experts, top_k = _experts(config, "num_local_experts")
    details = Details(qkv_bias=True, out_bias=True, router_bias=True, expert_bias=True, sinks=True)
    moe = Moe(experts, top_k, 0, config.count("intermediate_size"))
    return {**_shapes(config), "ffn": 0, "moe": moe, "details": details}


def _deepseek(config: Config) -> dict[str, Any]:
    shapes = _shapes(config)
    mla = Mla(
        kv_rank=config.count("kv_lora_rank"),
        q_rank=config.count("q_lora_rank", least=0, default=0),
        rope_dim=config.count("qk_rope_head_dim", most=MOST["head_dim"]),
        nope_dim=config.count("qk_nope_head_dim", most=MOST["head_dim"]),
        v_dim=config.count("v_head_dim", most=MOST["head_dim"]),
    )
    config.refuse_unless("moe_layer_freq", (1,), "only MoE in every layer after the first dense ones (1) is modelled")
    experts, top_k = _experts(config, "n_routed_experts")
    limited = config.data.get("topk_method") != "greedy"
    moe = Moe(
        experts,
        top_k,
        config.count("n_shared_experts", most=MOST["experts"], least=0, default=0),
        config.count("moe_intermediate_size"),
        config.count("first_k_dense_replace", most=MOST["layers"], least=0),
        config.count("n_group", most=experts, default=1) if limited else 1,
        config.count("topk_group", most=experts, default=1) if limited else 1,
    )
    return {
        **shapes,
        "head_dim": mla.nope_dim + mla.rope_dim,
        "kv_heads": shapes["q_heads"],
        "windows": (0,) * shapes["layers"],
        "ffn": config.count("intermediate_size"),
        "mla": mla,
        "moe": moe,
        "mtp_layers": config.count("num_nextn_predict_layers", most=MOST["layers"], least=0, default=0),
        "details": Details(router_bias=config.data.get("topk_method") == "noaux_tc"),
    }


_BIASED = {"qkv_bias": True, "out_bias": True, "mlp_bias": True, "norm_bias": True}


def _plain(config: Config, *, ffn: int, positions: int, tied: bool, **details: Any) -> dict[str, Any]:
    """Older families: as many KV as query heads, no gate, biases everywhere."""
    layers = config.count("num_hidden_layers", "n_layer", "n_layers", most=MOST["layers"])
    hidden = config.count("hidden_size", "n_embd", "n_embed")
    heads = config.count("num_attention_heads", "n_head", most=MOST["heads"])
    context = ("max_position_embeddings", "n_positions", "seq_length")
    return {
        "layers": layers,
        "hidden": hidden,
        "q_heads": heads,
        "kv_heads": heads,
        "head_dim": max(hidden // heads, 1),
        "vocab": config.count("vocab_size", most=MOST["vocab"]),
        "windows": (0,) * layers,
        "max_context": config.count(*context, most=MOST_CONTEXT, default=2048 if not positions else _REQUIRED),
        "tie_embeddings": config.flag("tie_word_embeddings", tied),
        "gated": False,
        "ffn": ffn,
        "details": Details(**_BIASED, positions=positions, **details),
    }


def _opt(config: Config) -> dict[str, Any]:
    hidden = config.count("hidden_size")
    config.refuse_unless("word_embed_proj_dim", (hidden,), "an embedding narrower than the model is not modelled")
    # learned positions with an offset of two (modeling_opt.py of transformers)
    positions = config.count("max_position_embeddings", most=MOST_CONTEXT) + 2
    return _plain(config, ffn=config.count("ffn_dim"), positions=positions, tied=True)


def _gpt2(config: Config) -> dict[str, Any]:
    ffn = config.count("n_inner", "intermediate_size", default=4 * config.count("n_embd", "hidden_size"))
    positions = config.count("n_positions", "max_position_embeddings", most=MOST_CONTEXT)
    return _plain(config, ffn=ffn, positions=positions, tied=True)


def _bloom(config: Config) -> dict[str, Any]:
    ffn = 4 * config.count("hidden_size", "n_embed")
    return _plain(config, ffn=ffn, positions=0, tied=True, embedding_norm=True)


def _gpt_neox(config: Config) -> dict[str, Any]:
    return _plain(config, ffn=config.count("intermediate_size"), positions=0, tied=False)


FAMILIES: dict[str, Callable[[Config], dict[str, Any]]] = {
    "llama": _llama,
    "mistral": _llama,
    "ministral": _llama,
    "phi3": _llama,
    "qwen2": _qwen2,
    "qwen3": _qwen3,
    "qwen2_moe": lambda c: _qwen_moe(c, qk_norm=False),
    "qwen3_moe": lambda c: _qwen_moe(c, qk_norm=True),
    "mixtral": _mixtral,
    "gpt_oss": _gpt_oss,
    "deepseek_v2": _deepseek,
    "deepseek_v3": _deepseek,
    "kimi_k2": _deepseek,
    "opt": _opt,
    "gpt2": _gpt2,
    "bloom": _bloom,
    "gpt_neox": _gpt_neox,
}


def _read(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(read_text(path, TopologyError))
    except json.JSONDecodeError as e:
        raise TopologyError(f"{path}, line {e.lineno}: not valid JSON: {e.msg}") from e
    except RecursionError as e:
        raise TopologyError(f"{path}: nested too deeply") from e
    if not isinstance(data, dict):
        raise TopologyError(f"{path}: found {type(data).__name__}, expected a JSON object")
    inner = data.get("text_config")
    return inner if isinstance(inner, dict) and data.get("model_type") not in FAMILIES else data


def read_config(path: Path) -> Model:
    """The model a config.json describes, named after its folder (or file, if that has a name of its own)."""
    config = Config(path, _read(path))
    family = config.data.get("model_type")
    if family is None:
        raise TopologyError(f"{path}: key 'model_type' is missing")
    reader = FAMILIES.get(family) if isinstance(family, str) else None
    if reader is None:
        raise TopologyError(unknown(f"{path}: model_type", "model family", family, FAMILIES))
    name = path.resolve().parent.name if path.name == "config.json" else path.stem
    shapes = reader(config)
    try:
        return Model(name=name, source=str(path), **shapes)
    except TopologyError as e:
        raise TopologyError(f"{path}: {e}") from None
