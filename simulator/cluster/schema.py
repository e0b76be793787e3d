"""The shape of a topology file. Every key a user may write is a field here; anything else is refused by name."""

from __future__ import annotations

from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field

from simulator.cluster.faults.parts import AutoscalingPart, ClientPart, FaultsPart
from simulator.models.precision import Parallel, Precision

Count = Annotated[int, Field(ge=1, le=10**9)]
Workers = Annotated[int, Field(ge=1, le=100_000)]
Degree = Annotated[int, Field(ge=1, le=10_000)]
Seconds = Annotated[float, Field(ge=0, le=1e6, allow_inf_nan=False)]
Dollars = Annotated[float, Field(ge=0, le=1e9, allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0, le=1e9, allow_inf_nan=False)]
Amount = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Text = Annotated[str, Field(min_length=1)]

Role = Literal["colocated", "prefill", "decode", "mixed"]
TransferMode = Literal["pull", "push", "layerwise", "staged", "store"]
MODES: tuple[str, ...] = get_args(TransferMode)


class Part(BaseModel):
    """Base of every part: unknown keys are errors, values are not coerced, instances do not change."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class PrecisionPart(Part):
    """Number formats of weights, KV cache and arithmetic."""

    weights: Text = "bf16"
    kv_cache: Text = "bf16"
    activations: Text | None = None
    attention: Text | None = None
    attention_weights: Text | None = None

    def value(self) -> Precision:
        """As the models room reads it."""
        return Precision(self.weights, self.kv_cache, self.activations, self.attention, self.attention_weights)


class ParallelPart(Part):
    """How the GPUs of one engine share the model; ``ep`` shares the tp x dp ranks among the experts."""

    tp: Degree = 1
    pp: Degree = 1
    dp: Degree = 1
    ep: Degree = 1

    def value(self) -> Parallel:
        """As the models room reads it."""
        return Parallel(self.tp, self.pp, self.dp, self.ep)


class StepTimePart(Part):
    """An explicit step time: ``base_s + per_token_s x new tokens + per_context_token_s x tokens computed before``, and
    ``per_sequence_s`` for each sequence. ``weights_s``: reading the weights, beside which the new tokens are computed:
    the two take the root of the sum of their squares."""

    kind: Literal["affine"] = "affine"
    base_s: Seconds
    per_token_s: Seconds = 0.0
    per_context_token_s: Seconds = 0.0
    per_sequence_s: Seconds = 0.0
    weights_s: Seconds = 0.0


class HostPart(Part):
    """The processors that run the engine. ``speed``: of one thread, as a multiple of that beside an H100 as sold, in
    place of the GPU profile's. ``step_gap_s``: for how long its GPUs rest between two steps, in place of the engine
    profile's. ``stall_rate_hz``, ``stall_s``: how often something else keeps it from launching a step with prompts, and
    for how long on average."""

    speed: Annotated[float, Field(ge=0.05, le=20)] | None = None
    step_gap_s: Seconds | None = None
    stall_rate_hz: Annotated[float, Field(ge=0, le=1e3, allow_inf_nan=False)] = 0.0
    stall_s: Seconds = 0.0


class PoolPart(Part):
    """Like engines that play one role. ``usd_per_hour``: of one GPU, in place of its profile's."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_-]*$")]
    role: Role
    gpu: Text | None = None
    usd_per_hour: Dollars | None = None
    workers: Workers = 1
    parallel: ParallelPart = ParallelPart()
    engine: dict[str, Any] = Field(default_factory=dict)
    precision: PrecisionPart | None = None
    step_time: StepTimePart | None = None
    host: HostPart | None = None
    kv_blocks: Count | None = None


