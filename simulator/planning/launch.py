"""A planned cluster as the commands and files that start it: vLLM, SGLang or TensorRT-LLM.

Flags follow the engines' own pages: vLLM ``docs/features/nixl_connector_usage.md``, SGLang
``docs/advanced_features/pd_disaggregation.md``, TensorRT-LLM ``examples/disaggregated``.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import yaml

from simulator.cluster.plan import ClusterPlan, WorkerPlan
from simulator.hardware.profiles import load_gpu
from simulator.models.catalogue import published_name

_FIRST_PORT = {"vllm": 8100, "sglang": 30000, "tensorrt-llm": 8001}
_FRONT_PORT = 8000
_NIXL_PORT = 5600
_BOOTSTRAP_PORT = 8998
_NODE_GPUS = 8


@dataclass(frozen=True)
class _Engine:
    """One engine and where it goes: node, first GPU on it, port."""

    worker: WorkerPlan
    node: int
    first_gpu: int
    port: int

    @property
    def host(self) -> str:
        """A shell variable that holds the node's address."""
        return f"$NODE{self.node}"

    @property
    def devices(self) -> str:
        """GPUs of the node, as CUDA counts them."""
        return ",".join(str(self.first_gpu + i) for i in range(self.worker.parallel.gpus))


def launch_files(plan: ClusterPlan) -> dict[str, str]:
    """File name to text: ``start.sh``, and the YAML files that TensorRT-LLM wants. Empty for other engines, and for a
    cluster without a model (explicit step times)."""
    family = _family(plan)
    model = plan.topology.model
    if model is None or family is None:
        return {}
    engines = list(_placed(plan, _FIRST_PORT[family]))
    name = published_name(model)
    write = {"vllm": _vllm, "sglang": _sglang, "tensorrt-llm": _trtllm}[family]
    return write(plan, engines, name)


def _family(plan: ClusterPlan) -> str | None:
    settings = plan.workers[0].settings
    for family, setting in (
        ("vllm", "max_num_seqs"),
        ("sglang", "chunked_prefill_size"),
        ("tensorrt-llm", "max_num_tokens"),
    ):
        if setting in settings:
            return family
    return None


def _placed(plan: ClusterPlan, port: int) -> Iterator[_Engine]:
    """Engines on nodes, in the order of the pools; nodes hold one kind of GPU."""
    node, used, kind = 0, 0, plan.workers[0].gpu
    for index, worker in enumerate(plan.workers):
        room = _NODE_GPUS if worker.gpu is None else max(_NODE_GPUS, load_gpu(worker.gpu).nvlink_domain_gpus)
        if used + worker.parallel.gpus > room or worker.gpu != kind:
            node, used, kind = node + (used > 0), 0, worker.gpu
        yield _Engine(worker, node, used, port + index)
        used += worker.parallel.gpus


def _script(plan: ClusterPlan, engines: list[_Engine], lines: list[str]) -> str:
    nodes = {engine.node: engine.worker.gpu or "GPU" for engine in engines}
    head = ["#!/usr/bin/env bash", f"# {plan.topology.name}", "# Each command belongs on the node its comment names."]
    head += [f"NODE{node}=localhost  # address of a node of {gpu}" for node, gpu in nodes.items()]
    return "\n".join([*head, "", *lines, "wait"]) + "\n"


def _command(env: Mapping[str, str], words: list[str], comment: str) -> str:
    texts = [word if word.startswith("$") or "http://$" in word else shlex.quote(word) for word in words]
    first = " ".join([*(f"{key}={value}" for key, value in env.items()), *_until_flag(texts)])
    rest = _flags(texts[len(_until_flag(texts)) :])
    return f"# {comment}\n" + " \\\n  ".join([first, *rest]) + " &\n"


def _until_flag(words: list[str]) -> list[str]:
    place = next((i for i, word in enumerate(words) if word.startswith("--")), len(words))
    return words[:place]


def _flags(words: list[str]) -> list[str]:
    lines: list[str] = []
    for word in words:
        if word.startswith("--"):
            lines.append(word)
        else:
            lines[-1] += f" {word}"
    return lines


def _where(engine: _Engine) -> str:
    return f"{engine.worker.name} on node {engine.node} ({engine.worker.gpu})"


