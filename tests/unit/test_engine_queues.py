"""Queues, lists and heaps of an engine, one move after another, against plain Python lists."""

from __future__ import annotations

import random
from collections import Counter
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from engine_books import look, put
from test_engine_idle import idle

from simulator.engine import completion, queues, withdrawing
from simulator.engine.rules import RuleSet, rules_record
from simulator.engine.sglang import aborting
from simulator.engine.sglang import decode as sglang_decode
from simulator.engine.sglang import state as sglang
from simulator.engine.sglang import steps as sglang_steps
from simulator.engine.state import COLOCATED, DECODING, LEAVING, NO_BATCH, WAITING, new_slot


def with_requests(count: int, policy: str = "vllm-v1", **settings: Any) -> Any:
    """An engine whose first slots belong to requests of rows 10, 11, ... and wait nowhere."""
    e = idle(policy, **settings)
    for i in range(count):
        assert new_slot(e, 10 + i, 5, 4, COLOCATED) == i
    return e


def waiting(e: Any) -> list[int]:
    ring, head = look(e, "waiting"), look(e, "waiting_head")
    return [int(ring[(head + i) % ring.size]) for i in range(look(e, "waiting_count"))]


@pytest.mark.parametrize("seed", range(3))
def test_the_waiting_queue_turns_in_its_ring(seed: int) -> None:
    e, rng = with_requests(40), random.Random(seed)
    put(e, waiting_head=60)
    queue: list[int] = []
    for _ in range(300):
        out = [s for s in range(40) if s not in queue]
        what = rng.random()
        if queue and (what < 0.4 or not out):
            position = rng.choice([0, len(queue) - 1, rng.randrange(len(queue))])
            queues.leave_waiting(e, position)
            queue.pop(position)
        elif what < 0.7:
            queue.append(rng.choice(out))
            queues.wait_last(e, queue[-1])
        else:
            queue.insert(0, rng.choice(out))
            queues.wait_first(e, queue[0])
        assert waiting(e) == queue
        assert 0 <= look(e, "waiting_head") < 64


@pytest.mark.parametrize("seed", range(3))
def test_the_urgent_wait_in_front_then_those_that_came_first(seed: int) -> None:
    """Rows beyond the list of priorities have none (0)."""
    rng = random.Random(seed)
    e = with_requests(20, scheduling_policy="priority")
    urgency = [rng.choice([-2, 0, 1, 5]) for _ in range(26)]
    put(e, rules=rules_record(RuleSet(by_priority=True, priorities=np.array(urgency, np.int64))), waiting_head=55)
    given = [urgency[10 + s] if 10 + s < 26 else 0 for s in range(20)]
    assert [queues.priority_of(e, s) for s in range(20)] == given
    look(e, "arrival")[:20] = rng.sample(range(100), 20)
    arrival = look(e, "arrival")
    queue: list[int] = []
    for s in rng.sample(range(20), 20):
        queues.wait_by_priority(e, s)
        queue = sorted([*queue, s], key=lambda t: (given[t], arrival[t]))
        assert waiting(e) == queue
    for a in range(20):
        for b in range(20):
            assert bool(queues.comes_before(e, a, b)) == ((given[a], arrival[a]) < (given[b], arrival[b]))


def test_those_that_leave_a_list_leave_the_others_in_order() -> None:
    e = with_requests(6)
    look(e, "running")[:7] = [4, 2, 5, 0, 3, 1, 9]
    put(e, running_count=6)
    for s, left in ((5, [4, 2, 0, 3, 1]), (4, [2, 0, 3, 1]), (1, [2, 0, 3])):
        queues.leave_running(e, s)
        assert look(e, "running")[: look(e, "running_count")].tolist() == left
    look(e, "holding")[:6] = [4, 2, 5, 0, 3, 1]
    look(e, "remote")[:6] = [1, 2, 1, 2, 1, 2]
    put(e, holding_count=6)
    for position, left in ((2, [4, 2, 0, 3, 1]), (0, [2, 0, 3, 1]), (3, [2, 0, 3])):
        queues.leave_holding(e, position)
        assert look(e, "holding")[: look(e, "holding_count")].tolist() == left
    assert look(e, "remote")[:6].tolist() == [1, 0, 1, 2, 0, 0]
    for whose in (queues.without, aborting.without):
        slots = np.array([1, 2, 3, 2, 8])
        assert (whose(slots, 4, 7), slots.tolist()) == (4, [1, 2, 3, 2, 8])
        assert (whose(slots, 4, 2), slots[:2].tolist(), slots[4]) == (2, [1, 3], 8)
        assert (whose(slots, 2, 3), slots[0]) == (1, 1)
        assert whose(slots, 0, 1) == 0