class NetworkPart(Part):
    """What joins the GPUs of different engines."""

    kind: Literal["nvlink", "rdma", "ethernet", "none"]
    link: Text | None = None
    nic_gbit_per_s: Positive | None = None
    nics_per_node: Count | None = None
    gpus_per_node: Count | None = None
    nvlink_gbyte_per_s: Positive | None = None
    efficiency: Annotated[float, Field(gt=0, le=1)] | None = None
    oversubscription: Annotated[float, Field(ge=1, le=1e6, allow_inf_nan=False)] = 1.0
    placement: Literal["by_pool", "packed"] | None = None
    nodes_per_rack: Count | None = None
    rack_oversubscription: Annotated[float, Field(ge=1, allow_inf_nan=False)] = 1.0
    rails: bool = False
    cores_per_gpu: Positive | None = None
    bandwidth_trace: Text | None = None
    setup_s: Seconds | None = None
    per_descriptor_s: Seconds | None = None


class CompressionPart(Part):
    """KV cache made smaller for the wire, at the price of decoding it on arrival: ``ratio`` times, or a named kind with
    changes. ``level``: one of CacheGen's for all chunks; ``text``: chunks may be sent as text and computed anew."""

    kind: Text = "custom"
    ratio: Annotated[float, Field(ge=1, le=1e6, allow_inf_nan=False)] | None = None
    encode_s_per_token: Seconds = 0.0
    decode_s_per_token: Seconds | None = None
    chunk_tokens: Count = 1500
    deadline_s: Positive | None = None
    level: Text | None = None
    text: bool | None = None


class StorePart(Part):
    """A store of KV beside the engines' nodes: its line rate in each direction and what an access costs."""

    gbit_per_s: Positive
    setup_s: Seconds = 0.0


class KvTransferPart(Part):
    """How a finished prompt's KV cache reaches the decode engine."""

    mode: TransferMode | None = None
    compression: str | CompressionPart = "none"
    setup_s: Seconds | None = None
    setup_in_turn: bool | None = None
    merges_blocks: bool | None = None
    per_block_s: Seconds | None = None
    per_descriptor_s: Seconds | None = None
    coalesced_blocks: Annotated[float, Field(ge=1, le=1e6, allow_inf_nan=False)] = 1.0
    max_in_flight: Count | None = None
    layerwise_from_tokens: Annotated[int, Field(ge=0, le=10**9)] | None = None
    lease_s: Positive = 30.0
    heartbeats: bool = True
    kv_load_failure_policy: Literal["fail", "recompute"] = "fail"
    landing: Literal["gpu", "host"] = "gpu"
    store: StorePart | None = None

    @property
    def explicit(self) -> bool:
        """Whether the time is given outright, independent of other transfers."""
        return self.per_block_s is not None


class RouterPart(Part):
    """A router by name, with its options; which mean something for which router its own page says."""

    kind: str
    balance: Positive | None = None
    prefill_load_scale: Amount | None = None
    overlap_credit: Amount | None = None
    host_weight: Amount | None = None
    disk_weight: Amount | None = None
    shared_weight: Amount | None = None
    temperature: Amount | None = None
    kvcache_balancing_threshold: Positive | None = None
    max_pending_tokens: Count | None = None


class RoutingPart(Part):
    """Which worker of a pool takes a request; names are those of the routers' table.

    ``joint``: one router for both workers of a request, in place of the others.
    """

    prefill: str | RouterPart = "least_pending_tokens"
    decode: str | RouterPart = "most_free_blocks"
    colocated: str | RouterPart = "least_requests"
    joint: str | RouterPart | None = None

    def router(self, place: Literal["prefill", "decode", "colocated", "joint"]) -> RouterPart | None:
        """The router of a place with its options; None where there is none."""
        given = getattr(self, place)
        return RouterPart(kind=given) if isinstance(given, str) else given


class AdmissionPart(Part):
    """Early rejection: a request is turned away at once if a target (durations, as ``2s``) is predicted to be missed.

    ``decode_s``: how long a request is taken to decode, for the kind that looks ahead. Kind ``queue`` goes by
    ``max_waiting`` alone: nothing is taken while so many requests wait at every worker.
    """

    kind: Text
    ttft: Text | None = None
    tpot: Text | None = None
    decode_s: Positive | None = None
    max_waiting: Count | None = None


class TargetsPart(Part):
    """Latency targets, durations with their unit."""

    ttft: Text | None = None
    tpot: Text | None = None
    e2e: Text | None = None
    itl_p99: Text | None = None


