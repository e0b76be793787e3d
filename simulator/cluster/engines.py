"""One pool's engine worked out: settings resolved, memory summed up, step cost built."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import TypeVar

from simulator.cluster.checks import kv_blocks, pool_part, settings_layers
from simulator.cluster.memory import Demand, MemorySum, kv_windows, memory_sum, refuse
from simulator.cluster.plan import FrontWork
from simulator.cluster.profiles import EngineProfile, load_profile
from simulator.cluster.schema import FrontendPart, HostPart, PoolPart, StepTimePart, Topology
from simulator.cluster.settings import FROM_MODEL, FROM_PROFILE, Family, Value
from simulator.cost.engine_costs import EngineCosts, engine_costs
from simulator.cost.experts import ExpertParallelism
from simulator.cost.step import build_step_cost
from simulator.cost.table import StepCostTable, affine_cost
from simulator.errors import TopologyError
from simulator.hardware.gpu import Gpu
from simulator.hardware.profiles import load_gpu
from simulator.models.accounting import allowed_tp
from simulator.models.catalogue import load_model
from simulator.models.model import Model
from simulator.models.precision import Parallel, Precision

T = TypeVar("T")

#: Longest request where neither model nor setting says: no limit.
NO_LIMIT = 10**9

#: Setting that says whether the next step is planned while the running one runs.
_OVERLAP = {"vllm": "async_scheduling", "sglang": "overlap", "tensorrt-llm": "overlap_scheduler"}

#: Limits that an engine applies to each data-parallel rank.
_PER_RANK = {
    "vllm": ("max_num_seqs", "max_num_batched_tokens"),
    "tensorrt-llm": ("max_batch_size", "max_num_tokens"),
}


@dataclass(frozen=True)
class Engine:
    """What all workers of a pool share. ``blocks`` and the settings are those of all data-parallel ranks together."""

    profile: EngineProfile
    settings: Mapping[str, Value]
    model: Model | None
    gpu: Gpu | None
    precision: Precision
    parallel: Parallel
    blocks: int
    block_tokens: int
    step_cost: StepCostTable
    before_s: float
    after_s: float
    memory: MemorySum | None
    warnings: tuple[str, ...]
    front: FrontWork = field(default_factory=FrontWork)
    deliver_token_s: float = 0.0

    @property
    def sequences(self) -> int:
        """Sequences that may run at once."""
        return int(self.settings[self.profile.family.sequences])

    @property
    def windows(self) -> tuple[int, ...]:
        """Tokens each layer keeps in the KV cache, 0 for all; empty without a model."""
        return () if self.model is None else kv_windows(self.profile, self.model)

    @property
    def longest(self) -> int:
        """Longest prompt plus output."""
        return int(self.settings[self.profile.family.context])


def engine_of(topology: Topology, pool: PoolPart) -> Engine:
    """Work out a pool's engine. Raises TopologyError where the model does not split or fit."""
    place = f"{topology.source}: pools.{pool.name}"
    profile = load_profile(topology.profile, f"{topology.source}: engine")
    model = None if topology.model is None else _loaded(load_model, topology.model, f"{topology.source}: model")
    gpu = None if pool.gpu is None else _on_host(_loaded(load_gpu, pool.gpu, f"{place}.gpu"), topology, pool)
    precision, parallel = (pool.precision or topology.precision).value(), pool.parallel.value()
    if model is not None:
        model.check_parallel(parallel, f"{place}.parallel")
    settings = _settings(topology, pool, profile, model, gpu)
    fixed = kv_blocks(topology, pool)
    found: MemorySum | None = None
    warnings: tuple[str, ...] = ()
    if model is not None and gpu is not None:
        demand = _demand(profile, settings, model, precision, parallel)
        found = memory_sum(gpu, profile, settings, demand)
        if found.blocks < 1:
            raise TopologyError(
                f"{place}: {refuse(found, demand, parallel.gpus, _fits_at(gpu, profile, settings, demand))}"
            )
    blocks = fixed if fixed is not None else _usable(profile.family, found) * parallel.dp
    if model is not None:
        warnings += _too_short(place, profile.family, settings, blocks)
    if found is not None and fixed is not None and fixed > found.blocks * parallel.dp:
        warnings += (f"{place}: {fixed} KV blocks are asked for, memory holds {found.blocks * parallel.dp}",)
    settings = _for_all_ranks(profile.family, settings, parallel, blocks)
    engine = Engine(
        profile=profile,
        settings=settings,
        model=model,
        gpu=gpu,
        precision=precision,
        parallel=parallel,
        blocks=blocks,
        block_tokens=int(settings[profile.family.block]),
        step_cost=affine_cost(0.0),
        before_s=0.0,
        after_s=0.0,
        memory=found,
        warnings=warnings,
    )
    return _with_costs(engine, topology, pool)


