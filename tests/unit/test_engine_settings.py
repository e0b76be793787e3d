"""From an engine's settings, under its own names, to its rules: each value lands where it belongs."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import numpy as np
import pytest
from engine_books import books, look
from engine_play import BASE
from test_engine_corners import content_of

from simulator.cost.table import StepCostTable, affine_cost
from simulator.engine import makers
from simulator.engine.columns import SETTINGS
from simulator.engine.engine import Engine, EngineSpec
from simulator.engine.pacing import slowed
from simulator.engine.rules import RULES, RuleSet, rules_record
from simulator.engine.sglang import columns as sglang_columns
from simulator.engine.state import COLOCATED, DECODE, MIXED, PREFILL, DeskColumns
from simulator.errors import InputError

DRAFTS = {
    "num_speculative_tokens": 3,
    "speculative_acceptance": 0.8,
    "speculative_acceptance_decay": 0.5,
    "speculative_draft_cost": 0.25,
    "speculative_seed": 11,
}
PLAIN = {
    "policy": 0, "capacity": 0, "chunking": True, "first_token": 0, "prompt_seqs": 0, "prompt_tokens": 0,
    "accept_blocks": 0.0, "max_preemptions": 0, "stream_interval": 1, "stream_first": True, "drafts": 0,
    "acceptance": [], "draft_cost": 0.0, "seed": 0, "read_post_s": 0.0, "limits": [], "ranks": 1, "wait_steps": 0,
    "wait_ratio": 0.0, "balance_steps": 0, "balance_gather": 0, "watermark_blocks": 0, "by_priority": False,
    "priorities": [], "reserving": False,
}  # fmt: skip


def made(policy: str, role: str = "colocated", *, shared: bool = True, drop: tuple[str, ...] = (), **given: Any) -> Any:
    """State of an engine: ``given`` are fields of its spec, and settings."""
    known = {name: given.pop(name) for name in [f.name for f in fields(EngineSpec)] if name in given}
    settings = {name: value for name, value in (BASE[policy] | given).items() if name not in drop}
    spec = EngineSpec(policy, role, settings, **({"kv_blocks": 1000, "cost": affine_cost(1.0)} | known))
    content = content_of([32, 32], [[1], [1]] if shared else [[], []])
    return Engine(spec, content, DeskColumns(2).record).state


def rules_of(state: Any) -> dict[str, Any]:
    found = vars(books(state, " ".join(f"rules.{name}" for name in RULES)))
    plain = {name.removeprefix("rules_"): value for name, value in found.items()}
    return {name: value.tolist() if isinstance(value, np.ndarray) else value for name, value in plain.items()}


def settings_of(state: Any) -> dict[str, Any]:
    return vars(books(state, " ".join(SETTINGS)))


def test_rules_that_nobody_set_change_nothing() -> None:
    assert rules_of_record(RuleSet()) == PLAIN


def rules_of_record(rules: RuleSet) -> dict[str, Any]:
    found = vars(books(rules_record(rules), " ".join(RULES)))
    return {name: value.tolist() if isinstance(value, np.ndarray) else value for name, value in found.items()}


def test_every_rule_reaches_compiled_code_under_its_name() -> None:
    values: dict[str, Any] = {name: i + 2 for i, name in enumerate(f.name for f in fields(RuleSet))}
    values |= {"chunking": False, "stream_first": False, "by_priority": True, "policy": 1, "capacity": 2}
    values |= {name: 0.5 + i for i, name in enumerate(("accept_blocks", "draft_cost", "read_post_s", "wait_ratio"))}
    arrays = {"acceptance": np.array([0.5, 0.25]), "limits": np.array([7, 8]), "priorities": np.array([3, 1])}
    expected = values | {name: value.tolist() for name, value in arrays.items()} | {"reserving": True}
    assert rules_of_record(RuleSet(**values | arrays)) == expected
    assert [RuleSet(policy=1, capacity=c).reserving for c in (0, 1, 2)] == [True, False, True]
    assert not any(RuleSet(policy=p).reserving for p in (0, 2, 3, 4))


def test_settings_of_vllm() -> None:
    state = made(
        "vllm-v1",
        max_num_seqs=7,
        max_num_batched_tokens=123,
        block_size=8,
        max_model_len=456,
        extra={"read_post_s": 0.5},
    )
    assert settings_of(state) == {
        "role": COLOCATED, "depth": 1, "max_num_seqs": 7, "token_budget": 123, "block_size": 8, "max_model_len": 456,
        "caching": False, "counting": False, "deferred_frees": False, "tell_finished": False, "tell_prompts": False,
        "tell_chunks": False, "logging": False, "macro": True,
    }  # fmt: skip
    assert rules_of(state) == PLAIN | {"read_post_s": 0.5}
    assert look(state, "pool.blocks") == 1000
    assert rules_of(made("vllm-v1", drop=("stream_interval",))) == PLAIN
    assert rules_of(made("vllm-v1", stream_interval=4)) == PLAIN | {"stream_interval": 4}
    assert look(made("vllm-v1", async_scheduling=True), "depth") == 2


@pytest.mark.parametrize("name", ["tell_finished", "tell_prompts", "tell_chunks", "logging"])
@pytest.mark.parametrize("policy", ["vllm-v1", "tensorrt-llm", "splitwise", "vllm-v0"])
def test_what_is_told_is_what_was_asked_for(policy: str, name: str) -> None:
    told = settings_of(made(policy, **{name: True}))
    asked = ("tell_finished", "tell_prompts", "tell_chunks", "logging", "macro")
    assert {n: told[n] for n in asked} == dict.fromkeys(asked, False) | {"macro": name != "logging", name: True}
    assert look(made(policy), "macro") and not look(made(policy, macro=False), "macro")


def test_blocks_that_lose_what_they_cached_are_told_where_asked_for() -> None:
    for policy, name in (
        ("vllm-v1", "prefix_caching"),
        ("tensorrt-llm", "enable_block_reuse"),
        ("vllm-v0", "prefix_caching"),
    ):
        found = [look(made(policy, **{name: True}, tell_evicted=told), "pool.telling") for told in (False, True)]
        assert found == [False, True]


@pytest.mark.parametrize(
    ("given", "caching", "counting"),
    [
        ({}, False, True),
        ({"prefix_caching": False}, False, False),
        ({"shared": True}, True, False),
        ({"tell_prompts": True}, True, False),
        ({"tell_evicted": True}, True, False),
        ({"tell_finished": True, "tell_chunks": True}, False, True),
        (DRAFTS, True, False),
    ],
)
def test_blocks_are_only_counted_where_nobody_can_find_them_again(given: Any, caching: bool, counting: bool) -> None:
    state = made("vllm-v1", **{"prefix_caching": True, "shared": False} | given)
    assert (look(state, "caching"), look(state, "counting")) == (caching, counting)


@pytest.mark.parametrize(
    ("role", "given", "deferred"),
    [
        ("decode", {"async_scheduling": True}, True),
        ("decode", {"async_scheduling": True, "drop": ("defer_block_frees",)}, True),
        ("decode", {"async_scheduling": False}, False),
        ("decode", {"async_scheduling": True, "defer_block_frees": False}, False),
        ("prefill", {"async_scheduling": True}, False),
        ("mixed", {"async_scheduling": True}, False),
    ],
)
def test_frees_are_deferred_at_decode_engines_that_plan_ahead(role: str, given: Any, deferred: bool) -> None:
    state = made("vllm-v1", role, **{"defer_block_frees": True} | given)
    assert look(state, "deferred_frees") == deferred
    assert look(state, "role") == {"prefill": PREFILL, "decode": DECODE, "mixed": MIXED}[role]


def test_settings_of_speculative_decoding() -> None:
    state = made("vllm-v1", **DRAFTS)
    expected = {"drafts": 3, "acceptance": [0.8, 0.4, 0.2], "draft_cost": 0.25, "seed": 11}
    assert rules_of(state) == PLAIN | expected
    assert not look(state, "macro")
    assert rules_of(made("vllm-v1", "prefill", **DRAFTS)) == PLAIN
    assert look(made("vllm-v1", "prefill", **DRAFTS), "macro")
    one = made("vllm-v1", **DRAFTS | {"num_speculative_tokens": 1}, drop=("stream_interval",))
    assert rules_of(one) == PLAIN | expected | {"drafts": 1, "acceptance": [0.8]}
    words = "engine: num_speculative_tokens and stream_interval over 1 cannot be simulated together yet"
    with pytest.raises(InputError, match=f"^{words}$"):
        made("vllm-v1", **DRAFTS, stream_interval=2)


def test_settings_of_priorities() -> None:
    first = {"scheduling_policy": "priority"}
    assert rules_of(made("vllm-v1", **first)) == PLAIN | {"by_priority": True}
    given = made("vllm-v1", "prefill", **first, extra={"priority": [2, -1], "loads": False})
    assert rules_of(given) == PLAIN | {"by_priority": True, "priorities": [2, -1]}
    assert rules_of(made("vllm-v1", scheduling_policy="fcfs", extra={"priority": [2, -1], "loads": True})) == PLAIN
    assert rules_of(made("vllm-v1", "prefill", **first, **DRAFTS))["by_priority"]
    assert rules_of(made("vllm-v1", "decode", **first))["by_priority"]
    place = "^engine vllm: scheduling_policy priority"
    words = f"{place} is not allowed in a pool of role 'mixed'; allowed: colocated, prefill, decode$"
    with pytest.raises(InputError, match=words):
        made("vllm-v1", "mixed", **first)
    with pytest.raises(
        InputError, match=f"{place} and num_speculative_tokens over 0 cannot be simulated together yet$"
    ):
        made("vllm-v1", **first, **DRAFTS | {"num_speculative_tokens": 1})
    with pytest.raises(InputError, match=f"{place} and KV cache tiers cannot be simulated together yet$"):
        made("vllm-v1", **first, extra={"loads": True})


def test_settings_of_tensorrt_llm() -> None:
    given = {"max_batch_size": 7, "max_num_tokens": 123, "tokens_per_block": 8, "max_seq_len": 456}
    given |= {"enable_chunked_prefill": True, "overlap_scheduler": True, "batch_wait_timeout_iters": 5}
    given |= {
        "batch_wait_max_tokens_ratio": 0.75,
        "attention_dp_timeout_iters": 9,
        "attention_dp_batching_wait_iters": 3,
    }
    state = made("tensorrt-llm", **given, extra={"ranks": 2, "max_output_tokens": [9, -1]})
    expected = PLAIN | {
        "policy": 1, "first_token": 1, "limits": [9, -1], "ranks": 2, "wait_steps": 5, "wait_ratio": 0.75,
        "balance_gather": 3, "reserving": True,
    }  # fmt: skip
    assert rules_of(state) == expected
    found = settings_of(state)
    assert (found["depth"], found["max_num_seqs"], found["token_budget"], found["block_size"]) == (2, 7, 123, 8)
    assert (found["max_model_len"], found["caching"], found["counting"], found["deferred_frees"]) == (456, 0, 0, 0)
    balanced = made(
        "tensorrt-llm", **given, attention_dp_enable_balance=True, extra={"ranks": 2, "max_output_tokens": [9, -1]}
    )
    assert rules_of(balanced) == expected | {"balance_steps": 9}
    bare = rules_of(made("tensorrt-llm"))
    assert bare == PLAIN | {"policy": 1, "first_token": 1, "reserving": True, "chunking": False}
    for number, name in enumerate(("GUARANTEED_NO_EVICT", "MAX_UTILIZATION", "STATIC_BATCH")):
        found = rules_of(made("tensorrt-llm", capacity_scheduler_policy=name))
        assert (found["capacity"], found["reserving"]) == (number, number != 1)
    cached = settings_of(made("tensorrt-llm", enable_block_reuse=True, shared=False))
    assert (cached["caching"], cached["counting"]) == (True, False)


@pytest.mark.parametrize(
    ("role", "interval", "early", "first"),
    [
        ("colocated", 1, False, True),
        ("colocated", 4, False, False),
        ("colocated", 4, True, True),
        ("decode", 4, False, True),
    ],
)
def test_when_tensorrt_llm_sends_a_first_token(role: str, interval: int, early: bool, first: bool) -> None:
    found = rules_of(made("tensorrt-llm", role, stream_interval=interval, stream_first_token=early))
    assert (found["stream_interval"], found["stream_first"]) == (interval, first)


def test_tensorrt_llm_plans_ahead_but_at_context_servers() -> None:
    roles = ("colocated", "prefill", "decode")
    assert [look(made("tensorrt-llm", role, overlap_scheduler=True), "depth") for role in roles] == [2, 1, 2]
    assert [look(made("tensorrt-llm", role), "depth") for role in roles] == [1, 1, 1]


@pytest.mark.parametrize(("drafts", "tokens", "seats"), [(0, 64, 8), (0, 5, 5), (3, 64, 8), (3, 30, 7), (3, 2, 1)])
def test_each_seat_of_tensorrt_llm_needs_room_for_its_drafts(drafts: int, tokens: int, seats: int) -> None:
    state = made("tensorrt-llm", **DRAFTS | {"num_speculative_tokens": drafts}, max_num_tokens=tokens)
    assert look(state, "max_num_seqs") == seats
    assert look(state, "macro") == (drafts == 0)


def test_settings_of_distserve() -> None:
    given = {"max_batch_size": 3, "max_tokens_per_batch": 77, "max_decode_batch_size": 9, "max_decode_tokens": 20}
    given |= {"accept_block_fraction": 0.125, "stream_interval": 2, "block_size": 8, "max_model_len": 456}
    expected = PLAIN | {
        "policy": 2, "chunking": False, "first_token": 2, "prompt_seqs": 3, "prompt_tokens": 77, "accept_blocks": 125.0,
        "stream_interval": 2,
    }  # fmt: skip
    context, decoding = made("distserve", "prefill", **given), made("distserve", "decode", **given)
    assert rules_of(context) == rules_of(decoding) == expected
    names = ("role", "depth", "max_num_seqs", "token_budget", "block_size", "max_model_len", "caching", "counting")
    assert [settings_of(context)[n] for n in names] == [PREFILL, 1, 3, 80, 8, 456, False, False]
    assert [settings_of(decoding)[n] for n in names] == [DECODE, 1, 9, 86, 8, 456, False, False]
    assert look(made("distserve", "decode", **given | {"max_decode_tokens": 4}), "max_num_seqs") == 4
    for role in ("colocated", "mixed"):
        words = f"^engine distserve: role '{role}' is not allowed; allowed: prefill, decode$"
        with pytest.raises(InputError, match=words):
            made("distserve", role)


def test_settings_of_splitwise() -> None:
    given = {"max_prompt_tokens": 77, "max_batch_size": 9, "max_preemptions": 4, "stream_interval": 2, "block_size": 8}
    state = made("splitwise", **given)
    expected = PLAIN | {"policy": 3, "chunking": False, "first_token": 2, "prompt_tokens": 77, "max_preemptions": 4}
    assert rules_of(state) == expected | {"stream_interval": 2}
    names = ("depth", "max_num_seqs", "token_budget", "block_size", "max_model_len", "caching")
    assert [settings_of(state)[n] for n in names] == [1, 9, 86, 8, 1000, False]
    assert look(made("splitwise", **given | {"max_batch_size": 100}), "max_num_seqs") == 77


def test_settings_of_vllm_v0() -> None:
    state = made("vllm-v0", max_num_seqs=9, max_num_batched_tokens=77, block_size=8, kv_blocks=299, stream_interval=1)
    expected = PLAIN | {"policy": 4, "chunking": False, "prompt_tokens": 77}
    assert rules_of(state) == expected | {"watermark_blocks": 2}  # a hundredth of 299, rounded down
    assert rules_of(made("vllm-v0"))["watermark_blocks"] == 10
    names = ("role", "depth", "max_num_seqs", "token_budget", "block_size", "max_model_len", "caching", "counting")
    assert [settings_of(state)[n] for n in names] == [COLOCATED, 1, 9, 86, 8, 1000, False, False]
    cached = settings_of(made("vllm-v0", prefix_caching=True, shared=False))
    assert (cached["caching"], cached["counting"]) == (True, False)
    with pytest.raises(InputError, match=r"^engine vllm-v0: role 'decode' is not allowed; allowed: colocated$"):
        made("vllm-v0", "decode")
    only = {"async_scheduling": (True, False), "num_speculative_tokens": (2, 0), "stream_interval": (4, 1)}
    only |= {"scheduling_policy": ("priority", "fcfs")}
    for name, (given, allowed) in only.items():
        with pytest.raises(InputError, match=f"^engine vllm-v0: {name} {given} is not allowed; allowed: {allowed}$"):
            made("vllm-v0", **{name: given})
        made("vllm-v0", **{name: allowed})


SGLANG = {
    "max_running_requests": 7, "chunked_prefill_size": 32, "max_prefill_tokens": 123, "mixed_chunk": True,
    "schedule_policy": "lpm", "schedule_conservativeness": 0.5, "ignore_eos": True, "page_size": 4,
    "context_length": 456, "scheduler_recv_interval": 3, "reserve_known_lengths": True,
}  # fmt: skip


def test_settings_of_sglang() -> None:
    state = made("sglang", **SGLANG)
    found = vars(books(state, " ".join(sglang_columns.SETTINGS)))
    decay = found.pop("ratio_decay")
    assert found == {
        "role": COLOCATED, "depth": 1, "max_running": 7, "chunk_size": 32, "max_prefill": 123, "mixed": True, "lpm": True,
        "ignore_eos": True, "reserve_known": True, "page": 4, "pool_size": 4000, "longest": 455, "ratio_init": 0.35,
        "ratio_min": pytest.approx(0.049), "decode_reserve": 512, "recv_interval": 3, "caching": True,
        "binding": 0, "send_post_s": 0.0, "send_post_page_s": 0.0, "send_post_run_s": 0.0, "within_budget": False,
        "tell_finished": False, "tell_chunks": False, "logging": False, "macro": True,
    }  # fmt: skip
    assert decay == pytest.approx((0.35 - 0.049) / 600)
    assert look(state, "free_rows") == 7 and look(state, "limits").tolist() == []
    assert look(state, "tree.page") == 4 and look(state, "queue_tree.page") == 1
    assert (look(state, "tree.caching"), look(state, "queue_tree.caching")) == (True, True)


@pytest.mark.parametrize(
    ("given", "role", "expected"),
    [
        ({"overlap": True}, "colocated", {"depth": 2}),
        ({"chunked_prefill_size": -1}, "colocated", {"chunk_size": 0, "mixed": False}),
        ({"chunked_prefill_size": 1}, "colocated", {"chunk_size": 1, "mixed": True}),
        ({"mixed_chunk": False}, "colocated", {"mixed": False}),
        ({"schedule_policy": "fcfs"}, "colocated", {"lpm": False}),
        ({"disable_radix_cache": True}, "colocated", {"lpm": False, "caching": False}),
        ({"ignore_eos": False}, "colocated", {"ignore_eos": False, "reserve_known": False}),
        ({"reserve_known_lengths": False}, "colocated", {"ignore_eos": True, "reserve_known": False}),
        (
            {"drop": ("reserve_known_lengths", "scheduler_recv_interval")},
            "colocated",
            {"reserve_known": True, "recv_interval": 1},
        ),
        ({"kv_blocks": 50}, "colocated", {"pool_size": 200, "longest": 199}),
        ({"schedule_conservativeness": 3.0}, "colocated", {"ratio_init": 1.0, "ratio_min": 0.14}),
        ({"tell_finished": True}, "colocated", {"tell_finished": True, "tell_chunks": False}),
        ({"tell_chunks": True}, "colocated", {"tell_finished": False, "tell_chunks": True}),
        ({"logging": True}, "colocated", {"logging": True, "macro": False}),
        ({"macro": False}, "colocated", {"logging": False, "macro": False}),
        ({}, "mixed", {"role": COLOCATED, "caching": True}),
        ({}, "prefill", {"role": PREFILL, "caching": True}),
        ({}, "decode", {"role": DECODE, "caching": False, "lpm": False}),
    ],
)
def test_each_setting_of_sglang(given: Any, role: str, expected: Any) -> None:
    state = made("sglang", role, **SGLANG | given)
    assert vars(books(state, " ".join(expected))) == pytest.approx(expected)


def test_sglang_sends_every_token() -> None:
    words = r"^engine: stream_interval: found 4; this engine sends every token \(allowed: 1\)$"
    with pytest.raises(InputError, match=words):
        made("sglang", stream_interval=4)
    assert look(made("sglang", extra={"max_output_tokens": [5, -1]}), "limits").tolist() == [5, -1]


def test_where_first_tokens_are_made() -> None:
    found = [
        makers.first_token_made(policy)
        for policy in ("vllm-v1", "vllm-v0", "tensorrt-llm", "sglang", "distserve", "splitwise")
    ]
    assert found == [0, 0, 1, 1, 2, 2]


@pytest.mark.parametrize(
    ("policy", "given", "ranks", "longest"),
    [
        ("vllm-v1", {}, 1, None),
        ("sglang", {}, 1, None),
        ("splitwise", {}, 1, None),
        ("distserve", {}, 1, 64),
        ("vllm-v0", {}, 1, 64),
        ("tensorrt-llm", {}, 1, 64),
        ("tensorrt-llm", {}, 3, 21),
        ("tensorrt-llm", {"enable_chunked_prefill": True}, 1, None),
    ],
)
def test_the_longest_prompt_that_an_engine_ever_computes(
    policy: str, given: Any, ranks: int, longest: int | None
) -> None:
    settings = BASE[policy] | given
    assert makers.longest_prompt(policy, settings, ranks) == longest
    role = "prefill" if policy == "distserve" else "colocated"
    spec = EngineSpec(policy, role, settings, 100, affine_cost(1.0), extra={"ranks": ranks})
    assert Engine(spec, content_of([8], [[]]), DeskColumns(1).record).longest_prompt == longest


def test_a_slow_worker_is_slow_in_every_number_of_seconds() -> None:
    """Shares, knots, seeds and ranks are no seconds; stalls come as often in a launch that is so much longer."""
    kept = {"affine", "launch_jitter", "context_knots", "chunk_new_knots", "chunk_past_knots", "ranks"}
    kept |= {"launch_seed", "launch_most_seqs", "mixed_slower", "queue_share"}
    kept |= {"launch_swing", "launch_stretch_s", "power_window_s", "power_idle", "power_exponent", "attention_drive"}
    values: dict[str, Any] = {}
    for i, field in enumerate(fields(StepCostTable)):
        default = getattr(StepCostTable(True), field.name)
        values[field.name] = np.full_like(default, i + 2.0) if isinstance(default, np.ndarray) else type(default)(i + 2)
    slow = slowed(StepCostTable(**values), 4.0)
    for name, value in values.items():
        factor = 0.25 if name == "stall_rate_hz" else 1.0 if name in kept else 4.0
        assert np.array_equal(getattr(slow, name), value * factor), name
