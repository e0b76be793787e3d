"""Trace formats, told apart by what is in the file: the keys of the first JSON object, or the header of a CSV."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from simulator.errors import TraceError, nearest, unknown
from simulator.workload.fields import FIELDS, LENGTH, NUMBER, REQUIRED, TIME, Rule

#: Resolution of the time stamps of a format, in seconds a unit.
MILLISECOND_S, SECOND_S = 1e-3, 1.0
#: A field that is this much like a native one is taken for a slip of the pen, and refused (difflib's ratio).
_MISSPELT = 0.8


@dataclass(frozen=True)
class Format:
    """How a file names its fields. ``names`` maps native fields to those of the file.

    ``time_unit_s``: seconds one unit of the arrival column stands for (ignored for dates). ``log``: a public log, in
    which rows of zero tokens are failures to be left out, and the first arrival becomes 0. ``bins``: arrivals may be
    rounded to coarse bins. ``arrives``: how arrivals are written; ``None`` where there are none.
    """

    label: str
    names: Mapping[str, str]
    arrives: str | None = NUMBER
    time_unit_s: float = SECOND_S
    log: bool = False
    bins: bool = False
    block_tokens: int | None = None
    ignored: frozenset[str] = field(default_factory=frozenset)

    def rules(self) -> list[Rule]:
        """One rule a field that is read."""
        return [
            Rule(
                native,
                source,
                (self.arrives or NUMBER) if native == "arrival_s" else FIELDS[native],
                native in REQUIRED,
                0 if self.log and FIELDS[native] == LENGTH else 1,
            )
            for native, source in self.names.items()
        ]


_LENGTHS = {"input_tokens": "input_length", "output_tokens": "output_length"}
NATIVE = Format("native", {name: name for name in FIELDS})
MOONCAKE = Format(
    "Mooncake",
    {"arrival_s": "timestamp", **_LENGTHS, "hash_ids": "hash_ids"},
    time_unit_s=MILLISECOND_S,
    log=True,
    bins=True,
    block_tokens=512,
)
# 16 tokens a block and seconds: the data card of alibaba-edu/qwen-bailian-usagetraces-anon.
BAILIAN = Format(
    "Qwen-Bailian",
    {"arrival_s": "timestamp", **_LENGTHS, "hash_ids": "hash_ids"},
    log=True,
    block_tokens=16,
    ignored=frozenset({"chat_id", "parent_chat_id", "type", "turn"}),
)
AZURE = Format(
    "Azure",
    {"arrival_s": "TIMESTAMP", "input_tokens": "ContextTokens", "output_tokens": "GeneratedTokens"},
    arrives=TIME,
    log=True,
)
BURSTGPT = Format(
    "BurstGPT",
    {
        "arrival_s": "Timestamp",
        "input_tokens": "Request tokens",
        "output_tokens": "Response tokens",
        "session_id": "Session ID",
    },
    log=True,
    bins=True,
    ignored=frozenset({"Elapsed time", "Model", "Total tokens", "Log Type"}),
)
VIDUR = Format(
    "Vidur",
    {"arrival_s": "arrived_at", "input_tokens": "num_prefill_tokens", "output_tokens": "num_decode_tokens"},
    log=True,
    ignored=frozenset({"num_total_tokens", "pd_ratio"}),
)
VIDUR_LENGTHS = Format(
    "Vidur lengths",
    {"input_tokens": "num_prefill_tokens", "output_tokens": "num_decode_tokens"},
    arrives=None,
    log=True,
    ignored=VIDUR.ignored,
)

KNOWN = (
    "native JSONL or CSV (arrival_s, input_tokens, output_tokens), Mooncake JSONL (timestamp, input_length, "
    "output_length), Qwen-Bailian JSONL, Azure CSV (TIMESTAMP, ContextTokens, GeneratedTokens), BurstGPT CSV "
    "(Timestamp, Request tokens, Response tokens), Vidur CSV (arrived_at, num_prefill_tokens, num_decode_tokens), "
    "ServeGen folder or tar.gz, Parquet with native columns, any other with --columns "
    "arrival_s=...,input_tokens=...,output_tokens=..."
)


def detect(keys: Sequence[str], place: str, columns: Mapping[str, str] | None, container: str) -> Format:
    """The format of a file with these keys or columns; ``columns`` (native field to file's) overrides the guess."""
    doubles = sorted({k for k in keys if list(keys).count(k) > 1})
    if doubles:
        raise TraceError(f"{place}: column '{doubles[0]}' is named {keys.count(doubles[0])} times; once is allowed")
    if columns is not None:
        return _custom(keys, place, columns)
    have = set(keys)
    for candidate in (BAILIAN, MOONCAKE, AZURE, BURSTGPT, VIDUR, VIDUR_LENGTHS):
        if candidate is BAILIAN and "parent_chat_id" not in have and "chat_id" not in have:
            continue
        if all(candidate.names[n] in have for n in REQUIRED if n in candidate.names):
            return _trim(candidate, have, container)
    if have & {*REQUIRED}:
        for name in REQUIRED:
            if name not in have:
                others = ", ".join(sorted(have))
                raise TraceError(
                    f"{place}: field '{name}' is missing{nearest(name, have - FIELDS.keys())}; found: {others}"
                )
        return _trim(NATIVE, have, container)
    found = ", ".join(f"'{k}'"[:40] for k in list(keys)[:12]) or "no names"
    raise TraceError(f"{place}: unknown trace format with {container} fields {found}; known: {KNOWN}")


def _trim(chosen: Format, have: set[str], container: str) -> Format:
    """The format without the columns this file lacks; a later line of JSON may have what the first one lacks."""
    if container == "JSON":
        return chosen
    names = {n: s for n, s in chosen.names.items() if s in have}
    return Format(**{**chosen.__dict__, "names": names})


def _custom(keys: Sequence[str], place: str, columns: Mapping[str, str]) -> Format:
    for native, source in columns.items():
        if native not in FIELDS:
            raise TraceError(unknown("--columns", "field", native, FIELDS))
        if source not in keys:
            raise TraceError(unknown(place, "column", source, keys))
    missing = [name for name in REQUIRED if name not in columns and name not in keys]
    if missing:
        raise TraceError(f"--columns: field '{missing[0]}' is not given; needed: {', '.join(REQUIRED)}")
    names = {name: name for name in FIELDS if name in keys and name not in columns}
    return Format("custom", {**names, **columns}, ignored=frozenset(keys))


def check_extra(extra: Mapping[str, int], chosen: Format, source: str) -> set[str]:
    """Fields of the file that are not read (name to line). A misspelt native field is an error, others are returned."""
    unread = {name for name in extra if name not in chosen.ignored and name not in chosen.names.values()}
    if chosen.label == "native":
        for name in sorted(unread):
            if like := misspelt(name):
                raise TraceError(f"{source}:{extra[name]}: unknown field '{name}' (did you mean '{like}'?)")
    return unread


def misspelt(name: str) -> str | None:
    """The native field a name was probably meant to be."""
    like = difflib.get_close_matches(name.lower(), FIELDS, n=1, cutoff=_MISSPELT)
    return like[0] if like else None
