"""Clients that leave an SGLang engine, to the second: every step takes one, whatever is in it."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from test_engine_corners import content_of, engine

from simulator.compiled import compiled
from simulator.engine.engine import Engine
from simulator.engine.state import CHUNK, FINISHED, PREFILLED, READ, DeskColumns

BLOCKS = 40
FULL_S = 1000.0
Request = tuple[float, int, int]


@compiled
def inside(e):  # type: ignore[no-untyped-def]
    """Messages not read, slots taken, retracted requests, tokens that could be evicted."""
    return e.aborts, e.row.size - e.free_slots, e.retracted_count, e.tree.evictable


class Bench:
    """One engine, requests of (arrival, prompt tokens, output tokens), and clients who leave: (moment, row)."""

    def __init__(
        self,
        requests: list[Request],
        leave: list[tuple[float, int]],
        role: str = "colocated",
        blocks: int = BLOCKS,
        same: bool = False,
        more: dict[str, Any] | None = None,
        **settings: Any,
    ) -> None:
        self.requests = requests
        self.desk = DeskColumns(len(requests))
        prompts = [prompt for _, prompt, _ in requests]
        ids = [[i if same else row * 100 + i for i in range(-(-p // 32))] for row, p in enumerate(prompts)]
        options = {"tell_finished": True, "logging": True} | (more or {})
        self.engine: Engine = engine(
            "sglang", content_of(prompts, ids), self.desk, blocks, role, settings=settings, **options
        )
        self.news: list[tuple[int, int, float]] = []
        self.slots: dict[int, int] = {}
        self.found: list[bool] = []
        events = [(at, 0, row) for row, (at, *_) in enumerate(requests)] + [(at, 1, row) for at, row in leave]
        for at, kind, row in sorted(events):
            self.until(at)
            if kind == 0:
                _, prompt, output = requests[row]
                self.engine.submit(row, prompt, output, at, remote=role == "decode")
            else:
                self.found.append(self.engine.withdraw(row, at))

    def until(self, now: float) -> Bench:
        news = self.engine.advance(now)
        for kind, row, slot, at in zip(
            *(news.kind, news.row, news.slot, news.at_s) if news else ([],) * 4, strict=True
        ):
            self.news.append((int(kind), int(row), float(at)))
            self.slots[int(row)] = int(slot)
        return self

    def end(self) -> Bench:
        self.until(FULL_S)
        load = self.engine.load()
        assert (load.requests, load.pending_prompt_tokens, load.free_blocks) == (0, 0, load.blocks)
        assert self.engine.progress() == {}
        aborts, slots_taken, *_ = inside(self.engine.state)
        assert (aborts, slots_taken) == (0, 0)
        return self

    def end_after_reads(self) -> Bench:
        """The same at a decode engine whose reads take no time."""
        told = len(self.news)
        while self.engine.wake_s < FULL_S:
            self.until(self.engine.wake_s)
            for kind, row, _ in self.news[told:]:
                if kind == READ:
                    self.engine.transfer_ended(self.slots[row], self.engine.seen_s)
            told = len(self.news)
        return self.end()

    def steps(self) -> list[tuple[float, float, dict[int, int]]]:
        """Start, end, and new tokens by row."""
        starts, ends, first, rows, tokens = self.engine.step_log()
        bounds = [*first.tolist(), len(rows)]
        return [
            (float(starts[b]), float(ends[b]), dict(zip(rows[i:j].tolist(), tokens[i:j].tolist(), strict=True)))
            for b, (i, j) in enumerate(pairwise(bounds))
        ]

    def gaps(self) -> int:
        return int(self.engine.series()[4].sum())


def one_at_a_time(leave: list[tuple[float, int]], outputs: int = 9, **more: Any) -> Bench:
    """Two requests of a block, one place: the second begins when the first has left."""
    return Bench([(0.0, 16, outputs), (0.5, 16, 2)], leave, max_running_requests=1, **more).end()


def test_a_running_request_is_in_one_more_step() -> None:
    """Prompt until 1, a token a second; its client goes at 2.5, which the scheduler reads at 3, before it plans."""
    stays = one_at_a_time([])
    assert stays.desk.last_token_s.tolist() == [9.0, 11.0]
    goes = one_at_a_time([(2.5, 0)])
    assert goes.found == [True]
    assert goes.desk.prefill_start_s[1] == 4.0 and goes.desk.first_token_s[1] == 5.0
    assert goes.desk.first_token_s[0] == 1.0 and np.isnan(goes.desk.last_token_s[0])
    assert goes.desk.token_sum_s.tolist() == [0.0, 11.0]
    assert [step[2] for step in goes.steps()] == [{0: 16}, {0: 1}, {0: 1}, {0: 1}, {1: 16}, {1: 1}]
    assert goes.gaps() == 3 + 1
    assert [(kind, row) for kind, row, _ in goes.news] == [(FINISHED, 1)]


def test_overlapped_the_token_planned_behind_its_last_is_thrown_away() -> None:
    """At 2.5 the steps that end at 3 and 4 are planned; the one that ends at 5 is planned at 3, when the message is
    read, and still has it. What comes at 4 is its last."""
    goes = one_at_a_time([(2.5, 0)], overlap=True)
    assert [step[2] for step in goes.steps()] == [{0: 16}, {0: 1}, {0: 1}, {0: 1}, {0: 1}, {1: 16}, {1: 1}]
    assert (goes.desk.prefill_start_s[1], goes.desk.first_token_s[1]) == (5.0, 6.0)
    assert goes.gaps() == 3 + 1


@pytest.mark.parametrize(("outputs", "steps"), [(3, 4), (4, 5), (5, 5), (6, 5)])
def test_nothing_changes_for_who_would_end_by_then(outputs: int, steps: int) -> None:
    """As above, with an end of sequence: it is found when that step's result is there, and one more is planned."""
    extra = {"extra": {"max_output_tokens": np.array([20, 2])}}
    goes = one_at_a_time([(2.5, 0)], outputs, overlap=True, ignore_eos=False, more=extra)
    assert sum(0 in step[2] for step in goes.steps()) == steps
    assert goes.gaps() == min(outputs, 4) - 1 + 1
    whole = one_at_a_time([(2.5, 0)], outputs)  # one step at a time: four steps, or those it needs
    assert sum(0 in step[2] for step in whole.steps()) == min(outputs, 4)
    assert whole.gaps() == min(outputs, 4) - 1 + 1


