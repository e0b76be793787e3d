"""Residual tables: how much longer a measured kernel took than its roofline, interpolated between measured shapes."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]

#: A shape further than this factor outside the measured ones gets the bare roofline.
REACH = 4.0
_EXACT = 1e-6


@dataclass(frozen=True, eq=False)
class ResidualTable:
    """``log(measured / roofline)`` of one kernel.

    ``features[g, d]``: logarithms of the numbers that make a shape (say n and k of a GEMM), one row a measured shape;
    ``scales[d]`` weigh them in the distance. ``x[i]`` (and ``y[j]``): logarithms of the counts along which each shape
    was measured (tokens, batch, context). ``values[g, i]`` or ``values[g, i, j]``. Between counts the residual is
    linear in the logarithms; outside them it keeps the edge's value. Between shapes it is a weighted mean of the
    ``neighbours`` nearest ones.
    """

    features: Floats
    scales: Floats
    x: Floats
    values: Floats
    y: Floats | None = None
    neighbours: int = 4
    _curves: dict[tuple[float, ...], Floats] = field(default_factory=dict, repr=False)

    def weights(self, shape: tuple[float, ...]) -> tuple[NDArray[np.int64], Floats]:
        """Rows and weights of the measured shapes that stand for ``shape`` (plain numbers, not logarithms)."""
        point = np.log(np.asarray(shape, dtype=np.float64))
        distance = np.sqrt((((self.features - point) * self.scales) ** 2).sum(axis=1))
        order = np.argsort(distance, kind="stable")[: self.neighbours]
        if distance[order[0]] < _EXACT:
            return order[:1].astype(np.int64), np.ones(1)
        weight = 1.0 / distance[order] ** 2
        return order.astype(np.int64), weight / weight.sum()

    def covers(self, shape: tuple[float, ...]) -> bool:
        """Whether ``shape`` lies within ``REACH`` of the measured shapes in every number."""
        point = np.log(np.asarray(shape, dtype=np.float64))
        low, high = self.features.min(axis=0), self.features.max(axis=0)
        edge = np.log(REACH) + _EXACT
        return bool(((point >= low - edge) & (point <= high + edge)).all())

    def no_wider(self, shape: tuple[float, ...]) -> tuple[float, ...]:
        """``shape``, whole numbers, with each cut to the largest that was measured."""
        largest = np.rint(np.exp(self.features.max(axis=0)))
        return tuple(map(float, np.where(self.are_beyond(shape), largest, shape)))

    def are_beyond(self, shape: tuple[float, ...]) -> NDArray[np.bool_]:
        """Which numbers of ``shape`` are larger than all that were measured."""
        found: NDArray[np.bool_] = np.log(shape) > self.features.max(axis=0) + _EXACT
        return found

    def curve(self, shape: tuple[float, ...]) -> Floats:
        """Residual over the measured counts for one shape; zeros (the bare roofline) out of reach."""
        found = self._curves.get(shape)
        if found is None:
            if self.covers(shape):
                rows, weight = self.weights(shape)
                found = np.tensordot(weight, self.values[rows], axes=(0, 0))
            else:
                found = np.zeros(self.values.shape[1:])
            self._curves[shape] = found
        return found

    def ratio(self, shape: tuple[float, ...], x: ArrayLike, y: ArrayLike | None = None) -> Floats:
        """measured / roofline at counts ``x`` (and ``y``), broadcast together."""
        curve = self.curve(shape)
        at_x = np.log(np.maximum(np.asarray(x, dtype=np.float64), 1e-9))
        if self.y is None:
            return np.exp(np.interp(at_x, self.x, curve))
        at_y = np.log(np.maximum(np.asarray(y, dtype=np.float64), 1e-9))
        return np.exp(_bilinear(self.x, self.y, curve, at_x, at_y))


def _place(axis: Floats, value: Floats) -> tuple[NDArray[np.int64], Floats]:
    i = np.clip(np.searchsorted(axis, value, side="right") - 1, 0, axis.size - 2)
    share = np.clip((value - axis[i]) / (axis[i + 1] - axis[i]), 0.0, 1.0)
    return i.astype(np.int64), share


def _bilinear(x: Floats, y: Floats, values: Floats, at_x: Floats, at_y: Floats) -> Floats:
    i, u = _place(x, at_x)
    j, v = _place(y, at_y)
    low = values[i, j] * (1 - v) + values[i, j + 1] * v
    high = values[i + 1, j] * (1 - v) + values[i + 1, j + 1] * v
    result: Floats = low * (1 - u) + high * u
    return result


_PARTS = ("features", "scales", "x", "y", "values")


def save_tables(path: str, tables: dict[str, ResidualTable]) -> None:
    """Write tables as one compressed ``.npz``; residuals as 16-bit floats (0.1 % steps at most)."""
    arrays: dict[str, NDArray[np.generic]] = {}
    for name, table in sorted(tables.items()):
        for part in _PARTS:
            value = getattr(table, part)
            if value is not None:
                arrays[f"{name}|{part}"] = value.astype(np.float16 if part == "values" else np.float32)
    np.savez_compressed(path, **arrays)  # type: ignore[arg-type]
    _archive.cache_clear()
    load_table.cache_clear()


@lru_cache(maxsize=16)
def _archive(path: str) -> tuple[object, frozenset[str]]:
    with np.load(path) as archive:
        return {key: archive[key] for key in archive.files}, frozenset(k.split("|")[0] for k in archive.files)


@lru_cache(maxsize=512)
def load_table(path: str, name: str) -> ResidualTable | None:
    """The table ``name`` of an ``.npz`` written by ``save_tables``, or None if it holds no such table."""
    arrays, names = _archive(path)
    if name not in names:
        return None
    assert isinstance(arrays, dict)
    parts = {p: np.asarray(arrays[f"{name}|{p}"], dtype=np.float64) for p in _PARTS if f"{name}|{p}" in arrays}
    return ResidualTable(parts["features"], parts["scales"], parts["x"], parts["values"], parts.get("y"))
