"""Flows whose bytes come into being layer by layer, links that change, and what a fabric refuses: by pencil."""

from __future__ import annotations

import math
import random

import pytest

from simulator.errors import SimulatorError
from simulator.network.fabric import Crossing, Fabric, Link, Network, Pace, Path


def line(capacity: float = 10.0, streams: int = 1, rows: int = 32) -> Fabric:
    """One link; two ways over it, the second of ``streams`` streams."""
    paths = {(0, 9): Path((Crossing(0),)), (1, 9): Path((Crossing(0, float(streams)),), streams)}
    return Fabric(Network((Link("l", capacity),), paths), rows)


def drain(fabric: Fabric) -> list[tuple[int, float]]:
    ended: list[tuple[int, float]] = []
    while fabric.next_completion() < math.inf:
        ended += fabric.advance(fabric.next_completion())
    return ended


def test_a_paced_flow_takes_what_comes_and_the_others_the_rest() -> None:
    fabric = line()
    fabric.start(1, 0, 9, 40.0, 0.0, pace=Pace(0.0, 10.0, 0.5))  # 2 a second for 10 s, then 20 bytes at once
    fabric.start(2, 0, 9, 1000.0, 0.0)
    assert fabric.advance(0.0) == []
    assert (fabric.rate(1), fabric.rate(2)) == (2.0, 8.0)
    assert fabric.next_completion() == 10.0
    fabric.advance(10.0)
    assert (fabric.rate(1), fabric.rate(2)) == (5.0, 5.0)
    assert drain(fabric) == [(1, 14.0), (2, 104.0)]  # 80, then 20 beside the first, then 900 alone
    assert fabric.carried_bytes == {"l": pytest.approx(1040.0)}


def test_what_a_slow_link_left_behind_is_made_up_before_the_pace_counts_again() -> None:
    fabric = line(1.0)
    fabric.start(1, 0, 9, 40.0, 0.0, pace=Pace(0.0, 10.0, 0.5))
    assert fabric.advance(5.0) == []
    assert fabric.rate(1) == 1.0
    fabric.set_capacity("l", 10.0, 5.0)  # 10 bytes made, 5 sent: the 5 behind melt by 8 a second
    assert fabric.rate(1) == 10.0
    assert fabric.next_completion() == pytest.approx(5.625)
    fabric.advance(fabric.next_completion())
    assert fabric.rate(1) == pytest.approx(2.0)
    assert fabric.carried_bytes["l"] == pytest.approx(11.25)
    assert fabric.next_completion() == pytest.approx(10.0)
    assert drain(fabric) == [(1, pytest.approx(12.0))]


def test_a_pace_faster_than_the_link_changes_nothing() -> None:
    fabric = line(1.0)
    fabric.start(1, 0, 9, 8.0, 0.0, pace=Pace(0.0, 2.0, 0.75))
    assert drain(fabric) == [(1, pytest.approx(8.0))]


def test_a_pace_just_as_fast_as_the_link_is_followed_to_its_end() -> None:
    fabric = line(3.0)
    fabric.start(1, 0, 9, 8.0, 0.0, pace=Pace(0.0, 2.0, 0.75))  # 3 a second for 2 s, then 2 bytes
    fabric.advance(0.0)
    assert fabric.rate(1) == pytest.approx(3.0)
    assert fabric.next_completion() == pytest.approx(2.0)
    assert drain(fabric) == [(1, pytest.approx(2.0 + 2.0 / 3.0))]


def test_the_streams_of_a_paced_flow_share_its_pace() -> None:
    fabric = line(streams=4)
    fabric.start(1, 1, 9, 16.0, 0.0, pace=Pace(0.0, 8.0, 0.5))  # 1 a second, a quarter on each stream
    fabric.start(2, 0, 9, 1000.0, 0.0)
    fabric.advance(0.0)
    assert (fabric.rate(1), fabric.rate(2)) == (1.0, 9.0)
    fabric.advance(8.0)
    assert (fabric.rate(1), fabric.rate(2)) == (8.0, 2.0)


