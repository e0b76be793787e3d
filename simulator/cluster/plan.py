"""A topology worked out: what every engine is, and how KV gets from one to another. Plain values, no clock."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from simulator.cluster.faults.plan import FaultPlan
from simulator.cluster.memory import MemorySum
from simulator.cluster.places import Places
from simulator.cluster.schema import Role, Topology, TransferMode
from simulator.cluster.settings import Value
from simulator.cost.table import StepCostTable
from simulator.models.model import Model
from simulator.models.precision import Parallel, Precision
from simulator.network.bandwidth import BandwidthTrace
from simulator.network.compression import Compression
from simulator.network.fabric import Network


@dataclass(frozen=True)
class FrontWork:
    """An engine's front end's own work, in seconds: on a request as it comes (reading, parsing), on its way to the
    engine and on each token of its prompt (tokenising), and on a token sent to a client, with so much more for each
    that its answer has already. All zero where nobody waits for anybody. ``merges``: tokens of one answer that have not
    been sent when the next one comes go with it, so that none waits for long."""

    accept_s: float = 0.0
    request_s: float = 0.0
    prompt_token_s: float = 0.0
    token_s: float = 0.0
    answer_token_s: float = 0.0
    merges: bool = False

    @property
    def queues(self) -> bool:
        """Whether requests can wait for one another here, or tokens."""
        return self.accept_s > 0.0 or self.request_s > 0.0 or self.queues_tokens

    @property
    def queues_tokens(self) -> bool:
        """Whether tokens can wait for one another."""
        return self.token_s > 0.0 and not self.merges

    def rest_s(self, before_s: float) -> float:
        """Of the time that a lone request of no tokens takes, what is nobody's work: it passes first, on the way."""
        return max(before_s - self.accept_s - self.request_s, 0.0)


@dataclass(frozen=True)
class WorkerPlan:
    """One engine.

    ``settings``: every setting of the engine under its own name; per-rank limits are already multiplied by
    ``parallel.dp``, as are ``kv_blocks`` (an engine's data-parallel ranks are one queue and one pool here).
    ``max_step_tokens``, ``max_sequences``, ``max_context``: the settings that carry these meanings.
    ``kv_bytes_per_block``: over all GPUs, copies counted; 0 where no model is given. ``node``: where its first GPU
    sits, -1 without a network.
    """

    index: int
    name: str
    pool: str
    role: Role
    gpu: str | None
    parallel: Parallel
    policy: str
    settings: Mapping[str, Value]
    max_step_tokens: int
    max_sequences: int
    max_context: int
    block_size: int
    kv_blocks: int
    kv_bytes_per_block: float
    step_cost: StepCostTable
    frontend_before_s: float
    frontend_after_s: float
    front: FrontWork = FrontWork()
    deliver_token_s: float = 0.0
    node: int = -1
    memory: MemorySum | None = None


