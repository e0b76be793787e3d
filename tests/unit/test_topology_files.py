"""Topology files, shorthand and --set: what is read, and what one line says about what is not."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from simulator.cluster.schema import Topology
from simulator.cluster.topology import load_topology, topology_names
from simulator.errors import TopologyError

COLOCATED: dict[str, Any] = {
    "name": "a",
    "model": "llama-3.1-8b",
    "pools": [{"name": "p", "role": "colocated", "gpu": "h100_sxm"}],
}
SPLIT: dict[str, Any] = {
    "name": "s",
    "model": "llama-3.1-8b",
    "pools": [
        {"name": "prefill", "role": "prefill", "gpu": "h100_sxm"},
        {"name": "decode", "role": "decode", "gpu": "h100_sxm", "workers": 2},
    ],
    "network": {"kind": "rdma", "nic_gbit_per_s": 400},
}
EXPLICIT: dict[str, Any] = {
    "name": "e",
    "step_time": {"kind": "affine", "base_s": 0.005},
    "kv_blocks": 100,
    "pools": [{"name": "p", "role": "prefill"}, {"name": "d", "role": "decode"}],
    "kv_transfer": {"setup_s": 0.002, "per_block_s": 2e-5},
}


def changed(base: dict[str, Any], change: Callable[[dict[str, Any]], object]) -> dict[str, Any]:
    values = copy.deepcopy(base)
    change(values)
    return values


def message(values: Any, overrides: tuple[str, ...] = ()) -> str:
    with pytest.raises(TopologyError) as error:
        load_topology(values, overrides)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_the_interface_example_loads(tmp_path: Path) -> None:
    text = """
name: b200-prefill-h100-decode
model: llama-3.1-70b            # catalogue name or path of a Hugging Face config.json
precision: {weights: fp8, kv_cache: bf16}
engine: vllm-0.25
pools:
  - {name: prefill, role: prefill, gpu: b200_sxm, workers: 2, parallel: {tp: 2}}
  - {name: decode,  role: decode,  gpu: h100_sxm, workers: 4, parallel: {tp: 4}, engine: {max_num_seqs: 512}}
