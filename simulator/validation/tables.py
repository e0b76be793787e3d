"""Reads the CSV tables of measurements; anything wrong with a file is one line."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from simulator.errors import InputError


def read_table(path: Path, needed: Sequence[str], texts: Sequence[str] = ()) -> pd.DataFrame:
    """The CSV (plain or compressed) at ``path``; columns ``texts`` are kept as they are written.

    Raises InputError if it cannot be read, has no rows, or lacks a column of ``needed``.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    try:
        table = pd.read_csv(path, dtype=dict.fromkeys(texts, str))
    except (ValueError, OSError, EOFError, UnicodeError, pd.errors.ParserError) as problem:
        raise InputError(f"{path}: not a CSV table: {' '.join(str(problem).split())[:120]}") from None
    missing = [name for name in needed if name not in table.columns]
    if missing:
        raise InputError(f"{path}: column '{missing[0]}' is missing; needed: {', '.join(needed)}")
    if table.empty:
        raise InputError(f"{path}: the table has no rows")
    return table


def rows_of(table: pd.DataFrame) -> list[dict[str, Any]]:
    """The rows as plain mappings, column name to value."""
    return [{str(name): value for name, value in row.items()} for row in table.to_dict("records")]