@pytest.mark.parametrize(("leaves_s", "steps"), [(0.2, 2), (0.999, 2), (1.0, 2), (1.001, 3), (2.0, 3)])
def test_what_falls_into_the_instant_of_a_step_is_read_at_its_end(leaves_s: float, steps: int) -> None:
    goes = one_at_a_time([(leaves_s, 0)])
    assert sum(0 in step[2] for step in goes.steps()) == steps
    assert goes.desk.first_token_s[1] == steps + 1.0


@pytest.mark.parametrize(("overlap", "steps"), [(False, 2), (True, 3)])
def test_a_client_that_goes_during_the_prompt_costs_a_decode_step(overlap: bool, steps: int) -> None:
    """One step at a time: read at 1, with the first token there. Overlapped: the first is told at 1, too, when the
    decode step until 2 is under way; it brings the last, and the one planned at 1 is for nothing."""
    goes = one_at_a_time([(0.7, 0)], overlap=overlap)
    assert sum(0 in step[2] for step in goes.steps()) == steps
    assert np.isnan(goes.desk.first_token_s[0]) and np.isnan(goes.desk.prefill_end_s[0])
    assert goes.desk.prefill_start_s[0] == 0.0
    assert goes.gaps() == 1 + 1


def test_overlapped_a_first_token_in_flight_is_the_last() -> None:
    """Request 1's prompt is planned at 1 and computed from 2 to 3. Its client goes at 1.5; at 2 it is known: the
    prompt's token, at 3, is the only one, and the decode step planned at 2 makes one for nothing."""
    goes = Bench([(0.0, 16, 20), (0.5, 16, 9)], [(1.5, 1)], overlap=True).end()
    assert [(a, b) for a, b, tokens in goes.steps() if 1 in tokens] == [(2.0, 3.0), (3.0, 4.0)]
    assert goes.gaps() == 19
    assert np.isnan(goes.desk.first_token_s[1])


