"""Plays drawn at random: small blocks, small steps, hardly any memory, few seats; every rule of every policy."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
from engine_play import BASE, Play

DRAFTS = ("num_speculative_tokens", "speculative_acceptance", "speculative_acceptance_decay")
LONGEST, MOST = 45, 30  # tokens of a prompt, and made of it


def chance(policy: str, role: str, seed: int) -> Play:
    """The play that belongs to a policy, a role and a number."""
    rng = random.Random(f"{policy} {role} {seed}")
    count = rng.randint(4, 12)
    at, arrivals = 0.0, []
    for _ in range(count):
        at += rng.choice([0.0, 0.0, 0.004, 0.05, 0.3])
        output = rng.choice([1, rng.randint(1, MOST), rng.randint(1, MOST)])
        # where the first token is made with the prompt, only requests that make more are handed over
        least = 2 if role == "decode" and policy in ("tensorrt-llm", "splitwise", "distserve") else 1
        arrivals.append((at, rng.randint(1, LONGEST), max(output, least)))
    largest = max(prompt + output for _, prompt, output in arrivals)
    size = rng.choice([2, 4, 8, 16])
    settings, extra = DRAWN[policy](rng, role, size, count)
    spare = rng.choice([0, 1, 2, 5, 5, 20, 200]) + (2 if policy == "sglang" else 0)
    blocks = -(-largest // size) + 1 + spare
    if policy == "tensorrt-llm" and "num_speculative_tokens" in settings:
        blocks += 2
    leaving = [row for row in range(count) if rng.random() < 0.25] if rng.random() < 0.5 else []
    gone = tuple(sorted((arrivals[row][0] + rng.uniform(0.0, 0.6), row) for row in leaving))
    lost = {}
    if role == "decode" and rng.random() < 0.4:
        lost = {row: rng.random() < 0.6 and policy != "distserve" for row in range(count) if rng.random() < 0.3}
    return Play(
        policy,
        tuple(arrivals),
        settings,
        role,
        blocks,
        read_s=rng.choice([0.0003, 0.03, 0.3]),
        shared=bool(settings.get("prefix_caching") or settings.get("enable_block_reuse")) and rng.random() < 0.7,
        probes=tuple(rng.uniform(0.0, at + 0.8) for _ in range(5)),
        withdrawn=gone,
        abandoned=lost,
        extra=extra,
    )


def drafts(rng: random.Random) -> dict[str, Any]:
    return {
        "num_speculative_tokens": rng.randint(1, 4),
        "speculative_acceptance": rng.choice([0.0, 0.6, 1.0]),
        "speculative_acceptance_decay": rng.choice([1.0, 0.7]),
        "speculative_draft_cost": rng.choice([0.0, 0.1]),
        "speculative_seed": rng.randint(0, 3),
    }


def vllm(rng: random.Random, role: str, size: int, count: int) -> tuple[dict[str, Any], dict[str, Any]]:
    seats = rng.choice([1, 2, 3, 6])
    given: dict[str, Any] = {"max_num_seqs": seats, "block_size": size, "max_model_len": rng.choice([76, 1000])}
    given |= {"max_num_batched_tokens": max(seats, rng.choice([3, 7, 16, 64])), "async_scheduling": rng.random() < 0.5}
    given |= {"prefix_caching": rng.random() < 0.5, "defer_block_frees": rng.random() < 0.5}
    what, extra = rng.choice(["", "", "drafts", "groups", "urgent", "urgent"]), {}
    if what == "drafts":
        given |= drafts(rng)
    elif what == "groups":
        given |= {"stream_interval": rng.randint(2, 5)}
    elif what == "urgent":
        given |= {"scheduling_policy": "priority"}
        extra = {"priority": np.array([rng.randint(-1, 2) for _ in range(count - 1)])}
    return given, extra


def vllm_v0(rng: random.Random, role: str, size: int, count: int) -> tuple[dict[str, Any], dict[str, Any]]:
    given = {"max_num_seqs": rng.choice([1, 2, 3, 6]), "block_size": size, "prefix_caching": rng.random() < 0.5}
    return given | {"max_num_batched_tokens": rng.choice([45, 60, 200])}, {}


def trt(rng: random.Random, role: str, size: int, count: int) -> tuple[dict[str, Any], dict[str, Any]]:
    policies = ["GUARANTEED_NO_EVICT", "MAX_UTILIZATION", "STATIC_BATCH"]
    given: dict[str, Any] = {"tokens_per_block": size, "max_batch_size": rng.choice([1, 2, 3, 6])}
    given |= {"enable_chunked_prefill": rng.random() < 0.5, "overlap_scheduler": rng.random() < 0.5}
    given |= {"capacity_scheduler_policy": rng.choice(policies), "enable_block_reuse": rng.random() < 0.5}
    given |= {"max_seq_len": rng.choice([76, 1000]), "max_num_tokens": rng.choice([52, 64, 120])}
    what, extra = rng.choice(["", "drafts", "groups", "company", "ranks", "balance"]), {}
    if what == "drafts":
        given |= drafts(rng) | {"max_num_tokens": 120, "capacity_scheduler_policy": rng.choice(policies[:2])}
    elif what == "groups":
        given |= {"stream_interval": rng.randint(2, 5), "stream_first_token": rng.random() < 0.5}
    elif what == "company":
        given |= {
            "batch_wait_timeout_iters": rng.choice([0, 2, 5]),
            "batch_wait_max_tokens_ratio": rng.choice([0.3, 0.9]),
        }
    elif what in ("ranks", "balance") and role != "decode":
        given |= {"max_num_tokens": 120, "attention_dp_enable_balance": what == "balance"}
        given |= {
            "attention_dp_timeout_iters": rng.choice([2, 5]),
            "attention_dp_batching_wait_iters": rng.choice([0, 2]),
        }
        extra = {"ranks": 2}
    return given, extra


def distserve(rng: random.Random, role: str, size: int, count: int) -> tuple[dict[str, Any], dict[str, Any]]:
    given = {"max_batch_size": rng.choice([1, 2, 5]), "max_tokens_per_batch": rng.choice([45, 64, 200])}
    given |= {"max_decode_batch_size": rng.choice([1, 3, 8]), "accept_block_fraction": rng.choice([0.25, 0.6, 1.0])}
    return given | {"block_size": size}, {}


def splitwise(rng: random.Random, role: str, size: int, count: int) -> tuple[dict[str, Any], dict[str, Any]]:
    given = {"max_prompt_tokens": rng.choice([20, 46, 64]), "max_batch_size": rng.choice([1, 3, 8])}
    return given | {"max_preemptions": rng.choice([0, 1, 2]), "block_size": size}, {}


def sglang(rng: random.Random, role: str, size: int, count: int) -> tuple[dict[str, Any], dict[str, Any]]:
    chunk = rng.choice([-1, 16, 48])
    given: dict[str, Any] = {
        "page_size": size,
        "chunked_prefill_size": chunk,
        "max_prefill_tokens": rng.choice([16, 64]),
    }
    given |= {"max_running_requests": rng.choice([1, 2, 6]), "mixed_chunk": rng.random() < 0.5 and role == "colocated"}
    given |= {"schedule_policy": rng.choice(["fcfs", "lpm"]), "schedule_conservativeness": rng.choice([0.02, 0.3, 1.0])}
    given |= {
        "disable_radix_cache": rng.random() < 0.5,
        "overlap": rng.random() < 0.5,
        "ignore_eos": rng.random() < 0.5,
    }
    given |= {"scheduler_recv_interval": rng.choice([1, 1, 4]), "reserve_known_lengths": rng.random() < 0.5}
    return given, {}


DRAWN = {
    "vllm-v1": vllm,
    "vllm-v0": vllm_v0,
    "tensorrt-llm": trt,
    "distserve": distserve,
    "splitwise": splitwise,
    "sglang": sglang,
}
ROLES = [(policy, role) for policy in BASE for role in ("colocated", "prefill", "decode")]
ROLES = [
    pair for pair in ROLES if pair not in (("distserve", "colocated"), ("vllm-v0", "prefill"), ("vllm-v0", "decode"))
]