class TenantPart(Part):
    """What one tenant is promised: targets as in ``--slo`` (``{ttft: 1s}``), in place of the common ones."""

    slo: TargetsPart

    def targets(self) -> dict[str, str]:
        """Those there are."""
        return self.slo.model_dump(exclude_none=True)


class TierPart(Part):
    """One cache below the engines: size and speed for each worker. ``policy``: which page is let go."""

    gib: Positive
    policy: Literal["lru", "lfu", "length_aware"] = "lru"
    gbyte_per_s: Positive | None = None
    write_gbyte_per_s: Positive | None = None
    setup_s: Seconds | None = None


class PoolTierPart(Part):
    """A cache that all workers reach over the network: a ``store`` of its own, or what their ``hosts`` hold."""

    of: Literal["store", "hosts"] = "store"
    gib: Positive | None = None
    policy: Literal["lru", "lfu", "length_aware"] = "lru"
    gbyte_per_s: Positive | None = None
    write_gbyte_per_s: Positive | None = None
    setup_s: Seconds | None = None


class CachePart(Part):
    """Caches below the engines' prefix cache. ``block_tokens``: of a page, the unit that is kept and moved."""

    block_tokens: Count = 256
    host: TierPart | None = None
    ssd: TierPart | None = None
    pool: PoolTierPart | None = None
    write: Literal["through", "evict"] = "through"
    outputs: bool = False
    bytes_per_token: Positive | None = None


class FrontendPart(Part):
    """Host time of a request outside the engine's steps; replaces the engine profile's.

    ``before_s``: of a request that meets nobody, before its engine hears of it; ``after_s``: of a token. Of the first,
    what others wait for, since one process does it: ``accept_s``, reading a request, for all that have come before any
    is passed on; ``request_s``, passing it on; and ``token_s`` for each token sent, which goes before both, with
    ``answer_token_s`` for each token that its answer has already. ``merges``: tokens that have not been sent when the
    answer's next one comes go with it.
    """

    before_s: Seconds | None = None
    after_s: Seconds | None = None
    accept_s: Seconds | None = None
    request_s: Seconds | None = None
    token_s: Seconds | None = None
    answer_token_s: Seconds | None = None
    merges: bool | None = None


class Topology(Part):
    """A serving cluster, as a user describes it. ``source`` is where it was read from, for messages."""

    name: Text
    description: str = ""
    model: Text | None = None
    precision: PrecisionPart = PrecisionPart()
    engine: str | dict[str, Any] = "vllm"
    pools: Annotated[list[PoolPart], Field(min_length=1)]
    network: NetworkPart | None = None
    kv_transfer: KvTransferPart = KvTransferPart()
    routing: RoutingPart = RoutingPart()
    admission: AdmissionPart | None = None
    faults: FaultsPart | None = None
    client: ClientPart | None = None
    autoscaling: AutoscalingPart | None = None
    cache: CachePart | None = None
    tenants: dict[str, TenantPart] = Field(default_factory=dict)
    frontend: FrontendPart = FrontendPart()
    host: HostPart = HostPart()
    step_time: StepTimePart | None = None
    kv_blocks: Count | None = None
    max_output_tokens: Count = 4096
    source: str = Field(default="topology", exclude=True)

    @property
    def profile(self) -> str:
        """Name of the engine profile."""
        return self.engine if isinstance(self.engine, str) else str(self.engine.get("profile", "vllm"))

    @property
    def engine_settings(self) -> dict[str, Any]:
        """Settings given for every pool (without the profile's name)."""
        if isinstance(self.engine, str):
            return {}
        return {key: value for key, value in self.engine.items() if key != "profile"}

    @property
    def disaggregated(self) -> bool:
        """Whether any request is handed from one engine to another."""
        return any(pool.role in ("prefill", "decode") for pool in self.pools)

    @property
    def gpus(self) -> int:
        """GPUs in all."""
        return sum(pool.workers * pool.parallel.value().gpus for pool in self.pools)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as they would be written in a file; defaults left out."""
        return self.model_dump(exclude_defaults=True)

    def pool(self, name: str) -> PoolPart:
        """The pool called ``name``."""
        return next(pool for pool in self.pools if pool.name == name)
