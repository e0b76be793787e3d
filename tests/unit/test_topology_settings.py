"""Engine settings and profiles: one table, its checks, and the page generated from it."""

from __future__ import annotations

from pathlib import Path

import pytest

from simulator.cluster.memory import memory_rules
from simulator.cluster.profiles import load_profile, profile_names
from simulator.cluster.settings import FAMILIES, SGLANG, VLLM, markdown_table
from simulator.errors import TopologyError
from simulator.units import GIB

PAGE = Path(__file__).resolve().parents[2] / "docs" / "topologies.md"


def test_every_default_is_allowed_by_its_own_table() -> None:
    for family in FAMILIES.values():
        for entry in family.settings:
            assert entry.checked(entry.default, "here") == entry.default
            assert entry.doc


def test_the_meanings_every_engine_shares_point_at_settings() -> None:
    for family in FAMILIES.values():
        names = {entry.name for entry in family.settings}
        shared = {family.step_tokens, family.sequences, family.context, family.block, family.memory_fraction}
        assert shared <= names
        assert not family.blocks or family.blocks in names


def test_layers_are_laid_over_one_another() -> None:
    settings = VLLM.resolve(("a", {"max_num_seqs": 8, "block_size": 32}), ("b", {"max_num_seqs": 9}))
    assert (settings["max_num_seqs"], settings["block_size"], settings["stream_interval"]) == (9, 32, 1)


def test_an_alias_is_the_same_setting() -> None:
    assert SGLANG.resolve(("a", {"max_total_num_tokens": 7}))["max_total_tokens"] == 7


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("chunked_prefill_size", 0),
        ("chunked_prefill_size", -2),
        ("schedule_policy", "lfu"),
        ("mixed_chunk", 1),
        ("page_size", True),
        ("page_size", 1.5),
        ("schedule_conservativeness", "1"),
        ("mem_fraction_static", 1.5),
    ],
)
def test_values_out_of_range_are_refused(name: str, value: object) -> None:
    with pytest.raises(TopologyError, match=f"here.{name}: "):
        SGLANG.resolve(("here", {name: value}))


@pytest.mark.parametrize(("name", "value"), [("chunked_prefill_size", -1), ("schedule_conservativeness", 1)])
def test_values_in_range_are_taken(name: str, value: object) -> None:
    assert SGLANG.resolve(("here", {name: value}))[name] == value


def test_profiles_have_settings_of_their_family_memory_rules_and_a_policy() -> None:
    assert {"vllm", "vllm-0.25", "sglang", "tensorrt-llm", "distserve", "splitwise"} <= set(profile_names())
    for name in profile_names():
        profile = load_profile(name)
        assert profile.name == name and profile.policy
        profile.resolve("h100_sxm", 80 * GIB)
        memory_rules(profile)


def test_vllm_takes_larger_steps_on_large_gpus_other_than_the_a100() -> None:
    profile = load_profile("vllm")
    assert profile.policy == "vllm-v1"
    assert profile.resolve("h100_sxm", 79.6 * GIB)["max_num_batched_tokens"] == 8192
    assert profile.resolve("a100_80gb_sxm", 80 * GIB)["max_num_batched_tokens"] == 2048
    assert profile.resolve("l40s", 45 * GIB)["max_num_seqs"] == 256
    assert profile.resolve("h100_sxm", 79.6 * GIB, ("t", {"max_num_seqs": 5}))["max_num_seqs"] == 5


@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_the_page_shows_the_table_as_it_is(name: str) -> None:
    assert markdown_table(FAMILIES[name]) in PAGE.read_text(encoding="utf-8")