def test_one_that_begins_to_decode_is_in_one_decode_step() -> None:
    """One step at a time: request 1's prompt from 1 to 2; its client goes at 1.5 and is read at 2: one token more."""
    goes = Bench([(0.0, 16, 20), (0.5, 16, 9)], [(1.5, 1)]).end()
    assert [(a, b) for a, b, tokens in goes.steps() if 1 in tokens] == [(1.0, 2.0), (2.0, 3.0)]
    assert goes.gaps() == 19 + 1


def test_a_running_request_waits_for_a_step_with_decodes() -> None:
    """Its client goes when a prompt comes: that is computed first."""
    goes = Bench([(0.0, 16, 20), (2.4, 16, 9)], [(2.5, 0)]).end()
    assert [(a, b, sorted(t)) for a, b, t in goes.steps()][2:6] == [
        (2.0, 3.0, [0]),
        (3.0, 4.0, [1]),
        (4.0, 5.0, [0, 1]),
        (5.0, 6.0, [1]),
    ]
    late = Bench([(0.0, 16, 20), (2.4, 16, 9)], [(3.5, 0)], overlap=True).end()
    assert [(a, b, sorted(t)) for a, b, t in late.steps()][3:8] == [
        (3.0, 4.0, [0]),
        (4.0, 5.0, [1]),  # in flight when the message is read, at 4
        (5.0, 6.0, [0, 1]),  # brings the last
        (6.0, 7.0, [0, 1]),  # planned at 5, before that is known
        (7.0, 8.0, [1]),
    ]


def test_who_is_about_to_end_ends_as_it_would() -> None:
    """Overlapped, three tokens: the last one is in flight when its client's message is read; nothing is told of it."""
    for limit in (3, 8):  # by its length, or by an end of sequence: then a step is planned behind it
        goes = Bench(
            [(0.0, 16, 3), (0.5, 16, 2)],
            [(1.5, 0)],
            max_running_requests=1,
            overlap=True,
            ignore_eos=False,
            more={"extra": {"max_output_tokens": np.array([limit, 2])}},
        ).end()
        assert sum(0 in step[2] for step in goes.steps()) == (3 if limit == 3 else 4)
        assert np.isnan(goes.desk.last_token_s[0]) and goes.desk.first_token_s[0] == 1.0
        assert goes.desk.last_token_s[1] == goes.desk.first_token_s[1] + 1.0
        assert [row for _, row, _ in goes.news] == [1]
        assert goes.gaps() == 2 + 1


def test_two_that_leave_together_go_in_batch_order() -> None:
    """Read at 2 are both 2 and 0; 1 gets its last token in the same step. All are in the step planned at 2, too."""
    goes = Bench([(0.0, 16, 9), (0.0, 16, 3), (0.0, 16, 9)], [(1.5, 2), (1.6, 0)], overlap=True).end()
    assert [sorted(step[2]) for step in goes.steps()] == [[0, 1, 2]] * 3 + [[0, 2]]
    assert np.isfinite(goes.desk.last_token_s).tolist() == [False, True, False]
    assert goes.gaps() == 6


def test_of_two_that_leave_together_the_first_of_the_batch_is_cached_first() -> None:
    """0 and 1 end with the step until 3, 1 by its length. Five blocks each and room for 14: a third prompt drives out
    what was used least lately, which is what 0 has left."""
    requests = [(0.0, 64, 9), (0.0, 64, 3), (20.0, 80, 1), (30.0, 64, 1)]
    for again, cached in ((1, 48), (0, 0)):
        prompts = [prompt for _, prompt, _ in requests]
        ids = [[row * 10, row * 10 + 1, row * 10 + 2] for row in (0, 1, 2, again)]
        desk = DeskColumns(4)
        settings = {"overlap": True}
        pair = engine("sglang", content_of(prompts, ids), desk, 12, settings=settings)
        for row, (at, prompt, outputs) in enumerate(requests):
            pair.advance(at)
            pair.submit(row, prompt, outputs, at)
            if row == 1:
                pair.advance(1.5)
                assert pair.withdraw(0, 1.5)
        pair.advance(100.0)
        assert desk.cached_tokens[3] == cached


