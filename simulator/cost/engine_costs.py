"""Host work and kernel choices of a serving engine: the cost half of an engine profile."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from simulator.cost.costs_file import OF_HOST, QUANTISING, CostsFile
from simulator.cost.experts import ExpertParallelism
from simulator.errors import TopologyError, unknown
from simulator.resources import shipped
from simulator.schema import check, read_yaml

#: Seconds that a faster host shortens.
_OF_HOST = tuple(name for name, found in CostsFile.model_fields.items() if OF_HOST in found.metadata)


@dataclass(frozen=True, kw_only=True)
class EngineCosts:
    """What an engine adds to its kernels: the values of a ``CostsFile``, which says what each of them means.

    Mappings are sorted tuples here; what is fused is spelled out; the values of the expert backend in use are among the
    engine's own. ``stall_rate_hz``, ``stall_s``: how often something else keeps the host from launching, and for how
    long on average; of a machine, not of an engine.
    """

    name: str

    # Kernels
    kernels: str
    all_reduce: str
    gemm_kernels: tuple[tuple[str, str], ...] = ()
    rope_in_attention: bool = False
    fused_quantisation: tuple[str, ...] = ()
    fused_norm_all_reduce: bool = False
    fused_norm_bytes: tuple[tuple[int, float], ...] = ()
    fused_all_reduce: str = ""
    low_latency_tokens: int = 0
    low_latency_router_tokens: int = 0
    decode_graph_sizes: tuple[int, ...] = ()
    dependent_launch_s: float = 0.0
    all_reduce_wait_s: float = 0.0
    block_quantise_s: float = 0.0
    sampling_logit_s: float = 0.0

    # Experts
    widened_experts: str = ""
    mxfp4_padding: tuple[tuple[str, int, int], ...] = ()
    expert_block_rows: int = 0
    shared_experts: str = "apart"
    expert_all_to_all: str = "all_gather"
    prompt_exchange: str = "gather"
    routing: str = "balanced"
    decode_routing: str = "independent"
    experts: ExpertParallelism = field(default_factory=ExpertParallelism)
    router_choice_in_rows: bool = False
    grouped_choice_s: float = 0.0
    expert_kernels: str = ""
    expert_routing_s: float = 0.0
    expert_token_s: float = 0.0
    expert_widening: float = 1.0
    router_choice_inside: bool = False

    # Host work of steps
    overlap: bool = False
    host_step_s: float = 0.0
    host_seq_s: float = 0.0
    step_gap_s: float = 0.0
    seq_gap_s: float = 0.0
    rank_gap_s: float = 0.0

    # Launches of steps with prompts, whose kernels are not one CUDA graph
    mixed_step_s: float = 0.0
    mixed_layer_s: float = 0.0
    mixed_gap_s: float = 0.0
    mixed_graph_tokens: int = 0
    eager_layer_s: float = 0.0
    eager_moe_layer_s: float = 0.0
    eager_mla_layer_s: float = 0.0
    eager_block_gemm_s: float = 0.0
    eager_gap_s: float = 0.0
    launch_queue: int = 0
    launch_ahead: bool = False
    launch_seq_s: float = 0.0
    launch_most_seqs: int = 2**31
    launch_swing: float = 0.0
    launch_stretch_s: float = 1.0
    launch_jitter: float = 0.0
    cold_prompt_s: float = 0.0
    cold_past_s: float = 0.0
    stall_rate_hz: float = 0.0
    stall_s: float = 0.0

    # Power
    power_limit: bool = False
    power_slower: float = 0.0
    mixed_slower: float = 0.0
    full_clock_formats: tuple[str, ...] = ()
    past_attention: float = 0.0

    # Front end
    frontend_s: float = 0.0
    frontend_prompt_token_s: float = 0.0
    detokenise_s: float = 0.0
    deliver_token_s: float = 0.0
    frontend_accept_s: float = 0.0
    frontend_request_s: float = 0.0
    frontend_token_s: float = 0.0
    frontend_answer_token_s: float = 0.0
    frontend_merges: bool = False

    def on_host(self, speed: float | None) -> EngineCosts:
        """The same engine on a host that runs one thread ``speed`` times as fast as the one beside an H100 (None: as
        fast)."""
        if speed is None:
            return self
        return replace(self, **{name: getattr(self, name) / speed for name in _OF_HOST})


def list_engines() -> list[str]:
    """Names of the shipped engine profiles."""
    return sorted(p.stem for p in _folder().glob("*.yaml"))


def _folder() -> Path:
    return shipped("hardware_profiles") / "engines"


def extended(path: Path, name: object) -> Path:
    """The profile that the one at ``path`` extends: in the same folder, or else among those shipped."""
    beside = path.parent / f"{name}.yaml"
    if beside.is_file():
        return beside
    if str(name) not in list_engines():
        raise TopologyError(unknown(f"{path}: extends", "engine profile", name, list_engines()))
    return _folder() / f"{name}.yaml"


def _costs(path: Path, seen: tuple[Path, ...]) -> dict[str, Any]:
    """The file's ``costs`` over those of the profile it extends; their sources are merged as well."""
    if path in seen:
        raise TopologyError(f"{path}: extends itself")
    data = read_yaml(path, TopologyError)
    own = data.get("costs") or {}
    if not isinstance(own, dict):
        raise TopologyError(f"{path}: costs: a mapping is needed, found {own!r}")
    if "extends" not in data:
        return own
    base = _costs(extended(path, data["extends"]), (*seen, path))
    sources = {**base.get("sources", {}), **own.get("sources", {})}
    return {**base, **own, "sources": sources}