def test_two_paces_and_a_full_link() -> None:
    fabric = line(6.0)
    for number, before in ((1, 0.1), (2, 0.4), (3, 0.9)):
        fabric.start(number, 0, 9, 100.0, 0.0, pace=Pace(0.0, 10.0, before))  # 1, 4 and 9 a second
    fabric.advance(0.0)
    assert [fabric.rate(number) for number in (1, 2, 3)] == [1.0, 2.5, 2.5]
    fabric.cancel(3, 0.0)
    assert [fabric.rate(number) for number in (1, 2)] == [1.0, 4.0]
    assert len(fabric) == 2


def test_bytes_flow_from_the_later_of_delay_and_pace() -> None:
    fabric = line()
    fabric.start(1, 0, 9, 10.0, 0.0, delay_s=1.0, pace=Pace(3.0, 3.0, 0.5))  # a pace of no length: all at 3 s
    fabric.start(2, 0, 9, 10.0, 0.0, delay_s=20.0, pace=Pace(3.0, 4.0, 0.5))
    fabric.start(3, 0, 9, 0.0, 0.0, delay_s=1.0, pace=Pace(3.0, 40.0, 0.5))  # without bytes: at the pace's end
    fabric.start(4, 0, 9, 0.0, 0.0, delay_s=50.0, pace=Pace(3.0, 40.0, 0.5))
    assert drain(fabric) == [(1, 4.0), (2, 21.0), (3, 40.0), (4, 50.0)]


def test_rows_that_are_used_again_remember_nothing() -> None:
    fabric = line(rows=1)
    fabric.start(1, 1, 9, 20.0, 0.0, pace=Pace(0.0, 10.0, 0.5))
    fabric.advance(3.0)
    fabric.cancel(1, 3.0)
    fabric.start(1, 0, 9, 10.0, 3.0)
    assert drain(fabric) == [(1, 4.0)]
    fabric.start(1, 0, 9, 0.0, 4.0)
    assert drain(fabric) == [(1, 4.0)]


def test_flows_keep_their_pace_when_the_table_grows() -> None:
    fabric = line(rows=1)
    fabric.start(1, 0, 9, 40.0, 0.0, pace=Pace(0.0, 10.0, 0.5))
    fabric.advance(1.0)
    for number in range(2, 6):
        fabric.start(number, 0, 9, 8.0, 1.0)
    fabric.advance(1.0)
    assert [fabric.rate(number) for number in range(1, 6)] == [2.0, 2.0, 2.0, 2.0, 2.0]
    assert drain(fabric) == [(2, 5.0), (3, 5.0), (4, 5.0), (5, 5.0), (1, 12.0)]


def test_a_cut_link_holds_its_flows_and_lets_others_pass() -> None:
    links = (Link("a", 4.0), Link("b", 4.0))
    fabric = Fabric(Network(links, {(0, 9): Path((Crossing(0),)), (1, 9): Path((Crossing(1),))}))
    fabric.start(1, 0, 9, 8.0, 0.0)
    fabric.start(2, 1, 9, 8.0, 0.0)
    fabric.advance(1.0)
    fabric.set_capacity("a", 0.0, 1.0)
    assert (fabric.rate(1), fabric.rate(2)) == (0.0, 4.0)
    assert fabric.next_completion() == 2.0
    assert fabric.advance(2.0) == [(2, 2.0)]
    assert fabric.next_completion() == math.inf
    fabric.set_capacity("a", 8.0, 5.0)
    assert drain(fabric) == [(1, 5.5)]
    assert fabric.carried_bytes == {"a": 8.0, "b": 8.0}


def test_a_share_of_the_bytes_is_carried_by_each_link() -> None:
    links = (Link("whole", 8.0), Link("half", 2.0))
    fabric = Fabric(Network(links, {(0, 1): Path((Crossing(0, 2.0, 1.0), Crossing(1, 1.0, 0.5)), 2)}))
    fabric.start(1, 0, 1, 8.0, 0.0)
    assert drain(fabric) == [(1, 2.0)]  # 2 a second a stream
    assert fabric.carried_bytes == {"whole": 8.0, "half": 4.0}
    path = Path((Crossing(0, 2.0), Crossing(1, 1.0)), 2)
    assert path.alone_bytes_per_s(links) == 4.0
    assert Path((Crossing(0),)).streams == 1 and Crossing(3) == Crossing(3, 1.0, 1.0)