def test_tokens_made_until_the_end_are_cached() -> None:
    """Pages of one token: prompt of 64, four tokens made, the last of them not computed: 67 tokens can be evicted."""
    goes = one_at_a_time([(2.5, 0)], page_size=1)
    assert inside(goes.engine.state)[3] == 16 + 3 + 16 + 1


def test_one_that_waits_leaves_before_the_next_step_is_planned() -> None:
    goes = Bench([(0.0, 16, 9), (0.5, 32, 9), (0.6, 48, 2)], [(2.5, 1)], max_running_requests=1)
    goes.until(2.9)
    assert (goes.engine.load().waiting, goes.engine.load().pending_prompt_tokens) == (2, 80)
    assert set(goes.engine.progress()) == {0, 2}  # nobody is told of it any more
    goes.until(3.5)
    assert (goes.engine.load().waiting, goes.engine.load().pending_prompt_tokens) == (1, 48)
    goes.end()
    assert goes.desk.first_token_s[2] == 10.0
    assert all(1 not in step[2] for step in goes.steps())


def test_nobody_is_found_twice_nor_where_he_is_not() -> None:
    twice = Bench([(0.0, 16, 9), (0.0, 16, 2)], [(1.5, 0), (1.6, 0), (1.7, 1), (50.0, 1)])
    assert twice.found == [True, False, True, False]
    assert twice.engine.progress() == {}
    twice.end()


def test_an_idle_engine_reads_at_once() -> None:
    """A decode engine that waits for KV has nothing in flight: memory is free as soon as its client has gone."""
    goes = Bench([(0.0, 16, 9)], [(1.0, 0)], role="decode")
    assert goes.engine.load().free_blocks == BLOCKS - 1
    goes.until(1.1).end()


def chunks(leaves_s: float, **more: Any) -> Bench:
    """A prompt of four chunks, and one that waits behind it."""
    small = {"chunked_prefill_size": 16, "disable_radix_cache": False}
    return Bench([(0.0, 64, 9), (0.5, 16, 2)], [(leaves_s, 0)], **small, **more)


def test_a_prompt_under_way_gets_no_further_chunk() -> None:
    goes = chunks(1.5)
    goes.until(1.9)
    assert goes.engine.load().pending_prompt_tokens == 32 + 16
    assert goes.engine.load().free_blocks == BLOCKS - 2
    goes.until(2.1)
    assert goes.engine.load().pending_prompt_tokens == 0
    assert goes.engine.load().free_blocks == BLOCKS - 1  # the second's prompt; the first chunk can be evicted
    assert [step[2] for step in goes.end().steps()][:3] == [{0: 16}, {0: 16}, {1: 16}]


def test_overlapped_the_chunk_in_flight_is_computed_for_nothing() -> None:
    """At 1.5 the chunks until 2 and 3 are planned; at 2 its memory is free, while the third is computed."""
    goes = chunks(1.5, overlap=True).end()
    assert [step[2] for step in goes.steps()][:4] == [{0: 16}, {0: 16}, {0: 16}, {1: 16}]
    assert goes.desk.prefill_start_s[1] == 3.0


def test_of_a_prompt_given_up_the_chunks_before_its_last_are_cached() -> None:
    """Chunks of 16: those that were given to the cache when the next was planned are found by an equal prompt."""
    small = {"chunked_prefill_size": 16, "disable_radix_cache": False}
    for leaves_s, cached in ((0.5, 0), (1.5, 16), (2.5, 32)):
        again = Bench([(0.0, 64, 9), (20.0, 64, 2)], [(leaves_s, 0)], same=True, **small).end()
        assert again.desk.cached_tokens[1] == cached


def test_what_was_made_for_nobody_is_cached_all_the_same() -> None:
    """The client goes at 1.5, after a prompt of 64 tokens: prompt and tokens go to the cache as at any end."""
    again = Bench([(0.0, 64, 30), (20.0, 64, 2)], [(1.5, 0)], same=True).end()
    assert again.desk.cached_tokens[1] == 48  # whole blocks below the last token


