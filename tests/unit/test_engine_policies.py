"""Each policy on small cases worked out by hand: one second a step, whatever is in it, unless said otherwise."""

from __future__ import annotations

from itertools import pairwise

import pytest

from simulator.cluster.prepare import content_columns
from simulator.cost.table import affine_cost
from simulator.engine.engine import Engine, EngineSpec
from simulator.engine.state import PREFILLED, READ, DeskColumns
from simulator.workload.trace import Trace

TRT = {
    "max_batch_size": 8,
    "max_num_tokens": 64,
    "max_seq_len": 1000,
    "capacity_scheduler_policy": "GUARANTEED_NO_EVICT",
    "enable_chunked_prefill": False,
    "tokens_per_block": 16,
    "enable_block_reuse": False,
    "overlap_scheduler": False,
    "stream_interval": 1,
    "stream_first_token": False,
}
SPLITWISE = {
    "max_prompt_tokens": 64,
    "max_batch_size": 8,
    "max_preemptions": 2,
    "block_size": 16,
    "max_model_len": 1000,
    "stream_interval": 1,
}
DISTSERVE = {
    "max_batch_size": 2,
    "max_tokens_per_batch": 64,
    "max_decode_batch_size": 8,
    "max_decode_tokens": 64,
    "accept_block_fraction": 0.25,
    "block_size": 16,
    "max_model_len": 1000,
    "stream_interval": 1,
}


def engine(policy, settings, requests, *, blocks, role="colocated", allowed=None):
    """An engine with (prompt, output) requests that all come at 0, and its desk."""
    prompts, outputs = [p for p, _ in requests], [o for _, o in requests]
    trace = Trace.from_columns([0.0] * len(requests), prompts, outputs)
    desk = DeskColumns(len(requests))
    extra = {"max_output_tokens": allowed if allowed is not None else outputs}
    spec = EngineSpec(policy, role, settings, blocks, affine_cost(1.0), logging=True, extra=extra)
    made = Engine(spec, content_columns(trace, False), desk.record)
    for row, (prompt, output) in enumerate(requests):
        made.submit(row, prompt, 1 if role == "prefill" else output, 0.0, remote=role == "decode")
    return made, desk


def batches(made):
    """Each batch as {row: new tokens}; -1: paused when it was planned."""
    _, _, first, rows, tokens = made.step_log()
    bounds = [*first.tolist(), len(rows)]
    pairs = list(zip(rows.tolist(), tokens.tolist(), strict=True))
    return [dict(pairs[a:b]) for a, b in pairwise(bounds)]


def trt(requests, blocks, allowed=None, **changes):
    made, desk = engine("tensorrt-llm", {**TRT, **changes}, requests, blocks=blocks, allowed=allowed)
    made.advance(1000.0)
    return batches(made), desk


def test_no_evict_promises_the_allowed_length():
    """16 + 17 tokens are allowed: 3 blocks each. Of 5 blocks the second waits, though both would have fitted."""
    steps, desk = trt([(16, 2), (16, 2)], blocks=5, allowed=[17, 17])
    assert steps == [{0: 16}, {0: 1}, {1: 16}, {1: 1}]
    assert desk.last_token_s.tolist() == [2.0, 4.0]
    assert trt([(16, 2), (16, 2)], blocks=6, allowed=[17, 17])[0] == [{0: 16, 1: 16}, {0: 1, 1: 1}]


def test_max_utilization_starts_both_and_pauses_the_newest():
    """3 blocks: both start with one each; the first takes the third, the second is paused and starts over with 17."""
    steps, desk = trt([(16, 3), (16, 3)], blocks=3, capacity_scheduler_policy="MAX_UTILIZATION")
    assert steps == [{0: 16, 1: 16}, {0: 1, 1: -1}, {0: 1}, {1: 17}, {1: 1}]
    assert desk.preemptions.tolist() == [0, 1]


def test_static_batch_waits_for_the_last():
    steps, _ = trt([(60, 1), (4, 3), (5, 1)], blocks=100, capacity_scheduler_policy="STATIC_BATCH")
    assert steps == [{0: 60, 1: 4}, {1: 1}, {1: 1}, {2: 5}]
    steps, _ = trt([(60, 1), (4, 3), (5, 1)], blocks=100)
    assert steps == [{0: 60, 1: 4}, {1: 1, 2: 5}, {1: 1}]


def test_whole_prompts_hold_up_those_behind_them():
    """A prompt of 40 does not fit beside one of 30, and the 5 behind it must not pass."""
    assert trt([(30, 1), (40, 1), (5, 1)], blocks=100)[0] == [{0: 30}, {1: 40, 2: 5}]


def test_chunks_are_whole_blocks_and_short_prompts_slip_past():
    """34 tokens left: a chunk of 32; 2 are left, of which nothing of 40 tokens can be cut, but a prompt of 2 fits."""
    steps, _ = trt([(30, 1), (70, 1), (40, 1), (2, 1)], blocks=100, enable_chunked_prefill=True)
    assert steps == [{0: 30, 1: 32, 3: 2}, {1: 38, 2: 16}, {2: 24}]


def test_generation_comes_before_prompts():
    """5 requests decode: of 64 tokens 59 are left, so a prompt of 60 waits until one has ended."""
    requests = [(4, 4)] * 4 + [(4, 2), (60, 1)]
    steps, _ = trt(requests, blocks=100)
    assert steps[:3] == [
        {0: 4, 1: 4, 2: 4, 3: 4, 4: 4},
        dict.fromkeys(range(5), 1),
        {0: 1, 1: 1, 2: 1, 3: 1, 5: 60},
    ]


