"""The lines of the result table: label, how to write a topology's cell, and what decides the best one."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from simulator.metrics.compare import best
from simulator.metrics.slo import TARGETS
from simulator.metrics.summary import Entry, per_gpu
from simulator.metrics.verdict import with_error
from simulator.metrics.wording import count, percent, rate, seconds

Cell = Callable[[Entry], str]

LATENCIES = {"ttft": "TTFT", "tpot": "TPOT", "itl": "ITL", "e2e": "E2E"}
SHORT_PARTS = {
    "queue": "queue",
    "cache_load": "load from caches",
    "prefill": "prefill",
    "kv_wait": "wait for transfer",
    "kv_transfer": "KV transfer",
    "decode_admission": "decode admission",
    "host": "host",
}


@dataclass(frozen=True)
class Row:
    """A line: ``metric`` names what decides the best value (empty: nothing is better or worse); ``opens`` a section."""

    label: str
    cell: Cell
    metric: str = ""
    opens: bool = False


def rows(entries: Sequence[Entry]) -> list[Row]:
    """All lines worth printing for these topologies; those that say nothing of any of them are left out."""
    return [*_counts(entries), *_rates(entries), *_latencies(entries), *_use(entries)]


def _counts(entries: Sequence[Entry]) -> Iterator[Row]:
    yield Row("GPUs", lambda entry: count(entry["gpus"]))
    yield Row("completed", _completed)
    for state in ("rejected", "failed", "timed_out", "cancelled", "unfinished"):
        if any(entry[state] for entry in entries):
            yield Row(state.replace("_", " "), _at(count, state))
    if any(entry["saturated"] for entry in entries):
        yield Row("saturated", lambda entry: "yes" if entry["saturated"] else "no")


def _completed(entry: Entry) -> str:
    done, asked = count(entry["completed"]), count(entry["requests"])
    return done if done == asked else f"{done} of {asked}"


def _rates(entries: Sequence[Entry]) -> Iterator[Row]:
    gpus_differ = len({entry["gpus"] for entry in entries}) > 1
    if entries[0]["slo_attainment"] is not None:
        yield Row("meet all targets", _at(percent, "slo_attainment"), "slo_attainment", opens=True)
        by_target = entries[0]["slo_attainment_by_target"]
        for name in by_target if len(by_target) > 1 else ():
            yield Row(f"  {TARGETS[name]}", _at(percent, "slo_attainment_by_target", name))
        yield Row("good requests/s", _at(rate, "goodput_requests_per_s"), "goodput_requests_per_s")
        if gpus_differ:
            yield _per_gpu("goodput_requests_per_s")
    yield Row("requests/s", _at(rate, "request_throughput_per_s"), opens=entries[0]["slo_attainment"] is None)
    yield Row("output tokens/s", _at(rate, "output_tokens_per_s"), "output_tokens_per_s")
    if gpus_differ:
        yield _per_gpu("output_tokens_per_s")


def _per_gpu(name: str) -> Row:
    return Row("  per GPU", lambda entry: rate(per_gpu(entry, name)), f"{name}_per_gpu")


def _latencies(entries: Sequence[Entry]) -> Iterator[Row]:
    for key, label in LATENCIES.items():
        opens = key != "itl"
        for spread in ("p99",) if key == "itl" else ("p50", "p99", "mean"):
            if any(entry[f"{key}_s"][spread] is not None for entry in entries):
                yield Row(f"{label} {spread}", _latency(key, spread), f"{key}_{spread}", opens)
                opens = False
        if key == "ttft":
            yield from _parts(entries)


def _latency(key: str, spread: str) -> Cell:
    """A latency, with the model's error where it is known: ``412 ms (± 14 %)``."""

    def cell(entry: Entry) -> str:
        return with_error(entry, key, spread)

    return cell


def _parts(entries: Sequence[Entry]) -> Iterator[Row]:
    """What the mean TTFT is made of, under it; parts that nobody has are left out."""
    for part, name in SHORT_PARTS.items():
        if any(entry["ttft_parts_s"][part] for entry in entries):
            yield Row(f"  {name}", _at(seconds, "ttft_parts_s", part))


def _use(entries: Sequence[Entry]) -> Iterator[Row]:
    yield Row("busy", _by_pool("utilisation", percent), opens=True)
    yield Row("KV peak", _by_pool("kv_peak_fraction", percent))
    if any(pool["preemptions"] for entry in entries for pool in entry["pools"]):
        yield Row("preemptions", _by_pool("preemptions", count))
    if any(entry["cache"]["hit_token_ratio"] for entry in entries):
        yield Row("prompt from cache", _at(percent, "cache", "hit_token_ratio"))
    yield from _economics(entries)


def _economics(entries: Sequence[Entry]) -> Iterator[Row]:
    """Dollars and joules, where prices and powers are known."""
    for label, key, name in (
        ("USD/million tokens", "cost", "usd_per_million_tokens"),
        ("joules/token", "energy", "joules_per_token"),
    ):
        if any(entry[key][name] is not None for entry in entries):
            yield Row(label, _at(rate, key, name), name)


def _at(write: Callable[[Any], str], *keys: str) -> Cell:
    """Write the value at ``keys`` of an entry."""

    def cell(entry: Entry) -> str:
        value: Any = entry
        for key in keys:
            value = value[key]
        return write(value)

    return cell


def _by_pool(key: str, write: Callable[[Any], str]) -> Cell:
    """One value for a single pool, else a line a pool."""

    def one(pool: Mapping[str, Any]) -> str:
        value = pool[key]
        return "–" if value is None or math.isnan(value) else write(value)

    def cell(entry: Entry) -> str:
        pools = entry["pools"]
        if not pools:
            return "–"
        return one(pools[0]) if len(pools) == 1 else "\n".join(f"{pool['name']} {one(pool)}" for pool in pools)

    return cell


def best_of_rows(entries: Sequence[Entry]) -> dict[str, list[str]]:
    """Metric to names of the best; a row in which all tie marks nobody."""
    if len(entries) < 2:
        return {}
    metrics = {row.metric for row in rows(entries) if row.metric}
    found = {metric: best(entries, metric) for metric in metrics}
    return {metric: names for metric, names in found.items() if len(names) < len(entries)}
