"""From an engine's settings, under its own names, to its state: one function a policy."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from simulator.cost.table import step_cost_record
from simulator.engine.rules import (
    AT_DECODE,
    AT_PREFILL,
    DISTSERVE,
    GUARANTEED_NO_EVICT,
    MAX_UTILIZATION,
    REMADE,
    SPLITWISE,
    STATIC_BATCH,
    TENSORRT_LLM,
    VLLM_V0,
    RuleSet,
    rules_record,
)
from simulator.engine.state import COLOCATED, DECODE, MIXED, PREFILL, make_engine
from simulator.errors import InputError
from simulator.kv.content import all_share_nothing

if TYPE_CHECKING:
    from simulator.engine.engine import EngineSpec

ROLES = {"colocated": COLOCATED, "mixed": MIXED, "prefill": PREFILL, "decode": DECODE}
CAPACITY = {
    "GUARANTEED_NO_EVICT": GUARANTEED_NO_EVICT,
    "MAX_UTILIZATION": MAX_UTILIZATION,
    "STATIC_BATCH": STATIC_BATCH,
}
#: Share of all blocks that prompts leave free (vllm/core/block_manager_v1.py, 0.5).
V0_WATERMARK = 0.01
FIRST_TOKEN = {"tensorrt-llm": AT_DECODE, "sglang": AT_DECODE, "distserve": AT_PREFILL, "splitwise": AT_PREFILL}


def make_vllm(spec: EngineSpec, content: Any, desk: Any) -> Any:
    """State of a vLLM engine (settings: max_num_seqs, max_num_batched_tokens, block_size, max_model_len, ...)."""
    s = spec.settings
    rules = RuleSet(
        stream_interval=int(s.get("stream_interval", 1)),
        read_post_s=float(spec.extra.get("read_post_s", 0.0)),
        **speculation(spec),
        **urgency(spec),
    )
    return make_engine(
        ROLES[spec.role],
        2 if s["async_scheduling"] else 1,
        int(s["max_num_seqs"]),
        int(s["max_num_batched_tokens"]),
        int(s["block_size"]),
        int(s["max_model_len"]),
        bool(s["prefix_caching"]),
        may_count_blocks(spec, rules, content),
        spec.role == "decode" and bool(s["async_scheduling"]) and bool(s.get("defer_block_frees", True)),
        spec.tell_finished,
        spec.tell_prompts,
        spec.tell_evicted,
        spec.tell_chunks,
        spec.logging,
        spec.macro and not spec.logging and rules.drafts == 0,
        spec.kv_blocks,
        rules_record(rules),
        step_cost_record(spec.cost),
        content,
        desk,
    )


def may_count_blocks(spec: EngineSpec, rules: RuleSet, content: Any) -> bool:
    """Whether prefix caching changes nothing until a request is preempted, and nobody asks what is cached."""
    plain = rules.drafts == 0 and not spec.tell_prompts and not spec.tell_evicted
    return bool(spec.settings["prefix_caching"]) and plain and bool(all_share_nothing(content))


def make_tensorrt_llm(spec: EngineSpec, content: Any, desk: Any) -> Any:
    """State of a TensorRT-LLM engine. A context server (role prefill) never overlaps planning with a running step."""
    s = spec.settings
    rules = RuleSet(
        policy=TENSORRT_LLM,
        capacity=CAPACITY[str(s["capacity_scheduler_policy"])],
        chunking=bool(s["enable_chunked_prefill"]),
        first_token=first_token_made(spec.policy),
        stream_interval=int(s["stream_interval"]),
        stream_first=bool(s["stream_first_token"]) or int(s["stream_interval"]) == 1 or spec.role != "colocated",
        limits=output_limits(spec),
        ranks=int(spec.extra.get("ranks", 1)),
        wait_steps=int(s.get("batch_wait_timeout_iters", 0)),
        wait_ratio=float(s.get("batch_wait_max_tokens_ratio", 0.0)),
        balance_steps=int(s["attention_dp_timeout_iters"]) if s.get("attention_dp_enable_balance") else 0,
        balance_gather=int(s.get("attention_dp_batching_wait_iters", 0)),
        **speculation(spec),
    )
    seats = min(int(s["max_batch_size"]), max(int(s["max_num_tokens"]) // (1 + rules.drafts), 1))
    return make_engine(
        ROLES[spec.role],
        2 if s["overlap_scheduler"] and spec.role != "prefill" else 1,
        seats,  # each running request needs a token a step, and room for its drafts
        int(s["max_num_tokens"]),
        int(s["tokens_per_block"]),
        int(s["max_seq_len"]),
        bool(s["enable_block_reuse"]),
        False,
        False,
        spec.tell_finished,
        spec.tell_prompts,
        spec.tell_evicted,
        spec.tell_chunks,
        spec.logging,
        spec.macro and not spec.logging and rules.drafts == 0,
        spec.kv_blocks,
        rules_record(rules),
        step_cost_record(spec.cost),
        content,
        desk,
    )


def make_distserve(spec: EngineSpec, content: Any, desk: Any) -> Any:
    """State of one of DistServe's stages: context (role prefill) or decoding (role decode)."""
    s = spec.settings
    if spec.role not in ("prefill", "decode"):
        raise InputError(f"engine distserve: role '{spec.role}' is not allowed; allowed: prefill, decode")
    rules = RuleSet(
        policy=DISTSERVE,
        chunking=False,
        first_token=first_token_made(spec.policy),
        prompt_seqs=int(s["max_batch_size"]),
        prompt_tokens=int(s["max_tokens_per_batch"]),
        accept_blocks=float(s["accept_block_fraction"]) * spec.kv_blocks,
        stream_interval=int(s["stream_interval"]),
    )
    decodes = min(int(s["max_decode_batch_size"]), int(s["max_decode_tokens"]))
    seqs = decodes if spec.role == "decode" else rules.prompt_seqs
    return make_plain(spec, rules, seqs, seqs + rules.prompt_tokens, content, desk)