def _host(topology: Topology, pool: PoolPart) -> HostPart:
    host = pool_part(topology, pool, "host")
    assert isinstance(host, HostPart)
    return host


def _on_host(gpu: Gpu, topology: Topology, pool: PoolPart) -> Gpu:
    """The GPU beside the host that the topology states."""
    speed = _host(topology, pool).speed
    return gpu if speed is None else replace(gpu, host_speed=speed)


def _beside(host: HostPart, costs: EngineCosts, gpu: Gpu) -> EngineCosts:
    """The engine's costs with what is stated of its host. A gap is stated as it is there; a profile's, beside an H100
    as sold, is yet to be divided by the host's speed."""
    gap_s = costs.step_gap_s if host.step_gap_s is None else host.step_gap_s * (gpu.host_speed or 1.0)
    return replace(costs, step_gap_s=gap_s, stall_rate_hz=host.stall_rate_hz, stall_s=host.stall_s)


def _loaded(load: Callable[[str], T], name: str, place: str) -> T:
    """A model or GPU by name; errors say where the name stands."""
    try:
        return load(name)
    except TopologyError as error:
        raise TopologyError(f"{place}: {str(error).partition(': ')[2] or error}") from None


def _settings(
    topology: Topology, pool: PoolPart, profile: EngineProfile, model: Model | None, gpu: Gpu | None
) -> dict[str, Value]:
    """The engine's settings as one rank sees them, the longest request filled in."""
    memory_bytes = 0.0 if gpu is None else gpu.memory_bytes
    settings = profile.resolve(None if gpu is None else gpu.name, memory_bytes, *settings_layers(topology, pool))
    key = profile.family.context
    longest = model.max_context if model is not None and model.max_context else NO_LIMIT
    if settings[key] == FROM_MODEL:
        settings[key] = longest
    elif int(settings[key]) > longest:
        place = f"{topology.source}: pools.{pool.name}.engine.{key}"
        raise TopologyError(f"{place}: {settings[key]} is more than {topology.model} takes; allowed: up to {longest}")
    return settings


def _demand(
    profile: EngineProfile, settings: Mapping[str, Value], model: Model, precision: Precision, parallel: Parallel
) -> Demand:
    """Sizes of one rank's steps."""
    family = profile.family
    tokens = int(settings[family.step_tokens])
    if family.name == "sglang":
        tokens = max(tokens if tokens > 0 else int(settings["max_prefill_tokens"]), 1) // parallel.dp
    return Demand(
        model=model,
        precision=precision,
        parallel=parallel,
        step_tokens=tokens,
        sequences=int(settings[family.sequences]),
        longest=int(settings[family.context]),
        block_tokens=int(settings[family.block]),
        windows=kv_windows(profile, model),
    )


def _fits_at(gpu: Gpu, profile: EngineProfile, settings: Mapping[str, Value], demand: Demand) -> int | None:
    """Smallest tensor-parallel degree at which the model fits."""
    for tp in allowed_tp(demand.model):
        ep = demand.parallel.ep if demand.parallel.ep == 1 else tp * demand.parallel.dp
        split = replace(demand, parallel=replace(demand.parallel, tp=tp, ep=ep))
        if memory_sum(gpu, profile, settings, split).blocks > 0:
            return tp
    return None


def _usable(family: Family, found: MemorySum | None) -> int:
    """Blocks for requests: vLLM keeps one of its blocks for itself."""
    assert found is not None, "checked with the topology: kv_blocks, or model and gpu"
    return found.blocks - 1 if family.name == "vllm" else found.blocks


def _too_short(place: str, family: Family, settings: Mapping[str, Value], blocks: int) -> tuple[str, ...]:
    longest, room = int(settings[family.context]), blocks * int(settings[family.block])
    if room >= longest:
        return ()
    return (f"{place}: KV memory holds {room} tokens, less than {family.context} {longest}: real engines may refuse",)


