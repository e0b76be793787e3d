"""Laws of shared links: what no network may break, whatever its shape and whoever starts when."""

from __future__ import annotations

import math
from collections import defaultdict

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simulator.network.fabric import Crossing, Fabric, Link, Network, Pace, Path

CAPACITY = st.floats(1.0, 100.0)
LAW = settings(deadline=None, max_examples=120)  # the first call compiles


@st.composite
def networks(draw: st.DrawFn) -> Network:
    """One to six links, and paths over one to three of them, of one to three streams."""
    links = draw(st.lists(CAPACITY, min_size=1, max_size=6))
    paths = {}
    for pair in range(draw(st.integers(1, 6))):
        used = draw(st.lists(st.integers(0, len(links) - 1), min_size=1, max_size=3, unique=True))
        streams = draw(st.integers(1, 3))
        loads = [draw(st.sampled_from([1.0, float(streams)])) for _ in used]
        crossings = tuple(Crossing(link, load, load / streams) for link, load in zip(used, loads, strict=True))
        paths[pair, 99] = Path(crossings, streams)
    return Network(tuple(Link(f"l{i}", c) for i, c in enumerate(links)), paths)


@st.composite
def workloads(draw: st.DrawFn) -> tuple[Network, list[tuple[int, float, float, float]]]:
    """A network and transfers: source, start, bytes, delay."""
    network = draw(networks())
    sources = sorted(src for src, _ in network.paths)
    transfer = st.tuples(st.sampled_from(sources), st.floats(0, 20), st.floats(0.5, 200), st.sampled_from([0.0, 1.5]))
    return network, draw(st.lists(transfer, min_size=1, max_size=25))


def replay(network: Network, transfers: list[tuple[int, float, float, float]]) -> tuple[dict[int, float], Fabric]:
    """End of every transfer; starts and ends in order of time."""
    fabric = Fabric(network, rows=2)
    ends: dict[int, float] = {}
    for i in sorted(range(len(transfers)), key=lambda i: transfers[i][1]):
        src, start, size, delay = transfers[i]
        while fabric.next_completion() <= start:
            ends.update(fabric.advance(fabric.next_completion()))
        ends.update(fabric.advance(start))
        fabric.start(i, src, 99, size, start, delay_s=delay)
    while fabric.next_completion() < math.inf:
        ends.update(fabric.advance(fabric.next_completion()))
    return ends, fabric


@LAW
@given(networks(), st.floats(0.5, 500), st.floats(0, 5))
def test_a_lone_transfer_takes_its_delay_and_its_bytes_over_the_narrowest_link(
    network: Network, size: float, delay: float
) -> None:
    (src, _), path = next(iter(network.paths.items()))
    ends, _ = replay(network, [(src, 2.0, size, delay)])
    assert ends[0] == pytest.approx(2.0 + delay + size / path.alone_bytes_per_s(network.links), rel=1e-12)


@LAW
@given(networks(), st.data())
def test_shares_are_max_min_fair(network: Network, data: st.DataObject) -> None:
    """No link is overfull, and every flow crosses a full link on which no other flow's stream is faster."""
    sources = data.draw(st.lists(st.sampled_from(sorted(src for src, _ in network.paths)), min_size=1, max_size=15))
    fabric = Fabric(network)
    for i, src in enumerate(sources):
        fabric.start(i, src, 99, 1e6, 0.0)
    fabric.advance(0.0)
    level = {i: fabric.rate(i) / network.paths[src, 99].streams for i, src in enumerate(sources)}
    used: dict[int, float] = defaultdict(float)
    fastest: dict[int, float] = defaultdict(float)
    for i, src in enumerate(sources):
        for crossing in network.paths[src, 99].crossings:
            used[crossing.link] += level[i] * crossing.load
            fastest[crossing.link] = max(fastest[crossing.link], level[i])
    for link, sum_used in used.items():
        assert sum_used <= network.links[link].capacity_bytes_per_s * (1 + 1e-9)
    for i, src in enumerate(sources):
        assert any(
            used[c.link] >= network.links[c.link].capacity_bytes_per_s * (1 - 1e-9)
            and level[i] >= fastest[c.link] * (1 - 1e-9)
            for c in network.paths[src, 99].crossings
        )