def test_waiting_transfers_move_nothing() -> None:
    fabric = line()
    fabric.start(5, 0, 9, 10.0, 2.0, delay_s=1.0)
    assert 3.0 <= fabric.next_completion() <= 4.0  # when its bytes begin to flow, or when they are there
    assert (fabric.rate(5), len(fabric)) == (0.0, 1)
    assert fabric.advance(2.5) == []
    fabric.cancel(5, 2.5)
    assert (fabric.next_completion(), len(fabric)) == (math.inf, 0)
    assert fabric.carried_bytes == {"l": 0.0}


def test_events_within_an_instant_are_one() -> None:
    fabric = line()
    fabric.start(1, 0, 9, 0.0, 0.0, delay_s=1.0 + 4e-10)
    fabric.start(2, 0, 9, 0.0, 0.0, delay_s=1.0 + 8e-10)
    fabric.start(3, 0, 9, 0.0, 0.0, delay_s=1.1)
    assert fabric.advance(1.0) == [(1, 1.0 + 4e-10), (2, 1.0 + 8e-10)]
    assert fabric.advance(1.0) == []


@pytest.mark.parametrize("seed", range(10))
def test_ends_at_one_instant_come_in_the_order_of_starts_whatever_rows_they_have(seed: int) -> None:
    """Rows are used again in an order that has nothing to do with that of the starts."""
    draw, fabric, under_way = random.Random(seed), Fabric(Network(), rows=8), []
    for number in range(60):
        if under_way and draw.random() < 0.4:
            fabric.cancel(under_way.pop(draw.randrange(len(under_way))), 0.0)
        else:
            fabric.start(number, 0, 1, 0.0, 0.0, delay_s=1.0 + draw.random() * 9e-10)
            under_way.append(number)
    assert [number for number, _ in fabric.advance(1.0 + 1e-9)] == under_way


def test_a_pace_that_ends_within_an_instant_has_ended() -> None:
    fabric = line(3.0)
    fabric.start(1, 0, 9, 8.0, 2.0 - 5e-10, pace=Pace(0.0, 2.0, 0.75))  # all 8 bytes are there at once
    fabric.advance(2.0 - 5e-10)
    assert fabric.rate(1) == 3.0
    assert drain(fabric) == [(1, pytest.approx(2.0 + 8 / 3))]
    fabric.start(2, 0, 9, 8.0, 10.0, pace=Pace(8.0, 12.0, 0.5))  # two bytes of 1 a second have waited
    fabric.advance(10.0)
    assert fabric.rate(2) == 3.0
    assert fabric.next_completion() == pytest.approx(11.0)  # when they have melted
    assert fabric.advance(11.0) == [] and fabric.rate(2) == pytest.approx(1.0)
    assert fabric.next_completion() == pytest.approx(12.0)
    fabric.advance(12.0 - 5e-10)
    assert fabric.rate(2) == 3.0
    assert drain(fabric) == [(2, pytest.approx(12.0 + 4 / 3))]


def test_small_amounts_count_as_large_ones_do() -> None:
    fabric = line(1e-3)
    fabric.start(1, 0, 9, 4e-3, 0.0, pace=Pace(0.0, 8.0, 0.5))
    fabric.start(2, 0, 9, 1e-3, 0.0)
    fabric.advance(0.0)
    assert (fabric.rate(1), fabric.rate(2)) == (pytest.approx(2.5e-4), pytest.approx(7.5e-4))
    assert drain(fabric) == [(2, pytest.approx(4 / 3)), (1, pytest.approx(10.0))]


@pytest.mark.parametrize("speed", [-1.0, math.inf, math.nan])
def test_a_link_cannot_become_anything(speed: float) -> None:
    with pytest.raises(SimulatorError) as error:
        line().set_capacity("l", speed, 0.0)
    assert str(error.value) == f"link l: {speed} bytes/s; 0 or a positive capacity is needed"


def test_what_is_no_network_is_refused() -> None:
    with pytest.raises(SimulatorError, match=r"^link x: 0 bytes/s; a positive capacity is needed$"):
        Link("x", 0)
    for crossings in ((), (Crossing(0, 0.0),), (Crossing(0), Crossing(1, -1.0))):
        with pytest.raises(SimulatorError, match=r"^a path crosses at least one link, each with a positive load$"):
            Path(crossings)
    fabric = line()
    fabric.start(3, 0, 9, 1.0, 0.0)
    with pytest.raises(SimulatorError, match=r"^transfer 3 is already under way$"):
        fabric.start(3, 0, 9, 1.0, 0.0)
