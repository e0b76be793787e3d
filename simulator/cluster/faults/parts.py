"""The shape of ``faults`` and ``client`` in a topology: what fails and when, how it is noticed, what is done then."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

Moment = Annotated[float, Field(ge=0, le=1e9, allow_inf_nan=False)]
Span = Annotated[float, Field(gt=0, le=1e9, allow_inf_nan=False)]
Wait = Annotated[float, Field(ge=0, le=1e9, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Slowness = Annotated[float, Field(ge=1, le=1e6, allow_inf_nan=False)]
Text = Annotated[str, Field(min_length=1)]


class Part(BaseModel):
    """Unknown keys are errors, values are not coerced, instances do not change."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class EventPart(Part):
    """Something that happens at ``at_s`` and lasts ``duration_s``, for ever where that is not given.

    ``crash``: a worker, or all of a pool, loses everything; it starts again after ``duration_s``, at once where that
    is 0, never where it is not given. ``silent``: nobody is told, only health checks find out (a node without power);
    else connections break (a process that dies). ``slow``: steps take ``slowdown`` times as long. ``link``: a link of
    the network has ``capacity`` of its own, 0 for a cut; ``nic``: a worker loses ``cards`` of its network cards.
    ``tier``: a cache below the engines, a worker's or everybody's, loses what it holds and takes nothing.
    """

    kind: Literal["crash", "slow", "link", "nic", "tier"]
    at_s: Moment
    duration_s: Wait | None = None
    worker: Text | None = None
    pool: Text | None = None
    link: Text | None = None
    tier: Literal["host", "ssd", "pool"] | None = None
    slowdown: Slowness | None = None
    capacity: Share | None = None
    cards: Annotated[int, Field(ge=1, le=1024)] | None = None
    silent: bool | None = None


class RatePart(Part):
    """Faults drawn with the run's seed: each worker on its own fails after ``mtbf_s`` and is repaired after
    ``mttr_s``, both on average and exponentially distributed."""

    kind: Literal["crash", "slow"]
    mtbf_s: Span
    mttr_s: Wait
    worker: Text | None = None
    pool: Text | None = None
    slowdown: Slowness | None = None
    silent: bool | None = None


class HealthPart(Part):
    """How workers are looked at; Kubernetes' defaults for probes where nothing is said."""

    interval_s: Span | None = None
    failures: Annotated[int, Field(ge=1, le=1000)] | None = None
    timeout_s: Wait | None = None


class RestartPart(Part):
    """How long a worker takes to come back: ``start_s`` and its weights at ``load_gbyte_per_s``."""

    start_s: Wait | None = None
    load_gbyte_per_s: Span | None = None


class RetryPart(Part):
    """What becomes of a request whose worker dies: sent again up to ``limit`` times.

    ``streamed``: one whose client has tokens goes on from there (``continue``: what it has becomes part of the
    prompt), is begun anew (``restart``), or fails (``fail``).
    """

    limit: Annotated[int, Field(ge=0, le=1000)] = 3
    streamed: Literal["continue", "restart", "fail"] = "continue"


class FaultsPart(Part):
    """What fails, and what the system does then. ``no_worker``: requests that come while no worker is known to live."""

    events: list[EventPart] = Field(default_factory=list)
    rates: list[RatePart] = Field(default_factory=list)
    health: HealthPart = HealthPart()
    restart: RestartPart = RestartPart()
    retry: RetryPart = RetryPart()
    no_worker: Literal["reject", "wait"] = "reject"
    transfer_timeout_s: Span | None = None


class ClientPart(Part):
    """How long clients wait: ``timeout_s`` for the whole answer, ``first_token_timeout_s`` for its first token.

    ``cancel_share`` of them go before, ``cancel_after_s`` after sending on average (exponentially distributed).
    """

    timeout_s: Span | None = None
    first_token_timeout_s: Span | None = None
    cancel_share: Share = 0.0
    cancel_after_s: Span | None = None


class ScalePart(Part):
    """How many of a pool's workers are on: ``workers`` of the pool at most.

    Every ``every_s`` a figure is held against its target, one of these: ``waiting_requests`` or ``requests`` a worker,
    ``kv_use`` (share of KV memory that requests hold), ``ttft_s`` (mean of the first tokens since the last look). The
    number wanted is the present one times figure / target, rounded up; figures within ``tolerance`` change nothing, and
    workers go only when none of the looks within ``cooldown_s`` wanted as many. What goes is drained first. A worker is
    there ``start_s`` after it is wanted (its restart, where that is not said).
    """

    pool: Text
    min_workers: Annotated[int, Field(ge=1, le=100_000)] = 1
    first_workers: Annotated[int, Field(ge=1, le=100_000)] | None = None
    waiting_requests: Span | None = None
    requests: Span | None = None
    kv_use: Annotated[float, Field(gt=0, le=1)] | None = None
    ttft_s: Span | None = None
    every_s: Span = 15.0
    tolerance: Share = 0.1
    cooldown_s: Wait = 300.0
    start_s: Wait | None = None

    @property
    def figure(self) -> tuple[str, float]:
        """What is looked at, and its target."""
        return next(iter(self.figures.items()))

    @property
    def figures(self) -> dict[str, float]:
        """Those that are given; there has to be one."""
        given = {name: getattr(self, name) for name in ("waiting_requests", "requests", "kv_use", "ttft_s")}
        return {name: value for name, value in given.items() if value is not None}


class AutoscalingPart(Part):
    """Pools whose size follows the load. ``total_workers``: of all these pools together at once; a pool that wants one
    more then gets it when another has let one go, which is how machines change between prefill and decode."""

    pools: Annotated[list[ScalePart], Field(min_length=1)]
    total_workers: Annotated[int, Field(ge=1, le=1_000_000)] | None = None