@LAW
@given(workloads())
def test_every_transfer_ends_and_links_carry_just_its_bytes(
    workload: tuple[Network, list[tuple[int, float, float, float]]],
) -> None:
    network, transfers = workload
    ends, fabric = replay(network, transfers)
    assert sorted(ends) == list(range(len(transfers)))
    expected: dict[str, float] = defaultdict(float)
    for src, _, size, _ in transfers:
        for crossing in network.paths[src, 99].crossings:
            expected[network.links[crossing.link].name] += size * crossing.share
    for name, carried in fabric.carried_bytes.items():
        assert carried == pytest.approx(expected[name], rel=1e-9, abs=1e-6)


@LAW
@given(workloads())
def test_nothing_ends_before_it_could_alone(workload: tuple[Network, list[tuple[int, float, float, float]]]) -> None:
    network, transfers = workload
    ends, _ = replay(network, transfers)
    for i, (src, start, size, delay) in enumerate(transfers):
        alone = size / network.paths[src, 99].alone_bytes_per_s(network.links)
        assert ends[i] >= start + delay + alone - 1e-8


@LAW
@given(workloads())
def test_the_same_transfers_end_at_the_same_bits(
    workload: tuple[Network, list[tuple[int, float, float, float]]],
) -> None:
    network, transfers = workload
    assert replay(network, transfers)[0] == replay(network, transfers)[0]


@LAW
@given(workloads(), st.randoms(use_true_random=False))
def test_the_order_of_starts_at_one_instant_does_not_matter(
    workload: tuple[Network, list[tuple[int, float, float, float]]], random: object
) -> None:
    network, transfers = workload
    transfers = [(src, 0.0, size, delay) for src, _, size, delay in transfers]
    order = list(range(len(transfers)))
    random.shuffle(order)  # type: ignore[attr-defined]
    ends, _ = replay(network, transfers)
    shuffled, _ = replay(network, [transfers[i] for i in order])
    for place, i in enumerate(order):
        assert shuffled[place] == pytest.approx(ends[i], rel=1e-7)


@LAW
@given(networks(), st.floats(1.0, 10.0), st.floats(0.5, 500))
def test_more_bandwidth_never_makes_a_lone_transfer_later(network: Network, factor: float, size: float) -> None:
    src = next(iter(network.paths))[0]
    wider = Network(tuple(Link(x.name, x.capacity_bytes_per_s * factor) for x in network.links), network.paths)
    assert replay(wider, [(src, 0.0, size, 0.0)])[0][0] <= replay(network, [(src, 0.0, size, 0.0)])[0][0]


@LAW
@given(workloads())
def test_looking_more_often_changes_nothing(workload: tuple[Network, list[tuple[int, float, float, float]]]) -> None:
    """``advance`` between events moves nothing: ends do not depend on when somebody looks."""
    network, transfers = workload
    transfers = [(src, 0.0, size, delay) for src, _, size, delay in transfers]
    ends, _ = replay(network, transfers)
    fabric = Fabric(network)
    for i, (src, start, size, delay) in enumerate(transfers):
        fabric.start(i, src, 99, size, start, delay_s=delay)
    seen: dict[int, float] = {}
    now = 0.0
    while fabric.next_completion() < math.inf:
        now = min(now + 0.37, fabric.next_completion())
        seen.update(fabric.advance(now))
    assert seen == pytest.approx(ends, rel=1e-12)


def plain_shares(network: Network, sources: list[int]) -> list[float]:
    """Max-min fair rates the slow way: raise all levels together, link by link, from scratch."""
    paths = [network.paths[src, 99] for src in sources]
    spare = [link.capacity_bytes_per_s for link in network.links]
    level: dict[int, float] = {}
    while len(level) < len(paths):
        rising = [i for i in range(len(paths)) if i not in level]
        demand = [sum(c.load for i in rising for c in paths[i].crossings if c.link == k) for k in range(len(spare))]
        full = min((k for k in range(len(spare)) if demand[k] > 0), key=lambda k: spare[k] / demand[k])
        reached = spare[full] / demand[full]
        for i in [i for i in rising if any(c.link == full for c in paths[i].crossings)]:
            level[i] = reached
            for crossing in paths[i].crossings:
                spare[crossing.link] -= crossing.load * reached
    return [level[i] * path.streams for i, path in enumerate(paths)]