def _settings(worker: WorkerPlan, names: Mapping[str, str], shared: tuple[str, ...] = ()) -> list[str]:
    """Settings as flags; those an engine keeps for each data-parallel rank are divided again."""
    words: list[str] = []
    for name, flag in names.items():
        value = worker.settings.get(name)
        if value is None or value == 0:
            continue
        words += [flag, str(int(value) // worker.parallel.dp if name in shared else value)]
    return words


def _precision(plan: ClusterPlan, weights_flag: str, cache_flag: str, caches: Mapping[str, str]) -> list[str]:
    """Number formats where they are not those of the published weights."""
    precision = plan.precision
    words: list[str] = []
    if precision is not None and precision.weights in ("fp8", "fp8_block"):
        words += [weights_flag, "fp8"]
    if precision is not None and precision.kv_cache in caches:
        words += [cache_flag, caches[precision.kv_cache]]
    return words


def _vllm(plan: ClusterPlan, engines: list[_Engine], model: str) -> dict[str, str]:
    lines = []
    flags = {"max_num_seqs": "--max-num-seqs", "max_num_batched_tokens": "--max-num-batched-tokens"}
    flags |= {"block_size": "--block-size", "gpu_memory_utilization": "--gpu-memory-utilization"}
    for index, engine in enumerate(engines):
        parallel, worker = engine.worker.parallel, engine.worker
        words = ["vllm", "serve", model, "--port", str(engine.port), "--tensor-parallel-size", str(parallel.tp)]
        words += ["--pipeline-parallel-size", str(parallel.pp)] if parallel.pp > 1 else []
        words += ["--data-parallel-size", str(parallel.dp)] if parallel.dp > 1 else []
        words += ["--enable-expert-parallel"] if parallel.ep > 1 else []
        words += _settings(worker, flags, ("max_num_seqs", "max_num_batched_tokens"))
        words += [] if worker.settings.get("prefix_caching", True) else ["--no-enable-prefix-caching"]
        words += _precision(plan, "--quantization", "--kv-cache-dtype", {"fp8": "fp8"})
        env = {"CUDA_VISIBLE_DEVICES": engine.devices}
        if plan.topology.disaggregated:
            role = {"prefill": "kv_producer", "decode": "kv_consumer"}.get(worker.role, "kv_both")
            words += ["--kv-transfer-config", json.dumps({"kv_connector": "NixlConnector", "kv_role": role})]
            side_channel = _NIXL_PORT + 100 * index
            env |= {"VLLM_NIXL_SIDE_CHANNEL_HOST": engine.host, "VLLM_NIXL_SIDE_CHANNEL_PORT": str(side_channel)}
        lines.append(_command(env, words, _where(engine)))
    if plan.topology.disaggregated:
        lines.append(_vllm_proxy(engines))
    return {"start.sh": _script(plan, engines, lines)}


def _vllm_proxy(engines: list[_Engine]) -> str:
    words = ["python", "tests/v1/kv_connector/nixl_integration/toy_proxy_server.py", "--port", str(_FRONT_PORT)]
    for role, flag in (("prefill", "--prefiller"), ("decode", "--decoder")):
        members = [engine for engine in engines if engine.worker.role in (role, "mixed")]
        words += [f"{flag}-hosts", *(engine.host for engine in members)]
        words += [f"{flag}-ports", *(str(engine.port) for engine in members)]
    return _command({}, words, "front end: the example proxy of the vLLM repository, or a router of your own")


def _sglang(plan: ClusterPlan, engines: list[_Engine], model: str) -> dict[str, str]:
    flags = {"max_running_requests": "--max-running-requests", "chunked_prefill_size": "--chunked-prefill-size"}
    flags |= {"page_size": "--page-size", "mem_fraction_static": "--mem-fraction-static"}
    lines = []
    for index, engine in enumerate(engines):
        parallel, worker = engine.worker.parallel, engine.worker
        words = ["python", "-m", "sglang.launch_server", "--model-path", model, "--host", "0.0.0.0"]
        words += ["--port", str(engine.port), "--tp-size", str(parallel.tp * parallel.dp)]
        words += ["--pp-size", str(parallel.pp)] if parallel.pp > 1 else []
        words += ["--dp-size", str(parallel.dp), "--enable-dp-attention"] if parallel.dp > 1 else []
        words += ["--ep-size", str(parallel.ep)] if parallel.ep > 1 else []
        words += _settings(worker, flags)
        words += _precision(plan, "--quantization", "--kv-cache-dtype", {"fp8": "fp8_e4m3"})
        if plan.topology.disaggregated:
            words += ["--disaggregation-mode", worker.role, "--disaggregation-transfer-backend", "nixl"]
            if worker.role == "prefill":
                words += ["--disaggregation-bootstrap-port", str(_BOOTSTRAP_PORT + index)]
        lines.append(_command({"CUDA_VISIBLE_DEVICES": engine.devices}, words, _where(engine)))
    words = ["python", "-m", "sglang_router.launch_router", "--host", "0.0.0.0", "--port", str(_FRONT_PORT)]
    if plan.topology.disaggregated:
        words += ["--pd-disaggregation"]
        for index, engine in enumerate(engines):
            url = f"http://{engine.host}:{engine.port}"
            bootstrap = [str(_BOOTSTRAP_PORT + index)] if engine.worker.role == "prefill" else []
            words += [f"--{engine.worker.role}", url, *bootstrap]
    else:
        words += ["--worker-urls", *(f"http://{engine.host}:{engine.port}" for engine in engines)]
    lines.append(_command({}, words, "router"))
    return {"start.sh": _script(plan, engines, lines)}


def _trtllm(plan: ClusterPlan, engines: list[_Engine], model: str) -> dict[str, str]:
    files: dict[str, str] = {}
    lines = []
    for engine in engines:
        pool = engine.worker.pool
        files[f"{pool}.yaml"] = yaml.safe_dump(_trtllm_options(plan, engine.worker), sort_keys=False)
        words = ["trtllm-serve", model, "--host", "0.0.0.0", "--port", str(engine.port), "--backend", "pytorch"]
        words += ["--extra_llm_api_options", f"{pool}.yaml"]
        lines.append(_command({"CUDA_VISIBLE_DEVICES": engine.devices}, words, _where(engine)))
    if plan.topology.disaggregated:
        servers = {"hostname": "localhost", "port": _FRONT_PORT, "backend": "pytorch"}
        files["disaggregated.yaml"] = yaml.safe_dump(servers | _trtllm_servers(engines), sort_keys=False)
        words = ["trtllm-serve", "disaggregated", "-c", "disaggregated.yaml"]
        lines.append(_command({}, words, "front end; replace NODEn in disaggregated.yaml by addresses"))
    return {"start.sh": _script(plan, engines, lines), **files}


def _trtllm_options(plan: ClusterPlan, worker: WorkerPlan) -> dict[str, object]:
    parallel, settings = worker.parallel, worker.settings
    options: dict[str, object] = {
        "tensor_parallel_size": parallel.tp * parallel.dp,
        "pipeline_parallel_size": parallel.pp,
        "moe_expert_parallel_size": parallel.ep,
        "enable_attention_dp": parallel.dp > 1,
        "max_batch_size": int(settings["max_batch_size"]) // parallel.dp,
        "max_num_tokens": int(settings["max_num_tokens"]) // parallel.dp,
        "enable_chunked_prefill": bool(settings["enable_chunked_prefill"]),
        "disable_overlap_scheduler": worker.role == "prefill" or not settings["overlap_scheduler"],
        "kv_cache_config": {
            "free_gpu_memory_fraction": settings["free_gpu_memory_fraction"],
            "enable_block_reuse": bool(settings["enable_block_reuse"]),
            "tokens_per_block": settings["tokens_per_block"],
            "dtype": "fp8" if plan.precision is not None and plan.precision.kv_cache == "fp8" else "auto",
        },
    }
    if plan.topology.disaggregated:
        options["cache_transceiver_config"] = {"backend": "UCX"}
    return options


def _trtllm_servers(engines: list[_Engine]) -> dict[str, object]:
    found: dict[str, object] = {}
    for role, key in (("prefill", "context_servers"), ("decode", "generation_servers")):
        members = [engine for engine in engines if engine.worker.role in (role, "mixed")]
        urls = [f"NODE{engine.node}:{engine.port}" for engine in members]
        found[key] = {"num_instances": len(members), "urls": urls}
    return found
