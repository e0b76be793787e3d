"""Tokens that a front end cannot send as fast as its engine makes them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulator.api import Result, simulate
from simulator.cluster.frontdesk import TokenLine
from simulator.cluster.plan import FrontWork
from simulator.workload.arrivals import Arrivals
from simulator.workload.trace import Trace

TOKEN_S = 1e-3


class Line(TokenLine):
    """A line before an engine of which each look states how many sequences it has."""

    def __init__(self, merges: bool = False) -> None:
        self.sequences = 0
        super().__init__(FrontWork(token_s=TOKEN_S, merges=merges), lambda: self.sequences)

    def see(self, now: float, tokens: int, sequences: int) -> float:
        self.sequences = sequences
        return self.look(now, tokens)


def test_tokens_made_faster_than_sent_are_later_and_later() -> None:
    """A step of 100 tokens every 50 ms, and 100 ms to send them: 50 ms more with each step."""
    found, late = Line(), []
    for k in range(1, 6):
        late.append(found.see(0.05 * k, 100 * k, 100))
    assert late == pytest.approx([0.0, 0.0, 0.05, 0.1, 0.15])
    # the first looks find a backlog of no more than one step's
    assert found.late_at(np.array([0.1, 0.125, 0.25])) == pytest.approx([0.0, 0.025, 0.15])
    # nothing is made any more: sent within the backlog's time, 0.25 s after the last step
    assert found.see(0.35, 500, 0) == pytest.approx(0.15)
    assert found.see(0.6, 500, 0) == 0.0
    assert found.most_late_s == pytest.approx(0.15)


def test_tokens_sent_as_fast_as_made_are_never_late() -> None:
    found = Line()
    assert [found.see(0.1 * k, 90 * k, 90) for k in range(1, 50)] == [0.0] * 49
    assert found.late_at(np.linspace(0, 5, 11)).max() == 0.0


def test_work_on_requests_takes_time_from_tokens() -> None:
    found = Line()
    found.see(0.1, 90, 90)
    found.hold_up(0.05)
    assert found.see(0.2, 180, 90) == 0.0
    for k in range(3, 9):
        found.hold_up(0.05)
        found.see(0.1 * k, 90 * k, 90)
    # 0.04 s are left over seven times; those of the last step, 0.09 s, are not late
    assert found.late_s == pytest.approx(0.04 * 7 - 0.09)


def test_merged_tokens_are_never_late() -> None:
    found = Line(merges=True)
    assert [found.see(0.05 * k, 100 * k, 100) for k in range(1, 6)] == [0.0] * 5


@given(st.lists(st.tuples(st.floats(1e-3, 0.5), st.integers(0, 400)), min_size=1, max_size=40))
def test_tokens_are_sent_in_turn_and_one_at_a_time(steps: list[tuple[float, int]]) -> None:
    """What was made by a moment has been sent once it is no longer late, and lateness falls no faster than time."""
    found, now, made, last = Line(), 0.0, 0, (0.0, 0.0)
    for passed, tokens in steps:
        now, made = now + passed, made + tokens
        late = found.see(now, made, tokens)
        assert late >= 0.0
        assert now + late >= last[0] + last[1] - tokens * TOKEN_S - 1e-9
        assert late <= made * TOKEN_S
        last = (now, late)


def server(**front: Any) -> dict[str, Any]:
    """An engine whose steps take 10 ms whatever is in them."""
    return {
        "name": "server",
        "engine": {"profile": "sglang", "max_running_requests": 64, "context_length": 4096},
        "pools": [{"name": "all", "role": "colocated"}],
        "step_time": {"base_s": 0.01},
        "frontend": {"before_s": 0.0, "after_s": 0.0, **front},
        "kv_blocks": 100_000,
    }


def served(clients: int, **front: Any) -> Result:
    """A closed loop on that engine."""
    n = 3 * clients
    trace = Trace.from_columns(np.zeros(n), np.full(n, 10), np.full(n, 200), max_output_tokens=np.full(n, 200))
    return simulate(trace, server(**front), arrivals=Arrivals("closed", clients=clients))


def tpot_s(result: Result) -> np.ndarray:
    record = result.run.record
    return (record.last_token_s - record.first_token_s) / (record.output_tokens - 1)


def test_a_front_end_that_cannot_keep_up_sets_the_pace() -> None:
    """20 clients, 1 ms a token: 20 ms for the tokens of a step of 10 ms, which is what clients see between tokens."""
    slow, quick = served(20, token_s=1e-3), served(20, token_s=1e-6)
    assert tpot_s(quick) == pytest.approx(0.01, rel=0.01)
    assert np.median(tpot_s(slow)) == pytest.approx(0.02, rel=0.03)
    assert slow.run.last_completion_s == pytest.approx(2.0 * quick.run.last_completion_s, rel=0.05)
    assert any("cannot keep up" in text for text in slow.run.warnings)
    assert not any("cannot keep up" in text for text in quick.run.warnings)
    record = slow.run.record
    parts = sum(getattr(record, name) for name in vars(record) if name.startswith("part_"))
    assert parts == pytest.approx(record.first_token_s - record.arrival_s, abs=1e-9)


def test_an_open_loop_gets_its_tokens_no_faster_than_they_can_be_sent() -> None:
    """40 requests of 200 tokens within 2 s: 8,000 tokens of 1 ms take 8 s, those of 0.1 ms wait for nobody; the engine is done in 4."""
    trace = Trace.from_columns(np.linspace(0.0, 2.0, 40), np.full(40, 10), np.full(40, 200))
    ends = [simulate(trace, server(token_s=token_s)).run.last_completion_s for token_s in (1e-3, 1e-4)]
    assert ends[1] == pytest.approx(4.0, abs=0.1)
    assert ends[0] == pytest.approx(8.0, rel=0.05)


def test_tokens_far_into_an_answer_cost_more() -> None:
    """0.01 ms for each token before it: over 200 tokens 1 ms more than 0.5 on the mean."""
    assert np.median(tpot_s(served(10, token_s=0.5e-3, answer_token_s=1e-5))) == pytest.approx(0.015, rel=0.03)
    assert np.median(tpot_s(served(10, token_s=0.5e-3))) == pytest.approx(0.01, rel=0.03)


def test_servers_that_merge_tokens_keep_up_with_any_pace() -> None:
    assert tpot_s(served(20, token_s=1e-3, merges=True)) == pytest.approx(0.01, rel=0.02)


def pooled(**front: Any) -> Result:
    """A prefill engine and two decode engines of ten clients each, which step every 10 ms."""
    roles = (("prefill", 1), ("decode", 2))
    topology = server(**front) | {
        "pools": [{"name": role, "role": role, "workers": workers} for role, workers in roles],
        "kv_transfer": {"setup_s": 0.0, "per_block_s": 0.0},
        "routing": {"decode": "round_robin"},
    }
    trace = Trace.from_columns(np.zeros(60), np.full(60, 10), np.full(60, 200), max_output_tokens=np.full(60, 200))
    return simulate(trace, topology, arrivals=Arrivals("closed", clients=20))


def test_a_decode_engine_is_no_faster_than_its_front_end() -> None:
    """Ten clients, 2 ms a token: a step's tokens take 20 ms."""
    free, slow = pooled(), pooled(token_s=2e-3)
    assert np.median(tpot_s(free)) == pytest.approx(0.01, rel=0.03)
    assert np.median(tpot_s(slow)) == pytest.approx(0.02, rel=0.05)
    assert any("of decode-0 and of 1 others cannot keep up" in text for text in slow.run.warnings)
    for same in (pooled(token_s=2e-3, merges=True), pooled(token_s=1e-5)):
        np.testing.assert_array_equal(same.run.record.last_token_s, free.run.record.last_token_s)


def test_requests_that_come_to_a_decode_engine_take_time_from_its_tokens() -> None:
    """Nine tenths of a step for tokens: 60 requests of 0.1 s of work each are what makes them late."""
    alone, beside = pooled(token_s=0.9e-3), pooled(token_s=0.9e-3, request_s=0.1)
    assert not alone.run.warnings
    assert any("cannot keep up" in text for text in beside.run.warnings)
