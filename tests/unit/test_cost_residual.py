"""Residual tables: exact where measured, smooth between, bare roofline far outside."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from simulator.calibration.fit import fill_gaps, smooth
from simulator.cost.residual import ResidualTable, load_table, save_tables


def table(rng: np.random.Generator, *, two: bool) -> ResidualTable:
    shapes = np.array([[1024.0, 1024.0], [2048.0, 4096.0], [8192.0, 1024.0], [4096.0, 4096.0]])
    size = (4, 5, 3) if two else (4, 5)
    y = np.log([16.0, 64.0, 256.0]) if two else None
    return ResidualTable(
        np.log(shapes), np.array([1.0, 0.5]), np.log([1.0, 4, 16, 64, 256]), rng.normal(0, 0.2, size), y
    )


@pytest.mark.parametrize("two", [False, True])
def test_measured_shapes_and_counts_come_back_exactly(two: bool) -> None:
    found = table(np.random.default_rng(0), two=two)
    for g in range(4):
        shape = tuple(np.exp(found.features[g]).tolist())
        if two:
            ratio = found.ratio(shape, np.exp(found.x)[:, None], np.exp(found.y)[None, :])
        else:
            ratio = found.ratio(shape, np.exp(found.x))
        assert np.log(ratio) == pytest.approx(found.values[g])


def test_between_counts_the_logarithm_is_linear_and_beyond_them_it_stays() -> None:
    found = table(np.random.default_rng(1), two=False)
    middle = np.log(found.ratio((1024.0, 1024.0), 8.0))
    assert middle == pytest.approx((found.values[0, 1] + found.values[0, 2]) / 2)
    assert np.log(found.ratio((1024.0, 1024.0), 1e6)) == pytest.approx(found.values[0, -1])


def test_between_shapes_it_is_a_weighted_mean_and_far_away_the_bare_roofline() -> None:
    found = table(np.random.default_rng(2), two=False)
    between = np.log(found.ratio((3000.0, 2000.0), 16.0))
    assert found.values[:, 2].min() <= between <= found.values[:, 2].max()
    assert not found.covers((8192.0 * 4.1, 1024.0))
    assert found.ratio((8192.0 * 4.1, 1024.0), 16.0) == pytest.approx(1.0)


def test_tables_survive_a_file_to_a_tenth_of_a_per_cent(tmp_path: Path) -> None:
    found = table(np.random.default_rng(3), two=True)
    path = str(tmp_path / "x.npz")
    save_tables(path, {"gemm/vllm/bf16": found})
    again = load_table(path, "gemm/vllm/bf16")
    assert again is not None
    assert load_table(path, "gemm/vllm/fp8") is None
    shape = (2048.0, 4096.0)
    assert again.ratio(shape, 10.0, 100.0) == pytest.approx(found.ratio(shape, 10.0, 100.0), rel=1e-3)


def test_a_gap_on_a_plane_is_filled_with_the_plane() -> None:
    plane = np.add.outer(np.arange(5.0), 2 * np.arange(4.0))
    holed = plane.copy()
    holed[2, 2] = holed[1, 1] = np.nan
    assert smooth(holed) == pytest.approx(plane)
    assert (smooth(np.full((2, 2), np.nan)) == 0).all()


def test_a_gap_follows_what_nearby_shapes_do_at_that_count() -> None:
    bump = np.array([0.0, 0.0, 1.0, 0.0, 0.0])
    values = np.stack([bump + 0.1 * g for g in range(5)])
    values[2, 2] = np.nan
    points = np.arange(5.0)[:, None]
    assert fill_gaps(points, values)[2, 2] == pytest.approx(1.2, abs=0.02)