def test_the_urgent_are_first_on_the_list_of_those_whose_kv_comes() -> None:
    rng = random.Random(4)
    e = with_requests(12, scheduling_policy="priority")
    urgency = [0] * 10 + [rng.choice([-2, 0, 5]) for _ in range(12)]
    put(e, rules=rules_record(RuleSet(by_priority=True, priorities=np.array(urgency, np.int64))))
    look(e, "arrival")[:12] = rng.sample(range(100), 12)
    arrival, held = look(e, "arrival"), []
    for s in rng.sample(range(12), 12):
        queues.hold_by_priority(e, s)
        held = sorted([*held, s], key=lambda t: (urgency[10 + t], arrival[t]))
        assert look(e, "holding")[: look(e, "holding_count")].tolist() == held


@pytest.mark.parametrize(
    ("running", "queued", "emptiest"), [([], [], 0), ([0], [], 1), ([0, 1], [2], 0), ([0, 1, 2], [0, 1], 2)]
)
def test_a_request_goes_to_the_rank_with_the_fewest(running: list[int], queued: list[int], emptiest: int) -> None:
    """Running and waiting ones count alike; of several ranks the first."""
    e = with_requests(8, "tensorrt-llm")
    put(e, rules=rules_record(RuleSet(policy=1, ranks=3)), waiting_head=63, running_count=len(running))
    for i, rank in enumerate(running):
        look(e, "running")[i] = i
        look(e, "rank")[i] = rank
    for i, rank in enumerate(queued, start=len(running)):
        look(e, "rank")[i] = rank
        queues.wait_last(e, i)
    assert queues.emptiest_rank(e) == emptiest


@pytest.mark.parametrize("seed", range(3))
def test_last_batches_come_in_order(seed: int) -> None:
    """The heap gives the earliest batch, in it the request admitted first; what no longer holds is passed over."""
    e, rng = with_requests(60), random.Random(seed)
    orders, batches = rng.sample(range(100), 60), [rng.randrange(12) for _ in range(60)]
    look(e, "order")[:60] = orders
    look(e, "last_batch")[:60] = batches
    look(e, "status")[:60] = DECODING
    slots = rng.sample(range(60), 60)
    for s in slots:
        queues.heap_push(e, batches[s] - 1, s)  # noted before it was left out of a batch: no longer true
    for s in slots:
        queues.heap_push(e, batches[s], s)
    assert look(e, "heap_count") == 120 and look(e, "heap_batch").size == look(e, "heap_order").size == 128
    ended = set(rng.sample(range(60), 20))
    look(e, "status")[list(ended)[:10]] = LEAVING
    look(e, "order")[list(ended)[10:]] += 1000  # admitted anew meanwhile
    found = []
    while (batch := queues.next_last_batch(e)) != NO_BATCH:
        s = int(look(e, "heap_slot")[0])
        found.append((int(batch), s))
        assert (look(e, "heap_batch")[0], look(e, "heap_order")[0]) == (batch, orders[s])
        queues.heap_pop(e)
    assert found == sorted(((batches[s], s) for s in range(60) if s not in ended), key=lambda f: (f[0], orders[f[1]]))
    assert look(e, "heap_count") == 0


@pytest.mark.parametrize("seed", range(3))
def test_last_steps_of_sglang_come_in_order(seed: int) -> None:
    e, rng = idle("sglang"), random.Random(seed)
    steps = [rng.randrange(12) for _ in range(100)]
    while look(e, "row").size < 100:
        sglang.grow_slots(e)
    look(e, "last_step")[:100] = steps
    look(e, "ticket")[:100] = rng.sample(range(1000), 100)
    look(e, "status")[:100] = sglang.RUNNING
    for s in rng.sample(range(100), 100):
        sglang.heap_push(e, s)
    ended = set(rng.sample(range(100), 40))
    look(e, "status")[list(ended)[:20]] = sglang.DROPPED
    look(e, "ticket")[list(ended)[20:]] += 5000
    found = []
    while (step := sglang.next_last_step(e)) != 1 << 60:
        s = int(look(e, "heap_slot")[0])
        assert step == look(e, "heap_batch")[0] == steps[s] and look(e, "heap_order")[0] == look(e, "ticket")[s]
        found.append(s)
        sglang.heap_pop(e)
    assert Counter(found) == Counter(set(range(100)) - ended)
    assert [steps[s] for s in found] == sorted(steps[s] for s in found)


