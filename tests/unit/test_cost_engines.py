"""Engine cost profiles: all shipped ones are complete and sourced, and mistakes are named."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path

import pytest

from simulator.cost.costs_file import CostsFile
from simulator.cost.engine_costs import EngineCosts, engine_costs, list_engines, load_engine_costs
from simulator.errors import TopologyError
from simulator.resources import shipped
from simulator.schema import read_yaml


@pytest.mark.parametrize("name", list_engines())
def test_shipped_engines_load_and_every_number_has_a_source(name: str) -> None:
    costs = load_engine_costs(name)
    assert costs.kernels in ("vllm", "sglang", "trtllm")
    own = read_yaml(shipped("hardware_profiles") / "engines" / f"{name}.yaml").get("costs", {})
    missing = set(own) - {"sources"} - set(own.get("sources", {}))
    assert not missing
    assert all(len(text) > 12 for text in own.get("sources", {}).values())


def test_a_profile_inherits_what_it_does_not_say() -> None:
    base, older = load_engine_costs("vllm-0.25"), load_engine_costs("vllm-0.12")
    assert base.overlap and not older.overlap
    assert older.decode_graph_sizes == base.decode_graph_sizes
    assert load_engine_costs("vllm").host_step_s == base.host_step_s


def test_unknown_names_and_keys_are_refused_with_the_nearest_one(tmp_path: Path) -> None:
    with pytest.raises(TopologyError, match=r"unknown engine 'vlm' \(did you mean 'vllm'\?\)"):
        load_engine_costs("vlm")
    path = tmp_path / "mine.yaml"
    path.write_text("name: mine\n")
    with pytest.raises(TopologyError, match="key 'costs' is missing"):
        load_engine_costs(path)
    path.write_text("extends: mine\n")
    with pytest.raises(TopologyError, match="extends itself"):
        load_engine_costs(path)
    good = dict(read_yaml(shipped("hardware_profiles") / "engines" / "vllm-0.25.yaml")["costs"])
    with pytest.raises(TopologyError, match="host_step"):
        engine_costs("x", {**good, "host_step": 1.0}, "x.yaml: costs")
    with pytest.raises(TopologyError, match="unknown key 'frontend'"):
        engine_costs("x", {**good, "sources": {"frontend": "?"}}, "x.yaml: costs")
    assert set(good) <= set(CostsFile.model_fields)


def test_costs_of_an_engine_are_those_of_its_file_with_the_same_defaults() -> None:
    """Nothing that a profile states is passed over, and what it leaves out is the same in both."""
    own = {f.name: f for f in fields(EngineCosts)}
    for name, stated in CostsFile.model_fields.items():
        if name in ("sources", "expert_backends"):
            continue
        assert name in own
        if not (stated.is_required() or stated.default_factory or name in ("experts", "fused_quantisation")):
            assert own[name].default == stated.default, name


def test_a_faster_host_shortens_its_own_work_and_nothing_of_the_gpu() -> None:
    costs = load_engine_costs("tensorrt-llm")
    found = replace(costs, expert_routing_s=28e-6, expert_token_s=80e-9).on_host(2.0)
    assert (found.step_gap_s, found.mixed_layer_s) == (costs.step_gap_s / 2.0, costs.mixed_layer_s / 2.0)
    assert (found.all_reduce_wait_s, found.block_quantise_s) == (costs.all_reduce_wait_s, costs.block_quantise_s)
    assert (found.expert_routing_s, found.expert_token_s) == (28e-6, 80e-9)
