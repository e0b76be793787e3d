"""What engines do at the edges: tables that grow, reads of no length, prefixes seen from outside, blocks let go."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

from simulator.cost.table import affine_cost
from simulator.engine.engine import Engine, EngineSpec, Survey
from simulator.engine.state import COMPUTED, PREFILLED, READ, DeskColumns
from simulator.errors import InputError
from simulator.kv.content import OUTPUT_CONTENT, PRIVATE_CONTENT, block_keys, make_content

VLLM = {
    "async_scheduling": False,
    "max_num_seqs": 256,
    "max_num_batched_tokens": 8192,
    "block_size": 16,
    "max_model_len": 8192,
    "prefix_caching": True,
    "defer_block_frees": False,
    "stream_interval": 1,
}
SGLANG = {
    "max_running_requests": 256,
    "chunked_prefill_size": 8192,
    "max_prefill_tokens": 8192,
    "mixed_chunk": False,
    "schedule_policy": "fcfs",
    "schedule_conservativeness": 1.0,
    "ignore_eos": True,
    "disable_radix_cache": False,
    "page_size": 16,
    "overlap": False,
    "context_length": 8192,
}
SETTINGS = {"vllm-v1": VLLM, "sglang": SGLANG}
HASHED = 32  # tokens of a trace's own prefix block


def content_of(prompts: list[int], ids: list[list[int]]) -> Any:
    rows = np.arange(len(prompts), dtype=np.int64)
    return make_content(
        np.array(prompts, np.int64),
        np.array([i for row in ids for i in row], np.int64),
        np.cumsum([0, *map(len, ids)], dtype=np.int64),
        HASHED,
        PRIVATE_CONTENT + rows,
        OUTPUT_CONTENT + rows,
    )


def engine(
    policy: str, content: Any, desk: DeskColumns, blocks: int = 4000, role: str = "colocated", **more: Any
) -> Engine:
    spec = EngineSpec(
        policy,
        role,
        SETTINGS[policy] | more.pop("settings", {}),
        blocks,
        affine_cost(1.0),
        extra={"max_output_tokens": np.full(len(desk.preemptions), 8)},
    )
    return Engine(dataclasses.replace(spec, **more), content, desk.record)


@pytest.mark.parametrize("policy", ["vllm-v1", "sglang"])
def test_what_a_router_sees_of_a_prefix_is_what_the_request_finds(policy: str) -> None:
    """Two engines: one has computed 1 2 3; a prompt of 1 2 9 would find the first 64 tokens there, and does."""
    prompts, ids = [96, 96, 80, 96], [[1, 2, 3], [1, 2, 9], [1, 2, 3], [7, 2, 3]]
    content, desk = content_of(prompts, ids), DeskColumns(4)
    warm, cold = (engine(policy, content, desk) for _ in range(2))
    warm.submit(0, 96, 4, 0.0)
    warm.advance(100.0)
    pair, before = Survey([cold, warm]), warm.load()
    for row, expected in ((1, 64), (2, 80), (3, 0)):
        keys = block_keys(content, row, prompts[row], 16)
        assert pair.overlap(content, row, prompts[row], keys).tolist() == [0, expected]
        assert (cold.overlap(content, row, prompts[row], keys), warm.overlap(content, row, prompts[row], keys)) == (
            0,
            expected,
        )

    assert warm.load() == before  # looking takes nothing
    warm.submit(1, 96, 4, 100.0)
    warm.advance(200.0)
    assert desk.cached_tokens[1] == 64
    assert pair.look(300.0) == []
    assert pair.gauges[:, 4].tolist() == [cold.load().blocks, warm.load().blocks]
    assert pair.gauges[1].tolist() == list(warm.load())


def test_without_a_prefix_cache_nothing_is_seen() -> None:
    content, desk = content_of([64, 64], [[1, 2], [1, 2]]), DeskColumns(2)
    plain = engine("vllm-v1", content, desk, settings={"prefix_caching": False})
    plain.submit(0, 64, 2, 0.0)
    plain.advance(100.0)
    assert plain.overlap(content, 1, 64, block_keys(content, 1, 64, 16)) == 0


def test_blocks_let_go_are_told_by_their_keys() -> None:
    """Five blocks of memory: the second prompt takes the first one's, which was four keys long, from its end on."""
    content, desk = content_of([64, 64], [[1, 2], [3, 4]]), DeskColumns(2)
    small = engine("vllm-v1", content, desk, blocks=5, tell_evicted=True)
    small.submit(0, 64, 2, 0.0)
    small.advance(100.0)
    assert small.take_evicted().tolist() == []
    small.submit(1, 64, 2, 100.0)
    small.advance(200.0)
    keys = block_keys(content, 0, 64, 16).tolist()
    assert small.take_evicted().tolist() == keys[::-1]
    assert small.take_evicted().tolist() == []
    other = engine("sglang", content, desk, blocks=5)
    assert other.take_evicted().tolist() == []


