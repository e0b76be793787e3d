"""Links and collectives from measured copies, sums and exchanges."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from simulator.calibration.calibrate import Calibration, calibrate
from simulator.calibration.fit import fit_measured, held_back
from simulator.calibration.link_fit import (
    beside_work,
    fit_link,
    host_links,
    interference,
    layout_errors,
    peer_links,
)
from simulator.calibration.measure.ops import one_gpu
from simulator.calibration.measure.peers import places
from simulator.calibration.measure.plan import tiny_plan
from simulator.calibration.measured import Measured, read_measured, write_tables
from simulator.calibration.measured_rows import collective_rows
from simulator.errors import InputError
from simulator.hardware.links import load_link
from simulator.hardware.profiles import load_gpu
from simulator.resources import shipped

pytest.importorskip("scipy")
H200 = shipped("hardware_profiles") / "measured" / "h200_sxm"
SIDES = [(work, side) for work in ("product", "decode") for side in ("sender", "receiver")]


def test_the_terms_of_a_link_come_back_from_copies_made_of_them() -> None:
    pieces, size = (a.ravel() for a in np.meshgrid(2.0 ** np.arange(10), 4.0 ** np.arange(8, 14)))
    table = pd.DataFrame({"pieces": pieces, "bytes": size, "median_us": 10.0 + 3.0 * pieces + size / 50e3})
    found = fit_link("made", table)
    assert found.setup_s == pytest.approx(10e-6, rel=1e-3)
    assert found.per_piece_s == pytest.approx(3e-6, rel=1e-3)
    assert found.bandwidth_bytes_per_s == pytest.approx(50e9, rel=1e-3)
    assert found.held_back.size
    assert found.held_back.max() < 1e-3
    with pytest.raises(InputError, match="5 rows"):
        fit_link("made", table[:5])


def test_a_kernel_that_fetches_all_blocks_pays_nothing_for_each() -> None:
    """The figures of docs/calibration.md on host copies."""
    links = {fit.name: fit for fit in host_links(read_measured(H200))}
    assert set(links) == {f"{way}/{m}" for way in ("host_to_device", "device_to_host") for m in ("calls", "kernel")}
    for way in ("host_to_device", "device_to_host"):
        assert 2e-6 < links[f"{way}/calls"].per_piece_s < 3.5e-6
        assert links[f"{way}/kernel"].per_piece_s < 1e-8
        assert 50e9 < links[f"{way}/kernel"].bandwidth_bytes_per_s < 64e9


def test_interference_is_how_much_longer_it_takes_beside_the_other() -> None:
    about = {"method": "graph", "beside": "product", "side": "sender", "timed": "copy"}
    lines = [{**about, "loaded": loaded, "median_us": us} for loaded, us in ((False, 10.0), (True, 13.0))]
    found = interference(Measured({"interference": pd.DataFrame(lines)}, {}))
    assert found == {("graph", "product", "sender", "copy"): pytest.approx(1.3)}


def test_pieces_of_a_layer_lie_in_its_part_of_the_source() -> None:
    order = np.random.default_rng(0).permutation(256)[:128].tolist()
    assert places(order, "range") == [0]
    assert places(order, "blocks") == order
    layered = places(order, "layers")
    assert sorted(layered) == sorted(order)
    parts = [place * 32 // 256 for place in layered]
    assert parts == sorted(parts)
    assert layered != sorted(layered)


def made_peers() -> pd.DataFrame:
    """Copies of 5 us, 2 us a piece and 350 GB/s; four streams start pieces twice as fast; pieces of a layer lie better
    by a tenth."""
    lines = []
    for streams in (1, 4):
        for layout, better in (("blocks", 1.0), ("layers", 0.9)):
            for piece in (2**15, 2**17, 2**20):
                for pieces in (2, 16, 128, 1024):
                    us = better * (5.0 + 2.0 * pieces / (1 + (streams > 1)) + piece * pieces / 350e3)
                    about = {"layout": layout, "method": "calls", "piece_bytes": piece, "pieces": pieces}
                    lines.append({**about, "streams": streams, "median_us": us})
    return pd.DataFrame(lines)


def test_pieces_of_one_size_take_the_bandwidth_of_one_stream() -> None:
    """Nothing else can tell what starting a piece takes from what its bytes do."""
    table = made_peers()
    table = table[(table["streams"] == 1) | (table["piece_bytes"] == 2**15)]
    links = {fit.name: fit for fit in peer_links(Measured({"peers": table}, {}))}
    one, four = links["peer/calls"], links["peer/calls/4 streams"]
    assert four.bandwidth_bytes_per_s == pytest.approx(one.bandwidth_bytes_per_s)
    assert four.per_piece_s == pytest.approx(0.95e-6, rel=0.05)


def test_a_gpu_without_a_number_is_the_one_that_is_current_when_it_is_named() -> None:
    """'cuda' kept as it is would mean the second GPU while work there is set up, and kernels with it."""
    current = [0]
    device = one_gpu("cuda", lambda: current[0])
    current[0] = 1
    assert device == "cuda:0"
    assert one_gpu("cuda:1", lambda: 0) == "cuda:1"
    assert one_gpu("cpu", lambda: 0) == "cpu"


def made_interference() -> pd.DataFrame:
    """Copies take 1.2 times as long beside work on the sender, 1.1 on the receiver; work 1.3 times."""
    lines = []
    for work, side in SIDES:
        for timed, slower in (("copy", 1.2 if side == "sender" else 1.1), ("work", 1.3)):
            about = {"method": "graph", "layout": "range", "beside": work, "side": side, "timed": timed}
            lines += [{**about, "loaded": loaded, "median_us": 10.0 * (slower if loaded else 1)} for loaded in (0, 1)]
    return pd.DataFrame(lines).assign(loaded=lambda t: t["loaded"].astype(bool))


def test_streams_have_a_law_of_their_own_and_layouts_share_one() -> None:
    measured = Measured({"peers": made_peers()}, {})
    links = {fit.name: fit for fit in peer_links(measured)}
    assert set(links) == {"peer/calls", "peer/calls/4 streams"}
    assert links["peer/calls/4 streams"].per_piece_s == pytest.approx(0.5 * links["peer/calls"].per_piece_s, rel=0.02)
    off = layout_errors(measured, links["peer/calls"])
    assert set(off) == {"blocks", "layers"}
    assert max(off.values()) == pytest.approx(0.05, abs=0.03)


def test_copies_beside_work_slow_the_link_of_the_profile(tmp_path: Path) -> None:
    measured = read_measured(H200)
    tables = {"gemm_bf16": measured.table("gemm_bf16")[:60], "peers": made_peers()}
    alone, beside = tmp_path / "alone", tmp_path / "beside"
    write_tables(Measured(tables, measured.machine), alone)
    write_tables(Measured(tables | {"interference": made_interference()}, measured.machine), beside)
    told: list[str] = []
    for rows in (alone, beside):
        calibrate(Calibration(rows.with_suffix(".yaml"), rows=rows), told.append)
    quiet, busy = (load_link(rows.with_suffix(".nvlink.yaml")) for rows in (alone, beside))
    assert quiet.beside_work == 1.0
    assert busy.beside_work == pytest.approx(1.15)
    assert busy.effective_bandwidth_bytes_per_s == pytest.approx(quiet.effective_bandwidth_bytes_per_s / 1.15, rel=1e-3)
    assert "work takes 1.30 times as long" in busy.sources["beside_work"]
    assert any("median error by layout: blocks" in line for line in told)
    assert any("off in the median of rows held back" in line for line in told)


def test_copies_that_work_does_not_slow_leave_the_link_alone() -> None:
    faster = made_interference().assign(median_us=lambda t: np.where(t["loaded"], 9.0, 10.0))
    assert beside_work(Measured({"interference": faster}, {})) == 1.0
    assert beside_work(Measured({}, {})) == 1.0


def test_pieces_that_start_late_beside_work_say_nothing_of_bytes() -> None:
    pieces = Measured({"interference": made_interference().assign(layout="blocks")}, {})
    assert interference(pieces)["graph", "product", "sender", "copy"] == pytest.approx(1.2)
    assert beside_work(pieces) == 1.0


def test_collectives_of_two_ranks_become_kernels_of_the_profile() -> None:
    gpu, size = load_gpu("h200_sxm"), 4.0 ** np.arange(6, 15)
    lines = []
    for operation, share in (("all_reduce", 1.0), ("all_to_all", 0.5)):
        us = 6.0 + size * share / (0.6 * gpu.nvlink_bandwidth_bytes_per_s) * 1e6
        about = {"operation": operation, "ranks": 2}
        lines += [{**about, "bytes": b, "median_us": t} for b, t in zip(size, us, strict=True)]
    rows = list(collective_rows(Measured({"collectives": pd.DataFrame(lines)}, {}), gpu))
    assert [r.name for r in rows] == ["all_reduce/nccl/nccl", "alltoall/nccl/nccl"]
    for r in rows:
        found = fit_measured(r).parameters
        assert found["t0_s"] == pytest.approx(6e-6, rel=0.01)
        assert found["efficiency"] == pytest.approx(0.6, rel=0.01)
        assert found["t0_rank_s"] == 0.0
        assert np.median(held_back(r).table_rows) < 0.02


@pytest.mark.slow
def test_two_processes_sum_exchange_and_share_a_step() -> None:
    pytest.importorskip("torch")
    from simulator.calibration.measure.ranks import measure_ranks

    plan = tiny_plan()
    rows = measure_ranks("cpu", plan)
    assert len([r for r in rows if r["group"] == "collectives"]) == 2 * len(plan.collective_bytes)
    assert len([r for r in rows if r["group"] == "tp_step"]) == len(plan.steps)
    assert all(float(str(r["median_s"])) > 0 for r in rows)


def _fails(rank: int, folder: str) -> None:
    if rank == 1:
        raise ValueError("no such card")


def _waits(rank: int, folder: str) -> None:
    if rank == 1:
        time.sleep(60.0)


@pytest.mark.slow
def test_ranks_that_fail_or_wait_for_ever_are_ended_and_say_so() -> None:
    pytest.importorskip("torch")
    from simulator.calibration.measure.ranks import run_ranks

    assert run_ranks(_fails, ("",)) == "ValueError: no such card"
    assert run_ranks(_waits, ("",), longest_s=8.0) == "not done after 8 s"
