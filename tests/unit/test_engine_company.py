"""Prompts that wait for company: what counts as company, and what does not."""

from __future__ import annotations

import pytest
from test_engine_waiting import TRT, first_tokens

from simulator.engine.makers import longest_prompt


def test_what_does_not_fit_in_a_step_is_no_company() -> None:
    """80 of 100 tokens are enough: 60 and the one being decoded are not, and the other 60 cannot start beside them."""
    waiting = TRT | {"batch_wait_timeout_iters": 5, "batch_wait_max_tokens_ratio": 0.8}
    found = first_tokens("tensorrt-llm", waiting, [(0.0, 20), (3.5, 60), (3.6, 60)])
    assert found == pytest.approx([1.0, 10.0, 16.0])  # each five steps later
    assert first_tokens("tensorrt-llm", waiting, [(0.0, 20), (3.5, 60), (3.6, 20)])[1] == pytest.approx(5.0)
    two = {"max_num_tokens": 200, "batch_wait_timeout_iters": 5, "batch_wait_max_tokens_ratio": 0.9}
    found = first_tokens("tensorrt-llm", TRT | two, [(0.0, 20), (3.5, 60), (3.6, 60), (3.7, 60)], ranks=2)
    assert found == pytest.approx([1.0, 10.0, 10.0, 16.0])


def test_ranks_that_all_have_a_prompt_gather_more_for_a_stated_number_of_steps() -> None:
    apart = TRT | {"max_num_tokens": 200, "attention_dp_enable_balance": True, "attention_dp_timeout_iters": 50}
    arrivals = [(0.0, 20), (0.0, 20), (3.5, 20), (3.6, 20)]
    assert first_tokens("tensorrt-llm", apart, arrivals, ranks=2) == pytest.approx([1.0, 1.0, 5.0, 5.0])
    found = first_tokens("tensorrt-llm", apart | {"attention_dp_batching_wait_iters": 3}, arrivals, ranks=2)
    assert found == pytest.approx([1.0, 1.0, 8.0, 8.0])


def test_nobody_waits_for_company_where_nobody_could_start() -> None:
    """All seats are taken: the count of steps begins when one is free again."""
    one = TRT | {"max_batch_size": 1, "batch_wait_timeout_iters": 5, "batch_wait_max_tokens_ratio": 0.8}
    assert first_tokens("tensorrt-llm", one, [(0.0, 20), (3.5, 20)]) == pytest.approx([1.0, 61.0])


def test_a_prompt_fits_into_one_ranks_part_of_a_step() -> None:
    whole = TRT | {"max_num_tokens": 200, "enable_chunked_prefill": False}
    assert [longest_prompt("tensorrt-llm", whole, ranks) for ranks in (1, 2)] == [200, 100]
    assert longest_prompt("tensorrt-llm", whole | {"enable_chunked_prefill": True}, 2) is None