def load_engine_costs(name_or_path: str | Path) -> EngineCosts:
    """Costs of an engine profile by name, or of a YAML file with a ``costs`` mapping.

    Raises TopologyError for an unknown name or a profile that does not follow the schema.
    """
    path = Path(str(name_or_path)).expanduser()
    if path.suffix.lower() not in (".yaml", ".yml"):
        if str(name_or_path) not in list_engines():
            raise TopologyError(unknown("engine", "engine", name_or_path, list_engines()))
        path = _folder() / f"{name_or_path}.yaml"
    data = _costs(path, ())
    if not data:
        raise TopologyError(f"{path}: key 'costs' is missing; an engine profile states its host costs there")
    return engine_costs(path.stem, data, f"{path}: costs")


def engine_costs(name: str, data: Mapping[str, Any], place: str, expert_backend: str = "") -> EngineCosts:
    """EngineCosts of a ``costs`` mapping (that of a shipped profile, merged with what it extends).

    ``expert_backend``: one of its ``expert_backends``; a name it does not list runs its own kernels.
    """
    parsed = check(CostsFile, dict(data), place, TopologyError)
    stated = set(CostsFile.model_fields) - {"sources"}
    for key in parsed.sources:
        if key not in stated:
            raise TopologyError(unknown(f"{place}.sources", "key", key, stated))
    values: dict[str, Any] = {f.name: getattr(parsed, f.name) for f in fields(EngineCosts) if hasattr(parsed, f.name)}
    values["decode_graph_sizes"] = tuple(sorted(parsed.decode_graph_sizes))
    found = parsed.fused_quantisation
    values["fused_quantisation"] = (QUANTISING if found else ()) if isinstance(found, bool) else found
    values["fused_norm_bytes"] = tuple(sorted(parsed.fused_norm_bytes.items()))
    values["gemm_kernels"] = tuple(sorted(parsed.gemm_kernels.items()))
    values["mxfp4_padding"] = tuple((name, *both) for name, both in sorted(parsed.mxfp4_padding.items()))
    values["experts"] = ExpertParallelism(**parsed.experts.model_dump())
    if expert_backend in parsed.expert_backends:
        backend = parsed.expert_backends[expert_backend].model_dump(exclude={"source"}, exclude_none=True)
        values.update(backend)
    return EngineCosts(name=name, **values)