network: {kind: rdma, nic_gbit_per_s: 400, oversubscription: 1.0}
kv_transfer: {mode: pull, compression: none}
routing: {prefill: least_pending_tokens, decode: most_free_blocks}
"""
    path = tmp_path / "t.yaml"
    path.write_text(text)
    topology = load_topology(path)
    assert topology.gpus == 2 * 2 + 4 * 4
    assert topology.pool("decode").engine == {"max_num_seqs": 512}
    # the shipped one runs the same engine behind its HTTP server
    assert topology == load_topology("b200-prefill-h100-decode").model_copy(
        update={"source": str(path), "description": "", "engine": "vllm-0.25"}
    )


def test_every_shipped_topology_loads_under_its_own_name() -> None:
    assert {"colocated", "1p1d", "2p2d", "b200-prefill-h100-decode"} <= set(topology_names())
    for name in topology_names():
        assert load_topology(name).name == name


def test_what_was_loaded_can_be_written_and_loaded_again() -> None:
    for name in topology_names():
        topology = load_topology(name)
        assert load_topology(topology.to_dict()).to_dict() == topology.to_dict()
        assert load_topology(topology) == topology


@pytest.mark.parametrize(
    ("word", "gpus", "roles"),
    [
        ("llama-3.1-8b/h100_sxm/2c", 2, ["colocated"]),
        ("llama-3.1-8b/h100_sxm/1p1d", 2, ["prefill", "decode"]),
        ("llama-3.1-8b/h100_sxm:tp2/1p3d", 8, ["prefill", "decode"]),
        ("llama-3.1-70b@fp8/b200_sxm:tp2+h100_sxm:tp4/2p4d", 20, ["prefill", "decode"]),
        ("llama-3.1-8b/h100_sxm/1p1d:tp2", 4, ["prefill", "decode"]),
        ("llama-2-70b/h100_sxm:tp8/2p2d1m/splitwise", 40, ["prefill", "decode", "mixed"]),
    ],
)
def test_shorthand(word: str, gpus: int, roles: list[str]) -> None:
    topology = load_topology(word)
    assert (topology.gpus, [pool.role for pool in topology.pools]) == (gpus, roles)


def test_shorthand_carries_precision_and_engine() -> None:
    topology = load_topology("llama-3.1-8b@fp8/h100_sxm/1c/sglang")
    assert (topology.precision.weights, topology.profile) == ("fp8", "sglang")


@pytest.mark.parametrize(
    ("word", "says"),
    [
        ("llama-3.1-8b/h100_sxm:xp2/2c", "'xp2' is not a degree of parallelism"),
        ("llama-3.1-8b/h100_sxm+h200_sxm/2c", "2 GPU types for 1 pools"),
        ("colocatd", "did you mean 'colocated'"),
        ("nowhere.yaml", "nowhere.yaml: no such file"),
    ],
)
def test_bad_names(word: str, says: str) -> None:
    assert says in message(word)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda v: v.update(modle="x"), "a: unknown key 'modle' (did you mean 'model'?)"),
        (lambda v: v["pools"][0].update(worker=2), "a: pools.p: unknown key 'worker' (did you mean 'workers'?)"),
        (lambda v: v["pools"][0].update(parallel={"pt": 2}), "a: pools.p.parallel: unknown key 'pt'"),
        (lambda v: v["pools"][0].update(workers=0), "a: pools.p.workers: 0 is not allowed; needed: greater than or"),
        (lambda v: v["pools"][0].update(workers="2"), "a: pools.p.workers: '2' is not allowed; needed: a whole number"),
        (lambda v: v["pools"][0].update(workers=True), "a: pools.p.workers: True is not allowed"),
        (lambda v: v["pools"][0].update(role="prefil"), "(did you mean 'prefill'?); allowed: colocated, prefill"),
        (lambda v: v["pools"][0].pop("role"), "a: pools.p: key 'role' is missing"),
        (lambda v: v["pools"][0].pop("gpu"), "a: pools.p: key 'gpu' is missing (or give step_time)"),
        (lambda v: v.pop("model"), "a: pools.p: key 'model' is missing (or give step_time)"),
        (lambda v: v.update(pools=[]), "a: pools: an empty list"),
        (lambda v: v.pop("pools"), "a: key 'pools' is missing"),
        (lambda v: v["pools"].append(3), "a: pools.1: 3 is not allowed; needed: a mapping"),
        (lambda v: v["pools"].append(v["pools"][0]), "a: pools: name 'p' is there 2 times"),
        (lambda v: v["pools"][0].update(role="decode"), "role decode needs a prefill or mixed pool beside it"),
        (lambda v: v["pools"][0].update(role="prefill"), "role prefill needs a decode or mixed pool beside it"),
        (lambda v: v["pools"][0].update(engine={"max_num_seq": 2}), "a: pools.p.engine: unknown setting of vllm"),
        (
            lambda v: v["pools"][0].update(engine={"max_num_seqs": 0}),
            "a: pools.p.engine.max_num_seqs: 0 is not allowed",
        ),
        (lambda v: v.update(engine={"profile": "vllm", "blocksize": 2}), "a: engine: unknown setting of vllm"),
        (lambda v: v.update(engine="vlm"), "a: engine: unknown engine profile 'vlm' (did you mean 'vllm'?)"),
        (lambda v: v.update(precision={"weights": "fp7"}), "precision.weights: unknown format 'fp7'"),
        (lambda v: v.update(routing={"colocated": "robin"}), "a: routing.colocated: unknown router 'robin'"),
        (lambda v: v.update(kv_blocks=0), "a: kv_blocks: 0 is not allowed"),
        (lambda v: v.update(step_time={"base_s": -1.0}), "a: step_time.base_s: -1.0 is not allowed"),
        (lambda v: v.update(step_time={"kind": "affin", "base_s": 1.0}), "a: step_time.kind: 'affin' is not allowed"),
        (
            lambda v: v.update(engine={"prefix_caching": True, "enable_prefix_caching": True}),
            "'enable_prefix_caching' and 'prefix_caching' are the same setting",
        ),
    ],
)
def test_one_line_for_what_is_wrong(change: Callable[[dict[str, Any]], object], says: str) -> None:
    assert says in message(changed(COLOCATED, change))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda v: v.pop("network"), "s: key 'network' is missing"),
        (lambda v: v.update(network={"kind": "none"}), "s: network.kind: none cannot carry KV"),
        (lambda v: v.update(network={"kind": "rdma", "nic_gbit_per_s": 0}), "s: network.nic_gbit_per_s: 0 is not"),
        (lambda v: v.update(network={"kind": "rdma", "nic_gbit_per_s": -4}), "s: network.nic_gbit_per_s: -4 is not"),
        (lambda v: v.update(network={"kind": "rdma", "oversubscription": 0.5}), "s: network.oversubscription: 0.5"),
        (lambda v: v.update(network={"kind": "nvlink", "nic_gbit_per_s": 4}), "means nothing for kind nvlink"),
        (lambda v: v.update(kv_transfer={"mode": "pul"}), "(did you mean 'pull'?)"),
        (lambda v: v.update(kv_transfer={"compression": "gzip"}), "unknown compression 'gzip'"),
        (lambda v: v.update(kv_transfer={"compression": {"ratio": 0.5}}), "s: kv_transfer.compression.ratio: 0.5"),
        (lambda v: v["pools"].append({"name": "c", "role": "colocated", "gpu": "h100_sxm"}), "colocated pools stand"),
    ],
)
def test_one_line_for_what_is_wrong_between_pools(change: Callable[[dict[str, Any]], object], says: str) -> None:
    assert says in message(changed(SPLIT, change))


def test_explicit_numbers_stand_in_for_model_gpu_and_network() -> None:
    topology = load_topology(EXPLICIT)
    assert topology.kv_transfer.explicit and topology.model is None
    assert "key 'network' is missing" in message(changed(SPLIT, lambda v: (v.pop("network"), v.update(kv_transfer={}))))
    assert "key 'gpu' is missing" in message(
        changed(EXPLICIT, lambda v: v.update(kv_transfer={}, network={"kind": "rdma"}, model="llama-3.1-8b"))
    )


def test_step_time_and_blocks_may_stand_among_the_engine_settings() -> None:
    def moved(values: dict[str, Any]) -> None:
        own = {"step_time": values.pop("step_time"), "kv_blocks": values.pop("kv_blocks"), "max_num_seqs": 8}
        for pool in values["pools"]:
            pool["engine"] = own

    topology = load_topology(changed(EXPLICIT, moved))
    assert [pool.kv_blocks for pool in topology.pools] == [100, 100]
    assert topology.pools[0].engine == {"max_num_seqs": 8}


def test_a_key_written_twice_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "t.yaml"
    path.write_text("name: a\nname: b\n")
    assert "name" in message(path) and str(path) in message(path)


def test_numbers_without_a_dot_in_their_exponent_are_numbers(tmp_path: Path) -> None:
    path = tmp_path / "t.yaml"
    path.write_text(
        "{name: a, step_time: {base_s: 5e-3, per_token_s: 2e-05}, kv_blocks: 9, pools: [{name: p, role: colocated}]}"
    )
    step_time = load_topology(path).step_time
    assert step_time is not None and (step_time.base_s, step_time.per_token_s) == (0.005, 2e-5)


@pytest.mark.parametrize(
    ("override", "read"),
    [
        ("pools.prefill.workers=3", lambda t: t.pools[0].workers == 3),
        ("pools.1.gpu=h200_sxm", lambda t: t.pools[1].gpu == "h200_sxm"),
        ("pools.*.parallel.tp=2", lambda t: [p.parallel.tp for p in t.pools] == [2, 2]),
        ("network.nic_gbit_per_s=100", lambda t: t.network.nic_gbit_per_s == 100),
        ("engine=sglang", lambda t: t.profile == "sglang"),
        ("engine.max_num_seqs=64", lambda t: t.engine_settings == {"max_num_seqs": 64}),
        ("pools.decode.engine.max_num_seqs=64", lambda t: t.pools[1].engine == {"max_num_seqs": 64}),
        ("pools.decode.engine.prefix_caching=false", lambda t: t.pools[1].engine == {"prefix_caching": False}),
        ("precision={weights: fp8}", lambda t: t.precision.weights == "fp8"),
        ("name=123", lambda t: t.name == "123"),
        ("kv_transfer.compression=cachegen", lambda t: t.kv_transfer.compression == "cachegen"),
        ("kv_transfer.compression.ratio=3.5", lambda t: t.kv_transfer.compression.ratio == 3.5),
        ("kv_transfer.per_block_s=2e-5", lambda t: t.kv_transfer.per_block_s == 2e-5),
    ],
)
def test_set(override: str, read: Callable[[Topology], bool]) -> None:
    assert read(load_topology(SPLIT, [override]))
    assert load_topology(SPLIT) == load_topology(SPLIT, ())  # and the values given are left alone


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("pools.prefil.workers=3", "unknown pool 'prefil' (did you mean 'prefill'?)"),
        ("pools.prefill.worker=3", "(did you mean 'workers'?)"),
        ("pools.prefill=3", "name a pool and a key of it"),
        ("pools.7.workers=3", "unknown pool '7'"),
        ("network.nic=3", "--set network.nic=3: unknown key"),
        ("pools.prefill.parallel.tp=x", "s: pools.prefill.parallel.tp: 'x' is not allowed; needed: a whole number"),
        ("pools.prefill.workers=0", "s: pools.prefill.workers: 0 is not allowed"),
        ("pools.prefill.engine.max_num_seq=3", "unknown setting of vllm 'max_num_seq'"),
        ("foo=1", "--set foo=1: unknown key 'foo'"),
        ("workers", "write path.to.key=value"),
        ("network.kind=[", "--set network.kind=["),
    ],
)
def test_set_says_what_is_wrong(override: str, says: str) -> None:
    assert says in message(SPLIT, (override,))


def test_overrides_apply_in_order_and_a_name_can_be_given() -> None:
    topology = load_topology(SPLIT, ["pools.prefill.workers=3", "pools.prefill.workers=4"], name="b")
    assert (topology.pools[0].workers, topology.name) == (4, "b")
