"""Parquet files with native columns, or any columns named with ``--columns``; read in batches of rows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pa_parquet

from simulator.errors import TraceError
from simulator.workload.blocks import Batch
from simulator.workload.fields import TIME, fast_column, slow_column
from simulator.workload.formats import Format, detect

_BATCH_ROWS = 100_000
#: What pyarrow raises on damaged files, names that are not UTF-8 among them.
_BROKEN = (pa.ArrowException, OSError, ValueError, OverflowError, MemoryError)


def parquet_batches(file: Path, columns: Mapping[str, str] | None) -> tuple[Format, Iterator[Batch]]:
    """The format of a Parquet file and its rows; places in errors are row numbers from 1."""
    try:
        opened = pa_parquet.ParquetFile(file)
        schema = opened.schema_arrow
    except _BROKEN as error:
        raise TraceError(f"{file}: not a readable Parquet file: {_one_line(error)}") from None
    chosen = detect(schema.names, str(file), columns, "Parquet")
    arrival = chosen.names.get("arrival_s")
    if arrival is not None and pa.types.is_timestamp(schema.field(arrival).type):
        chosen = Format(**{**chosen.__dict__, "arrives": TIME, "log": True})
    return chosen, _batches(file, opened, chosen)


def _batches(file: Path, opened: pa_parquet.ParquetFile, chosen: Format) -> Iterator[Batch]:
    have = set(opened.schema_arrow.names)
    rules = [r for r in chosen.rules() if r.source in have]
    extra = dict.fromkeys(have - {r.source for r in rules}, 1)
    row = 1
    try:
        for part in opened.iter_batches(_BATCH_ROWS, columns=[r.source for r in rules]):
            part.validate(full=True)  # text that is not UTF-8 shows here, not when a name is first used
            found = {}
            for rule in rules:
                data = pa.chunked_array([part.column(rule.source)])
                if data.null_count == len(data) and not rule.required:
                    continue
                column = fast_column(rule, data)
                if column is None:
                    places = [f"{file}: row {row + i}" for i in range(len(data))]
                    column = slow_column(rule, data.to_pylist(), places)
                found[rule.native] = column
            if part.num_rows:
                yield Batch(found, np.arange(row, row + part.num_rows, dtype=np.int64), extra)
            row += part.num_rows
    except _BROKEN as error:
        raise TraceError(f"{file}: damaged after row {row - 1:,}: {_one_line(error)}") from None


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200]
