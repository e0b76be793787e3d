"""Who sends what to whom, over which links."""

from __future__ import annotations

import pytest

from simulator.network.exchange import Cache, Split, descriptors_per_block, exchange
from simulator.network.layout import Seat, Wiring, lay_out, seat

LAYERS = 8
GQA = Cache(LAYERS, 4, 10.0, 2)
LATENT = Cache(LAYERS, 0, 10.0, 1)


def split(tp: int, pp: int = 1, dp: int = 1) -> Split:
    size = LAYERS // pp
    return Split(tp, tuple((i * size, (i + 1) * size) for i in range(pp)), dp)


@pytest.mark.parametrize("src", [1, 2, 4, 8])
@pytest.mark.parametrize("dst", [1, 2, 4, 8])
def test_every_destination_gpu_gets_all_it_holds(src: int, dst: int) -> None:
    streams = exchange(GQA, split(src), split(dst))
    per_rank = {rank: sum(s.bytes_per_token for s in streams if s.dst_rank == rank) for rank in range(dst)}
    assert per_rank == {rank: LAYERS * max(1, 4 // dst) * 10.0 for rank in range(dst)}


def test_kv_heads_that_tensor_parallelism_copies_are_sent_to_each_copy() -> None:
    """Eight ranks over four KV heads: twice the bytes, as in Mooncake's Qwen3-235B table."""
    once = sum(s.bytes_per_token for s in exchange(GQA, split(4), split(4)))
    twice = sum(s.bytes_per_token for s in exchange(GQA, split(8), split(8)))
    assert twice == 2 * once


def test_copies_at_the_source_take_turns() -> None:
    streams = exchange(GQA, split(8), split(8))
    assert sorted(s.src_rank for s in streams) == list(range(8))


def test_a_latent_is_sent_whole_to_every_rank() -> None:
    streams = exchange(LATENT, split(2), split(4))
    assert [s.bytes_per_token for s in streams] == [LAYERS * 10.0] * 4
    assert sorted(s.src_rank for s in streams) == [0, 0, 1, 1]


@pytest.mark.parametrize(("src", "dst"), [((1, 2), (1, 4)), ((2, 4), (4, 2)), ((1, 8), (1, 1))])
def test_stages_exchange_only_the_layers_they_share(src: tuple[int, int], dst: tuple[int, int]) -> None:
    streams = exchange(GQA, split(*src), split(*dst))
    assert sum(s.bytes_per_token for s in streams) == LAYERS * 4 * 10.0
    held = dict.fromkeys(range(dst[0] * dst[1]), 0.0)
    for stream in streams:
        held[stream.dst_rank] += stream.bytes_per_token
    assert len(set(held.values())) == 1


def test_descriptors_count_layers_k_and_v_and_slices() -> None:
    assert descriptors_per_block(exchange(GQA, split(1), split(1))) == LAYERS * 2
    assert descriptors_per_block(exchange(LATENT, split(1), split(1))) == LAYERS
    assert descriptors_per_block(exchange(GQA, split(4), split(1))) == LAYERS * 2 * 4  # a slice from each of four
    assert descriptors_per_block(exchange(GQA, split(1), split(4))) == LAYERS * 2  # four post side by side


def test_engines_are_not_torn_over_nodes_and_pools_start_on_their_own() -> None:
    cells = seat([("p", 4), ("p", 4), ("p", 4), ("d", 2)], 8, apart=True)
    assert [c[0] for c in cells] == [(0, 0), (0, 4), (1, 0), (2, 0)]
    cells = seat([("p", 6), ("p", 4)], 8, apart=True)
    assert [c[0] for c in cells] == [(0, 0), (1, 0)]
    packed = seat([("g", 4), ("g", 4)], 8, apart=False)
    assert packed[1][-1] == (0, 7)
    large = seat([("p", 12)], 8, apart=True)
    assert large[0][7:9] == ((0, 7), (1, 0))


def pair_of(tp_src: int, tp_dst: int, wiring: Wiring, *, nvlink: float = 0.0, same_node: bool = False) -> float:
    """Lone bandwidth between two engines with 5 bytes/s cards."""
    cells = seat([("p", tp_src), ("p" if same_node else "d", tp_dst)], wiring.gpus_per_node, apart=True)
    seats = [Seat("a", cells[0], nvlink, 5.0), Seat("b", cells[1], nvlink, 5.0)]
    network = lay_out(seats, {(0, 1): exchange(GQA, split(tp_src), split(tp_dst))}, wiring)
    return network.paths[0, 1].alone_bytes_per_s(network.links)


def test_a_pair_is_as_fast_as_the_cards_of_its_smaller_side() -> None:
    assert pair_of(1, 1, Wiring()) == 5.0
    assert pair_of(4, 4, Wiring()) == 20.0
    assert pair_of(4, 2, Wiring()) == 10.0
    assert pair_of(1, 4, Wiring()) == 5.0


def test_cards_shared_by_gpus_are_shared() -> None:
    assert pair_of(8, 8, Wiring(nics_per_node=4)) == 20.0
    assert pair_of(1, 1, Wiring(nics_per_node=4)) == 5.0
    assert pair_of(1, 1, Wiring(nics_per_node=16)) == 10.0  # two cards a GPU


def test_an_oversubscribed_uplink_is_narrower_than_the_cards() -> None:
    assert pair_of(8, 8, Wiring(oversubscription=4.0)) == 10.0


def test_within_a_node_nvlink_is_taken() -> None:
    assert pair_of(2, 2, Wiring(), nvlink=50.0, same_node=True) == 100.0
    assert pair_of(2, 2, Wiring(), nvlink=50.0) == 10.0


def test_engines_that_share_a_card_compete_for_it() -> None:
    wiring = Wiring(nics_per_node=4)
    cells = seat([("p", 1), ("p", 1), ("d", 1), ("d", 1)], 8, apart=True)
    seats = [Seat(f"w{i}", c, 0.0, 5.0) for i, c in enumerate(cells)]
    one = exchange(GQA, split(1), split(1))
    network = lay_out(seats, {(0, 2): one, (1, 3): one}, wiring)
    used = [{c.link for c in network.paths[pair].crossings} for pair in ((0, 2), (1, 3))]
    assert used[0] == used[1]
    apart = lay_out(seats, {(0, 2): one, (1, 3): one}, Wiring())
    used = [{c.link for c in apart.paths[pair].crossings} for pair in ((0, 2), (1, 3))]
    assert not used[0] & used[1]
