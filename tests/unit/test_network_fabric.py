"""The fabric by hand: two or three transfers whose times a pencil gives."""

from __future__ import annotations

import math

import pytest

from simulator.errors import SimulatorError
from simulator.network.fabric import Crossing, Fabric, Link, Network, Path


def two_links() -> Network:
    """0 to 1 over a narrow link behind a wide one; 0 to 2 over the wide one alone."""
    links = (Link("wide", 10.0), Link("narrow", 4.0))
    return Network(links, {(0, 1): Path((Crossing(0), Crossing(1))), (0, 2): Path((Crossing(0),))})


def drain(fabric: Fabric) -> list[tuple[int, float]]:
    ended: list[tuple[int, float]] = []
    while fabric.next_completion() < math.inf:
        ended += fabric.advance(fabric.next_completion())
    return ended


def test_what_the_narrow_link_leaves_goes_to_the_other_flow() -> None:
    fabric = Fabric(two_links())
    fabric.start(1, 0, 1, 40.0, 0.0)
    fabric.start(2, 0, 2, 60.0, 0.0)
    fabric.advance(0.0)
    assert (fabric.rate(1), fabric.rate(2)) == (4.0, 6.0)
    assert drain(fabric) == [(1, 10.0), (2, 10.0)]


def test_a_flow_that_ends_gives_its_share_back() -> None:
    fabric = Fabric(Network((Link("l", 10.0),), {(0, 1): Path((Crossing(0),))}))
    fabric.start(1, 0, 1, 10.0, 0.0)
    fabric.start(2, 0, 1, 20.0, 0.0)
    # 5 each until 2 s; then 10 left for the second at 10 a second
    assert drain(fabric) == [(1, 2.0), (2, 3.0)]


def test_bytes_wait_for_the_delay_and_take_no_share_meanwhile() -> None:
    fabric = Fabric(Network((Link("l", 10.0),), {(0, 1): Path((Crossing(0),))}))
    fabric.start(1, 0, 1, 10.0, 0.0)
    fabric.start(2, 0, 1, 10.0, 0.0, delay_s=1.0)
    assert drain(fabric) == [(1, 1.0), (2, 2.0)]


def test_an_explicit_time_depends_on_nobody() -> None:
    fabric = Fabric(Network())
    for i in range(5):
        fabric.start(i, 0, 1, 0.0, 0.0, delay_s=0.5 + i)
    assert drain(fabric) == [(i, 0.5 + i) for i in range(5)]


def test_flows_on_other_links_keep_their_rates_and_times() -> None:
    links = (Link("a", 10.0), Link("b", 3.0))
    fabric = Fabric(Network(links, {(0, 1): Path((Crossing(0),)), (2, 3): Path((Crossing(1),))}))
    fabric.start(1, 2, 3, 1.0, 0.1)
    fabric.advance(0.1)
    for i in range(10, 30):
        fabric.start(i, 0, 1, 0.01, 0.1 + i / 1000)
    ends = dict(drain(fabric))
    assert ends[1] == 0.1 + 1.0 / 3.0  # to the bit: never touched by the others


def test_streams_of_one_transfer_weigh_as_many() -> None:
    """A transfer of four streams gets four times the share of one of one stream where both cross a full link."""
    paths = {(0, 9): Path((Crossing(0, 4.0),), 4), (1, 9): Path((Crossing(0, 1.0),), 1)}
    fabric = Fabric(Network((Link("l", 10.0),), paths))
    fabric.start(1, 0, 9, 100.0, 0.0)
    fabric.start(2, 1, 9, 100.0, 0.0)
    fabric.advance(0.0)
    assert (fabric.rate(1), fabric.rate(2)) == (8.0, 2.0)


def test_a_cancelled_transfer_leaves_its_share_to_others() -> None:
    fabric = Fabric(Network((Link("l", 10.0),), {(0, 1): Path((Crossing(0),))}))
    fabric.start(1, 0, 1, 100.0, 0.0)
    fabric.start(2, 0, 1, 10.0, 0.0)
    fabric.advance(1.0)
    fabric.cancel(1, 1.0)
    assert drain(fabric) == [(2, 1.5)]
    assert len(fabric) == 0


def test_ends_within_a_nanosecond_come_in_the_order_of_starts() -> None:
    fabric = Fabric(Network())
    fabric.start(7, 0, 1, 0.0, 0.0, delay_s=1.0 + 5e-10)
    fabric.start(3, 0, 1, 0.0, 0.0, delay_s=1.0)
    assert [i for i, _ in drain(fabric)] == [7, 3]


def test_more_transfers_than_rows_make_the_table_grow() -> None:
    fabric = Fabric(Network((Link("l", 10.0),), {(0, 1): Path((Crossing(0),))}), rows=2)
    for i in range(100):
        fabric.start(i, 0, 1, 1.0, 0.0)
        fabric.advance(0.0)
    assert len(fabric) == 100
    assert [at for _, at in drain(fabric)] == pytest.approx([10.0] * 100)


@pytest.mark.parametrize("capacity", [0.0, -1.0, math.inf, math.nan])
def test_a_link_needs_a_capacity(capacity: float) -> None:
    with pytest.raises(SimulatorError, match="link l"):
        Link("l", capacity)


def test_a_number_under_way_is_not_used_twice() -> None:
    fabric = Fabric(two_links())
    fabric.start(1, 0, 1, 1.0, 0.0)
    with pytest.raises(SimulatorError, match="already under way"):
        fabric.start(1, 0, 1, 1.0, 0.0)