def _for_all_ranks(family: Family, settings: dict[str, Value], parallel: Parallel, blocks: int) -> dict[str, Value]:
    """Settings of all data-parallel ranks together, and the sizes an engine works out from its KV memory."""
    whole = dict(settings)
    for key in _PER_RANK.get(family.name, ()):
        whole[key] = int(whole[key]) * parallel.dp
    if family.name == "sglang":
        tokens = blocks * int(whole["page_size"])
        whole["max_total_tokens"] = tokens
        if not whole["max_running_requests"]:
            # python/sglang/srt/model_executor/model_runner.py, 0.5
            by_memory = int(tokens / int(whole["context_length"]) * 512)
            whole["max_running_requests"] = min(max(by_memory, 2048), 4096)
    return whole


def _with_costs(engine: Engine, topology: Topology, pool: PoolPart) -> Engine:
    """The engine with its step cost and host times: explicit ones, or those of its profile."""
    step_time = pool_part(topology, pool, "step_time")
    if isinstance(step_time, StepTimePart):
        parts = (step_time.per_token_s, step_time.per_context_token_s, step_time.per_sequence_s, step_time.weights_s)
        return _with_front_end(replace(engine, step_cost=affine_cost(step_time.base_s, *parts)), topology.frontend)
    assert engine.model is not None and engine.gpu is not None, "checked with the topology"
    host = _host(topology, pool)
    costs = _beside(host, _costs(engine.profile, engine.settings), engine.gpu)
    cost = build_step_cost(
        engine.model,
        engine.gpu,
        engine.precision,
        engine.parallel,
        costs,
        max_tokens=_largest_step(engine),
        max_seqs=engine.sequences,
        max_context=engine.longest,
    )
    costs = costs.on_host(engine.gpu.host_speed)
    engine = replace(engine, step_cost=cost, before_s=costs.frontend_s, after_s=costs.detokenise_s)
    if topology.frontend.before_s is None:  # the profile's, where nobody says how long a request takes
        front = FrontWork(**{work.name: getattr(costs, f"frontend_{work.name}") for work in fields(FrontWork)})
        engine = replace(engine, front=front, deliver_token_s=costs.deliver_token_s)
    return _with_front_end(engine, topology.frontend)


def _with_front_end(engine: Engine, front: FrontendPart) -> Engine:
    """The engine with what the topology says of its front end."""
    said = front.model_dump(exclude_none=True)
    times = {key: said.pop(key) for key in ("before_s", "after_s") if key in said}
    return replace(engine, **times, front=replace(engine.front, **said))


def _largest_step(engine: Engine) -> int:
    tokens = int(engine.settings[engine.profile.family.step_tokens])
    return tokens if tokens > 0 else int(engine.settings["max_prefill_tokens"])


def _costs(profile: EngineProfile, settings: Mapping[str, Value]) -> EngineCosts:
    """The profile's host costs, with what the settings change in them."""
    if not profile.costs:
        raise TopologyError(f"{profile.source}: key 'costs' is missing; without it give step_time")
    experts = str(settings.get("moe_backend", ""))
    costs = engine_costs(profile.name, dict(profile.costs), f"{profile.source}: costs", experts)
    if profile.family.name in _OVERLAP:
        costs = replace(costs, overlap=bool(settings[_OVERLAP[profile.family.name]]))
    if settings.get("enforce_eager"):
        costs = replace(costs, decode_graph_sizes=(), mixed_graph_tokens=0)
    elif costs.mixed_graph_tokens > 0 and "max_cudagraph_capture_size" in settings:
        costs = replace(costs, mixed_graph_tokens=int(settings["max_cudagraph_capture_size"]))
    if settings.get("expert_all_to_all", FROM_PROFILE) != FROM_PROFILE:
        costs = replace(costs, expert_all_to_all=str(settings["expert_all_to_all"]))
    return replace(costs, experts=_experts(costs.experts, settings))


def _experts(profile: ExpertParallelism, settings: Mapping[str, Value]) -> ExpertParallelism:
    """The profile's spreading of experts, with what the settings change in it."""
    found = profile
    if settings.get("expert_placement", FROM_PROFILE) != FROM_PROFILE:
        found = replace(found, placement=str(settings["expert_placement"]))
    if int(settings.get("redundant_experts", -1)) >= 0:
        found = replace(found, redundant=int(settings["redundant_experts"]))
    return replace(found, micro_batches=int(settings.get("micro_batches", 0)) or found.micro_batches)