def make_splitwise(spec: EngineSpec, content: Any, desk: Any) -> Any:
    """State of a prompt machine (role prefill), a token machine (decode) or a mixed one (colocated, mixed)."""
    s = spec.settings
    rules = RuleSet(
        policy=SPLITWISE,
        chunking=False,
        first_token=first_token_made(spec.policy),
        prompt_tokens=int(s["max_prompt_tokens"]),
        max_preemptions=int(s["max_preemptions"]),
        stream_interval=int(s["stream_interval"]),
    )
    seqs = min(int(s["max_batch_size"]), rules.prompt_tokens)
    return make_plain(spec, rules, seqs, seqs + rules.prompt_tokens, content, desk)


def make_vllm_v0(spec: EngineSpec, content: Any, desk: Any) -> Any:
    """State of a vLLM engine of the V0 kind: colocated, whole prompts, nothing planned ahead."""
    s = spec.settings
    if spec.role != "colocated":
        raise InputError(f"engine vllm-v0: role '{spec.role}' is not allowed; allowed: colocated")
    only = {"async_scheduling": False, "num_speculative_tokens": 0, "scheduling_policy": "fcfs", "stream_interval": 1}
    for name, allowed in only.items():
        if s.get(name, allowed) != allowed:
            raise InputError(f"engine vllm-v0: {name} {s[name]} is not allowed; allowed: {allowed}")
    rules = RuleSet(
        policy=VLLM_V0,
        chunking=False,
        prompt_tokens=int(s["max_num_batched_tokens"]),
        watermark_blocks=int(V0_WATERMARK * spec.kv_blocks),
        stream_interval=int(s.get("stream_interval", 1)),
    )
    seqs = int(s["max_num_seqs"])
    return make_plain(spec, rules, seqs, seqs + rules.prompt_tokens, content, desk, caching=bool(s["prefix_caching"]))


def make_plain(
    spec: EngineSpec, rules: RuleSet, seqs: int, tokens: int, content: Any, desk: Any, *, caching: bool = False
) -> Any:
    """An engine that plans a batch when the last one has ended."""
    return make_engine(
        ROLES[spec.role],
        1,
        seqs,
        tokens,
        int(spec.settings["block_size"]),
        int(spec.settings["max_model_len"]),
        caching,
        False,
        False,
        spec.tell_finished,
        spec.tell_prompts,
        spec.tell_evicted,
        spec.tell_chunks,
        spec.logging,
        spec.macro and not spec.logging,
        spec.kv_blocks,
        rules_record(rules),
        step_cost_record(spec.cost),
        content,
        desk,
    )


def first_token_made(policy: str) -> int:
    """Where the first token of a handed-over request is made: see ``simulator.engine.rules``."""
    return FIRST_TOKEN.get(policy, REMADE)


def speculation(spec: EngineSpec) -> dict[str, Any]:
    """The rules of speculative decoding; a prefill engine has none."""
    s = spec.settings
    drafts = int(s.get("num_speculative_tokens", 0))
    if drafts == 0 or spec.role == "prefill":
        return {}
    if int(s.get("stream_interval", 1)) > 1:
        raise InputError("engine: num_speculative_tokens and stream_interval over 1 cannot be simulated together yet")
    decay = float(s["speculative_acceptance_decay"])
    return {
        "drafts": drafts,
        "acceptance": float(s["speculative_acceptance"]) * decay ** np.arange(drafts),
        "draft_cost": float(s["speculative_draft_cost"]),
        "seed": int(s["speculative_seed"]),
    }


def urgency(spec: EngineSpec) -> dict[str, Any]:
    """The rules of ``scheduling_policy: priority``. Raises ``InputError`` where it cannot be simulated yet."""
    s = spec.settings
    if s.get("scheduling_policy", "fcfs") == "fcfs":
        return {}
    place = "engine vllm: scheduling_policy priority"
    if spec.role not in ("colocated", "prefill", "decode"):
        raise InputError(f"{place} is not allowed in a pool of role '{spec.role}'; allowed: colocated, prefill, decode")
    if int(s.get("num_speculative_tokens", 0)) > 0 and spec.role != "prefill":
        raise InputError(f"{place} and num_speculative_tokens over 0 cannot be simulated together yet")
    if spec.extra.get("loads"):
        raise InputError(f"{place} and KV cache tiers cannot be simulated together yet")
    given = spec.extra.get("priority")
    return {
        "by_priority": True,
        "priorities": np.ascontiguousarray(np.zeros(0) if given is None else given, dtype=np.int64),
    }


def output_limits(spec: EngineSpec) -> NDArray[np.int64]:
    """Tokens the client allows, by row of the trace; -1 where it does not say."""
    return np.ascontiguousarray(spec.extra.get("max_output_tokens", np.zeros(0)), dtype=np.int64)


def longest_prompt(policy: str, settings: dict[str, Any], ranks: int = 1) -> int | None:
    """Tokens of the longest prompt the engine ever computes, where a step's size bounds it; None where it does not.

    ``ranks``: attention data-parallel ones, which share a step's tokens evenly; a prompt belongs to one.
    """
    if policy == "tensorrt-llm" and not settings["enable_chunked_prefill"]:
        return int(settings["max_num_tokens"]) // ranks
    bound = {"distserve": "max_tokens_per_batch", "vllm-v0": "max_num_batched_tokens"}.get(policy)
    return None if bound is None else int(settings[bound])
