"""Two H200 of one host: the figures of docs/calibration.md, and the shipped profiles beside them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from simulator.calibration.calibrate import Calibration, calibrate
from simulator.calibration.composition import composed_tp_steps
from simulator.calibration.link_fit import beside_work, interference, layout_errors, peer_links
from simulator.calibration.measure.plan import read_plan
from simulator.calibration.measured import read_measured
from simulator.cost.collectives import nccl
from simulator.cost.kernels import kernels_of
from simulator.hardware.links import load_link
from simulator.hardware.profiles import load_gpu
from simulator.resources import shipped

pytest.importorskip("scipy")
MEASURED = shipped("hardware_profiles") / "measured"
TWO, ONE = read_measured(MEASURED / "h200_nvlink"), read_measured(MEASURED / "h200_sxm")
SECOND = read_measured(MEASURED / "h200_nvlink_second")
US = 1e-6


def nccl_s(kind: str, size: float) -> float:
    """Seconds of a collective between two H200 by the shipped kernels."""
    return float(nccl(kernels_of(load_gpu("h200_sxm")), kind, 2).time(np.array([size])).seconds[0])


def test_one_law_a_way_to_copy_fits_all_layouts() -> None:
    links = {fit.name: fit for fit in peer_links(TWO)}
    assert {name: len(layout_errors(TWO, fit)) for name, fit in links.items()} == {
        "peer/calls": 3,
        "peer/graph": 3,
        "peer/kernel": 3,
        "peer/calls/4 streams": 2,
        "peer/graph/4 streams": 2,
    }
    for name, fit in links.items():
        assert np.median(fit.held_back) < (0.06 if name == "peer/graph/4 streams" else 0.025), name
        assert max(layout_errors(TWO, fit).values()) < 0.05, name
    per_piece = {name: fit.per_piece_s / US for name, fit in links.items()}
    assert per_piece == {
        "peer/calls": pytest.approx(6.42, abs=0.05),
        "peer/graph": pytest.approx(2.48, abs=0.05),
        "peer/kernel": pytest.approx(0.0, abs=1e-3),
        "peer/calls/4 streams": pytest.approx(2.82, abs=0.05),
        "peer/graph/4 streams": pytest.approx(2.45, abs=0.05),
    }
    assert links["peer/kernel"].bandwidth_bytes_per_s == pytest.approx(373e9, rel=0.01)


def test_the_link_of_the_profile_reaches_what_one_long_copy_did() -> None:
    rows = TWO.table("peers")
    long = rows[(rows["layout"] == "range") & (rows["piece_bytes"] == rows["piece_bytes"].max())]
    rates = long.set_index("method")["piece_bytes"] / (long.set_index("method")["median_us"] * US)
    link = load_link("nvlink4")
    assert link.effective_bandwidth_bytes_per_s == pytest.approx(rates["calls"], rel=0.01)
    assert rates["kernel"] < rates["calls"]


def test_reads_of_kv_by_nixl_take_what_the_link_says_from_some_thousand_pieces_on() -> None:
    """Below, an engine notices a read's end milliseconds later; the first read of a size takes twice as long."""
    link, table = load_link("nvlink4"), TWO.table("nixl")
    table = table.assign(
        off=(
            link.setup_s
            + link.per_descriptor_s * table["descriptors"]
            + table["bytes"] / link.effective_bandwidth_bytes_per_s
        )
        / (table["median_us"] * US)
        - 1.0
    )
    run = table[table["what"] == "run"]
    assert len(run) == 40
    assert run["off"].median() == pytest.approx(0.025, abs=0.01)
    assert run["off"].abs().max() < 0.09
    again = table[table["what"] == "again"]
    assert again[again["descriptors"] >= 32768]["off"].abs().max() < 0.05
    assert again[again["descriptors"] >= 4096]["off"].between(0.0, 0.15).all()
    assert (again[again["descriptors"] < 4096]["off"] < -0.6).all()
    assert (table[(table["what"] == "first") & (table["descriptors"] >= 32768)]["off"] < -0.45).all()
    many = again[again["descriptors"] >= 16384]
    assert np.median(many["post_us"] / many["descriptors"]) == pytest.approx(3.2, abs=0.05)


def test_only_copies_that_share_processors_cost_the_work_beside_them() -> None:
    found = interference(TWO)
    assert len(found) == 14  # two cases of sixteen failed
    work = {key: factor for key, factor in found.items() if key[3] == "work"}
    assert all(factor == pytest.approx(1.0, abs=0.01) for key, factor in work.items() if key[0] == "graph")
    assert work["kernel", "decode", "sender", "work"] > 10
    copies = {key[:3]: factor for key, factor in found.items() if key[3] == "copy"}
    assert copies["graph", "decode", "sender"] == pytest.approx(1.25, abs=0.01)
    assert copies["kernel", "product", "sender"] == pytest.approx(1.20, abs=0.01)
    assert all(factor < 1.025 for key, factor in copies.items() if key[2] == "receiver")
    assert beside_work(TWO) == 1.0  # bytes by a copy engine were not timed beside work: pieces and kernels were


