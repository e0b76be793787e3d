"""Models by name: the shipped catalogue, its aliases, and any Hugging Face config.json on disk."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from pydantic import Field

from simulator.errors import TopologyError, unknown
from simulator.models.huggingface import read_config
from simulator.models.model import Details, Mla, Model, Moe
from simulator.resources import shipped
from simulator.schema import Schema, check, read_yaml


class MlaEntry(Schema):
    kv_rank: int = Field(ge=1)
    q_rank: int = Field(ge=0)
    rope_dim: int = Field(ge=0)
    nope_dim: int = Field(ge=1)
    v_dim: int = Field(ge=1)


class MoeEntry(Schema):
    experts: int = Field(ge=1)
    top_k: int = Field(ge=1)
    shared_experts: int = Field(ge=0)
    expert_ffn: int = Field(ge=1)
    first_dense_layers: int = Field(0, ge=0)
    groups: int = Field(1, ge=1)
    top_groups: int = Field(1, ge=1)


class DetailsEntry(Schema):
    qkv_bias: bool = False
    out_bias: bool = False
    mlp_bias: bool = False
    router_bias: bool = False
    expert_bias: bool = False
    norm_bias: bool = False
    qk_norm: bool = False
    sinks: bool = False
    embedding_norm: bool = False
    positions: int = Field(0, ge=0)


class ModelEntry(Schema):
    """One model of the catalogue. ``window`` and ``window_every``: layers 0, n, 2n ... see ``window`` tokens only."""

    aliases: tuple[str, ...] = ()
    source: str
    layers: int = Field(ge=1)
    hidden: int = Field(ge=1)
    q_heads: int = Field(ge=1)
    kv_heads: int = Field(ge=1)
    head_dim: int = Field(ge=1)
    vocab: int = Field(ge=1)
    ffn: int = Field(ge=0)
    gated: bool = True
    window: int = Field(0, ge=0)
    window_every: int = Field(1, ge=1)
    mla: MlaEntry | None = None
    moe: MoeEntry | None = None
    tie_embeddings: bool = False
    mtp_layers: int = Field(0, ge=0)
    max_context: int = Field(ge=1)
    details: DetailsEntry = Field(default_factory=lambda: DetailsEntry(positions=0))

    def model(self, name: str) -> Model:
        """The entry as the rest of the program knows it."""
        return Model(
            name=name,
            layers=self.layers,
            hidden=self.hidden,
            q_heads=self.q_heads,
            kv_heads=self.kv_heads,
            head_dim=self.head_dim,
            vocab=self.vocab,
            ffn=self.ffn,
            gated=self.gated,
            windows=tuple(self.window if i % self.window_every == 0 else 0 for i in range(self.layers)),
            mla=Mla(**self.mla.model_dump()) if self.mla else None,
            moe=Moe(**self.moe.model_dump()) if self.moe else None,
            tie_embeddings=self.tie_embeddings,
            mtp_layers=self.mtp_layers,
            max_context=self.max_context,
            source=self.source,
            details=Details(**self.details.model_dump()),
        )


@cache
def _catalogue() -> tuple[dict[str, Model], dict[str, str]]:
    """Models by name, and names by lower-case name, alias and last part of an alias."""
    models: dict[str, Model] = {}
    names: dict[str, str] = {}
    for path in sorted((shipped("hardware_profiles") / "models").glob("*.yaml")):
        for name, data in read_yaml(path, TopologyError).items():
            entry = check(ModelEntry, data, f"{path}: {name}", TopologyError)
            models[name] = entry.model(name)
            for alias in (name, *entry.aliases):
                for key in {alias.lower(), alias.lower().rsplit("/", 1)[-1]}:
                    if names.setdefault(key, name) != name:
                        raise TopologyError(f"{path}: '{alias}' names both {names[key]} and {name}")
    return models, names


def list_models() -> list[str]:
    """Names of the catalogue, sorted."""
    return sorted(_catalogue()[0])


@cache
def _published() -> dict[str, str]:
    """Hugging Face id of each model: its first instruction-tuned alias, or its first."""
    found: dict[str, str] = {}
    for path in sorted((shipped("hardware_profiles") / "models").glob("*.yaml")):
        for name, data in read_yaml(path, TopologyError).items():
            ids = [alias for alias in data.get("aliases", ()) if "/" in alias]
            found[name] = next((alias for alias in ids if "nstruct" in alias), ids[0] if ids else name)
    return found


def published_name(name_or_path: str) -> str:
    """What an engine would load for a model: the Hugging Face id of one in the catalogue, else the path as it is."""
    known = _catalogue()[1].get(name_or_path.lower().strip())
    return name_or_path if known is None else _published()[known]


def load_model(name_or_path: str | Path) -> Model:
    """A model by catalogue name, Hugging Face id (case does not matter), or path of a config.json or its folder.

    Raises TopologyError if the name is unknown, or a config lacks a key or has one that cannot be right.
    """
    text = str(name_or_path)
    models, names = _catalogue()
    known = names.get(text.lower().strip())
    if known is not None:
        return models[known]
    path = Path(text).expanduser()
    if path.is_dir() and (path / "config.json").is_file():
        path = path / "config.json"
    if path.is_file():
        return read_config(path)
    if path.suffix.lower() in (".json", ".yaml", ".yml") or path.is_dir():
        raise TopologyError(f"model: no config.json at '{text}'")
    raise TopologyError(unknown("model", "model", text, models))
