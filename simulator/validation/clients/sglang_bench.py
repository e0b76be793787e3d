"""SGLang ``bench_serving --output-details``: one JSON line a run, lists in seconds, no moments of sending."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, TypeGuard

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
    times = tokens_an_id(row)
    if times > 1.0:
        lists["input_lens"] = [_scaled(length, times) for length in lists["input_lens"]]
        notes += (
            f"prompts are the text of random ids, which the server tokenizes anew: {times:.3g} tokens stand for an id, "
            "as in this run's answers (exact with --tokenize-prompt)",
        )
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


def tokens_an_id(row: dict[str, Any]) -> float:
    """How many tokens the server makes of one id of a prompt; 1 where the client's counts are the server's.

    ``--dataset-name random-ids`` writes random token ids out as text and keeps the number of ids as the prompt's length
    (sglang/benchmark/datasets/random.py). The server tokenizes that text anew, into more tokens, since neighbours that
    no tokenizer would have put side by side are cut differently. The client counts what becomes of the answers' ids in
    the same way, ``total_output_tokens_retokenized``. The ids of a trained model's answers come back from their text:
    then nothing is known of the prompts, and nothing is changed.
    """
    again, ids = row.get("total_output_tokens_retokenized"), row.get("total_output_tokens")
    if row.get("dataset_name") != "random-ids" or not _positive(again) or not _positive(ids):
        return 1.0
    return max(1.0, again / ids)


def _positive(value: object) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and value > 0


def _scaled(length: object, times: float) -> object:
    """What is no number is left to the check of all columns."""
    return round(length * times) if _positive(length) else length