@dataclass(frozen=True)
class Route:
    """One handover's arithmetic between two engines. A transfer waits ``delay_s``, then ``wire_bytes`` flow.

    ``decode_s_per_block``, ``chunk_blocks``: time to undo compression, done chunk by chunk while later ones travel.
    ``per_run_s``: for each stretch of blocks that lie side by side, where these are one piece.
    ``window_bytes``: layers with a sliding window, whatever the prompt's length. ``post_s_per_block``: of
    ``per_block_s``, what an engine that reads spends in its own loop to post the pieces of a block.
    """

    setup_s: float
    per_block_s: float
    bytes_per_block: float = 0.0
    window_bytes: float = 0.0
    decode_s_per_block: float = 0.0
    chunk_blocks: int = 1
    post_s_per_block: float = 0.0
    per_run_s: float = 0.0

    def delay_s(self, blocks: int, runs: float = 1.0) -> float:
        """Seconds before the bytes flow: setting up, and what blocks and runs of blocks cost apart from their bytes."""
        return self.setup_s + self.per_block_s * blocks + self.per_run_s * runs

    def wire_bytes(self, blocks: int, *, last: bool = True) -> float:
        """Bytes on the wire, all GPUs together; a prompt's windows go with its last piece. Explicit times have none."""
        return self.bytes_per_block * blocks + (self.window_bytes if blocks and last else 0.0)

    def ready_s(self, start_s: float, end_s: float, blocks: int) -> float:
        """When KV whose bytes flowed from ``start_s`` to ``end_s`` can be used: after the last chunk is decoded."""
        if self.decode_s_per_block == 0 or blocks == 0:
            return end_s
        chunks = -(-blocks // self.chunk_blocks)
        chunk_s = self.decode_s_per_block * blocks / chunks
        return max(end_s + chunk_s, start_s + (end_s - start_s) / chunks + chunk_s * chunks)


@dataclass(frozen=True)
class Lease:
    """How long a prefill engine keeps KV that nobody has read. ``heartbeats``: a decode engine that has heard of the
    request renews it. ``recompute``: a decode engine that finds nothing computes the prompt, else the request fails.

    Source of the default: vLLM, docs/design/nixl_kv_cache_lease.md.
    """

    seconds: float = 30.0
    heartbeats: bool = True
    recompute: bool = False


@dataclass(frozen=True)
class KvTransferPlan:
    """How KV is handed over. ``explicit``: the time is ``delay_s`` alone, whatever else is under way.

    ``mode``: a protocol of ``simulator.cluster.handover``. ``max_in_flight``: requests whose KV is under way to a
    decode engine at once, None for no limit. ``nodes``: node of each engine's first GPU, -1 where none matters.
    ``layerwise_from_tokens``: shorter prompts are not sent layer by layer. ``landing``: where layers go first, gpu or
    host. ``kv_bits``: of a number of KV in memory. ``changes``: links whose capacity changes over time.
    ``setup_in_turn``: with push, transfers of one engine (of each of its data-parallel ranks) are set up one by one.
    """

    mode: TransferMode
    explicit: bool
    routes: Mapping[tuple[int, int], Route]
    network: Network
    compression: Compression
    layers: int
    max_in_flight: int | None = None
    nodes: tuple[int, ...] = ()
    lease: Lease = Lease()
    layerwise_from_tokens: int = 0
    landing: str = "gpu"
    kv_bits: float = 16.0
    places: Places = field(default_factory=lambda: Places(0))
    changes: Mapping[str, BandwidthTrace] = field(default_factory=dict)
    setup_in_turn: bool = False

    def route(self, src: int, dst: int) -> Route:
        """The route between two engines."""
        return self.routes[src, dst]


@dataclass(frozen=True)
class TierPlan:
    """One kind of cache: ``pages`` each worker has of it (a pool: one number for all), which page goes, and the time
    before a load's bytes flow. ``write_bytes_per_s``: of each worker's copies into it, made one after another; none
    where they share their links."""

    pages: tuple[int, ...]
    policy: str
    setup_s: float
    write_bytes_per_s: tuple[float, ...] = ()


@dataclass(frozen=True)
class CachePlan:
    """Caches below the engines. A page is ``page_tokens`` tokens, ``page_blocks`` of the engines' blocks.

    ``tiers``: host, ssd, pool, those there are, in the order in which they are asked. ``own``: workers that have tiers.
    ``of_hosts``: the pool is what all hosts hold. ``write``: through (a copy goes to every tier when a prompt is
    computed) or evict (what one level drops goes to the next). ``outputs``: decoded tokens are kept, too.
    ``network``: the engines' own, with the tiers' links; its path ends are told in ``simulator.cluster.cache.plan``.
    """

    tiers: Mapping[str, TierPlan]
    page_tokens: int
    page_blocks: int
    bytes_per_token: tuple[float, ...]
    own: tuple[bool, ...]
    of_hosts: bool
    write: str
    outputs: bool
    network: Network


@dataclass(frozen=True)
class ClusterPlan:
    """A topology worked out."""

    topology: Topology
    workers: tuple[WorkerPlan, ...]
    transfer: KvTransferPlan | None
    model: Model | None = None
    precision: Precision | None = None
    cache: CachePlan | None = None
    warnings: tuple[str, ...] = field(default=())
    faults: FaultPlan | None = None

    @property
    def gpus(self) -> int:
        """GPUs in all."""
        return sum(worker.parallel.gpus for worker in self.workers)

    def of_role(self, *roles: Role) -> tuple[WorkerPlan, ...]:
        """Engines of these roles."""
        return tuple(worker for worker in self.workers if worker.role in roles)
