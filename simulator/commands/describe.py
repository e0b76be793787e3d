"""``simulate describe``: what a trace, topology, model or GPU is, as the program understands it."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml

from simulator.cluster.assembly import assemble
from simulator.cluster.plan import ClusterPlan, WorkerPlan
from simulator.cluster.shorthand import is_shorthand
from simulator.cluster.topology import load_topology, topology_names
from simulator.commands.options import json_target, parse_columns
from simulator.commands.talk import Talk
from simulator.errors import InputError, TopologyError, nearest
from simulator.files import dumps, output_file, write_text
from simulator.hardware.gpu import Gpu
from simulator.hardware.profiles import list_gpus, load_gpu
from simulator.kv.reuse import reuse_by_pool
from simulator.models.catalogue import list_models, load_model
from simulator.models.model import Model
from simulator.models.precision import Parallel, Precision
from simulator.report.facts import facts_text
from simulator.resources import shipped
from simulator.workload.load import load_trace
from simulator.workload.measure import measure_spec
from simulator.workload.sources import display_name
from simulator.workload.trace import Trace

Facts = dict[str, Any]


def describe(
    what: str, *, changes: Sequence[str] = (), columns: str | None = None, spec: bool = False, json: str | None = None
) -> int:
    """Print the facts of ``what``, or write them as JSON; ``spec`` prints a trace's statistics as YAML instead."""
    target, kind = json_target(json), kind_of(what)
    for option, given, fits in (
        ("--set", changes, "topology"),
        ("--columns", columns, "trace"),
        ("--spec", spec, "trace"),
    ):
        if given and kind != fits:
            raise InputError(f"{option} is for a {fits}; '{what}' is a {kind}")
    if kind == "trace":
        trace = load_trace(what, columns=parse_columns(columns))
        Talk().notes(trace.notes)
        if spec:
            yaml.safe_dump(measure_spec(trace), sys.stdout, sort_keys=False)
            return 0
        facts = trace_facts(trace)
    elif kind == "topology":
        facts = topology_facts(assemble(load_topology(what, changes)))
    else:
        facts = model_facts(load_model(what)) if kind == "model" else gpu_facts(load_gpu(what))
    write_facts(facts, target)
    return 0


def write_facts(facts: Mapping[str, Any], target: str | None) -> None:
    """Facts to stdout as text, or as JSON to where ``--json`` says."""
    if target is None:
        sys.stdout.write(facts_text(facts))
    elif target == "-":
        sys.stdout.write(dumps(facts))
    else:
        write_text(output_file(target, "--json"), dumps(facts))


def kind_of(what: str) -> str:
    """``trace``, ``topology``, ``model`` or ``GPU``, told from a file's content or from the known names."""
    path = Path(what).expanduser()
    if path.exists():
        return _kind_of_file(path)
    if what in topology_names() or is_shorthand(what):
        return "topology"
    if what in _trace_names():
        return "trace"
    for kind, load in (("GPU", load_gpu), ("model", load_model)):
        try:
            load(what)
        except TopologyError:
            continue
        return kind
    names = {"topologies": topology_names(), "models": list_models(), "GPUs": list_gpus(), "traces": _trace_names()}
    near = nearest(what, [name for group in names.values() for name in group])
    known = "; ".join(f"{title}: {', '.join(group)}" for title, group in names.items())
    raise InputError(f"'{what}' is no file and no name known here{near}; {known}")


def _kind_of_file(path: Path) -> str:
    if path.is_dir():
        return "model" if (path / "config.json").is_file() else "trace"
    if path.suffix.lower() in (".yaml", ".yml"):
        return "GPU" if _mentions(path, b"memory_bandwidth_bytes_per_s") else "topology"
    return "model" if path.suffix.lower() == ".json" and _mentions(path, b"hidden_size", b"n_embd") else "trace"


def _mentions(path: Path, *words: bytes) -> bool:
    try:
        with path.open("rb") as file:
            start = file.read(65_536)
    except OSError as problem:
        raise InputError(f"{path}: cannot be read: {problem.strerror}") from None
    return any(word in start for word in words)


def _trace_names() -> list[str]:
    return sorted(display_name(path) for path in shipped("traces").glob("*.jsonl.gz"))


def trace_facts(trace: Trace) -> Facts:
    """Counts, rate, lengths, prefixes and sessions of a trace."""
    stats = trace.stats()
    found = reuse_by_pool(trace)
    if found:
        pools = {f"{name}_tokens_ratio": ratio for name, ratio in found.items()}
        stats["prefix"] = {**stats["prefix"], "found_by_an_lru_pool_of": pools}
    return {"kind": "trace", "name": trace.name, "source": trace.source, **stats, "notes": list(trace.notes)}


def model_facts(model: Model) -> Facts:
    """Shapes, parameters, and the bytes of weights and of KV in each format."""
    facts: Facts = {"kind": "model"}
    facts |= {name: getattr(model, name) for name in ("name", "source", "layers", "hidden", "q_heads", "kv_heads")}
    facts |= {"head_dim": model.head_dim, "vocabulary": model.vocab, "dense_mlp_width": model.ffn}
    facts |= {"attention": _attention(model), "max_context_tokens": model.max_context}
    if model.moe is not None:
        facts["mixture_of_experts"] = {**asdict(model.moe), "moe_layers": model.moe_layers}
    facts |= {"parameters": model.parameters(), "active_parameters": model.active_parameters()}
    if model.mtp_layers:
        facts["multi_token_prediction_parameters"] = model.mtp_parameters()
    facts["weights"] = {
        f"{name}_bytes": model.weight_bytes(Precision(weights=name), Parallel()) for name in ("bf16", "fp8", "nvfp4")
    }
    facts["kv_cache_of_one_token"] = {f"{name}_bytes": model.kv_bytes_per_token(name) for name in ("bf16", "fp8")}
    return facts


