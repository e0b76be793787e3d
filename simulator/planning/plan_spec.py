"""What a plan is asked: the keys of its YAML."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from simulator.cluster.schema import KvTransferPart, NetworkPart, ParallelPart, PrecisionPart, RoutingPart
from simulator.errors import InputError
from simulator.metrics.slo import SLO
from simulator.planning.traces import trace_source
from simulator.schema import Schema, check, read_yaml
from simulator.workload.arrivals import Arrivals, parse_arrivals
from simulator.workload.trace import Trace

Find = Literal["max_rate", "best_split", "cheapest"]
_NEEDED: dict[str, tuple[str, ...]] = {
    "max_rate": ("topologies",),
    "best_split": ("model", "gpus"),
    "cheapest": ("model", "gpus", "rate"),
}
_ATTAINMENT = 0.95
#: Tokens of a step that colocated engines are tried with beside their profile's default: what a prompt may take of a
#: step is what its neighbours' next tokens wait for. 512 is the largest step that vLLM runs as one CUDA graph.
STEP_TOKENS = (512, 2048)


class GpuOffer(Schema):
    """GPUs that may be used: exactly ``count`` (best_split), or up to ``max`` (cheapest); price of one an hour."""

    count: Annotated[int, Field(ge=1, le=100_000)] | None = None
    max: Annotated[int, Field(ge=1, le=100_000)] | None = None
    usd_per_hour: Annotated[float, Field(gt=0, le=1e4)] | None = None


class PlanSpec(Schema):
    """A plan as it is written; see docs/planning.md. ``step_tokens``: sizes of a step that colocated engines are tried
    with, beside their own default."""

    name: str = ""
    find: Find
    trace: str
    slo: dict[str, Any]
    topologies: Annotated[list[str | dict[str, Any]], Field(min_length=1)] | None = None
    model: str | None = None
    gpus: Annotated[dict[str, GpuOffer], Field(min_length=1)] | None = None
    rate: Annotated[float, Field(gt=0, le=1e6)] | None = None
    engine: str | dict[str, Any] = "vllm"
    precision: PrecisionPart = PrecisionPart()
    network: NetworkPart = NetworkPart(kind="rdma")
    kv_transfer: KvTransferPart = KvTransferPart()
    routing: RoutingPart = RoutingPart()
    parallel: Annotated[list[ParallelPart], Field(min_length=1)] | None = None
    step_tokens: list[Annotated[int, Field(ge=1)]] = Field(default_factory=lambda: list(STEP_TOKENS))
    arrivals: str = "trace"
    limit: Annotated[int, Field(ge=1)] | None = None
    start: str | float | None = None
    duration: str | float | None = None
    columns: dict[str, str] | None = None
    seed: Annotated[int, Field(ge=0)] = 0
    replications: Annotated[int, Field(ge=2, le=1000)] = 8
    requests: Annotated[int, Field(ge=40, le=10_000_000)] | None = None
    sensitivity: bool = True

    @model_validator(mode="after")
    def _what_is_needed(self) -> PlanSpec:
        for key in _NEEDED[self.find]:
            if getattr(self, key) is None:
                raise ValueError(f"find: {self.find} needs the key '{key}'")
        for name, offer in (self.gpus or {}).items():
            if self.find == "best_split" and offer.count is None:
                raise ValueError(f"gpus.{name}: find: best_split needs 'count', how many there are")
        return self


@dataclass(frozen=True)
class Question:
    """A plan's spec, read: its trace is loaded, targets and arrivals are parsed."""

    spec: PlanSpec
    place: str
    folder: Path
    trace: Trace
    slo: SLO
    attainment: float
    arrivals: Arrivals


def read_plan(spec: str | Path | Mapping[str, Any]) -> Question:
    """Read a plan's spec from a file or from plain values, and its trace. Raises InputError."""
    if isinstance(spec, Mapping):
        place, folder, values = "plan", Path(), dict(spec)
    else:
        place, folder, values = str(spec), Path(spec).parent, read_yaml(Path(spec))
    parsed = check(PlanSpec, values, place)
    targets = dict(parsed.slo)
    attainment = targets.pop("attainment", _ATTAINMENT)
    if isinstance(attainment, bool) or not isinstance(attainment, int | float) or not 0 < attainment <= 1:
        raise InputError(f"{place}: slo.attainment: found {attainment!r}; allowed: a share above 0 up to 1")
    slo = SLO.from_mapping(targets, f"{place}: slo")
    if not slo:
        raise InputError(f"{place}: slo: no latency target; give ttft, tpot, e2e or itl_p99")
    arrivals = parse_arrivals(_arrivals(parsed.arrivals), f"{place}: arrivals")
    window = {key: getattr(parsed, key) for key in ("trace", "limit", "start", "duration", "columns", "arrivals")}
    source, _ = trace_source(window, folder, place)
    try:
        trace = source.load()
    except InputError as problem:
        raise InputError(f"{place}: {problem}") from None
    return Question(parsed, place, folder, trace, slo, float(attainment), arrivals)


def _arrivals(text: str) -> str:
    """Arrivals as a kind without its rate, which a plan looks for: ``poisson``, ``gamma:CV``."""
    kind, _, rest = text.partition(":")
    return {"poisson": "poisson:1", "gamma": f"gamma:1:{rest}"}.get(kind, text) if rest.count(":") == 0 else text
