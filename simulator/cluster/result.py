"""What a run leaves behind: one flat record a request, one series a worker, a few totals. Plain columns, no behaviour.

Times are seconds on the run's clock (0 = the start of the run, not the first arrival) as the client sees them: a
token's time is when it reaches the client, after the engine's host work and streaming interval.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from simulator.cluster.steps import Moments, WorkerSteps
from simulator.workload.trace import Trace

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

#: ``RunRecord.state`` holds indices into this.
STATES = ("completed", "rejected", "failed", "unfinished", "timed_out", "cancelled")
COMPLETED, REJECTED, FAILED, UNFINISHED, TIMED_OUT, CANCELLED = range(6)

#: The parts of time to first token, in the order in which a request goes through them.
TTFT_PARTS = ("queue", "cache_load", "prefill", "kv_wait", "kv_transfer", "decode_admission", "host")


@dataclass(frozen=True)
class RunRecord:
    """One row a request, in the trace's order. NaN or -1 where a request did not get so far.

    ``loaded_tokens``: of the cached ones, those that came from each cache below the engine (host, ssd, pool).
    ``tenant``: codes into ``tenant_names``; ``tenant_targets``: what the topology promises them, as it was written.
    ``attempts``: how often a request was begun anew, ``lost_tokens``: output tokens made in vain (where faults are
    modelled). The seven ``part_*_s`` columns of a request add up to ``first_token_s - arrival_s``; a part that did not
    occur is 0.
    """

    arrival_s: Floats
    first_token_s: Floats
    last_token_s: Floats
    input_tokens: Ints
    output_tokens: Ints
    cached_tokens: Ints
    preemptions: Ints
    state: NDArray[np.int8]
    reason: NDArray[np.int16]
    reasons: tuple[str, ...]
    prefill_worker: NDArray[np.int32]
    decode_worker: NDArray[np.int32]
    part_queue_s: Floats
    part_cache_load_s: Floats
    part_prefill_s: Floats
    part_kv_wait_s: Floats
    part_kv_transfer_s: Floats
    part_decode_admission_s: Floats
    part_host_s: Floats
    itl_p99_s: Floats | None = None
    loaded_tokens: Mapping[str, Ints] = field(default_factory=dict)
    tenant: Ints | None = None
    tenant_names: tuple[str, ...] = ()
    tenant_targets: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    attempts: Ints | None = None
    lost_tokens: Ints | None = None

    def __len__(self) -> int:
        return int(self.arrival_s.size)


@dataclass(frozen=True)
class ItlHistogram:
    """Gaps between tokens of all requests: bin i holds ``edges_s[i] <= gap < edges_s[i + 1]``.

    ``sums_s`` (seconds in each bin) puts a bin's gaps at their mean; without it they are spread evenly over the bin.
    Gaps that end before ``from_s`` are not in it.
    """

    edges_s: Floats
    counts: Ints
    sums_s: Floats | None = None
    max_s: float = float("nan")
    from_s: float = 0.0


@dataclass(frozen=True)
class WorkerSeries:
    """One worker over time: ``k`` samples of what it runs, what waits for it, and the share of its KV blocks in use."""

    name: str
    pool: str
    role: str
    gpu: str
    time_s: Floats
    running: Ints
    waiting: Ints
    kv_fraction: Floats


@dataclass(frozen=True)
class PoolStats:
    """A pool over the whole run.

    ``utilisation`` is the share of time from first arrival to last completion in which a worker runs a step, mean over
    workers; ``kv_peak_fraction`` the highest share of a worker's KV blocks ever in use; ``usd_per_hour``,
    ``power_watts`` and ``idle_power_watts`` are those of one GPU; ``prefill_share`` is the share of its busy time that
    prompts take; ``on_share`` the share of their time that workers were on (and paid for); ``extra`` is written behind
    these in the result.
    """

    name: str
    role: str
    gpu: str
    workers: int
    gpus: int
    utilisation: float
    kv_peak_fraction: float
    preemptions: int
    kv_blocks: int = -1
    block_tokens: int = -1
    steps: int = -1
    usd_per_hour: float | None = None
    power_watts: float | None = None
    idle_power_watts: float | None = None
    prefill_share: float = 0.0
    on_share: float = 1.0
    extra: Mapping[str, float | int | str] = field(default_factory=dict)


@dataclass(frozen=True)
class RunTopology:
    """What was run, as far as a report needs to know. ``gpu_counts`` maps a GPU's name to how many there are;
    ``modelled``: step times come from a model on GPUs, none is given outright."""

    name: str
    gpus: int
    model: str = ""
    engine: str = ""
    source: str = ""
    gpu_counts: Mapping[str, int] = field(default_factory=dict)
    modelled: bool = False


@dataclass(frozen=True)
class RunResult:
    """One trace offered to one topology. ``arrivals`` is the load as the user wrote it (``trace``, ``closed:16``).

    ``steps`` has every batch of every worker, in the order of ``series``, where the run was asked to write them down.
    """

    topology: RunTopology
    trace: Trace
    record: RunRecord
    series: tuple[WorkerSeries, ...] = ()
    itl_histogram: ItlHistogram | None = None
    pools: tuple[PoolStats, ...] = ()
    network: Mapping[str, object] = field(default_factory=dict)
    cache: Mapping[str, object] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    seed: int = 0
    arrivals: str = "trace"
    first_arrival_s: float = 0.0
    last_completion_s: float = float("nan")
    saturated: bool | None = None  # None: the metrics room judges by the queue
    moments: Moments | None = None
    steps: tuple[WorkerSteps, ...] = ()
    faults: Mapping[str, object] = field(default_factory=dict)
    autoscaling: Mapping[str, object] = field(default_factory=dict)
