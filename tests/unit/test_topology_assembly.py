"""From a topology to engines and routes."""

from __future__ import annotations

import math
from typing import Any

import pytest

from simulator.cluster.assembly import assemble
from simulator.cluster.plan import ClusterPlan, Route
from simulator.cluster.topology import load_topology, topology_names
from simulator.errors import TopologyError
from simulator.network.fabric import Fabric


def plan_of(topology: Any, *overrides: str) -> ClusterPlan:
    return assemble(load_topology(topology, overrides))


def handover_s(plan: ClusterPlan, blocks: int) -> float:
    """A lone handover from the first prefill to the first decode engine."""
    assert plan.transfer is not None
    src, dst = next(iter(plan.transfer.routes))
    route, fabric = plan.transfer.route(src, dst), Fabric(plan.transfer.network)
    fabric.start(0, src, dst, route.wire_bytes(blocks), 0.0, delay_s=route.delay_s(blocks))
    ended: list[tuple[int, float]] = []
    while fabric.next_completion() < math.inf:
        ended += fabric.advance(fabric.next_completion())
    return ended[0][1]


@pytest.mark.parametrize("name", topology_names())
def test_every_shipped_topology_assembles_without_a_warning(name: str) -> None:
    plan = plan_of(name)
    assert plan.gpus == plan.topology.gpus and not plan.warnings
    assert [worker.index for worker in plan.workers] == list(range(len(plan.workers)))
    assert len({worker.name for worker in plan.workers}) == len(plan.workers)


def test_an_exact_case_has_just_its_own_numbers() -> None:
    plan = plan_of(
        {
            "name": "exact",
            "engine": {"profile": "vllm", "max_num_seqs": 256, "max_num_batched_tokens": 8192, "max_model_len": 131072},
            "step_time": {"base_s": 0.005, "per_token_s": 2e-05, "per_context_token_s": 4e-08},
            "kv_blocks": 28122,
            "pools": [{"name": "p", "role": "prefill"}, {"name": "d", "role": "decode", "engine": {"max_num_seqs": 8}}],
            "kv_transfer": {"setup_s": 0.002, "per_block_s": 2e-05},
        }
    )
    first, second = plan.workers
    assert first.step_cost.affine and first.step_cost.per_context_token_s == 4e-08
    assert (first.kv_blocks, first.max_sequences, second.max_sequences) == (28122, 256, 8)
    assert (first.frontend_before_s, first.frontend_after_s, first.max_context) == (0.0, 0.0, 131072)
    assert handover_s(plan, 100) == 0.002 + 100 * 2e-05
    assert plan.transfer is not None and plan.transfer.explicit and plan.transfer.mode == "pull"


def test_blocks_may_be_given_under_the_engines_own_name() -> None:
    base = {"name": "e", "step_time": {"base_s": 0.005}, "pools": [{"name": "p", "role": "colocated"}]}
    vllm = plan_of({**base, "engine": {"profile": "vllm", "num_gpu_blocks_override": 101}})
    assert vllm.workers[0].kv_blocks == 100
    sglang = plan_of({**base, "engine": {"profile": "sglang", "max_total_num_tokens": 6400, "page_size": 64}})
    assert sglang.workers[0].kv_blocks == 100 and sglang.workers[0].settings["max_total_tokens"] == 6400


def test_engine_settings_reach_the_step_cost() -> None:
    waiting = plan_of("colocated", "engine.async_scheduling=false").workers[0].step_cost
    hidden = plan_of("colocated").workers[0].step_cost
    assert waiting.decode_add_s[8] > hidden.decode_add_s[8]


def test_front_end_times_can_be_given() -> None:
    worker = plan_of("colocated", "frontend.before_s=0.25", "frontend.after_s=0.5").workers[0]
    assert (worker.frontend_before_s, worker.frontend_after_s) == (0.25, 0.5)


