"""Fits one kernel: roofline parameters by robust least squares on logarithms, then a table of what they leave over."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from simulator.calibration.kernel_rows import Rows
from simulator.cost.residual import ResidualTable
from simulator.errors import InputError

Floats = NDArray[np.float64]

#: Relative error at which a row begins to count as an outlier.
OUTLIER = 0.1
NEIGHBOURS = 6
#: Share of rows, or of shapes, held back to measure the error.
HELD_BACK = 0.2


#: Operators without a table of residuals.
_BARE = ("elementwise",)


@dataclass(frozen=True)
class Fitted:
    """Parameters of a kernel, its residual table (None where the operator takes none), and the rows they come from."""

    rows: Rows
    parameters: dict[str, float]
    table: ResidualTable | None


@dataclass(frozen=True, eq=False)
class HeldBack:
    """Relative errors on rows that were not fitted: of the roofline alone, with the table when single rows were held
    back, and with the table when whole shapes were (empty if there are too few shapes)."""

    name: str
    rows: int
    roofline: Floats
    table_rows: Floats
    table_shapes: Floats


def fit_parameters(rows: Rows) -> dict[str, float]:
    """Parameters that bring the roofline closest to the measurements, in the logarithm."""
    try:
        from scipy.optimize import least_squares
    except ImportError:  # pragma: no cover - scipy is a development dependency
        raise InputError("fitting kernel tables needs scipy: pip install scipy") from None
    names = list(rows.parameters)
    chosen = [rows.parameters[n] for n in names]
    scale = np.array([max(abs(p.start), 1e-12) for p in chosen])
    target = np.log(rows.measured_s)

    def parameters(x: Floats) -> dict[str, float]:
        return {**dict(zip(names, (x * scale).tolist(), strict=True)), **rows.fixed}

    def misfit(x: Floats) -> Floats:
        error: Floats = np.log(rows.roofline(parameters(x), rows.columns)) - target
        return error

    bounds = (np.array([p.low for p in chosen]) / scale, np.array([p.high for p in chosen]) / scale)
    start = np.array([p.start for p in chosen]) / scale
    return parameters(least_squares(misfit, start, bounds=bounds, loss="soft_l1", f_scale=OUTLIER).x)


def residuals(rows: Rows, parameters: dict[str, float]) -> Floats:
    """``log(measured / roofline)`` of each row."""
    found: Floats = np.log(rows.measured_s) - np.log(rows.roofline(parameters, rows.columns))
    return found


def residual_table(rows: Rows, parameters: dict[str, float]) -> ResidualTable:
    """What the roofline leaves over, one grid of counts a shape; gaps filled from nearby shapes and counts."""
    left = residuals(rows, parameters)
    shapes = np.stack([rows.columns[name] for name in rows.shape], axis=1)
    unique, at = np.unique(shapes, axis=0, return_inverse=True)
    axes = [rows.columns[rows.x]] + ([rows.columns[rows.y]] if rows.y else [])
    grids = [np.unique(axis) for axis in axes]
    values = np.full((len(unique), *(g.size for g in grids)), np.nan)
    places = tuple(np.searchsorted(g, axis) for g, axis in zip(grids, axes, strict=True))
    values[(at.ravel(), *places)] = left
    features, scales = np.log(unique), np.array(list(rows.shape.values()))
    full = fill_gaps(features * scales, values)
    y = np.log(grids[1]) if rows.y else None
    return ResidualTable(features, scales, np.log(grids[0]), full, y, NEIGHBOURS)


def fill_gaps(points: Floats, values: Floats) -> Floats:
    """Replace NaN in ``values[g, ...]``: the mean of the nearest shapes there, plus how this shape differs from them
    at the counts around, spread smoothly over the grid."""
    filled = values.copy()
    for g in range(len(values)):
        gaps = np.isnan(values[g])
        if not gaps.any():
            continue
        distance = np.sqrt(((points - points[g]) ** 2).sum(axis=1))
        distance[g] = np.inf
        near = np.argsort(distance, kind="stable")[: min(NEIGHBOURS, len(values) - 1)]
        prior = smooth(_weighted(values[near], 1.0 / distance[near] ** 2))
        filled[g] = np.where(gaps, prior + smooth(np.where(gaps, np.nan, values[g] - prior)), values[g])
    return filled


def _weighted(values: Floats, weights: Floats) -> Floats:
    shaped = weights.reshape(-1, *([1] * (values.ndim - 1)))
    there = ~np.isnan(values)
    total = (shaped * there).sum(axis=0)
    mean = np.where(there, values * shaped, 0.0).sum(axis=0) / np.maximum(total, 1e-30)
    return np.where(total > 0, mean, np.nan)


def smooth(grid: Floats) -> Floats:
    """Fill NaN of a grid so that each filled cell is the mean of its neighbours (zeros if there is nothing at all)."""
    known = ~np.isnan(grid)
    if known.all() or not known.any():
        return np.where(known, grid, 0.0)
    index = {cell: i for i, cell in enumerate(zip(*np.where(~known), strict=True))}
    matrix, right = np.zeros((len(index), len(index))), np.zeros(len(index))
    for cell, i in index.items():
        for axis in range(grid.ndim):
            for step in (-1, 1):
                other = (*cell[:axis], cell[axis] + step, *cell[axis + 1 :])
                if not 0 <= other[axis] < grid.shape[axis]:
                    continue
                matrix[i, i] += 1.0
                if other in index:
                    matrix[i, index[other]] -= 1.0
                else:
                    right[i] += grid[other]
    result = grid.copy()
    result[tuple(np.array(list(index)).T)] = np.linalg.solve(matrix, right)
    return result


def fit_kernel(rows: Rows) -> Fitted:
    """Parameters and table from all rows."""
    parameters = fit_parameters(rows)
    return Fitted(rows, parameters, residual_table(rows, parameters))


def fit_measured(rows: Rows) -> Fitted:
    """Parameters from all rows; the table from those without a past, which is where a step looks."""
    parameters = fit_parameters(rows)
    if rows.name.split("/")[0] in _BARE:
        return Fitted(rows, parameters, None)
    kept = rows.take(rows.columns["past"] == 0) if "past" in rows.columns else rows
    return Fitted(kept, parameters, residual_table(kept, parameters))


def predict(fitted: Fitted, rows: Rows) -> Floats:
    """Seconds of ``rows`` by roofline and table."""
    bare = rows.roofline(fitted.parameters, rows.columns)
    if fitted.table is None:
        return bare
    shapes = np.stack([rows.columns[name] for name in rows.shape], axis=1)
    unique, at = np.unique(shapes, axis=0, return_inverse=True)
    seconds = np.empty(len(rows))
    for i, shape in enumerate(unique):
        mine = at.ravel() == i
        x = rows.columns[rows.x][mine]
        y = rows.columns[rows.y][mine] if rows.y else None
        seconds[mine] = bare[mine] * fitted.table.ratio(tuple(shape.tolist()), x, y)
    return seconds


def _errors(seconds: Floats, measured_s: Floats) -> Floats:
    error: Floats = np.abs(seconds / measured_s - 1.0)
    return error


def held_back(rows: Rows, seed: int = 0) -> HeldBack:
    """Error on a fifth of the rows, and then of the shapes, that a fit on the others does not see."""
    rng = np.random.default_rng(seed)
    out = rng.random(len(rows)) < HELD_BACK
    fitted, test = fit_kernel(rows.take(~out)), rows.take(out)
    bare = test.roofline(fitted.parameters, test.columns)
    by_row = _errors(predict(fitted, test), test.measured_s)
    alone = _errors(bare, test.measured_s)
    shapes = np.stack([rows.columns[name] for name in rows.shape], axis=1)
    unique, at = np.unique(shapes, axis=0, return_inverse=True)
    by_shape = np.zeros(0)
    if len(unique) >= 1 / HELD_BACK:
        chosen = rng.permutation(len(unique))[: max(1, round(HELD_BACK * len(unique)))]
        out = np.isin(at.ravel(), chosen)
        test = rows.take(out)
        by_shape = _errors(predict(fit_kernel(rows.take(~out)), test), test.measured_s)
    return HeldBack(rows.name, len(rows), alone, by_row, by_shape)