RETRACT = {"schedule_conservativeness": 0.01, "ignore_eos": False, "disable_radix_cache": True, "page_size": 1}
EXTRA = {"extra": {"max_output_tokens": np.array([30, 30])}}


def retracted(leave: list[tuple[float, int]], **more: Any) -> Bench:
    """64 tokens of memory, for 45 and 46 in the end: when both have grown to 64 together the younger lets go."""
    return Bench([(0.0, 15, 30), (0.5, 16, 30)], leave, blocks=64, more=EXTRA, **RETRACT, **more)


@pytest.mark.parametrize("overlap", [False, True])
def test_one_that_was_retracted_waits_and_leaves_the_queue(overlap: bool) -> None:
    plain = retracted([], overlap=overlap).end()
    at, left = next((start, tokens) for start, _, tokens in plain.steps() if -1 in tokens.values())
    assert left == {0: 1, 1: -1} and plain.desk.preemptions.tolist() == [0, 1]
    for later_s in (0.2, 1.2):
        goes = retracted([(at + later_s, 1)], overlap=overlap)
        assert goes.found == [True]
        goes.end()
        assert np.isnan(goes.desk.last_token_s[1]) and goes.desk.last_token_s[0] == plain.desk.last_token_s[0]
        assert all(1 not in tokens for start, _, tokens in goes.steps() if start > at)
        assert goes.engine.totals().prefill_tokens == 31


def test_one_that_is_retracted_on_its_way_out_is_computed_once_more() -> None:
    """Its message is read as the step is planned that takes its memory: it keeps the mark, and leaves with its next
    result, which is that of its prompt, computed again."""
    plain = retracted([]).end()
    at = next(start for start, _, tokens in plain.steps() if -1 in tokens.values())
    goes = retracted([(at - 0.5, 1)]).end()
    again = [(start, tokens[1]) for start, _, tokens in goes.steps() if tokens.get(1, 0) != 0 and start >= at]
    assert again[0] == (at, -1) and again[1][1] > 16 and len(again) == 2
    assert np.isnan(goes.desk.last_token_s[1]) and goes.desk.preemptions.tolist() == [0, 0]