@pytest.mark.parametrize(
    ("topology", "overrides", "says"),
    [
        ("llama-3.1-9b/h100_sxm/1c", (), "model: unknown model 'llama-3.1-9b' (did you mean 'llama-3.1-8b'?)"),
        ("llama-3.1-8b/h100_sx/1c", (), "pools.colocated.gpu: unknown GPU 'h100_sx' (did you mean 'h100_sxm'?)"),
        ("llama-3.1-8b/h100_sxm:tp3/1c", (), "pools.colocated.parallel.tp: 3 does not split"),
        ("llama-3.1-8b/h100_sxm:tp2:ep2/1c", (), "pools.colocated.parallel.ep: 2, but llama-3.1-8b has no experts"),
        ("colocated", ("engine.max_model_len=200000",), "engine.max_model_len: 200000 is more than llama-3.1-8b takes"),
        ("1p1d", ("pools.decode.engine.block_size=32",), "block_size must be the same where KV is handed over"),
        ("llama-3.1-8b/h100_sxm/8p8d", ("network={kind: nvlink}",), "16 GPUs do not fit one NVLink domain of 8"),
        ("llama-3.1-8b@fp8/rtx_4090/1p1d", ("network={kind: nvlink}",), "has no NVLink"),
        ("1p1d", ("network.link=rdma_4000",), "unknown link 'rdma_4000'"),
    ],
)
def test_one_line_for_what_cannot_be(topology: str, overrides: tuple[str, ...], says: str) -> None:
    with pytest.raises(TopologyError) as error:
        plan_of(topology, *overrides)
    assert says in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("tokens", "measured_ms"),
    [(1024, 1.50), (2048, 2.51), (4096, 4.75), (8192, 8.84), (16384, 16.43), (32768, 31.65)],
)
def test_handover_times_of_vllm_over_eight_roce_cards(tokens: int, measured_ms: float) -> None:
    """Mooncake's documentation, vLLM 0.11.2, Qwen3-8B TP8 on H800s, eight 200 Gbit/s cards; whole blocks and one more.
    What is missed on short prompts is the price of a descriptor, which that table does not show."""
    plan = plan_of("qwen3-8b/h800_sxm:tp8/1p1d", "network.nic_gbit_per_s=200", "network.per_descriptor_s=0")
    assert handover_s(plan, tokens // 16 + 1) * 1e3 == pytest.approx(measured_ms, rel=0.08)


@pytest.mark.parametrize(("tokens", "measured_ms"), [(8192, 20.31), (16384, 39.14), (32768, 76.78)])
def test_handover_times_of_sglang_over_four_cards(tokens: int, measured_ms: float) -> None:
    """Mooncake's documentation, Qwen3-235B TP8 on H20-3e, four 400 Gbit/s cards a node; KV heads are sent twice. The
    engine profile's setup and the cards' efficiency are fits to this table."""
    overrides = ("network.nic_gbit_per_s=400", "network.nics_per_node=4")
    plan = plan_of("qwen3-235b-a22b@fp8/h20_3e:tp8/1p1d/sglang", *overrides)
    assert handover_s(plan, tokens + 1) * 1e3 == pytest.approx(measured_ms, rel=0.05)


@pytest.mark.parametrize(
    ("link", "cards", "measured"), [("mooncake_engine_200", 4, 87e9), ("mooncake_engine_400", 8, 190e9)]
)
def test_mooncakes_engine_by_name(link: str, cards: int, measured: float) -> None:
    """FAST'25, figure 12: what a node's cards moved together. Profiles of one system stand for nothing else."""
    plan = plan_of(
        "llama-3.1-70b/a800_80gb_sxm:tp8/1p1d", f"network={{kind: rdma, link: {link}, nics_per_node: {cards}}}"
    )
    assert plan.transfer is not None
    network = plan.transfer.network
    assert network.paths[0, 1].alone_bytes_per_s(network.links) == pytest.approx(measured, rel=1e-9)
    usual = plan_of(
        "llama-3.1-70b/a800_80gb_sxm:tp8/1p1d", "network={kind: rdma, nic_gbit_per_s: 200, nics_per_node: 4}"
    )
    assert usual.transfer is not None
    network = usual.transfer.network
    assert network.paths[0, 1].alone_bytes_per_s(network.links) == pytest.approx(73e9)


def test_blocks_side_by_side_make_fewer_pieces() -> None:
    plain, merged = (plan_of("1p1d", *change).transfer for change in ((), ("kv_transfer.coalesced_blocks=4",)))
    assert plain is not None and merged is not None
    assert merged.route(0, 1).per_block_s == plain.route(0, 1).per_block_s / 4 > 0
    assert merged.route(0, 1).wire_bytes(9) == plain.route(0, 1).wire_bytes(9)


def test_a_served_read_of_nixl_by_name() -> None:
    """vllm#50913: 1,785 pieces of 167 MB in 38.7 ms; here as many blocks of a cache with one layer's keys and values."""
    route = plan_of("llama-3.1-8b/h100_sxm/1p1d", "network={kind: nvlink, link: nixl_served}").transfer
    assert route is not None
    pieces_s = route.route(0, 1).per_block_s / 64  # 32 layers, keys and values
    speed = route.network.paths[0, 1].alone_bytes_per_s(route.network.links)
    assert route.route(0, 1).setup_s + 1785 * pieces_s + 167e6 / speed == pytest.approx(38.7e-3, rel=0.01)


def test_an_engine_that_posts_its_reads_stands_still_for_a_part_of_each() -> None:
    plan = plan_of("llama-3.1-8b/h100_sxm/1p1d", "network={kind: nvlink}").transfer
    cards = plan_of("llama-3.1-8b/h100_sxm/1p1d", "network={kind: rdma, nic_gbit_per_s: 400}").transfer
    assert plan is not None and cards is not None
    route, other = plan.route(0, 1), cards.route(0, 1)
    assert route.post_s_per_block == pytest.approx(0.86 * route.per_block_s)
    assert other.post_s_per_block == pytest.approx(other.per_block_s) and other.per_block_s > 0


def test_an_engine_on_several_cards_is_faster_than_on_one() -> None:
    free = "network.per_descriptor_s=0"
    one, four = plan_of("1p1d", free), plan_of("llama-3.1-8b/h100_sxm:tp4/1p1d", free)
    assert handover_s(four, 1000) < handover_s(one, 1000) / 3


def test_descriptors_cost_more_over_nvlink_than_the_bytes() -> None:
    """12,000 tokens between two GPUs of a node: 750 blocks x 32 layers x K and V at some 4 us each."""
    plan = plan_of("llama-3.1-8b/h200_sxm/1p1d", "network={kind: nvlink}")
    assert plan.transfer is not None
    route = plan.transfer.route(0, 1)
    assert route.delay_s(750) == pytest.approx(750 * 64 * 3.75e-6, rel=0.01)
    assert handover_s(plan, 750) < 1.05 * route.delay_s(750)


def test_windows_hold_back_most_of_the_bytes() -> None:
    plan = plan_of("gpt-oss-120b@mxfp4/h200_sxm/1p1d")
    assert plan.transfer is not None
    route = plan.transfer.route(0, 1)
    assert route.bytes_per_block == 16 * 36_864  # half of 73,728 bytes a token
    assert route.wire_bytes(0) == 0.0 and route.window_bytes == 18 * 128 * 2048


def test_compression_shortens_the_wire_and_adds_its_own_work() -> None:
    plain = plan_of("1p1d", "network.nic_gbit_per_s=10", "network.per_descriptor_s=0")
    small = plan_of(
        "1p1d",
        "network.nic_gbit_per_s=10",
        "network.per_descriptor_s=0",
        "kv_transfer.compression={ratio: 4.0, decode_s_per_token: 1e-6, chunk_tokens: 160}",
    )
    assert plain.transfer is not None and small.transfer is not None
    assert small.transfer.route(0, 1).bytes_per_block == plain.transfer.route(0, 1).bytes_per_block / 4
    assert small.transfer.route(0, 1).ready_s(0.0, 1.0, 100) == pytest.approx(1.0 + 160e-6)


def test_undoing_compression_is_hidden_but_for_the_last_chunk_unless_it_is_the_slower() -> None:
    fast = Route(0.0, 0.0, decode_s_per_block=0.1, chunk_blocks=2)
    assert fast.ready_s(0.0, 10.0, 10) == pytest.approx(10.2)
    slow = Route(0.0, 0.0, decode_s_per_block=10.0, chunk_blocks=2)
    assert slow.ready_s(0.0, 10.0, 10) == pytest.approx(2.0 + 100.0)
    assert Route(0.0, 0.0).ready_s(0.0, 10.0, 10) == 10.0


def test_mixed_engines_hand_over_among_themselves() -> None:
    plan = plan_of("llama-3.1-8b/h100_sxm/1p1d2m")
    assert plan.transfer is not None
    mixed = [worker.index for worker in plan.of_role("mixed")]
    assert (mixed[0], mixed[1]) in plan.transfer.routes and (mixed[0], mixed[0]) not in plan.transfer.routes
    assert plan.topology.gpus == 4


def test_pools_sit_on_nodes_of_their_own_unless_packed() -> None:
    apart = plan_of("llama-3.1-8b/h100_sxm/2p2d")
    assert [worker.node for worker in apart.workers] == [0, 0, 1, 1]
    packed = plan_of("llama-3.1-8b/h100_sxm/2p2d", "network.placement=packed")
    assert [worker.node for worker in packed.workers] == [0, 0, 0, 0]


def speed_of(topology: str, *overrides: str) -> float:
    """Bytes a second of a lone transfer between the first two engines."""
    plan = plan_of(topology, "kv_transfer.mode=pull", *overrides)
    assert plan.transfer is not None
    path = next(iter(plan.transfer.network.paths.values()))
    return path.alone_bytes_per_s(plan.transfer.network.links)


def narrowest(topology: str, name: str, *overrides: str) -> float:
    """Capacity of the links whose names hold ``name``."""
    transfer = plan_of(topology, *overrides).transfer
    assert transfer is not None
    return min((x.capacity_bytes_per_s for x in transfer.network.links if name in x.name), default=math.inf)


def test_racks_share_their_uplinks() -> None:
    pairs = "llama-3.1-8b/h100_sxm/16p16d"
    card = 50e9 * 0.855
    racks = "network.nodes_per_rack=2", "network.rack_oversubscription=4"
    assert narrowest(pairs, "rack 0 uplink", *racks) == pytest.approx(2 * 8 * card / 4)
    assert narrowest(pairs, "rack", "network.nodes_per_rack=4", "network.rack_oversubscription=4") == math.inf
    assert speed_of("llama-3.1-8b/h100_sxm/1p1d", "network.nodes_per_rack=1", "network.rack_oversubscription=64") == (
        pytest.approx(8 * card / 64)
    )


def test_rails_keep_traffic_of_one_place_off_the_uplinks() -> None:
    """Engines of eight GPUs send from each card to the same one in the other node."""
    big, narrow = "llama-3.1-70b/h100_sxm:tp8/1p1d", "network.oversubscription=8"
    assert speed_of(big, narrow) == pytest.approx(speed_of(big) / 8)
    assert speed_of(big, narrow, "network.rails=true") == pytest.approx(speed_of(big))
    crossing = "llama-3.1-8b/h100_sxm/2p2d", "network.gpus_per_node=2"
    transfer = plan_of(*crossing, narrow, "network.rails=true").transfer
    assert transfer is not None
    paths, links = transfer.network.paths, transfer.network.links
    uplinks = {pair: any("uplink" in links[c.link].name for c in path.crossings) for pair, path in paths.items()}
    assert uplinks == {(0, 2): False, (1, 3): False, (0, 3): True, (1, 2): True}


def test_sockets_are_bound_by_cores_and_then_by_the_line() -> None:
    def ethernet(more: str = "") -> str:
        return f"network={{kind: ethernet, nic_gbit_per_s: 100{more}}}"

    one = speed_of("1p1d", ethernet())
    assert one == pytest.approx(1 / 0.19e-9)
    assert speed_of("1p1d", ethernet(", cores_per_gpu: 2")) == pytest.approx(2 * one)
    assert speed_of("1p1d", ethernet(", cores_per_gpu: 8")) == pytest.approx(12.5e9 * 0.94)


def test_gpus_of_one_node_without_nvlink_use_pcie() -> None:
    packed = speed_of("llama-3.1-8b/l40s/1p1d", "network.placement=packed")
    assert packed == pytest.approx(32e9 * 0.82)
    assert speed_of("llama-3.1-8b/h100_sxm/1p1d", "network.placement=packed") == pytest.approx(450e9 * 0.87)


def test_a_rack_of_72_is_one_nvlink_domain() -> None:
    assert speed_of("llama-3.1-8b/gb200/36p36d", "network={kind: nvlink}") == pytest.approx(900e9 * 0.85)
    with pytest.raises(TopologyError, match="73 GPUs do not fit one NVLink domain of 72"):
        plan_of("llama-3.1-8b/gb200/36p37d", "network={kind: nvlink}")
