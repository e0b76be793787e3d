"""Who sends what, and over which links: every stream and every crossing worked out by hand."""

from __future__ import annotations

import pytest

from simulator.network.exchange import Cache, Split, Stream, descriptors_per_block, exchange
from simulator.network.layout import Hop, Seat, Wiring, lay_out, seat

LAYERS = 8
GQA = Cache(LAYERS, 4, 10.0, 2)
LATENT = Cache(LAYERS, 0, 10.0, 1)
#: Cells of engines of two GPUs: on node 0, beside it, on node 1 under the same and under other cards, and elsewhere.
HERE, BESIDE, THERE, FURTHER = ((0, 0), (0, 1)), ((0, 2), (0, 3)), ((1, 0), (1, 1)), ((1, 2), (1, 3))
ACROSS, AWAY = ((0, 7), (1, 0)), ((2, 6), (2, 7))


def split(tp: int, pp: int = 1, dp: int = 1) -> Split:
    size = LAYERS // pp
    return Split(tp, tuple((i * size, (i + 1) * size) for i in range(pp)), dp)


def streams(*rows: tuple[int, int, float, int]) -> tuple[Stream, ...]:
    return tuple(Stream(*row) for row in rows)


@pytest.mark.parametrize(
    ("src", "dst", "expected"),
    [
        # two ranks hold each of four heads: one half of the destination takes them from the even, one from the odd
        (split(8), split(2), [(0, 0, 80, 16), (2, 0, 80, 16), (5, 1, 80, 16), (7, 1, 80, 16)]),
        (split(2), split(8), [(r // 4, r, 80, 16) for r in range(8)]),
        (split(4), split(4), [(r, r, 80, 16) for r in range(4)]),
        (split(1, 2), split(1, 4), [(0, 0, 80, 4), (0, 1, 80, 4), (1, 2, 80, 4), (1, 3, 80, 4)]),
        (split(2, 2), split(1), [(r, 0, 80, 8) for r in range(4)]),
        (split(1), split(2, 2), [(0, r, 80, 8) for r in range(4)]),
        # two replicas take turns: half of the bytes from each
        (split(1, 1, 2), split(2), [(0, 0, 80, 16), (0, 1, 80, 16), (1, 0, 80, 16), (1, 1, 80, 16)]),
        (split(1), split(1, 2, 2), [(0, 0, 80, 8), (0, 1, 80, 8), (0, 2, 80, 8), (0, 3, 80, 8)]),
        (split(1, 1, 2), split(1, 1, 2), [(0, 0, 160, 16), (1, 1, 160, 16)]),
        (
            Split(1, ((0, 3), (3, 8))),
            Split(1, ((0, 5), (5, 8))),
            [(0, 0, 120, 6), (1, 0, 80, 4), (1, 1, 120, 6)],
        ),
    ],
)
def test_streams_of_heads(src: Split, dst: Split, expected: list[tuple[int, int, float, int]]) -> None:
    assert exchange(GQA, src, dst) == streams(*expected)


def test_streams_of_a_latent() -> None:
    assert exchange(LATENT, split(4), split(2, 2)) == streams(
        (0, 0, 40.0, 4), (2, 1, 40.0, 4), (0, 2, 40.0, 4), (2, 3, 40.0, 4)
    )
    assert exchange(LATENT, split(1, 1, 2), split(2)) == streams(
        (0, 0, 40.0, 8), (0, 1, 40.0, 8), (1, 0, 40.0, 8), (1, 1, 40.0, 8)
    )


def test_ranks_count_tensor_then_stage_then_replica() -> None:
    large = split(4, 2, 3)
    assert [large.rank(*place) for place in ((0, 0, 0), (0, 0, 3), (0, 1, 0), (1, 0, 0), (2, 1, 3))] == [0, 3, 4, 8, 23]


def test_the_gpu_that_posts_most_tells_the_descriptors() -> None:
    assert descriptors_per_block(streams((0, 0, 1.0, 3), (1, 0, 1.0, 4), (0, 1, 1.0, 5))) == 7
    assert descriptors_per_block(()) == 0


# --- links and paths

Used = dict[str, tuple[float, float, float]]


def used(cells: list[tuple[tuple[int, int], ...]], wiring: Wiring, dst: int = 2, **speeds: float) -> Used:
    """Links of the path from the first engine to the second: capacity, load of its streams, share of its bytes."""
    speeds = {"nvlink_bytes_per_s": 0.0, "nic_bytes_per_s": 5.0} | speeds
    seats = [Seat(name, own, **speeds) for name, own in zip("abc", cells, strict=False)]
    network = lay_out(seats, {(0, 1): exchange(GQA, split(2), split(dst))}, wiring)
    path = network.paths[0, 1]
    assert path.streams == 2
    links = [network.links[crossing.link] for crossing in path.crossings]
    return {
        link.name: (link.capacity_bytes_per_s, crossing.load, crossing.share)
        for link, crossing in zip(links, path.crossings, strict=True)
    }


def both(cells: list[tuple[tuple[int, int], ...]], name: str, capacity: float, **more: tuple[float, float]) -> Used:
    """The same link at both ends, with all streams and all bytes on each."""
    return {f"a {name} out": (capacity, 2.0, 1.0), f"b {name} in": (capacity, 2.0, 1.0)}


NARROW = Wiring(oversubscription=2.0)
RAILS = Wiring(oversubscription=2.0, rails=True)
RACKS = Wiring(oversubscription=2.0, rack_oversubscription=4.0, nodes_per_rack=1)
CARDS = {"a nic out": (10.0, 2.0, 1.0), "b nic in": (10.0, 2.0, 1.0)}
UPLINKS = {"node 0 uplink out": (20.0, 2.0, 1.0), "node 1 uplink in": (20.0, 2.0, 1.0)}
RACK_UPLINKS = {"rack 0 uplink out": (10.0, 2.0, 1.0), "rack 1 uplink in": (10.0, 2.0, 1.0)}
CORES = {"a cpu out": (6.0, 2.0, 1.0), "b cpu in": (6.0, 2.0, 1.0)}
NVLINK = {"a nvlink out": (100.0, 2.0, 1.0), "b nvlink in": (100.0, 2.0, 1.0)}
PCIE = {"a pcie out": (60.0, 2.0, 1.0), "b pcie in": (60.0, 2.0, 1.0)}


@pytest.mark.parametrize(
    ("cells", "wiring", "speeds", "expected"),
    [
        ([HERE, BESIDE], NARROW, {"nvlink_bytes_per_s": 50.0, "pcie_bytes_per_s": 30.0}, NVLINK),
        ([HERE, BESIDE], NARROW, {"pcie_bytes_per_s": 30.0, "cpu_bytes_per_s": 3.0}, PCIE),
        ([HERE, BESIDE], NARROW, {"cpu_bytes_per_s": 3.0}, CARDS | CORES),  # no uplink within a node
        ([HERE, THERE], NARROW, {"nvlink_bytes_per_s": 50.0, "pcie_bytes_per_s": 30.0}, CARDS | UPLINKS),
        ([HERE, THERE], NARROW, {"cpu_bytes_per_s": 3.0}, CARDS | CORES | UPLINKS),
        ([HERE, THERE], Wiring(), {}, CARDS),
        ([HERE, THERE], Wiring(nvlink_between_nodes=True), {"nvlink_bytes_per_s": 50.0}, NVLINK),
        ([HERE, THERE], Wiring(nvlink_between_nodes=True), {}, CARDS),
        ([HERE, THERE], RACKS, {}, CARDS | UPLINKS | RACK_UPLINKS),
        ([HERE, THERE], Wiring(rack_oversubscription=4.0, nodes_per_rack=1), {}, CARDS | RACK_UPLINKS),
        ([HERE, THERE], Wiring(rack_oversubscription=4.0, nodes_per_rack=2), {}, CARDS),
        ([HERE, THERE], Wiring(rack_oversubscription=4.0), {}, CARDS),  # one rack
        ([HERE, THERE], Wiring(rack_oversubscription=1.0, nodes_per_rack=1), {}, CARDS),
        (
            [HERE, AWAY],
            Wiring(rack_oversubscription=1.6, nodes_per_rack=2),
            {},
            CARDS | {"rack 0 uplink out": (50.0, 2.0, 1.0), "rack 1 uplink in": (50.0, 2.0, 1.0)},
        ),
        (
            [HERE, BESIDE],
            Wiring(oversubscription=1.25),
            {"nvlink_bytes_per_s": 0.5, "pcie_bytes_per_s": 0.25},
            dict.fromkeys(NVLINK, (1.0, 2.0, 1.0)),
        ),
        ([HERE, BESIDE], Wiring(), {"pcie_bytes_per_s": 0.25}, dict.fromkeys(PCIE, (0.5, 2.0, 1.0))),
        (
            [HERE, THERE],
            Wiring(oversubscription=1.25),
            {"cpu_bytes_per_s": 0.5},
            CARDS | dict.fromkeys(CORES, (1.0, 2.0, 1.0)) | dict.fromkeys(UPLINKS, (32.0, 2.0, 1.0)),
        ),
        # the second card of a node is shared by the engine on slots 4 and 5 and the one on 6 and 7
        (
            [((0, 4), (0, 5)), THERE, ((0, 6), (0, 7))],
            Wiring(nics_per_node=2),
            {},
            {"node 0 nic 1 out": (5.0, 2.0, 1.0), "b nic in": (5.0, 2.0, 1.0)},
        ),
        ([HERE, THERE], RAILS, {}, CARDS),  # cards of one place share a switch
        ([HERE, FURTHER], RAILS, {}, CARDS | UPLINKS),
        (
            [HERE, THERE],
            Wiring(rails=True, rack_oversubscription=4.0, nodes_per_rack=1),
            {},
            CARDS | RACK_UPLINKS,
        ),
        ([HERE, BESIDE], RAILS, {"nvlink_bytes_per_s": 50.0}, NVLINK),
        ([HERE, BESIDE], RAILS, {"pcie_bytes_per_s": 30.0}, PCIE),
        # two GPUs of each share one of four cards; two cards a GPU; a third engine beside the first on its card
        ([HERE, THERE], Wiring(nics_per_node=4), {}, dict.fromkeys(CARDS, (5.0, 2.0, 1.0))),
        ([HERE, THERE], Wiring(nics_per_node=16), {}, dict.fromkeys(CARDS, (20.0, 2.0, 1.0))),
        (
            [HERE, THERE, BESIDE],
            Wiring(nics_per_node=2),
            {},
            {"node 0 nic 0 out": (5.0, 2.0, 1.0), "b nic in": (5.0, 2.0, 1.0)},
        ),
        # an engine that spans nodes has half of its streams on each
        (
            [ACROSS, AWAY],
            NARROW,
            {"nvlink_bytes_per_s": 50.0},
            CARDS
            | {
                "node 0 uplink out": (20.0, 1.0, 0.5),
                "node 1 uplink out": (20.0, 1.0, 0.5),
                "node 2 uplink in": (20.0, 2.0, 1.0),
            },
        ),
        (
            [ACROSS, FURTHER],
            NARROW,
            {"nvlink_bytes_per_s": 50.0},
            {
                "a nic out": (10.0, 2.0, 0.5),
                "node 0 uplink out": (20.0, 1.0, 0.5),
                "a nvlink out": (100.0, 2.0, 0.5),
                "b nic in": (10.0, 2.0, 0.5),
                "node 1 uplink in": (20.0, 1.0, 0.5),
                "b nvlink in": (100.0, 2.0, 0.5),
            },
        ),
    ],
)
def test_links_between_two_engines(
    cells: list[tuple[tuple[int, int], ...]], wiring: Wiring, speeds: dict[str, float], expected: Used
) -> None:
    assert used(cells, wiring, **speeds) == expected


def test_a_smaller_side_takes_more_streams_on_its_card() -> None:
    assert used([HERE, ((1, 0),)], Wiring(), dst=1) == {"a nic out": (10.0, 2.0, 1.0), "b nic in": (5.0, 2.0, 1.0)}
    # the only lane that is loaded of two carries all
    assert used([HERE, THERE], Wiring(), dst=1)["b nic in"] == (10.0, 4.0, 1.0)


KINDS = ("to_host", "from_host", "gpu_to_host", "hosts", "to_store", "from_store")
STORE = {"to_store": {"store in": (7.0, 2, 1.0)}, "from_store": {"store out": (7.0, 2, 1.0)}}


def half(links: Used, side: str) -> Used:
    return {name: value for name, value in links.items() if name.startswith(side)}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("near", [False, True])
def test_legs_by_way_of_host_memory_and_store(kind: str, near: bool) -> None:
    seats = [Seat(n, c, 50.0, 5.0, 30.0, 3.0) for n, c in zip("ab", (HERE, BESIDE if near else THERE), strict=True)]
    own = exchange(GQA, split(2), split(2))
    wiring = Wiring(oversubscription=2.0, store_bytes_per_s=7.0)
    network = lay_out(seats, {}, wiring, {(7, 9): Hop(kind, 0, 1, own)})
    card = CARDS | CORES
    expected = {
        "to_host": half(PCIE, "a"),
        "from_host": half(PCIE, "b"),
        "gpu_to_host": half(PCIE, "a") if near else card | UPLINKS,
        "hosts": None if near else card | UPLINKS,
        "to_store": half(card, "a") | STORE["to_store"],
        "from_store": half(card, "b") | STORE["from_store"],
    }[kind]
    assert list(network.paths) == ([] if expected is None else [(7, 9)])
    if expected is not None:
        path = network.paths[7, 9]
        links = [network.links[c.link] for c in path.crossings]
        assert {
            link.name: (link.capacity_bytes_per_s, c.load, c.share)
            for link, c in zip(links, path.crossings, strict=True)
        } == expected
        assert path.streams == 2


def test_store_and_host_memory_lie_within_the_rack() -> None:
    seats = [Seat(n, c, 50.0, 5.0, 30.0) for n, c in zip("ab", (HERE, THERE), strict=True)]
    own = exchange(GQA, split(2), split(2))
    wiring = Wiring(rack_oversubscription=4.0, nodes_per_rack=1, store_bytes_per_s=7.0)
    kinds = ("to_host", "from_host", "to_store", "from_store", "hosts")
    network = lay_out(seats, {}, wiring, {(i, i): Hop(kind, 0, 1, own) for i, kind in enumerate(kinds)})
    names = [[network.links[c.link].name for c in network.paths[i, i].crossings] for i in range(5)]
    assert names == [
        ["a pcie out"],
        ["b pcie in"],
        ["a nic out", "store in"],
        ["b nic in", "store out"],
        ["a nic out", "rack 0 uplink out", "b nic in", "rack 1 uplink in"],
    ]


def test_one_engine_without_pcie_sends_all_of_them_over_cards() -> None:
    seats = [Seat(n, c, 0.0, 5.0, p) for n, c, p in zip("ab", (HERE, BESIDE), (30.0, 0.0), strict=True)]
    network = lay_out(seats, {(0, 1): exchange(GQA, split(2), split(2))}, Wiring())
    assert [link.name for link in network.links] == ["a nic out", "b nic in"]
    seats = [Seat(n, c, v, 5.0) for n, c, v in zip("ab", (HERE, BESIDE), (50.0, 0.0), strict=True)]
    network = lay_out(seats, {(0, 1): exchange(GQA, split(2), split(2))}, Wiring())
    assert [link.name for link in network.links] == ["a nic out", "b nic in"]  # NVLink needs both


def test_pairs_share_the_links_they_have_in_common() -> None:
    seats = [Seat(n, c, 0.0, 5.0) for n, c in zip("abc", (HERE, THERE, AWAY), strict=True)]
    own = exchange(GQA, split(2), split(2))
    network = lay_out(seats, {(0, 1): own, (0, 2): own}, Wiring())
    assert [link.name for link in network.links] == ["a nic out", "b nic in", "c nic in"]
    assert [c.link for c in network.paths[0, 2].crossings] == [0, 2]
    assert list(network.paths) == [(0, 1), (0, 2)]


def test_lanes_and_racks() -> None:
    few = Wiring(gpus_per_node=8, nics_per_node=2)
    assert (few.lanes, [few.lane(slot) for slot in range(8)]) == (2, [0] * 4 + [1] * 4)
    many = Wiring(gpus_per_node=4, nics_per_node=8)
    assert (many.lanes, [many.lane(slot) for slot in range(4)]) == (4, [0, 1, 2, 3])
    assert [Wiring(nodes_per_rack=4).rack(node) for node in (0, 3, 4, 9)] == [0, 0, 1, 2]
    assert Wiring().rack(9) == 0
    assert Seat("a", ACROSS, 0.0, 1.0).nodes == {0, 1}
    defaults = Wiring()
    assert (defaults.gpus_per_node, defaults.nics_per_node, defaults.store_bytes_per_s) == (8, 8, 0.0)
    assert not defaults.rails and not defaults.nvlink_between_nodes


def test_engines_sit_down_one_after_another() -> None:
    groups = [("p", 2), ("p", 3), ("d", 1), ("d", 5), ("d", 9)]
    first = seat(groups, 4, apart=False)
    assert first[:3] == [((0, 0), (0, 1)), ((1, 0), (1, 1), (1, 2)), ((1, 3),)]
    # larger than a node: whatever is left there first
    assert first[3] == ((2, 0), (2, 1), (2, 2), (2, 3), (3, 0))
    assert first[4] == ((3, 1), (3, 2), (3, 3), *((4, i) for i in range(4)), (5, 0), (5, 1))
    assert seat(groups, 4, apart=True)[2] == ((2, 0),)
    assert seat([("a", 4), ("b", 4)], 4, apart=True) == [
        tuple((0, i) for i in range(4)),
        tuple((1, i) for i in range(4)),
    ]
    assert seat([("a", 1), ("a", 1)], 4, apart=True) == [((0, 0),), ((0, 1),)]
