"""What sets one scheduling policy apart from another, as one record that every planning function may read.

A policy is one function that plans a batch and one that says when the head of the queue has to wait
(``simulator.engine.policies``); the rest of the state machine is shared.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from simulator.compiled import compiled, record

VLLM, TENSORRT_LLM, DISTSERVE, SPLITWISE, VLLM_V0 = 0, 1, 2, 3, 4
GUARANTEED_NO_EVICT, MAX_UTILIZATION, STATIC_BATCH = 0, 1, 2
#: Where a handed-over request's first token is made, and when the client gets it: again at the decode engine; at the
#: prefill engine, sent when the decode engine begins; at the prefill engine, sent at once.
REMADE, AT_DECODE, AT_PREFILL = 0, 1, 2


@dataclass(frozen=True)
class RuleSet:
    """The rules of one engine, plain values; each field is read by the policies that know it.

    ``limits``: tokens the client allows, by row of the trace (-1 or a missing row: as many as fit the context).
    """

    policy: int = VLLM
    capacity: int = GUARANTEED_NO_EVICT  # TensorRT-LLM: which requests may start
    chunking: bool = True  # whether a prompt may be cut
    first_token: int = REMADE
    prompt_seqs: int = 0  # DistServe: prompts of a batch, at most
    prompt_tokens: int = 0  # DistServe, Splitwise, vLLM V0: prompt tokens of a batch, at most
    accept_blocks: float = 0.0  # DistServe: takes the next prompt while those not begun hold fewer blocks
    max_preemptions: int = 0  # Splitwise: how often a request may be passed over
    stream_interval: int = 1  # tokens sent to the client together
    stream_first: bool = True  # whether the first token is sent at once all the same
    drafts: int = 0  # draft tokens a step, for each decoding request
    acceptance: NDArray[np.float64] = field(default_factory=lambda: np.zeros(0))  # of each draft, if those before were
    draft_cost: float = 0.0  # a draft's time, as a share of a decode step's
    seed: int = 0
    read_post_s: float = 0.0  # host seconds to ask for a block of KV elsewhere; steps and results wait for it
    limits: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    ranks: int = 1  # attention data-parallel ranks, each with requests of its own
    wait_steps: int = 0  # TensorRT-LLM: steps for which prompts wait for company beside generating requests, at most
    wait_ratio: float = 0.0  # TensorRT-LLM: share of a step's tokens at which they wait no longer
    balance_steps: int = 0  # TensorRT-LLM: steps for which prompts wait until every rank has one; 0: they do not
    balance_gather: int = 0  # TensorRT-LLM: further steps once every rank has one
    watermark_blocks: int = 0  # vLLM V0: free blocks that prompts leave alone while others run
    by_priority: bool = False  # vLLM: who waits and who is preempted goes by priority first, not by arrival alone
    priorities: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))  # by row; missing: 0

    @property
    def reserving(self) -> bool:
        """Whether blocks for all that a request may make are promised to it at admission."""
        return self.policy == TENSORRT_LLM and self.capacity != MAX_UTILIZATION


RULES = (*(f.name for f in fields(RuleSet)), "reserving")
Rules = record("Rules", RULES, __name__)


# spelled out: machine code of a function that has no source file cannot be kept on disk
@compiled
def make_rules(  # type: ignore[no-untyped-def]
    policy,
    capacity,
    chunking,
    first_token,
    prompt_seqs,
    prompt_tokens,
    accept_blocks,
    max_preemptions,
    stream_interval,
    stream_first,
    drafts,
    acceptance,
    draft_cost,
    seed,
    read_post_s,
    limits,
    ranks,
    wait_steps,
    wait_ratio,
    balance_steps,
    balance_gather,
    watermark_blocks,
    by_priority,
    priorities,
    reserving,
):
    return Rules(
        policy,
        capacity,
        chunking,
        first_token,
        prompt_seqs,
        prompt_tokens,
        accept_blocks,
        max_preemptions,
        stream_interval,
        stream_first,
        drafts,
        acceptance,
        draft_cost,
        seed,
        read_post_s,
        limits,
        ranks,
        wait_steps,
        wait_ratio,
        balance_steps,
        balance_gather,
        watermark_blocks,
        by_priority,
        priorities,
        reserving,
    )


def rules_record(rules: RuleSet) -> Any:
    """The rules as the record that compiled code reads."""
    return make_rules(*(getattr(rules, name) for name in RULES))
