"""Requests that wait although there is room: for company, for other ranks, for the scheduler to look."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from simulator.cost.table import StepCostTable, affine_cost
from simulator.engine.engine import Engine, EngineSpec
from simulator.engine.state import READ, DeskColumns
from simulator.kv.content import make_content

STEP_S = 1.0
TRT = {
    "max_batch_size": 16,
    "max_num_tokens": 100,
    "max_seq_len": 1000,
    "capacity_scheduler_policy": "GUARANTEED_NO_EVICT",
    "enable_chunked_prefill": False,
    "tokens_per_block": 16,
    "enable_block_reuse": False,
    "overlap_scheduler": False,
    "stream_interval": 1,
    "stream_first_token": False,
}
SGLANG = {
    "max_running_requests": 16,
    "chunked_prefill_size": 100,
    "max_prefill_tokens": 1000,
    "mixed_chunk": False,
    "schedule_policy": "fcfs",
    "schedule_conservativeness": 1.0,
    "ignore_eos": True,
    "disable_radix_cache": True,
    "page_size": 1,
    "overlap": False,
    "context_length": 1000,
}


def first_tokens(
    policy: str,
    settings: dict[str, Any],
    arrivals: list[tuple[float, int]],
    ranks: int = 1,
    cost: StepCostTable | None = None,
) -> Any:
    """Moments of first tokens: each step takes one second, all requests make 60 tokens."""
    rows = len(arrivals)
    prompts = np.array([tokens for _, tokens in arrivals])
    empty = np.zeros(0, np.int64)
    content = make_content(prompts, empty, np.zeros(rows + 1, np.int64), 16, np.arange(rows), np.arange(rows) + 100)
    desk = DeskColumns(rows)
    extra = {"max_output_tokens": np.full(rows, 60), "ranks": ranks}
    spec = EngineSpec(policy, "colocated", settings, 4000, cost or affine_cost(STEP_S), extra=extra)
    engine = Engine(spec, content, desk.record)
    for row, (at, tokens) in enumerate(arrivals):
        engine.advance(at)
        engine.submit(row, tokens, 60, at)
    engine.advance(1e6)
    return desk.first_token_s


def test_prompts_wait_for_company_a_stated_number_of_steps() -> None:
    arrivals = [(0.0, 20), (3.5, 20)]
    assert first_tokens("tensorrt-llm", TRT, arrivals) == pytest.approx([1.0, 5.0])
    waiting = TRT | {"batch_wait_timeout_iters": 7, "batch_wait_max_tokens_ratio": 0.5}
    assert first_tokens("tensorrt-llm", waiting, arrivals) == pytest.approx([1.0, 12.0])


def test_prompts_that_fill_a_step_wait_no_longer() -> None:
    waiting = TRT | {"batch_wait_timeout_iters": 40, "batch_wait_max_tokens_ratio": 0.4}
    found = first_tokens("tensorrt-llm", waiting, [(0.0, 20), (3.5, 20), (8.5, 20)])
    assert found == pytest.approx([1.0, 10.0, 10.0])  # 20 + 20 + 1 of 100 tokens


def test_ranks_wait_until_each_has_a_prompt_or_time_is_up() -> None:
    apart = TRT | {"max_num_tokens": 200, "attention_dp_enable_balance": True, "attention_dp_timeout_iters": 10}
    alone = [(0.0, 20), (0.0, 20), (3.5, 20)]
    found = first_tokens("tensorrt-llm", apart, alone, ranks=2)
    assert found[:2] == pytest.approx([1.0, 1.0])
    assert 5.0 < found[2] <= 4.0 + 11.0  # the next step whose number ends the count
    both = first_tokens("tensorrt-llm", apart, [*alone, (4.2, 20)], ranks=2)
    assert both[2:] == pytest.approx([6.0, 6.0])  # now the other rank has one too


def test_a_rank_computes_what_its_own_step_holds() -> None:
    """Two ranks of 100 tokens each: three prompts of 60 take two steps, as one rank gets two of them."""
    found = first_tokens("tensorrt-llm", TRT | {"max_num_tokens": 200}, [(0.0, 60)] * 3, ranks=2)
    assert sorted(found) == pytest.approx([1.0, 1.0, 2.0])


def test_new_requests_are_fetched_every_so_many_decode_steps() -> None:
    arrivals = [(0.0, 20), (3.5, 20)]
    assert first_tokens("sglang", SGLANG, arrivals) == pytest.approx([1.0, 5.0])
    rarely = SGLANG | {"scheduler_recv_interval": 10}
    found = first_tokens("sglang", rarely, arrivals)
    # the step with the first prompt is followed by a look; the tenth decode step after it by the next
    assert found == pytest.approx([1.0, 12.0])


def test_kernels_that_are_fetched_when_first_used_hold_up_a_step_and_the_results_before_it() -> None:
    cold = replace(affine_cost(STEP_S), cold_prompt_s=5.0, cold_past_s=20.0)
    fits = [(0.0, 60), (0.0, 40), (200.0, 50)]
    assert first_tokens("sglang", SGLANG, fits, cost=cold) == pytest.approx([6.0, 6.0, 201.0])
    # 150 tokens in chunks of 100: the second goes on with a prompt
    cut = first_tokens("sglang", SGLANG, [(0.0, 60), (0.0, 90), (200.0, 150)], cost=cold)
    assert cut == pytest.approx([6.0, 27.0, 202.0])
    # planned one step ahead, the loop comes round when it has launched the first, whose result waits for the second launch
    ahead = first_tokens("sglang", SGLANG | {"overlap": True}, [(0.0, 60), (0.0, 90)], cost=cold)
    assert ahead == pytest.approx([27.0, 27.0])
    assert first_tokens("sglang", SGLANG, [(0.0, 60), (0.0, 90)]) == pytest.approx([1.0, 2.0])


def test_decode_engines_too_fetch_requests_every_so_many_steps() -> None:
    """Moments at which memory is asked for: at once while idle, then every tenth step or when another has begun."""

    def asked(interval: int) -> list[float]:
        prompts, empty = np.array([20, 20]), np.zeros(0, np.int64)
        content = make_content(prompts, empty, np.zeros(3, np.int64), 16, np.arange(2), np.arange(2) + 100)
        desk = DeskColumns(2)
        settings = SGLANG | {"scheduler_recv_interval": interval}
        engine = Engine(EngineSpec("sglang", "decode", settings, 4000, affine_cost(STEP_S)), content, desk.record)
        engine.submit(0, 20, 60, 0.0, remote=True)
        found = []
        for tick in range(1, 40):
            at = tick / 2.0
            if tick == 7:
                engine.submit(1, 20, 60, at, remote=True)
            news = engine.advance(at)
            if news is None:
                continue
            for kind, slot, moment in zip(news.kind, news.slot, news.at_s, strict=True):
                if kind == READ:
                    found.append(float(moment))
                    if len(found) == 1:
                        engine.transfer_ended(int(slot), at)
        return found

    assert asked(1)[0] == asked(10)[0] == pytest.approx(0.0)
    assert asked(1)[1] < 5.0 < asked(10)[1] < 13.0


@pytest.mark.parametrize("overlap", [True, False])
def test_a_place_is_free_once_its_last_token_is_on_the_way(overlap: bool) -> None:
    """The first request's last token comes at 60 s. Planned ahead, the batch after it is laid out at 59 s."""
    own = TRT | {"max_batch_size": 2, "overlap_scheduler": overlap}
    times = first_tokens("tensorrt-llm", own, [(0.0, 10), (5.5, 10), (20.0, 10)])
    assert times[0] == 1.0 and times[2] == 61.0
    drafting = own | {"num_speculative_tokens": 1, "speculative_acceptance": 0.0, "speculative_acceptance_decay": 1.0}
    drafting |= {"speculative_draft_cost": 0.0, "speculative_seed": 0}
    later = first_tokens("tensorrt-llm", drafting, [(0.0, 10), (5.5, 10), (20.0, 10)])
    assert later[2] == (62.0 if overlap else 61.0)  # with drafts nobody knows which token is the last


def test_results_wait_until_the_next_step_s_kernels_fit_the_queue_of_commands() -> None:
    ahead, burst = SGLANG | {"overlap": True}, [(0.0, 100), (0.0, 100), (0.0, 100)]
    free = first_tokens("sglang", ahead, burst)
    assert free == pytest.approx([1.0, 2.0, 3.0])
    # of a step of one second a quarter is in the queue: the step before is looked at 0.75 s into it; the last has no next
    queued = replace(affine_cost(STEP_S), queue_launch_s=0.1, queue_share=0.25)
    assert first_tokens("sglang", ahead, burst, cost=queued) == pytest.approx([1.75, 2.75, 3.0])
    # kernels that all fit hold nothing up, however long the host takes to launch them behind a running step
    short = replace(affine_cost(STEP_S), queue_launch_s=0.1, queue_share=1.0)
    assert first_tokens("sglang", ahead, burst, cost=short) == pytest.approx(free)
    assert first_tokens("sglang", SGLANG, burst, cost=queued) == pytest.approx(free)