def test_slots_are_put_in_batch_order() -> None:
    e, rng = idle("sglang"), random.Random(0)
    look(e, "position")[:20] = rng.sample(range(100), 20)
    for count in (0, 1, 2, 3, 9):
        slots = np.array(rng.sample(range(20), 12))
        before = slots.tolist()
        sglang.sort_by_position(e, slots, count)
        expected = sorted(before[:count], key=look(e, "position").__getitem__) + before[count:]
        assert slots.tolist() == expected
    slots = np.array([3, 5, 7])
    look(e, "position")[[3, 5, 7]] = [9, 4, 1]
    sglang.sort_by_position(e, slots, 3)
    assert slots.tolist() == [7, 5, 3]


def test_the_waiting_queue_of_sglang_moves_to_the_front_before_it_grows() -> None:
    """Its list has 64 places. With less than half of them behind it, it gets twice as many; else it moves up."""
    e, queue = idle("sglang"), []
    for s in range(60):
        sglang.wait_last(e, s)
        queue.append(s)
    put(e, waiting_head=32, waiting_count=28)
    queue = queue[32:]
    for s in range(60, 68):  # the place behind the last is reached with 4 more
        sglang.wait_last(e, s)
        queue.append(s)
    head = look(e, "waiting_head")
    assert (head, look(e, "waiting").size, look(e, "waiting_count")) == (0, 64, 36)
    assert look(e, "waiting")[:36].tolist() == queue
    put(e, waiting_head=31, waiting_count=5)
    queue = queue[31:]
    for s in range(100, 130):
        sglang.wait_last(e, s)
        queue.append(s)
    head = look(e, "waiting_head")
    assert (head, look(e, "waiting").size, look(e, "waiting_count")) == (0, 128, 35)
    assert look(e, "waiting")[:35].tolist() == queue
    put(e, unseen=3)
    assert sglang.seen(e) == 32


def test_struck_out_requests_leave_the_lists_of_sglang() -> None:
    e = idle("sglang")
    look(e, "status")[:8] = [
        sglang.RUNNING,
        sglang.DONE,
        sglang.RUNNING,
        sglang.DONE,
        sglang.PREFILLED_LAST,
        sglang.RUNNING,
        9,
        1,
    ]
    look(e, "running")[:4], look(e, "last")[:3], look(e, "fresh")[:5] = [5, 1, 0, 2], [3, 4, 6], [1, 2, 0, 5, 7]
    put(e, running_count=4, last_count=3, fresh_count=5, full=True)
    sglang_decode.strike_done(e)
    lists = [look(e, name)[: look(e, f"{name}_count")].tolist() for name in ("running", "last", "fresh")]
    assert lists == [[5, 0, 2], [4, 6], [2, 0, 5]]
    assert not look(e, "full")
    put(e, positions=50)
    sglang_decode.renumber(e)
    assert look(e, "position")[[5, 0, 2]].tolist() == [50, 51, 52] and look(e, "positions") == 53


def test_a_row_is_found_while_its_request_is_at_work() -> None:
    e = with_requests(3)
    assert [withdrawing.slot_of(e, row) for row in (9, 10, 12, 13)] == [-1, 0, 2, -1]
    look(e, "status")[2] = 6  # kept for another engine
    assert withdrawing.slot_of(e, 12) == -1
    look(e, "status")[2] = 0
    assert withdrawing.slot_of(e, 12) == -1
    look(e, "status")[2] = WAITING
    assert withdrawing.slot_of(e, 12) == 2


@pytest.mark.parametrize("policy", ["vllm-v1", "sglang"])
def test_what_rounding_loses_of_a_sum_of_ends_is_kept(policy: str) -> None:
    """A thousand ends about a day after the start: plain floats lose 33 ns of their sum, which is exact here."""
    e, total = idle(policy), Fraction(0)
    for i in range(1000):
        end = 86_400.0 + 0.0137 * i**1.3
        total += Fraction(end)
        if policy == "sglang":
            sglang_steps.count_decodes(e, 0, end)
            assert look(e, "decode_done") == i + 1
        else:
            completion.advance_clock(e, end)
            assert look(e, "completed") == i + 1
        assert look(e, "previous_end_s") == end
    found = Fraction(float(look(e, "end_sum"))) + Fraction(float(look(e, "end_sum_low")))
    assert abs(found - total) < Fraction(1, 10**12)
    assert look(e, "end_sum_low") != 0.0
