"""``vllm bench serve --save-result --save-detailed``: one JSON object with a list a field, seconds."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from simulator.errors import InputError
from simulator.validation.clients.measured import Columns, Measured, measured_of

_LISTS = ("input_lens", "output_lens", "ttfts", "itls")


def recognises(row: dict[str, Any]) -> bool:
    """By names only this client uses together."""
    return "request_rate" in row and "burstiness" in row and ("input_lens" in row or "total_input_tokens" in row)


def read(place: str, rows: list[dict[str, Any]], path: Path) -> Measured:
    """Moments of sending are kept (``start_times``); with a limit on requests and no rate it is a closed loop."""
    row = rows[-1]
    lists = detailed_lists(place, row, (*_LISTS, "start_times"), "--save-detailed")
    kept = succeeded(row, len(lists["ttfts"]))
    clients, rate = row.get("max_concurrency"), _rate(row.get("request_rate"))
    closed = isinstance(clients, int) and clients > 0 and rate is None
    notes = failures(len(lists["ttfts"]) - len(kept))
    if rate is not None and clients:
        notes += (f"{clients} requests at most were in flight: replayed at the moments they were sent",)
    return measured_of(
        place,
        columns_of(place, lists, kept, sent=lists["start_times"]),
        name=path.name.split(".")[0],
        client="vllm bench serve",
        load="closed" if closed else "timed",
        clients=clients if closed else 0,
        notes=notes,
    )


def detailed_lists(place: str, row: dict[str, Any], names: tuple[str, ...], option: str) -> dict[str, list[Any]]:
    """The parallel lists of one run. Raises InputError where the client was not asked to keep them."""
    found = {}
    for name in names:
        values = row.get(name)
        if not isinstance(values, list):
            raise InputError(f"{place}: '{name}' is missing; run the client with {option}, which keeps each request")
        found[name] = values
    lengths = {name: len(values) for name, values in found.items()}
    if len(set(lengths.values())) > 1:
        raise InputError(f"{place}: lists of different lengths: {', '.join(f'{n} {k}' for n, k in lengths.items())}")
    return found


def succeeded(row: dict[str, Any], count: int) -> list[int]:
    """Places of the requests without an error."""
    errors = row.get("errors") or [""] * count
    return [i for i in range(count) if i >= len(errors) or not errors[i]]


def failures(number: int) -> tuple[str, ...]:
    """What to say about requests that failed."""
    return (f"{number} requests failed and are left out, though they were load",) if number else ()


def columns_of(place: str, lists: dict[str, list[Any]], kept: list[int], sent: list[Any] | None) -> Columns:
    """The requests in ``kept``; the last token comes after the first and all gaps."""
    ends: list[object] = []
    for i in kept:
        gaps, first = lists["itls"][i], lists["ttfts"][i]
        try:
            ends.append(float(first) + math.fsum(gaps))
        except (TypeError, ValueError, OverflowError):
            raise InputError(f"{place}: request {i + 1}: itls: a list of seconds is expected") from None
    return Columns(
        [lists["input_lens"][i] for i in kept],
        [lists["output_lens"][i] for i in kept],
        [lists["ttfts"][i] for i in kept],
        ends,
        None if sent is None else [sent[i] for i in kept],
    )


def _rate(value: object) -> float | None:
    """Requests/s; None for "inf", which means all at once or a closed loop."""
    try:
        rate = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return None
    return rate if math.isfinite(rate) else None
