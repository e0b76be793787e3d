"""SGLang ``bench_serving --output-details``: one JSON line a run, lists in seconds, no moments of sending."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from simulator.errors import InputError
from simulator.validation.clients.measured import Measured, measured_of
from simulator.validation.clients.vllm_bench import columns_of, detailed_lists, failures, succeeded


def recognises(row: dict[str, Any]) -> bool:
    """By names only this client uses together."""
    return "request_rate" in row and "burstiness" not in row and ("input_lens" in row or "total_input_tokens" in row)


def read(place: str, rows: list[dict[str, Any]], path: Path) -> Measured:
    """The file's last run (the client appends)."""
    row = rows[-1]
    lists = detailed_lists(place, row, ("input_lens", "output_lens", "ttfts", "itls"), "--output-details")
    kept = succeeded(row, len(lists["ttfts"]))
    notes = failures(len(lists["ttfts"]) - len(kept))
    if len(rows) > 1:
        notes += (f"the last of {len(rows)} runs in the file",)
    rate, clients = row.get("request_rate"), row.get("max_concurrency")
    if not isinstance(rate, int | float) or isinstance(rate, bool) or not rate > 0:
        raise InputError(f"{place}: request_rate: found {rate!r}; requests a second are expected")
    closed = math.isinf(rate)
    if closed:
        clients = clients if isinstance(clients, int) and clients > 0 else len(kept)
    else:
        notes += ("the client keeps no moments of sending: a Poisson stream of its rate stands in",)
    return measured_of(
        place,
        columns_of(place, lists, kept, sent=None),
        name=path.name.split(".")[0],
        client="SGLang bench_serving",
        load="closed" if closed else "rate",
        clients=clients if closed else 0,
        rate=0.0 if closed else float(rate),
        notes=notes,
    )
