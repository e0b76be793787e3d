"""Assumptions and sources: what each topology was taken to be, and where its numbers come from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from simulator.cluster.plan import ClusterPlan, WorkerPlan
from simulator.cluster.profiles import load_profile
from simulator.hardware.gpu import Gpu
from simulator.hardware.profiles import load_gpu
from simulator.metrics.wording import count, figures, seconds

Pairs = list[tuple[str, str]]
#: Names of the degrees of parallelism, as they are written.
_DEGREES = ("tp", "pp", "dp", "ep")


def topology_facts(plan: ClusterPlan) -> Pairs:
    """What the topology was taken to be, as name and text."""
    topology, found = plan.topology, []
    if topology.description:
        found.append(("description", " ".join(topology.description.split())))
    found.append(("file", topology.source))
    if plan.model is not None:
        found.append(("model", f"{plan.model.name}, {figures(plan.model.parameters() / 1e9)} billion parameters"))
        found.append(("shapes from", plan.model.source))
    if plan.precision is not None:
        found.append(("formats", f"weights {plan.precision.weights}, KV cache {plan.precision.kv_cache}"))
    for pool in topology.pools:
        members = [worker for worker in plan.workers if worker.pool == pool.name]
        found.append((f"pool {pool.name}", _pool(members)))
    found += _transfer(plan)
    return found


def _pool(members: list[WorkerPlan]) -> str:
    first = members[0]
    degrees = [f"{name} {getattr(first.parallel, name)}" for name in _DEGREES if getattr(first.parallel, name) > 1]
    number = f"{len(members)} {first.role} worker" + ("s" if len(members) > 1 else "")
    gpus = f" on {first.parallel.gpus} {first.gpu}" + (" each" if len(members) > 1 else "") if first.gpu else ""
    said = [number + gpus + (f" ({', '.join(degrees)})" if degrees else "")]
    said.append(f"{count(first.kv_blocks)} KV blocks of {first.block_size} tokens")
    said.append(f"at most {count(first.max_step_tokens)} tokens and {count(first.max_sequences)} sequences a step")
    return ", ".join(said)


def _transfer(plan: ClusterPlan) -> Iterator[tuple[str, str]]:
    transfer = plan.transfer
    if transfer is None or not transfer.routes:
        return
    network = plan.topology.network
    where = "stated times" if transfer.explicit or network is None else f"over {network.kind}"
    yield "KV transfer", f"{transfer.mode}, {where}, compression {transfer.compression.name}"
    route = next(iter(transfer.routes.values()))
    if route.bytes_per_block:
        yield (
            "one block on the wire",
            f"{figures(route.bytes_per_block / 1e6)} MB after {seconds(route.setup_s)} of setup",
        )


def gpus_of(plans: Mapping[str, ClusterPlan]) -> list[Gpu]:
    """Each GPU type in use, once."""
    names = dict.fromkeys(worker.gpu for plan in plans.values() for worker in plan.workers if worker.gpu)
    return [load_gpu(name) for name in names]


def gpu_facts(gpu: Gpu) -> list[tuple[str, str, str]]:
    """Name, figure and source of what the step costs rest on."""
    peaks = ", ".join(f"{name} {peak / 1e12:,.4g}" for name, peak in gpu.peak_flops.items())
    rows = [
        ("memory_bytes", "memory", f"{gpu.memory_bytes / 1e9:,.4g} GB"),
        ("memory_bandwidth_bytes_per_s", "memory bandwidth", f"{gpu.memory_bandwidth_bytes_per_s / 1e12:,.3g} TB/s"),
        ("peak_flops", "dense peak, TFLOP/s", peaks),
        ("nvlink_bandwidth_bytes_per_s", "NVLink, one way", f"{gpu.nvlink_bandwidth_bytes_per_s / 1e9:,.4g} GB/s"),
        ("nic_bandwidth_bytes_per_s", "network card's share", f"{gpu.nic_bandwidth_bytes_per_s / 1e9:,.4g} GB/s"),
    ]
    if gpu.usd_per_hour is not None:
        rows.append(("usd_per_hour", "price", f"{gpu.usd_per_hour:,.2f} USD/h"))
    found = [(title, text, gpu.sources.get(key, "not stated")) for key, title, text in rows]
    return [*found, ("kernel times", kernels_of(gpu), "")]


def kernels_of(gpu: Gpu) -> str:
    """Where the times of a GPU's kernels come from."""
    if gpu.kernels is None:
        return "none measured: roofline with the efficiencies of the nearest measured GPU"
    return "measured on this GPU" if gpu.derived_from is None else f"derived from measurements on {gpu.derived_from}"


def engine_facts(name: str) -> list[tuple[str, str, str]]:
    """An engine profile's host costs: name, value, source."""
    costs = load_profile(name).costs
    sources: Mapping[str, Any] = costs.get("sources", {})
    return [(key, _written(key, value), str(sources.get(key, ""))) for key, value in costs.items() if key != "sources"]


def _written(key: str, value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int | float):
        return seconds(float(value)) if key.endswith("_s") else f"{value:,.6g}"
    if isinstance(value, list) and len(value) > 8:
        return f"{value[0]} ... {value[-1]} ({len(value)} values)"
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def engines_of(plans: Mapping[str, ClusterPlan]) -> list[str]:
    """Each engine profile in use, once."""
    return list(dict.fromkeys(plan.topology.profile for plan in plans.values() if plan.model is not None))