@pytest.mark.parametrize("caching", [False, True])
def test_hundreds_at_once_and_prompts_of_thousands_of_tokens(caching: bool) -> None:
    """Slots, tables, lists and news grow on the way: with memory for all, everybody begins in turn and ends in time."""
    rows = 300
    prompts = [16 + 37 * (row % 80) for row in range(rows)]
    ids = [[1000 * row + i for i in range(-(-tokens // HASHED))] for row, tokens in enumerate(prompts)]
    content, desk = content_of(prompts, ids), DeskColumns(rows)
    settings = {"prefix_caching": caching, "max_num_seqs": 512, "max_num_batched_tokens": 1_000_000}
    large = engine(
        "vllm-v1", content, desk, 100_000, settings=settings, tell_finished=True, tell_prompts=True, logging=True
    )
    for row in range(rows):
        large.submit(row, prompts[row], 5 + row % 7, 0.0)
    news = large.advance(1000.0)
    assert desk.first_token_s.tolist() == [1.0] * rows
    assert desk.last_token_s.tolist() == [5.0 + row % 7 for row in range(rows)]
    computed = news.row[news.kind == COMPUTED]
    assert computed.tolist() == list(range(rows)) and len(news.row) == 2 * rows
    assert sorted(news.row[news.kind != COMPUTED].tolist()) == list(range(rows))
    load = large.load()
    assert (load.running, load.waiting, load.free_blocks) == (0, 0, 100_000)
    starts, ends, first, log_rows, tokens = large.step_log()
    assert len(starts) == 11 and (ends - starts).tolist() == [1.0] * 11
    assert log_rows[: first[1]].tolist() == list(range(rows)) and tokens[: first[1]].tolist() == prompts


def test_many_prompts_computed_between_two_looks_are_all_told() -> None:
    rows = 200
    content, desk = content_of([16] * rows, [[]] * rows), DeskColumns(rows)
    made = engine("vllm-v1", content, desk, role="prefill", settings={"max_num_batched_tokens": 256})
    for row in range(rows):
        made.submit(row, 16, 1, 0.0)
    news = made.advance(1e6)
    assert news.row.tolist() == list(range(rows)) and set(news.kind.tolist()) == {PREFILLED}
    assert news.at_s.tolist() == [1.0 + row // 16 for row in range(rows)]
    assert made.advance(2e6) is None
    for slot in news.slot:
        made.transfer_ended(int(slot), 2e6)
    made.advance(3e6)
    assert made.load().free_blocks == 4000


@pytest.mark.parametrize(("took_s", "first"), [(0.0, 5.0), (0.4, 6.0), (1.4, 7.0)])
def test_a_read_is_heard_of_with_the_batch_planned_behind_its_end(took_s: float, first: float) -> None:
    """Asked for at 3, when the batch that ends at 4 is planned. A read of no length is told with that very batch, so
    that the request is planned at 4; one that ends later is told with the next batch, at 5."""
    content, desk = content_of([16, 16], [[], []]), DeskColumns(2)
    decode = engine("vllm-v1", content, desk, role="decode", settings={"prefix_caching": False})
    decode.submit(0, 16, 20, 0.0, remote=True)
    news = decode.advance(0.5)
    assert (news.kind.tolist(), news.value.tolist()) == ([READ], [1])
    decode.transfer_ended(int(news.slot[0]), 1.0)
    decode.advance(2.5)
    decode.submit(1, 16, 3, 2.5, remote=True)
    news = decode.advance(3.0 + 1e-6)
    assert (news.row.tolist(), news.at_s.tolist()) == ([1], [3.0])
    if took_s:
        decode.advance(3.0 + took_s)
    decode.transfer_ended(int(news.slot[0]), 3.0 + took_s)
    decode.advance(100.0)
    assert desk.first_token_s[1] == first
    assert desk.last_token_s[1] == first + 2.0


def test_an_unknown_policy_is_named() -> None:
    with pytest.raises(InputError, match="engine: unknown policy 'vllm'"):
        Engine(
            EngineSpec("vllm", "colocated", VLLM, 10, affine_cost(1.0)), content_of([1], [[]]), DeskColumns(1).record
        )


def test_prompts_of_a_policy_have_their_longest() -> None:
    content, desk = content_of([1], [[]]), DeskColumns(1)
    assert engine("vllm-v1", content, desk).longest_prompt is None
    assert engine("sglang", content, desk).longest_prompt is None
    assert engine("vllm-v1", content, desk).block_size == engine("sglang", content, desk).block_size == 16


@pytest.mark.parametrize("policy", ["vllm-v1", "sglang"])
@pytest.mark.parametrize(("macro", "makes"), [(True, 50), (False, 50), (True, 6000)])
def test_the_time_series_rises_and_is_never_too_long(policy: str, macro: bool, makes: int) -> None:
    """One request of many steps of a second each: a sample a step while there is room, 1,024 at most."""
    content, desk = content_of([64], [[1, 2]]), DeskColumns(1)
    one = engine(policy, content, desk, macro=macro, settings={"max_model_len": 8192})
    one.submit(0, 64, makes, 0.0)
    one.advance(1e6)
    moments, running, waiting, blocks, gaps = one.series()
    apart = np.diff(moments)
    assert 500 < len(moments) <= 1024 if makes > 1024 else len(moments) == makes
    assert (apart > 0).all() and moments[0] == 1.0 and makes - apart.min() <= moments[-1] <= makes
    assert makes > 1024 or set(apart.tolist()) == {1.0}
    assert set(running[:-1].tolist()) == {1} and set(waiting.tolist()) == {0}
    assert blocks[:-1].tolist() == sorted(blocks[:-1].tolist()) and blocks[0] >= 4
    assert gaps.sum() == makes - 1


@pytest.mark.parametrize("policy", ["vllm-v1", "sglang"])
def test_points_of_a_long_run_stay_even(policy: str) -> None:
    """6,000 steps of a second: room for 1,024 points runs out at 1,024, 2,048 and 4,096 s; then one is every 8 s."""
    content, desk = content_of([64], [[1, 2]]), DeskColumns(1)
    one = engine(policy, content, desk)
    one.submit(0, 64, 6000, 0.0)
    one.advance(1e6)
    moments, running, *_ = one.series()
    assert moments.tolist() == [1.0 + 8.0 * i for i in range(750)]
    assert set(running.tolist()) == {1}