def test_prompts_for_another_engine() -> None:
    """A prefill engine, overlapped. At 0.5 prompt 0 is in flight and prompt 1 planned behind it (one a step).
    Of 0 nothing is told when it is done at 1; 1 is known by then and let go at 2. What comes later finds 0 cached, to
    whole blocks, not 1."""
    requests = [(0.0, 64, 1), (0.0, 64, 1), (20.0, 64, 1), (30.0, 64, 1)]
    prompts = [prompt for _, prompt, _ in requests]
    for leaves_s, cached in ((0.5, (48, 0)), (1.5, (48, 48))):
        desk = DeskColumns(4)
        content = content_of(prompts, [[1, 2], [3, 4], [1, 2], [3, 4]])
        settings = {"overlap": True, "max_prefill_tokens": 64}
        first = engine("sglang", content, desk, BLOCKS, "prefill", settings=settings, logging=True)
        for row in (0, 1):
            first.submit(row, 64, 1, 0.0)
        news = first.advance(leaves_s)
        told = [] if news is None else list(zip(news.kind.tolist(), news.row.tolist(), strict=True))
        assert told == ([] if leaves_s < 1.0 else [(PREFILLED, 0)])
        assert [first.withdraw(row, leaves_s) for row in (0, 1)] == [leaves_s < 1.0, True]
        first.advance(1.9)
        assert first.load().holding == (0 if leaves_s < 1.0 else 1)
        assert first.advance(10.0) is None
        assert first.load().holding == (0 if leaves_s < 1.0 else 1)
        assert np.isnan(desk.prefill_end_s[1]) and np.isnan(desk.prefill_end_s[0]) == (leaves_s < 1.0)
        load, held = first.load(), 4 if leaves_s > 1.0 else 0
        assert (load.free_blocks, inside(first.state)[1]) == (BLOCKS - held, held // 4)
        for row, at in ((2, 20.0), (3, 30.0)):
            first.submit(row, 64, 1, at)
            first.advance(at + 5.0)
        assert tuple(desk.cached_tokens[2:].tolist()) == cached


def test_a_chunk_that_nobody_waits_for_is_not_told() -> None:
    told = Bench([(0.0, 48, 1)], [(0.5, 0)], role="prefill", chunked_prefill_size=16, more={"tell_chunks": True})
    told.until(5.0)
    assert [(kind, row) for kind, row, _ in told.news] == [(CHUNK, 0)]
    told.end()


def test_a_decode_engine_forgets_who_waits_for_memory() -> None:
    """Room for one prompt and its reserve: the second waits, and is not asked for when the first has ended."""
    goes = Bench([(0.0, 16, 9), (0.0, 16, 9)], [(0.5, 1)], role="decode", blocks=3)
    assert [(kind, row) for kind, row, _ in goes.news] == [(READ, 0)]
    goes.until(0.9)
    assert (goes.engine.load().waiting, goes.engine.load().holding, goes.engine.load().pending_prompt_tokens) == (
        0,
        1,
        16,
    )
    goes.engine.transfer_ended(goes.slots[0], 1.0)
    goes.end()
    assert [(kind, row) for kind, row, _ in goes.news] == [(READ, 0), (FINISHED, 0)]
    assert goes.desk.last_token_s[0] == 9.0


def test_a_decode_engine_forgets_who_waits_for_kv() -> None:
    goes = Bench([(0.0, 16, 9), (0.0, 32, 9)], [(0.5, 1)], role="decode", blocks=2000)
    assert goes.engine.load().holding == 2
    goes.until(0.9)
    load = goes.engine.load()
    assert (load.holding, load.pending_prompt_tokens, load.free_blocks) == (1, 16, 1999)
    goes.engine.transfer_ended(goes.slots[0], 1.0)
    goes.end()


def test_a_decode_engine_forgets_who_could_begin() -> None:
    """One place: the second's KV is there at 2, it waits for the first; its client goes at 3.5."""
    goes = Bench([(0.0, 16, 9), (0.0, 32, 9)], [], role="decode", blocks=2000, max_running_requests=2).until(0.5)
    goes.engine.transfer_ended(goes.slots[0], 1.0)
    goes.until(2.5)
    goes.engine.transfer_ended(goes.slots[1], 2.5)
    assert goes.engine.withdraw(1, 2.5)
    goes.until(2.9)
    assert goes.engine.load().pending_prompt_tokens == 32
    goes.until(3.5)
    load = goes.engine.load()
    assert (load.running, load.holding, load.pending_prompt_tokens) == (1, 0, 0)
    assert np.isnan(goes.desk.first_token_s[1]) and np.isnan(goes.desk.decode_start_s[1])
    goes.end()
    assert goes.desk.last_token_s[0] == 9.0


@pytest.mark.parametrize("overlap", [False, True])
def test_a_decode_engine_forgets_whom_it_retracted(overlap: bool) -> None:
    """1,280 tokens of memory and 716 for each in the end. One is retracted, and would come back; its client goes, and
    the copy in host memory is thrown away. The other one is not held up."""

    def pair() -> Bench:
        limits = {"extra": {"max_output_tokens": np.array([700, 700])}}
        both = Bench([(0.0, 16, 700), (0.0, 16, 700)], [], role="decode", blocks=80, more=limits, overlap=overlap)
        both.until(0.5)
        for row in (0, 1):
            both.engine.transfer_ended(both.slots[row], 0.5)
        return both

    plain = pair().end()
    at, left = next((start, tokens) for start, _, tokens in plain.steps() if -1 in tokens.values())
    victim = next(row for row, tokens in left.items() if tokens < 0)
    assert plain.desk.preemptions[victim] == 1 and plain.gaps() == 2 * 699
    goes = pair().until(at + 1.5)
    assert inside(goes.engine.state)[2] == 1
    assert goes.engine.withdraw(victim, at + 1.5)
    goes.until(at + 2.5)
    assert inside(goes.engine.state)[2] == 0
    goes.end()
    assert np.isnan(goes.desk.last_token_s[victim])
    assert goes.desk.last_token_s[1 - victim] == plain.desk.last_token_s[1 - victim]


def test_a_result_for_a_retracted_request_is_lost_at_decode_engines_too() -> None:
    """Overlapped, its last token by an end of sequence is in flight as its memory is taken: it makes it again."""
    for outputs in range(622, 630):
        limits = {"extra": {"max_output_tokens": np.array([700, 700])}}
        requests = [(0.0, 16, 700), (0.0, 16, outputs)]
        more = {"role": "decode", "blocks": 80, "more": limits, "overlap": True, "ignore_eos": False}
        both = Bench(requests, [], **more).until(0.5)
        for row in (0, 1):
            both.engine.transfer_ended(both.slots[row], 0.5)
        both.end()
        assert np.isfinite(both.desk.last_token_s).all()
        assert both.gaps() == 699 + outputs - 1


SELDOM = {"scheduler_recv_interval": 6}


def test_messages_wait_for_the_next_look() -> None:
    """New requests are looked for when idle, after prompts, and every sixth decode step: planned at 7 here. The
    client goes at 2.5; the step until 8 is in flight no more than any other, and is the last."""
    often = one_at_a_time([(2.5, 0)], 20)
    seldom = one_at_a_time([(2.5, 0)], 20, **SELDOM)
    assert sum(0 in step[2] for step in often.steps()) == 4
    assert sum(0 in step[2] for step in seldom.steps()) == 8
    assert seldom.desk.first_token_s[1] == 9.0


def test_one_that_begins_before_its_message_is_read_is_not_written_down() -> None:
    """Two places: 2 waits from 0 on, its client goes at 2.5, it begins at 4 as 1 ends, and leaves after a decode."""
    requests = [(0.0, 16, 30), (0.0, 16, 4), (0.0, 16, 30)]
    goes = Bench(requests, [(2.5, 2)], max_running_requests=2, **SELDOM).end()
    assert [sorted(step[2]) for step in goes.steps()][:8] == [[0, 1]] * 4 + [[2]] + [[0, 2]] + [[0]] * 2
    assert np.isnan(goes.desk.prefill_start_s[2]) and goes.desk.prefill_start_s[0] == 0.0
    assert np.isnan(goes.desk.first_token_s[2]) and np.isnan(goes.desk.prefill_end_s[2])


def test_kv_is_not_asked_for_aloud_for_one_who_has_gone() -> None:
    """A decode engine, full until 0 ends at 4; 1's client goes at 3.5, between looks. It gets memory, and gives it
    back at the next look."""
    goes = Bench([(0.0, 16, 5), (0.0, 16, 30), (0.0, 16, 5)], [], role="decode", blocks=40, **SELDOM).until(0.5)
    assert [(kind, row) for kind, row, _ in goes.news] == [(READ, 0)]
    goes.engine.transfer_ended(goes.slots[0], 0.5)
    goes.until(3.5)
    assert goes.engine.withdraw(1, 3.5)
    goes.end_after_reads()
    assert [(kind, row) for kind, row, _ in goes.news] == [(READ, 0), (FINISHED, 0), (READ, 2), (FINISHED, 2)]


@pytest.mark.parametrize("outputs", [1, 30])
def test_one_that_begins_to_decode_before_its_message_is_read(outputs: int) -> None:
    """Its KV is there at 2.5, its client goes at 2.6, and it begins at 3: its first token is nobody's."""
    limits = {"extra": {"max_output_tokens": np.array([30, outputs])}}
    goes = Bench([(0.0, 16, 30), (0.0, 16, outputs)], [], role="decode", blocks=2000, more=limits, **SELDOM).until(0.5)
    goes.engine.transfer_ended(goes.slots[0], 0.5)
    goes.until(2.55)
    goes.engine.transfer_ended(goes.slots[1], 2.55)
    assert goes.engine.withdraw(1, 2.6)
    goes.until(4.0)
    assert goes.engine.load().pending_prompt_tokens == 0
    goes.end()
    assert np.isnan([goes.desk.first_token_s[1], goes.desk.decode_start_s[1], goes.desk.last_token_s[1]]).all()
    assert goes.desk.token_sum_s[1] == 0.0
    assert [row for kind, row, _ in goes.news if kind == FINISHED] == [0]
