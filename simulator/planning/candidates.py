"""Clusters a plan can choose from: what fits, how it is split, what it costs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from simulator.cluster.plan import ClusterPlan
from simulator.cluster.profiles import load_profile
from simulator.cluster.topology import Topology, load_topology
from simulator.errors import InputError
from simulator.hardware.profiles import load_gpu
from simulator.models.precision import Parallel
from simulator.planning.plan_spec import PlanSpec
from simulator.planning.runs import plan_of, topology_text

COLOCATED, DISAGGREGATED = "colocated", "disaggregated"
#: Tensor-parallel degrees that are tried where the spec names none.
_TENSOR_PARALLEL = (1, 2, 4, 8)


@dataclass(frozen=True)
class Unit:
    """One engine: a GPU type, how many of it, their price together (dollars an hour, None where not known), and
    tokens of a step (None: the engine's default)."""

    gpu: str
    parallel: Parallel
    usd_per_hour: float | None
    step_tokens: int | None = None

    @property
    def gpus(self) -> int:
        """GPUs of the engine."""
        return self.parallel.gpus

    @property
    def label(self) -> str:
        """``h100_sxm:tp2``."""
        degrees = {"tp": self.parallel.tp, "pp": self.parallel.pp, "dp": self.parallel.dp, "ep": self.parallel.ep}
        parts = [self.gpu, *(f"{name}{degree}" for name, degree in degrees.items() if degree > 1)]
        return ":".join(parts if self.step_tokens is None else [*parts, f"step{self.step_tokens}"])


@dataclass(frozen=True)
class Candidate:
    """A cluster: its topology, and the same as text for runs. ``units`` are the
    kinds of engine of its pools, ``workers`` how many there are of each; empty for a topology of the user's own."""

    name: str
    kind: str
    topology: Topology
    usd_per_hour: float | None
    units: tuple[Unit, ...] = ()
    workers: tuple[int, ...] = ()
    text: str = field(repr=False, default="")

    @property
    def gpus(self) -> int:
        """GPUs in all."""
        return self.topology.gpus

    def plan(self) -> ClusterPlan:
        """Worked out. Raises InputError where it does not fit."""
        return plan_of(self.text)


def given(topology: Topology) -> Candidate:
    """A topology of the user's own."""
    kind = DISAGGREGATED if topology.disaggregated else COLOCATED
    prices = [
        _pool_price(pool.gpu, pool.usd_per_hour, pool.workers * pool.parallel.value().gpus) for pool in topology.pools
    ]
    known = [price for price in prices if price is not None]
    total = sum(known) if len(known) == len(prices) else None
    return Candidate(topology.name, kind, topology, total, text=topology_text(topology))


def _pool_price(gpu: str | None, price: float | None, count: int) -> float | None:
    if price is None and gpu is not None:
        price = load_gpu(gpu).usd_per_hour
    return None if price is None else price * count


def units(spec: PlanSpec) -> tuple[dict[str, list[Unit]], list[dict[str, str]]]:
    """Engines that fit, by GPU name, and those that do not with the reason."""
    fit: dict[str, list[Unit]] = {}
    pruned: list[dict[str, str]] = []
    for name, offer in (spec.gpus or {}).items():
        gpu = load_gpu(name)
        price = gpu.usd_per_hour if offer.usd_per_hour is None else offer.usd_per_hour
        most = offer.count or offer.max or gpu.nvlink_domain_gpus
        for parallel in _degrees(spec, min(most, max(gpu.nvlink_domain_gpus, 1)), most):
            unit = Unit(name, parallel, None if price is None else price * parallel.gpus)
            problem = _problem(spec, unit)
            if problem is None:
                fit.setdefault(name, []).append(unit)
            else:
                pruned.append({"candidate": unit.label, "reason": problem})
    if not fit:
        raise InputError(f"gpus: no engine fits: {pruned[0]['reason']}")
    return fit, pruned


def _degrees(spec: PlanSpec, joined: int, most: int) -> Iterator[Parallel]:
    if spec.parallel is not None:
        yield from (part.value() for part in spec.parallel if part.value().gpus <= most)
        return
    yield from (Parallel(tp=tp) for tp in _TENSOR_PARALLEL if tp <= joined)


def _problem(spec: PlanSpec, unit: Unit) -> str | None:
    """Why an engine cannot be; None where it can."""
    try:
        colocated(spec, unit, 1).plan()
    except InputError as problem:
        return str(problem)
    return None


def tuned(spec: PlanSpec, unit: Unit) -> list[Unit]:
    """A colocated engine with each size of a step that is tried."""
    return [unit, *(replace(unit, step_tokens=tokens) for tokens in dict.fromkeys(spec.step_tokens))]


def colocated(spec: PlanSpec, unit: Unit, workers: int) -> Candidate:
    """``workers`` engines that serve whole requests."""
    name = f"{workers}c {unit.label}"
    return _made(spec, name, COLOCATED, [("colocated", unit, workers)])


def disaggregated(spec: PlanSpec, prefill: Unit, prefills: int, decode: Unit, decodes: int) -> Candidate:
    """Prefill and decode engines."""
    name = f"{prefills}p {prefill.label} + {decodes}d {decode.label}"
    return _made(spec, name, DISAGGREGATED, [("prefill", prefill, prefills), ("decode", decode, decodes)])


def _made(spec: PlanSpec, name: str, kind: str, pools: list[tuple[str, Unit, int]]) -> Candidate:
    values: dict[str, Any] = {"name": name, "model": spec.model, "engine": spec.engine}
    values |= {"precision": _plain(spec.precision), "routing": _plain(spec.routing)}
    if kind == DISAGGREGATED:
        values |= {"network": _plain(spec.network), "kv_transfer": _plain(spec.kv_transfer)}
    values["pools"] = [
        {
            "name": role,
            "role": role,
            "gpu": unit.gpu,
            "workers": count,
            "parallel": asdict(unit.parallel),
            **({} if unit.usd_per_hour is None else {"usd_per_hour": unit.usd_per_hour / unit.gpus}),
            **({} if unit.step_tokens is None else {"engine": _step_setting(spec, unit.step_tokens)}),
        }
        for role, unit, count in pools
    ]
    topology = load_topology(values)
    prices = [None if unit.usd_per_hour is None else unit.usd_per_hour * count for _, unit, count in pools]
    known = [price for price in prices if price is not None]
    total = sum(known) if len(known) == len(prices) else None
    kinds, counts = tuple(unit for _, unit, _ in pools), tuple(count for _, _, count in pools)
    return Candidate(name, kind, topology, total, kinds, counts, topology_text(topology))


def _step_setting(spec: PlanSpec, tokens: int) -> dict[str, Any]:
    """The engine's own setting for the tokens of a step; TensorRT-LLM cuts prompts only where it is told to."""
    name = spec.engine if isinstance(spec.engine, str) else str(spec.engine.get("profile", "vllm"))
    family = load_profile(name, "engine").family
    chunked = {"enable_chunked_prefill": True} if family.name == "tensorrt-llm" else {}
    return {family.step_tokens: tokens, **chunked}


def _plain(part: Any) -> Mapping[str, Any]:
    values: Mapping[str, Any] = part.model_dump(exclude_defaults=True)
    return {"kind": part.kind, **values} if hasattr(part, "kind") else values


def splits(spec: PlanSpec, fit: Mapping[str, list[Unit]]) -> Iterator[Candidate]:
    """Every way to use the GPUs of ``best_split`` up: colocated, split on one type, and split over two types."""
    counts = {name: int(offer.count or 0) for name, offer in (spec.gpus or {}).items()}
    for name, engines in fit.items():
        for unit in engines:
            if counts[name] % unit.gpus == 0:
                yield from (colocated(spec, one, counts[name] // unit.gpus) for one in tuned(spec, unit))
        for prefill in engines:
            for decode in engines:
                for prefills in range(1, counts[name] // prefill.gpus + 1):
                    left = counts[name] - prefills * prefill.gpus
                    if left > 0 and left % decode.gpus == 0:
                        yield disaggregated(spec, prefill, prefills, decode, left // decode.gpus)
    for first, second in ((a, b) for a in fit for b in fit if a != b):
        for prefill in fit[first]:
            for decode in fit[second]:
                if counts[first] % prefill.gpus == 0 and counts[second] % decode.gpus == 0:
                    yield disaggregated(
                        spec, prefill, counts[first] // prefill.gpus, decode, counts[second] // decode.gpus
                    )