def test_groups_of_tokens_reach_the_client_together():
    """Tokens at 1, 2, ... 7 s, sent by three: the first at 3 s, or at 1 s where it does not wait."""
    for at_once, first, gaps in ((False, 3.0, [0, 0, 3, 0, 0, 1]), (True, 1.0, [3, 0, 0, 3, 0, 0])):
        made, desk = engine(
            "tensorrt-llm", TRT | {"stream_interval": 3, "stream_first_token": at_once}, [(8, 7)], blocks=9
        )
        made.advance(1000.0)
        assert (desk.first_token_s[0], desk.last_token_s[0]) == (first, 7.0)
        assert made.totals().gap_sum_s == sum(gaps)
        counts = made.series()[4]
        assert counts[0] == gaps.count(0)
        assert counts.sum() == len(gaps)


def test_generation_server_starts_with_the_second_token():
    """Asked for at 0, there at 5: the first token is sent at 5, the second made by the step that ends at 6."""
    made, desk = engine("tensorrt-llm", TRT, [(16, 3)], blocks=9, role="decode")
    news = made.advance(4.0)
    assert (news.kind.tolist(), news.value.tolist()) == ([READ], [1])
    assert made.load().free_blocks == 7  # the prompt's block, and one for the token that comes with it
    made.transfer_ended(int(news.slot[0]), 5.0)
    made.advance(100.0)
    assert (desk.first_token_s[0], desk.last_token_s[0], desk.token_sum_s[0]) == (5.0, 7.0, 18.0)


def test_context_server_keeps_blocks_until_they_are_read():
    made, desk = engine("tensorrt-llm", TRT, [(48, 9), (48, 9)], blocks=5, role="prefill")
    news = made.advance(10.0)
    assert (news.kind.tolist(), news.row.tolist()) == ([PREFILLED], [0])
    assert made.load().waiting == 1
    made.transfer_ended(int(news.slot[0]), 20.0)
    made.advance(30.0)
    assert desk.prefill_end_s.tolist() == [1.0, 21.0]


def test_distserve_context_stage_keeps_its_limits():
    """Two prompts a batch, 64 tokens, and blocks for all not yet taken over: 6 blocks hold two prompts of 40."""
    made, _ = engine("distserve", DISTSERVE, [(8, 2), (8, 2), (8, 2), (40, 2), (40, 2)], blocks=6, role="prefill")
    made.advance(10.0)
    assert batches(made) == [{0: 8, 1: 8}, {2: 8, 3: 40}]


def test_distserve_takes_over_while_little_waits():
    """A quarter of 8 blocks may wait: prompts of one block are taken until two wait, and the next comes after them."""
    made, desk = engine("distserve", DISTSERVE, [(8, 9)] * 5, blocks=8, role="decode")
    desk.first_token_s[:] = 0.0
    first = made.advance(1.0)
    assert first.row.tolist() == [0, 1]
    for slot in first.slot:
        made.transfer_ended(int(slot), 2.0)
    assert made.advance(2.5) is None  # both begin; the next are looked at when their step ends
    assert made.advance(3.5).row.tolist() == [2, 3]


def test_distserve_swaps_out_the_newest_and_back():
    """Two of 16 + 1 tokens in 5 blocks; at 33 tokens each wants a third: the second goes, and comes back whole."""
    made, desk = engine(
        "distserve", DISTSERVE | {"accept_block_fraction": 1.0}, [(16, 20), (16, 20)], blocks=5, role="decode"
    )
    desk.first_token_s[:] = 0.0
    for slot in made.advance(0.5).slot:
        made.transfer_ended(int(slot), 0.5)
    made.advance(100.0)
    assert desk.preemptions.tolist() == [0, 1]
    assert desk.last_token_s.tolist() == [19.5, 22.5]
    assert {row: n for step in batches(made) for row, n in step.items() if n > 1} == {}


def test_splitwise_passes_decodes_over_at_most_so_often():
    """Prompts of 64 fill a step: the decode is passed over twice, then goes first, with what fits beside it."""
    requests = [(4, 4), (64, 1), (64, 1), (64, 1), (64, 1)]
    made, _ = engine("splitwise", SPLITWISE, requests, blocks=100)
    made.advance(100.0)
    assert batches(made) == [{0: 4}, {1: 64}, {2: 64}, {0: 1}, {3: 64}, {0: 1}, {4: 64}, {0: 1}]


def test_splitwise_gives_decodes_what_prompts_leave():
    """62 tokens of prompts leave two of three decodes their token."""
    made, desk = engine("splitwise", SPLITWISE, [(4, 2), (4, 2), (4, 2), (52, 2), (62, 2)], blocks=100)
    made.advance(100.0)
    assert batches(made) == [
        {0: 4, 1: 4, 2: 4, 3: 52},
        {0: 1, 1: 1, 4: 62},
        {2: 1, 3: 1, 4: 1},
    ]
    assert made.totals().gap_max_s == 2.0
    assert made.totals().gap_sum_s == pytest.approx(1 + 1 + 2 + 2 + 1)
    assert desk.last_token_s.tolist() == [2.0, 2.0, 3.0, 3.0, 3.0]
