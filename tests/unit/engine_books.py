"""Looks into engines' columns from outside, and sets them: compiled code keeps them where Python does not reach."""

from __future__ import annotations

from functools import cache
from types import SimpleNamespace
from typing import Any

from numba import config, njit


@cache
def _reader(names: str) -> Any:
    read = eval(f"lambda e: ({', '.join('e.' + name for name in names.split())},)")
    return read if config.DISABLE_JIT else njit(read)


@cache
def _writer(name: str) -> Any:
    made: dict[str, Any] = {}
    exec(f"def write(e, value):\n    e.{name} = value", made)
    return made["write"] if config.DISABLE_JIT else njit(made["write"])


def books(state: Any, names: str) -> SimpleNamespace:
    """Columns of a state by name, those of records in it as ``pool_free``; arrays are the engine's own."""
    values = _reader(names)(state)
    return SimpleNamespace(**dict(zip(names.replace(".", "_").split(), values, strict=True)))


def of(e: SimpleNamespace, live: list[int], *states: int) -> list[int]:
    """Of some slots, those in one of these states."""
    return [s for s in live if e.status[s] in states]


def look(state: Any, name: str) -> Any:
    """One column."""
    return _reader(name)(state)[0]


def put(state: Any, **columns: Any) -> None:
    """Set numbers, or replace arrays."""
    for name, value in columns.items():
        _writer(name)(state, value)