def test_the_second_pair_ran_every_case_and_agrees_on_what_runs_without_its_host() -> None:
    """Its host launches slowly; kernels, one long copy and what runs from a graph do not ask it."""
    found = interference(SECOND)
    assert len(found) == 24
    first = interference(TWO)
    assert all(found[key] == pytest.approx(first[key], abs=0.04) for key in first if key[3] == "copy")
    assert found["kernel", "decode", "sender", "work"] == pytest.approx(11.4, abs=0.1)
    ranges = {key[1:]: factor for key, factor in found.items() if key[0] == "graph, range"}
    assert all(factor == pytest.approx(1.0, abs=0.015) for key, factor in ranges.items() if key[2] == "copy")
    assert beside_work(SECOND) == pytest.approx(1.0, abs=0.01)
    # 390 GB/s that arrive or leave are 8 % of the memory's bandwidth, which decode attention is bound by
    assert ranges["decode", "receiver", "work"] == pytest.approx(1.087, abs=0.005)
    assert found["kernel", "decode", "receiver", "work"] == pytest.approx(1.082, abs=0.005)
    assert ranges["decode", "sender", "work"] == pytest.approx(1.056, abs=0.005)
    both = TWO.table("tp_step").merge(
        SECOND.table("tp_step"), on=["model", "tp", "seqs", "context", "new", "past", "mode"]
    )
    ratio = (both["median_us_y"] / both["median_us_x"]).groupby(both["mode"]).median()
    assert ratio["graph"] == pytest.approx(1.0, abs=0.01)
    assert ratio["eager"] > 1.3
    assert {fit.name: fit.per_piece_s / US for fit in peer_links(SECOND)}["peer/calls"] > 1.5 * 6.42


def test_collectives_of_a_graph_take_as_long_as_launched_ones_from_16_mib_on() -> None:
    table = SECOND.table("collectives")
    table = table[table["bytes"] >= 2**24].pivot_table(index=["operation", "bytes"], columns="mode", values="median_us")
    large = table[table.index.get_level_values("bytes") >= 2**26]
    assert len(large) == 4
    assert (large["graph"] / large["eager"]).between(0.99, 1.02).all()
    for (operation, size), us in large["graph"].items():
        kind = "all_reduce" if operation == "all_reduce" else "alltoall"
        assert nccl_s(kind, float(size)) / (us * US) == pytest.approx(1.0, abs=0.03)


@pytest.mark.parametrize(("operation", "kind"), [("all_reduce", "all_reduce"), ("all_to_all", "alltoall")])
def test_large_sums_and_exchanges_take_what_the_shipped_tables_say(operation: str, kind: str) -> None:
    table = TWO.table("collectives")
    table = table[table["operation"] == operation]
    for size, us in zip(table["bytes"], table["median_us"], strict=True):
        ratio = nccl_s(kind, float(size)) / (us * US)
        if size >= 2**24:
            assert ratio == pytest.approx(1.0, abs=0.03), size
        else:  # launched one by one: the launch is what takes so long
            assert 25.0 < us < 40.0
            assert ratio < 0.95


def test_tensor_parallel_steps_are_kernels_of_one_gpu_and_the_shipped_all_reduce() -> None:
    plan = read_plan(MEASURED / "plan.json")
    steps = list(composed_tp_steps(TWO, ONE, plan, lambda size: nccl_s("all_reduce", size)))
    assert len(steps) == len(plan.steps) == 20
    errors = np.array([abs(s.between_s / s.whole_s - 1.0) for s in steps])
    assert np.median(errors) < 0.04
    assert np.quantile(errors, 0.9) < 0.06
    assert errors.max() < 0.075
    bare = [(s.between_s - s.burst_s["all-reduce"]) / s.whole_s - 1.0 for s in steps]
    assert np.median(bare) < -0.15  # the sums are seen


def test_a_profile_comes_of_two_gpus_alone(tmp_path: Path) -> None:
    told: list[str] = []
    out = tmp_path / "two.yaml"
    calibrate(Calibration(out, rows=MEASURED / "h200_nvlink"), told.append)
    link = load_link(tmp_path / "two.nvlink.yaml")
    assert link.per_descriptor_s == pytest.approx(6.42e-6, rel=0.01)
    assert link.beside_work == 1.0
    assert load_gpu(out).nvlink_bandwidth_bytes_per_s == link.bandwidth_bytes_per_s
    assert sum("peer/calls/4 streams:" in line for line in told) == 2
