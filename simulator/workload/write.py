"""Writes traces: native JSONL (plain, gzip or zstd) or Parquet; whole or not at all."""

from __future__ import annotations

import gzip
import io
import json
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pa_parquet
import zstandard

from simulator.errors import TraceError
from simulator.workload.trace import ABSENT, DEFAULT_BLOCK_TOKENS, Trace

_ROWS_A_PIECE = 10_000


def write_trace(trace: Trace, path: str | os.PathLike[str]) -> Path:
    """Write ``trace`` as ``.jsonl``, ``.jsonl.gz``, ``.jsonl.zst`` or ``.parquet``; same trace, same bytes.

    The file appears under its name only when complete. Reading it back gives the same columns, bit for bit (a
    constant ``priority`` of 0 and codes of names no request uses are not kept). Raises ``TraceError`` for an unknown
    ending or a folder that cannot be written.
    """
    target = Path(path)
    writers: dict[str, Callable[[Trace, IO[bytes]], None]] = {
        ".jsonl": _plain,
        ".jsonl.gz": _gzip,
        ".jsonl.zst": _zstd,
        ".parquet": _parquet,
    }
    ending = next((e for e in sorted(writers, key=len, reverse=True) if target.name.lower().endswith(e)), None)
    if ending is None:
        raise TraceError(f"{target}: unknown ending; allowed: {', '.join(writers)}")
    if target.is_dir():
        raise TraceError(f"{target}: is a directory; give a file name")
    try:
        handle, name = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
    except OSError as error:
        raise TraceError(f"{target}: cannot be written: {error.strerror}") from None
    try:
        with os.fdopen(handle, "wb") as file:
            writers[ending](trace, file)
            file.flush()
            os.fsync(file.fileno())
        Path(name).chmod(0o644)
        Path(name).replace(target)
    except OSError as error:
        raise TraceError(f"{target}: cannot be written: {error.strerror}") from None
    finally:
        with suppress(FileNotFoundError):
            Path(name).unlink()
    return target


def columns_of(trace: Trace, rows: slice = slice(None)) -> dict[str, list[Any]]:
    """Native fields of some rows as plain Python values; ``None`` where absent, fields the trace lacks left out."""
    found: dict[str, list[Any]] = {}
    if trace.request_id is not None:
        found["request_id"] = list(trace.request_id[rows])
    for name in ("arrival_s", "input_tokens", "output_tokens"):
        found[name] = getattr(trace, name)[rows].tolist()
    if (trace.max_output_tokens != ABSENT).any():
        found["max_output_tokens"] = _without(trace.max_output_tokens[rows].tolist(), ABSENT)
    if trace.hash_ids is not None and trace.hash_offsets is not None:
        bounds = trace.hash_offsets.tolist()
        begin, end, step = rows.indices(len(trace))
        found["hash_ids"] = [trace.hash_ids[bounds[i] : bounds[i + 1]].tolist() for i in range(begin, end, step)]
        if trace.block_tokens != DEFAULT_BLOCK_TOKENS:
            found["block_tokens"] = [trace.block_tokens] * len(found["hash_ids"])
    for name, codes, names in (
        ("session_id", trace.session, trace.session_names),
        ("tenant", trace.tenant, trace.tenant_names),
    ):
        if codes is not None and names is not None:
            found[name] = [None if c < 0 else names[c] for c in codes[rows].tolist()]
    if trace.turn is not None:
        found["turn"] = _without(trace.turn[rows].tolist(), ABSENT)
    if trace.think_s is not None:
        found["think_s"] = [None if np.isnan(v) else v for v in trace.think_s[rows].tolist()]
    if trace.priority is not None:
        found["priority"] = trace.priority[rows].tolist()
    return found


def _without(values: list[int], absent: int) -> list[int | None]:
    return [None if v == absent else v for v in values]


def _lines(trace: Trace) -> Iterator[bytes]:
    for begin in range(0, len(trace), _ROWS_A_PIECE):
        columns = columns_of(trace, slice(begin, begin + _ROWS_A_PIECE))
        piece = io.StringIO()
        for values in zip(*columns.values(), strict=True):
            row = {n: v for n, v in zip(columns, values, strict=True) if v is not None}
            piece.write(json.dumps(row, ensure_ascii=False, separators=(", ", ": ")) + "\n")
        yield piece.getvalue().encode()


def _plain(trace: Trace, file: IO[bytes]) -> None:
    for piece in _lines(trace):
        file.write(piece)


def _gzip(trace: Trace, file: IO[bytes]) -> None:
    # No name and no time in the header: the same trace gives the same bytes.
    with gzip.GzipFile(filename="", mode="wb", fileobj=file, mtime=0, compresslevel=6) as stream:
        _plain(trace, stream)  # type: ignore[arg-type]


def _zstd(trace: Trace, file: IO[bytes]) -> None:
    with zstandard.ZstdCompressor(level=9).stream_writer(file, closefd=False) as stream:
        _plain(trace, stream)


def _parquet(trace: Trace, file: IO[bytes]) -> None:
    columns = columns_of(trace)
    types = {"hash_ids": pa.list_(pa.int64()), "arrival_s": pa.float64(), "think_s": pa.float64()}
    texts = ("request_id", "session_id", "tenant")
    arrays = {n: pa.array(v, types.get(n, pa.string() if n in texts else pa.int64())) for n, v in columns.items()}
    pa_parquet.write_table(pa.table(arrays), file, compression="zstd")