@LAW
@given(networks(), st.data())
def test_shares_kept_from_change_to_change_are_those_worked_out_from_scratch(
    network: Network, data: st.DataObject
) -> None:
    """Transfers come and go one by one; after each change every rate is what a plain progressive filling gives."""
    choices = sorted(src for src, _ in network.paths)
    fabric, live = Fabric(network, rows=2), {}
    for i in range(data.draw(st.integers(1, 15))):
        if live and data.draw(st.booleans()):
            gone = data.draw(st.sampled_from(sorted(live)))
            fabric.cancel(gone, float(i))
            del live[gone]
        else:
            live[i] = data.draw(st.sampled_from(choices))
            fabric.start(i, live[i], 99, 1e12, float(i))
            fabric.advance(float(i))
        expected = plain_shares(network, list(live.values()))
        assert [fabric.rate(k) for k in live] == pytest.approx(expected, rel=1e-9, abs=1e-9)


@LAW
@given(networks(), st.floats(1, 500), st.floats(0, 5), st.floats(0.1, 20), st.integers(1, 40))
def test_a_lone_paced_transfer_ends_when_its_last_bytes_could_have_left(
    network: Network, size: float, start: float, lasts: float, layers: int
) -> None:
    """Layers that come one after another over one pipe: the last layer behind the pace, or all of them from its start."""
    (src, _), path = next(iter(network.paths.items()))
    speed = path.alone_bytes_per_s(network.links)
    fabric = Fabric(network)
    fabric.start(0, src, 99, size, 0.0, pace=Pace(start, start + lasts, (layers - 1) / layers))
    ends: dict[int, float] = {}
    while fabric.next_completion() < math.inf:
        ends.update(fabric.advance(fabric.next_completion()))
    expected = max(start + lasts + size / layers / speed, start + size / speed)
    assert ends[0] == pytest.approx(expected, rel=1e-9, abs=1e-8)


@LAW
@given(workloads(), st.data())
def test_bytes_are_conserved_while_links_change_and_layers_come(
    workload: tuple[Network, list[tuple[int, float, float, float]]], data: st.DataObject
) -> None:
    network, transfers = workload
    fabric = Fabric(network, rows=2)
    todo = [(start, "start", i) for i, (_, start, _, _) in enumerate(transfers)]
    names = [link.name for link in network.links]
    cuts = data.draw(st.lists(st.tuples(st.floats(0, 30), st.sampled_from(names), st.floats(0, 50)), max_size=8))
    todo += [(at, "change", (name, speed)) for at, name, speed in cuts]
    todo += [(40.0, "change", (name, 5.0)) for name in names]  # in the end every link works
    ends: dict[int, float] = {}
    for at, what, about in sorted(todo, key=lambda entry: entry[0]):
        while fabric.next_completion() <= at:
            ends.update(fabric.advance(fabric.next_completion()))
        ends.update(fabric.advance(at))
        if what == "change":
            fabric.set_capacity(about[0], about[1], at)  # type: ignore[index]
        else:
            src, _, size, delay = transfers[about]  # type: ignore[index]
            pace = Pace(at + delay, at + delay + 3.0, 0.75) if data.draw(st.booleans()) else None
            fabric.start(about, src, 99, size, at, delay_s=delay, pace=pace)  # type: ignore[arg-type]
    while fabric.next_completion() < math.inf:
        ends.update(fabric.advance(fabric.next_completion()))
    assert sorted(ends) == list(range(len(transfers)))
    expected: dict[str, float] = defaultdict(float)
    for src, _, size, _ in transfers:
        for crossing in network.paths[src, 99].crossings:
            expected[network.links[crossing.link].name] += size * crossing.share
    for name, carried in fabric.carried_bytes.items():
        assert carried == pytest.approx(expected[name], rel=1e-9, abs=1e-6)


def test_a_lone_transfer_over_a_link_that_changes_takes_the_sum_of_its_stretches() -> None:
    fabric = Fabric(Network((Link("l", 10.0),), {(0, 99): Path((Crossing(0),))}))
    fabric.start(0, 0, 99, 100.0, 0.0)
    for at, speed in ((3.0, 5.0), (7.0, 0.0), (9.0, 20.0)):  # 30 bytes, then 20, then none, then 50 in 2.5 s
        assert fabric.advance(at) == []
        fabric.set_capacity("l", speed, at)
    assert fabric.next_completion() == pytest.approx(11.5)
    assert fabric.advance(11.5) == [(0, pytest.approx(11.5))]