def _attention(model: Model) -> str:
    kind = "full"
    windows = [window for window in model.windows if window]
    if windows:
        kind = f"window of {windows[0]:,} tokens in {len(windows)} of {model.layers} layers, full in the others"
    if model.mla is not None:
        mla = model.mla
        kind += f", multi-head latent: KV rank {mla.kv_rank} + {mla.rope_dim} rotary"
    return kind


def gpu_facts(gpu: Gpu) -> Facts:
    """A GPU's figures and where each is from."""
    names = (
        "memory_bytes", "memory_bandwidth_bytes_per_s", "sms", "l2_bytes", "nvlink_bandwidth_bytes_per_s",
        "nvlink_domain_gpus", "pcie_bandwidth_bytes_per_s", "nic_bandwidth_bytes_per_s", "power_watts",
        "idle_power_watts", "usd_per_hour",
    )  # fmt: skip
    facts: Facts = {"kind": "GPU", "name": gpu.name} | {name: getattr(gpu, name) for name in names}
    facts["dense_peak"] = {f"{name}_flops": peak for name, peak in gpu.peak_flops.items()}
    if gpu.kernels is not None:
        own = gpu.derived_from is None
        facts["kernels"] = "measured on this GPU" if own else f"derived from measurements on {gpu.derived_from}"
    else:
        facts["kernels"] = "none measured: roofline with the efficiencies of the nearest measured GPU"
    facts["sources"] = dict(gpu.sources)
    return facts


def topology_facts(plan: ClusterPlan) -> Facts:
    """A topology worked out: engines, where their memory goes, KV blocks, and how KV is handed over."""
    topology = plan.topology
    facts: Facts = {"kind": "topology", "name": topology.name, "source": topology.source}
    if topology.description:
        facts["description"] = " ".join(topology.description.split())
    facts |= {"model": None if plan.model is None else plan.model.name, "engine": topology.profile, "gpus": plan.gpus}
    if plan.precision is not None:
        facts |= {"weights": plan.precision.weights, "kv_cache": plan.precision.kv_cache}
    facts["pool"] = [_pool_facts(plan, pool.name) for pool in topology.pools]
    facts["routing"] = dict(_routing(plan))
    if plan.transfer is not None:
        facts["kv_transfer"] = _transfer_facts(plan)
    facts["warnings"] = list(plan.warnings)
    return facts


def _routing(plan: ClusterPlan) -> Iterator[tuple[str, str]]:
    roles = {pool.role for pool in plan.topology.pools}
    for name, rule in plan.topology.routing.model_dump().items():
        if name in roles or (name == "prefill" and "mixed" in roles):
            yield name, rule


def _pool_facts(plan: ClusterPlan, name: str) -> Facts:
    workers = [worker for worker in plan.workers if worker.pool == name]
    first = workers[0]
    split = ", ".join(f"{key} {value}" for key, value in asdict(first.parallel).items() if value > 1)
    facts: Facts = {"name": f"{name} ({first.role})", "workers": len(workers), "gpu": first.gpu}
    facts |= {"gpus_per_worker": first.parallel.gpus, "parallel": split or "none"}
    facts |= {"kv_blocks_per_worker": first.kv_blocks, "block_tokens": first.block_size}
    facts |= {"kv_tokens_per_worker": first.kv_blocks * first.block_size, "longest_request_tokens": first.max_context}
    facts["settings"] = dict(first.settings)
    if first.memory is not None:
        facts["memory_of_the_fullest_gpu"] = _memory_facts(first)
    return facts


def _memory_facts(worker: WorkerPlan) -> Facts:
    memory = worker.memory
    assert memory is not None
    names = ("total", "usable", "weights", "activations", "runtime", "kv", "kv_per_block")
    return {f"{name}_bytes": getattr(memory, name) for name in names}


def _transfer_facts(plan: ClusterPlan) -> Facts:
    """The handover, and the time 1,000 and 10,000 prompt tokens take on an idle path."""
    transfer = plan.transfer
    assert transfer is not None
    facts: Facts = {"mode": transfer.mode, "explicit_times": transfer.explicit, "max_in_flight": transfer.max_in_flight}
    workers = range(len(plan.workers))
    pairs = [(s, t) for s in workers for t in workers if s != t]
    ways = [(s, t, transfer.places.legs(transfer.mode, transfer.landing, (s, t))) for s, t in pairs]
    source, target, legs = next(way for way in ways if way[2][0].places in transfer.routes)
    routes = [(leg.places, transfer.routes[leg.places]) for leg in legs if leg.places in transfer.routes]
    route = routes[0][1]
    facts["example"] = f"{plan.workers[source].name} to {plan.workers[target].name}"
    facts |= {"setup_s": route.setup_s, "per_block_s": route.per_block_s, "kv_of_a_block_bytes": route.bytes_per_block}
    speeds = [_path_bytes_per_s(plan, places) for places, _ in routes]
    facts["idle_path_bytes_per_s"] = None if None in speeds else min(speed for speed in speeds if speed)
    for tokens in (1_000, 10_000):
        blocks = -(-tokens // plan.workers[source].block_size)
        facts[f"prompt_of_{tokens}_tokens_idle_s"] = sum(
            leg.delay_s(blocks) + (leg.wire_bytes(blocks) / speed if speed else 0.0)
            for (_, leg), speed in zip(routes, speeds, strict=True)
        )
    return facts


def _path_bytes_per_s(plan: ClusterPlan, places: tuple[int, int]) -> float | None:
    assert plan.transfer is not None
    network = plan.transfer.network
    path = network.paths.get(places)
    return None if path is None else path.alone_bytes_per_s(network.links)
