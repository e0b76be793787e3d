"""Host work and kernel choices of a serving engine: the cost half of an engine profile."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from simulator.cost.experts import ExpertParallelism
from simulator.errors import TopologyError, unknown
from simulator.resources import shipped
from simulator.schema import Schema, check, read_yaml

FOLDER = "hardware_profiles/engines"
HostSeconds = Annotated[float, Field(ge=0, le=60)]
ColdSeconds = Annotated[float, Field(ge=0, le=3600)]
NormBytes = Annotated[float, Field(ge=0, le=1e12)]
Multiple = Annotated[int, Field(ge=1, le=4096)]
#: Kernels before a GEMM that may quantise its activations; all of them where a profile says ``true``.
QUANTISING = ("norm", "attention", "activation")


class ExpertsFile(Schema):
    """The ``experts`` mapping of an engine profile's costs."""

    grouped: bool = False
    micro_batches: int = Field(ge=1, le=2, default=1)
    redundant: int = Field(ge=0, le=4096, default=0)
    placement: Literal["even", "static", "balanced"] = "even"
    skew: float = Field(ge=0, le=4, default=0.0)
    drift: float = Field(ge=0, le=4, default=0.0)


class ExpertBackend(Schema):
    """One way of an engine to run routed experts: what differs from its own."""

    expert_kernels: str = ""
    expert_routing_s: HostSeconds = 0.0
    expert_token_s: float = Field(ge=0, le=1, default=0.0)
    expert_widening: float = Field(gt=0, le=10, default=1.0)
    eager_moe_layer_s: HostSeconds | None = None
    router_choice_inside: bool = False
    source: str


class CostsFile(Schema):
    """The ``costs`` mapping of an engine profile. Seconds are host seconds; each is the same for every deployment."""

    kernels: str
    overlap: bool
    host_step_s: HostSeconds
    host_seq_s: HostSeconds
    step_gap_s: HostSeconds
    seq_gap_s: HostSeconds = 0.0
    rank_gap_s: HostSeconds = 0.0
    mixed_step_s: HostSeconds
    mixed_layer_s: HostSeconds
    mixed_gap_s: HostSeconds
    mixed_slower: float = Field(ge=0, le=1, default=0.0)
    full_clock_formats: tuple[Literal["bf16", "fp8", "nvfp4", "mxfp4", "int8"], ...] = ()
    mixed_graph_tokens: int = Field(ge=0, le=10**9, default=0)
    launch_ahead: bool = False
    launch_jitter: float = Field(ge=0, le=1, default=0.0)
    launch_swing: float = Field(ge=0, le=1, default=0.0)
    launch_stretch_s: float = Field(gt=0, le=3600, default=1.0)
    launch_seq_s: HostSeconds = 0.0
    launch_most_seqs: int = Field(ge=1, le=2**31, default=2**31)
    eager_layer_s: HostSeconds = 0.0
    eager_moe_layer_s: HostSeconds = 0.0
    eager_mla_layer_s: HostSeconds = 0.0
    eager_block_gemm_s: HostSeconds = 0.0
    eager_gap_s: HostSeconds = 0.0
    launch_queue: int = Field(ge=0, le=10**6, default=0)
    power_limit: bool = False
    power_slower: float = Field(ge=0, le=1, default=0.0)
    past_attention: float = Field(ge=0, le=2, default=0.0)
    sampling_logit_s: float = Field(ge=0, le=1e-6, default=0.0)
    all_reduce_wait_s: float = Field(ge=0, le=1e-3, default=0.0)
    dependent_launch_s: float = Field(ge=0, le=1e-5, default=0.0)
    block_quantise_s: float = Field(ge=0, le=1e-3, default=0.0)
    frontend_s: HostSeconds
    detokenise_s: HostSeconds
    frontend_prompt_token_s: HostSeconds = 0.0
    frontend_accept_s: HostSeconds = 0.0
    frontend_request_s: HostSeconds = 0.0
    frontend_token_s: HostSeconds = 0.0
    frontend_answer_token_s: HostSeconds = 0.0
    frontend_merges: bool = False
    deliver_token_s: HostSeconds = 0.0
    cold_prompt_s: ColdSeconds = 0.0
    cold_past_s: ColdSeconds = 0.0
    decode_graph_sizes: tuple[int, ...] = ()
    fused_quantisation: bool | tuple[Literal["norm", "all_reduce", "attention", "activation"], ...] = False
    fused_norm_all_reduce: bool = False
    fused_norm_bytes: dict[Annotated[int, Field(ge=2)], NormBytes] = Field(default_factory=dict)
    fused_all_reduce: str = ""
    gemm_kernels: dict[str, str] = Field(default_factory=dict)
    widened_experts: str = ""
    mxfp4_padding: dict[str, tuple[Multiple, Multiple]] = Field(default_factory=dict)
    expert_block_rows: int = Field(ge=0, le=4096, default=0)
    rope_in_attention: bool = False
    low_latency_tokens: int = Field(ge=0, le=10**6, default=0)
    low_latency_router_tokens: int = Field(ge=0, le=10**6, default=0)
    all_reduce: str
    expert_all_to_all: Literal["all_gather", "deepep"] = "all_gather"
    prompt_exchange: Literal["gather", "all_reduce"] = "gather"
    shared_experts: Literal["apart", "beside"] = "apart"
    routing: Literal["balanced", "skewed", "by_groups", "busiest"] = "balanced"
    decode_routing: Literal["independent", "identical"] = "independent"
    experts: ExpertsFile = ExpertsFile()
    expert_backends: dict[str, ExpertBackend] = Field(default_factory=dict)
    sources: dict[str, str]


