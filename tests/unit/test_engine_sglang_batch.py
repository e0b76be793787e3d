"""SGLang's running batch, and its decode engine: who joins, who is let go and comes back, whose KV is asked for."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from engine_books import look, put
from engine_play import BASE
from test_engine_corners import content_of
from test_engine_policies import batches
from test_engine_sglang_prefill import RETRACTED, WAITING, Request, numbers, sglang

from simulator.cost.table import affine_cost
from simulator.engine.engine import Engine, EngineSpec
from simulator.engine.sglang import decode, memory, plan, remote
from simulator.engine.state import READ, DeskColumns


def test_retraction_lets_the_ones_with_the_fewest_tokens_go() -> None:
    """Four, with 9, 2, 5 and 2 tokens (the second's prompt is the longer): pages of one, one is free of four needed. One
    goes in any case; the ratio is what the others have made and twenty steps more, of all they may make."""
    e = sglang([(10, 100), (12, 50), (10, 70), (10, 60)], free=1)
    look(e, "outputs")[:4] = [9, 2, 5, 2]
    decode.retract(e)
    assert look(e, "running")[:3].tolist() == [0, 2, 3] and look(e, "running_count") == 3
    assert look(e, "free") == 1 + 12 and look(e, "preempted") == 1
    assert look(e, "ratio") == (9 + 5 + 2 + 20 * 3) / (100 + 70 + 60 + 1)
    assert look(e, "position")[[0, 2, 3]].tolist() == [0, 1, 2] and look(e, "positions") == 3
    assert (look(e, "status")[1], look(e, "waiting_count"), look(e, "times_preempted")[1]) == (WAITING, 1, 1)
    assert look(e, "pending_prompt_tokens") == 14
    short = sglang([(10, 8), (12, 5), (9, 7)], free=-30)
    look(short, "outputs")[:3] = [3, 2, 3]
    decode.retract(short)  # of two alike the one with the shorter prompt stays
    assert look(short, "running")[:1].tolist() == [2] and look(short, "running_count") == 1
    assert look(short, "times_preempted")[:3].tolist() == [1, 1, 0] and look(short, "ratio") == 1.0


@pytest.mark.parametrize(
    ("planned", "started", "join", "decode_done", "counted"),
    [(6, 1, 3, 4, 7), (5, 1, 3, 4, 8), (6, 0, 3, 4, 8), (6, 1, 5, 4, 8), (6, 1, 3, 5, 8)],
)
def test_a_token_in_flight_of_one_let_go_is_lost(
    planned: int, started: int, join: int, decode_done: int, counted: int
) -> None:
    """Five steps with decodes are planned, five steps in all have ended. The one in flight counts a token fewer where
    it makes one of the request; one that has not begun, or joins with the next, has none in it."""
    e = sglang([(10, 100), (12, 50)])
    put(e, planned=planned, completed=5, decode_planned=5, decode_done=decode_done)
    look(e, "started")[1], look(e, "join")[1] = started, join
    look(e, "batch_tokens")[:] = 8
    for name in ("prefix", "protected", "extend_end"):
        look(e, name)[1] = 9
    decode.let_go(e, 1, 1)
    assert look(e, "batch_tokens")[(planned - 1) % 4] == counted
    assert [look(e, name)[1] for name in ("prefix", "protected", "committed", "extend_end", "started")] == [0] * 5


def test_what_is_let_go_at_a_decode_engine_comes_back() -> None:
    """It keeps its tokens in host memory; back it comes where they and a reserve of 512 for it are free."""
    e = sglang([(100, 50), (100, 50)], pool=4000, role="decode")
    put(e, running_count=1)
    decode.let_go(e, 1, 1)
    assert (look(e, "status")[1], look(e, "retracted_count"), look(e, "retracted")[0]) == (RETRACTED, 1, 1)
    assert (look(e, "free"), look(e, "free_rows"), look(e, "pending_prompt_tokens")) == (3900, 9, 0)
    for free, back in ((100 + 512 + 512, 1), (100 + 512 + 512 - 1, 0)):
        put(e, free=free)
        remote.come_back(e)
        assert look(e, "ready_count") == back
        assert look(e, "retracted_count") == 1 - back
        if back:
            assert (look(e, "free"), look(e, "committed")[1], look(e, "holds")[1]) == (free - 100, 100, 1)
            put(e, ready_count=0, retracted_count=1, free_rows=9)
            look(e, "holds")[1] = 0


def test_alone_what_was_let_go_need_only_fit() -> None:
    e = sglang([(100, 50)] * 2, pool=4000, role="decode")
    decode.let_go(e, 0, 0)
    decode.let_go(e, 1, 0)
    put(e, running_count=0)
    for free, back in ((99, 0), (100, 1)):
        put(e, free=free)
        remote.come_back(e)
        assert look(e, "ready_count") == back
    assert (look(e, "ready")[0], look(e, "retracted")[0], look(e, "retracted_count")) == (0, 1, 1)
    put(e, free=100 + 512 + 512 + 200, free_rows=0)
    remote.come_back(e)
    assert look(e, "ready_count") == 1  # no row to hold it


@pytest.mark.parametrize(
    ("running", "holding", "ready", "retractable", "left"),
    [
        ([], 0, 0, 0, 3000),
        ([], 1, 1, 0, 3000 - 1024),
        ([(10, 40)], 0, 0, 0, 3000 - 512),
        ([(10, 40), (10, 900)], 0, 0, 0, 3000 - 1024),
        ([(10, 1500)], 0, 0, 0, 3000 - 1510),  # the longest of them can end
        ([(10, 1500)], 0, 0, 400, 3000 - 1110),
        ([(10, 1500)], 0, 0, 1000, 3000 - 512),
        ([(10, 9000)], 1, 0, 0, 3000 - 10 - 4096),
    ],
)
def test_room_for_another_prompt(running: list[Request], holding: int, ready: int, retractable: int, left: int) -> None:
    e = sglang(running, pool=9000, role="decode")
    put(e, free=3000, holding_count=holding, ready_count=ready)
    assert remote.room(e, retractable) == left


ASKS: list[tuple[list[Request], int, Request, bool]] = [
    # running, free, prompt and limit of the one that waits, whether its KV is asked for
    ([], 100, (100, 10), True),  # alone it need only fit
    ([], 99, (100, 10), False),
    ([(10, 40)], 100 + 512 + 512, (100, 10), True),
    ([(10, 40)], 100 + 512 + 511, (100, 10), False),
    ([(10, 40)], 100 + 900 + 512 - 10, (100, 900), True),  # its own end, less what could be taken back
    ([(10, 40)], 100 + 900 + 512 - 11 - 1, (100, 900), False),
]


@pytest.mark.parametrize(("running", "free", "waiting", "asked"), ASKS)
def test_whose_kv_is_asked_for(running: list[Request], free: int, waiting: Request, asked: bool) -> None:
    e = sglang(running, [waiting], pool=9000, role="decode")
    put(e, free=free)
    s = len(running)
    remote.ask_for_kv(e, 7.0)
    assert (look(e, "holding_count"), look(e, "waiting_count")) == ((1, 0) if asked else (0, 1))
    if asked:
        assert (look(e, "free"), look(e, "holds")[s], look(e, "committed")[s]) == (free - 100, 1, 100)
        assert [look(e, f"news_{n}")[0] for n in ("kind", "slot", "value", "s")] == [READ, s, 100, 7.0]


def test_who_may_join_a_step() -> None:
    e = sglang([(5, 5)] * 3, [(5, 5)], max_running_requests=10)
    for rows, held, places in ((10, 0, 7), (2, 0, 2), (2, 1, 3), (0, 0, 0)):
        put(e, free_rows=rows)
        assert plan.places(e, held) == places
    for full, unseen, rows, tried, then in (
        (True, 0, 5, False, True),
        (False, 1, 5, False, False),
        (False, 0, 5, True, False),
        (False, 0, 0, False, True),
    ):
        put(e, full=full, unseen=unseen, free_rows=rows)
        assert (bool(plan.may_prefill(e)), bool(look(e, "full"))) == (tried, then)
    put(e, chunked=2, full=True)
    assert plan.may_prefill(e)


def test_when_new_requests_are_looked_for() -> None:
    """Every three decode steps, after a step with prompts, and when idle."""
    cases = ((0, False, 5, 3, 1, 1, 2), (1, False, 5, 3, 1, 2, 2), (2, False, 5, 3, 1, 0, 0), (0, True, 5, 3, 1, 0, 0))
    cases += ((0, False, 5, 5, 1, 1, 2), (0, False, 5, 5, 0, 0, 0), (0, False, 5, 3, 0, 1, 2))
    for since, prompts, planned, completed, running, then, unseen in cases:
        e = sglang(waiting=[(5, 5)] * 2, scheduler_recv_interval=3)
        put(
            e,
            since_look=since,
            last_prefill=prompts,
            planned=planned,
            completed=completed,
            running_count=running,
            unseen=2,
        )
        plan.look_for_requests(e)
        assert (look(e, "since_look"), look(e, "unseen")) == (then, unseen)


@pytest.mark.parametrize("mixed", [False, True])
def test_prompts_of_the_last_step_join_the_batch(mixed: bool) -> None:
    """Behind those that run; before them if these rode along."""
    e = sglang([(5, 5), (6, 5)], [(7, 5), (8, 5)])
    look(e, "last")[:2] = [3, 2]
    look(e, "committed")[2:4] = [7, 8]
    put(e, last_count=2, last_mixed=mixed, last_chunk=True, full=True, decode_planned=4, positions=10, tickets=20)
    plan.merge_last(e)
    order = [3, 2, 0, 1] if mixed else [0, 1, 3, 2]
    assert look(e, "running")[:4].tolist() == order
    assert numbers(e, "running_count", "last_count", "last_chunk", "last_mixed", "full") == [4, 0, 0, 0, 0]
    assert look(e, "position")[[3, 2]].tolist() == ([12, 13] if mixed else [10, 11])
    assert look(e, "positions") == (16 if mixed else 12)
    assert look(e, "base")[2:4].tolist() == [3, 4] and look(e, "join")[2:4].tolist() == [4, 4]
    assert look(e, "last_step")[2:4].tolist() == [4 + 5 - 1 - 1] * 2 and look(e, "ticket")[[3, 2]].tolist() == [20, 21]
    assert look(e, "fresh")[:2].tolist() == [3, 2] and look(e, "heap_count") == 2
    assert look(e, "base_sum") == 11 + 7


def test_a_request_of_one_token_joins_but_has_no_last_step() -> None:
    e = sglang([], [(7, 1), (7, 2)])
    look(e, "committed")[:2] = 7
    decode.join(e, 0)
    assert look(e, "heap_count") == 0
    decode.join(e, 1)
    assert look(e, "heap_count") == 1 and look(e, "heap_slot")[0] == 1


def test_pages_given_back() -> None:
    """37 tokens in pages of 16, of which the tree has 16: two pages; room for a page each is made for a decode."""
    e = sglang([(20, 9), (31, 9), (32, 9)], pool=1600, page_size=16)
    look(e, "committed")[0], look(e, "protected")[0] = 37, 16
    put(e, free=100, free_rows=3)
    memory.release(e, 0)
    assert numbers(e, "free", "free_rows") == [132, 4]
    assert (look(e, "node")[0], look(e, "holds")[0]) == (-1, 0)
    look(e, "phase_count")[:] = 0
    look(e, "phase_count")[[4, 15, 0]] = 1
    assert [memory.decode_need(step(e, n)) for n in (0, 1, 12, 16)] == [16, 16, 16, 16]
    assert memory.decode_need(step(e, 2)) == 0
    put(e, decode_planned=0)
    assert memory.decode_fits(e, 132) and not memory.decode_fits(e, 133)
    memory.take_decode(e)
    assert look(e, "free") == 132 - 16


def step(e: Any, number: int) -> Any:
    put(e, decode_planned=number)
    return e


def run(requests: list[Request], pool: int, **given: Any) -> tuple[list[dict[int, int]], Engine, DeskColumns]:
    """Steps of requests (prompt, output) that all come at 0, in one-token pages."""
    settings = BASE["sglang"] | {"page_size": 1, "disable_radix_cache": True, "ignore_eos": False} | given
    desk, outputs = DeskColumns(len(requests)), np.array([output for _, output in requests])
    spec = EngineSpec(
        "sglang", "colocated", settings, pool, affine_cost(1.0), logging=True, extra={"max_output_tokens": outputs}
    )
    engine = Engine(spec, content_of([prompt for prompt, _ in requests], [[] for _ in requests]), desk.record)
    for row, (prompt, output) in enumerate(requests):
        engine.submit(row, prompt, output, 0.0)
    engine.advance(1000.0)
    return batches(engine), engine, desk


def test_prompts_come_before_decodes_in_chunks_of_a_step() -> None:
    assert run([(30, 2), (30, 1)], 400)[0] == [{0: 30, 1: 18}, {1: 12}, {0: 1}]
    mixed = run([(30, 3), (30, 1), (60, 1)], 400, mixed_chunk=True)[0]
    assert mixed == [{0: 30, 1: 18}, {0: 1, 1: 12, 2: 35}, {0: 1, 2: 25}]
    whole = run([(30, 2), (30, 1), (8, 1)], 400, chunked_prefill_size=-1)[0]
    assert whole == [{0: 30, 1: 30}, {2: 8}, {0: 1}]


def test_a_step_has_as_many_requests_as_may_run() -> None:
    assert run([(4, 2)] * 3, 400, max_running_requests=2)[0] == [{0: 4, 1: 4}, {0: 1, 1: 1}, {2: 4}, {2: 1}]


def test_sums_of_what_was_found() -> None:
    _, engine, desk = run([(40, 2), (30, 3)], 400, disable_radix_cache=False)
    totals = engine.totals()
    assert (totals.prefill_tokens, totals.decode_tokens, totals.hit_tokens, totals.lookup_tokens) == (70, 3, 0, 70)
    assert desk.cached_tokens.tolist() == [0, 0]
