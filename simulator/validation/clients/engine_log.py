"""One JSON line a request with the engine's own moments: queued, first token, last token (seconds, one clock)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from simulator.errors import InputError
from simulator.validation.clients.measured import Columns, Measured, measured_of

_FIELDS = ("input_toks", "output_toks", "queued_ts", "first_token_ts", "last_token_ts")


def recognises(row: dict[str, Any]) -> bool:
    """By the names of its moments."""
    return "first_token_ts" in row and ("queued_ts" in row or "input_toks" in row)


def read(place: str, rows: list[dict[str, Any]], path: Path) -> Measured:
    """Requests at the moments the engine heard of them."""
    for number, row in enumerate(rows, 1):
        for name in _FIELDS:
            value = row.get(name)
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise InputError(f"{place}:{number}: {name}: found {value!r}; a number is expected")
    columns = Columns(
        [row["input_toks"] for row in rows],
        [row["output_toks"] for row in rows],
        [row["first_token_ts"] - row["queued_ts"] for row in rows],
        [row["last_token_ts"] - row["queued_ts"] for row in rows],
        [row["queued_ts"] for row in rows],
    )
    return measured_of(
        place,
        columns,
        name=path.name.split(".requests")[0],
        client="request log of the engine",
        load="timed",
        at_engine=True,
        notes=("times are the engine's own: the topology's front end is left out",),
    )