#: Seconds that no faster host shortens.
_NOT_OF_HOST = (
    "stall_s",
    "sampling_logit_s",
    "all_reduce_wait_s",
    "dependent_launch_s",
    "block_quantise_s",
    "launch_stretch_s",
)


@dataclass(frozen=True)
class EngineCosts:
    """What an engine adds to its kernels, in seconds of a host as sold with an H100 (``Gpu.host_speed``).

    ``kernels``: whose measured kernels it runs (vllm, sglang, trtllm). ``overlap``: host work of a step is hidden
    behind the GPU work of the one before (asynchronous scheduling). ``host_step_s``, ``host_seq_s``: host work of a
    step and of each sequence in it (scheduling, inputs, outputs). ``step_gap_s``, ``seq_gap_s``: what no overlap
    hides, and ``rank_gap_s`` more where attention is data-parallel, whose ranks tell one another by host collectives
    what a step holds. ``mixed_step_s``, ``mixed_layer_s``: host time to launch a step with prefill tokens whose kernels
    are not one CUDA graph: a floor under its GPU time. ``mixed_gap_s``: what such a step takes more than its GPU work.
    ``mixed_slower``: by how much longer its kernels take than those of the tables (a GPU at its power limit runs
    slower than in the short bursts that were measured), but for linear layers in one of ``full_clock_formats``, whose
    kernels do not reach that limit. ``mixed_graph_tokens``: steps of more tokens launch every
    kernel on its own (0: they always do, or the floor above says it all), at host seconds of ``eager_layer_s`` a
    layer, ``eager_moe_layer_s`` more with routed experts (Triton kernels; those of one call take less) and
    ``eager_mla_layer_s`` more with MLA, and ``eager_block_gemm_s`` more for each GEMM in fp8_block (see
    ``simulator.cost.launches``), and the GPU idles between their kernels for ``eager_gap_s`` a layer.
    ``launch_queue``: kernels that may wait on the GPU; a host that launches more stands still until there is room (0:
    not told apart). ``launch_ahead``: with overlap, one with prefill tokens is launched while the one before it runs,
    whose tokens are handed out only afterwards, and ``mixed_step_s`` is what goes by before its first kernel (an engine
    of SGLang then looks at once for what has come meanwhile); without, launching is a floor under the step's own time.
    ``launch_seq_s``: of such a launch, for each sequence of the step up to ``launch_most_seqs``. ``launch_jitter``:
    share of it that is exponentially distributed. ``launch_swing``: share by which the host's pace makes it shorter or
    longer, for ``launch_stretch_s`` at a time. ``stall_rate_hz``, ``stall_s``: how often something else keeps the host
    from launching, and for how long on average; of the machine, not of the engine. A pure decode step is launched in
    the host work of a step, and, but in SGLang's engines, holds results back in the same way. ``frontend_s``: per
    request before it is first scheduled, and ``frontend_prompt_token_s`` for each token of its prompt (parsing,
    tokenising, passing on); ``detokenise_s``: from a token's step to the client, and ``deliver_token_s`` for each
    token of the step that is handed out before it: a new request's is the last.
    ``frontend_accept_s``, ``frontend_request_s``, ``frontend_token_s``: of these, the work of one process for reading a
    request, for passing it on and for a token, which others wait for; ``frontend_answer_token_s``: and on a token, for
    each that its answer has already; ``frontend_merges``: tokens that have not been sent when the answer's next one
    comes go with it. ``decode_graph_sizes``: batch sizes a pure decode
    step is padded to. ``fused_quantisation``: activations are quantised inside the kernel before, not by a pass of
    their own (but for fp8_block, which always has one): behind a norm, behind an all-reduce that the norm is part of,
    behind attention, behind the activation.
    ``fused_norm_all_reduce``: the norm after an all-reduce is part of it, for messages of ``fused_norm_bytes`` at most
    (by ranks: of the largest number that is not above the engine's; none stated: of any size), and these run
    ``fused_all_reduce`` (the engine's own where that is empty). ``gemm_kernels``: by format, whose GEMMs it runs where
    they are not those of ``kernels``; ``widened_experts``: the kernel of experts whose weights are widened, where
    it is not that of ``kernels`` in bf16; ``mxfp4_padding``: by kernel (that one, or native), the
    multiples to which it pads the hidden size and the width of experts in mxfp4; ``expert_block_rows``: experts in
    fp8_block run DeepGEMM over a layout that is sized for the worst case, in which each expert's rows are followed
    by padding of up to one less than so many (0: kernels of the tables).
    ``rope_in_attention``: rotary embedding and KV write are part of the attention kernel, and
    in its table rows. ``all_reduce``: whose all-reduce it runs (rows of the collective tables). ``expert_all_to_all``:
    all_gather, deepep. ``prompt_exchange``: all_reduce where a step with prompts brings the tokens of all
    data-parallel ranks together, and what experts made of them back, by all-reduces. ``routing``: balanced or skewed
    (power law 1.2), rows of the expert tables, or by_groups: skewed for models whose router chooses among groups of
    experts, or busiest: so, but steps with prompts take the slower of both where experts are spread over GPUs.
    ``decode_routing``: identical where all decoding sequences choose the same experts, as they do when random weights
    make them repeat one token. ``shared_experts``: beside where a decode step computes them next to the routed
    ones (a second stream, or one more expert of the same kernel), which leaves only their bytes to be read.
    ``experts``: how routed experts are spread over many GPUs. ``expert_kernels``: whose rows of the expert tables it
    runs, where they are not those of ``kernels``; ``expert_routing_s``, ``expert_token_s``: GPU seconds of a layer,
    and of a layer for each token, for sorting and copying tokens by expert beside what those rows hold.
    ``expert_widening``: how fast its experts widen their weights, over Marlin's kernels. ``cold_prompt_s``,
    ``cold_past_s``: what launching takes longer where kernels are fetched or compiled when first used: in an engine's
    first step with prompts, and in its first that goes on with a prompt computed in part (SGLang's policy alone looks
    at them). ``power_limit``: steps keep to the GPU's power limit (``simulator.cost.power``; the kernels of the tables
    then stand for full clocks); ``power_slower``: by how much longer steps with prompts take on a GPU whose limit has
    not been measured. With a limit, ``past_attention`` is how fast prefill attention is over earlier tokens at full
    clocks, over its speed on a chunk's own (0: as the tables' profile says). ``sampling_logit_s``: GPU seconds of
    choosing a token, for each logit, beside reading them. ``all_reduce_wait_s``: what ranks wait for one another at
    each all-reduce of a step, which the tables' loop, where all ranks start together, does not hold.
    ``dependent_launch_s``: by how much sooner a kernel of a decode step's graph begins, since it is set up while the
    one before it ends (programmatic dependent launch).
    ``block_quantise_s``: of quantising the activations of a GEMM in fp8_block, what its rows do not hold.
    ``low_latency_tokens``: up to so many tokens the router and the compression of MLA, stored in bf16, run on kernels
    that read weights as fast as memory gives them; ``low_latency_router_tokens``: the same for a router with a bias.
    ``router_choice_inside``: its experts' kernels choose from the router's logits themselves.
    """

    name: str
    kernels: str
    overlap: bool
    host_step_s: float
    host_seq_s: float
    step_gap_s: float
    seq_gap_s: float
    mixed_step_s: float
    mixed_layer_s: float
    mixed_gap_s: float
    mixed_graph_tokens: int
    launch_ahead: bool
    launch_jitter: float
    eager_layer_s: float
    eager_moe_layer_s: float
    eager_mla_layer_s: float
    frontend_s: float
    detokenise_s: float
    decode_graph_sizes: tuple[int, ...]
    fused_quantisation: tuple[str, ...]
    fused_norm_all_reduce: bool
    all_reduce: str
    expert_all_to_all: str
    routing: str
    decode_routing: str
    experts: ExpertParallelism = field(default_factory=ExpertParallelism)
    prompt_exchange: str = "gather"
    rank_gap_s: float = 0.0
    eager_block_gemm_s: float = 0.0
    eager_gap_s: float = 0.0
    launch_queue: int = 0
    frontend_prompt_token_s: float = 0.0
    frontend_accept_s: float = 0.0
    frontend_request_s: float = 0.0
    frontend_token_s: float = 0.0
    frontend_answer_token_s: float = 0.0
    frontend_merges: bool = False
    deliver_token_s: float = 0.0
    fused_norm_bytes: tuple[tuple[int, float], ...] = ()
    fused_all_reduce: str = ""
    gemm_kernels: tuple[tuple[str, str], ...] = ()
    widened_experts: str = ""
    mxfp4_padding: tuple[tuple[str, int, int], ...] = ()
    expert_block_rows: int = Field(ge=0, le=4096, default=0)
    rope_in_attention: bool = False
    low_latency_tokens: int = 0
    low_latency_router_tokens: int = 0
    expert_kernels: str = ""
    expert_routing_s: float = 0.0
    shared_experts: str = "apart"
    cold_prompt_s: float = 0.0
    cold_past_s: float = 0.0
    expert_token_s: float = 0.0
    expert_widening: float = 1.0
    router_choice_inside: bool = False
    mixed_slower: float = 0.0
    full_clock_formats: tuple[str, ...] = ()
    launch_swing: float = 0.0
    launch_stretch_s: float = 1.0
    launch_seq_s: float = 0.0
    launch_most_seqs: int = 2**31
    stall_rate_hz: float = 0.0
    stall_s: float = 0.0
    power_limit: bool = False
    power_slower: float = 0.0
    past_attention: float = 0.0
    sampling_logit_s: float = 0.0
    all_reduce_wait_s: float = 0.0
    dependent_launch_s: float = 0.0
    block_quantise_s: float = 0.0

    def on_host(self, speed: float | None) -> EngineCosts:
        """The same engine on a host that runs one thread ``speed`` times as fast as the one beside an H100 (None: as
        fast)."""
        if speed is None:
            return self
        seconds = [f.name for f in fields(self) if f.name.endswith("_s") and f.name not in _NOT_OF_HOST]
        return replace(self, **{name: getattr(self, name) / speed for name in seconds})


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
