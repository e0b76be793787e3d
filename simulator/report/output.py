"""What ``--out`` leaves in a folder: ``requests.parquet``, ``result.json`` and pictures."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from simulator.cluster.result import RunResult
from simulator.files import dumps, output_folder, replacing, write_text
from simulator.metrics.slo import SLO

if TYPE_CHECKING:
    import pandas as pd


def write_results(
    folder: str | os.PathLike[str],
    document: Mapping[str, Any],
    runs: Sequence[RunResult],
    frames: Iterable[tuple[str, pd.DataFrame]],
    *,
    slo: SLO,
    warmup_s: float = 0.0,
) -> list[Path]:
    """Write everything into ``folder`` (made where missing); returns the paths. ``frames``: name and table a run."""
    from simulator.report.pictures import heading_of, write_pictures

    place = output_folder(folder)
    write_text(place / "result.json", dumps(document))
    write_requests(place / "requests.parquet", frames)
    entries = document["topologies"]
    heading = heading_of(document["trace"], [entry["model"] for entry in entries])
    pictures = write_pictures(place, runs=runs, entries=entries, slo=slo, warmup_s=warmup_s, heading=heading)
    return [place / "result.json", place / "requests.parquet", *pictures]


def write_requests(path: Path, frames: Iterable[tuple[str, pd.DataFrame]]) -> None:
    """One Parquet file, one row a request; the first column, ``topology``, says of which run."""
    import pyarrow as pa
    import pyarrow.parquet as pa_parquet

    with replacing(path) as temporary:
        writer = None
        try:
            for name, frame in frames:
                table = _plain_columns(pa.Table.from_pandas(frame, preserve_index=False))
                table = table.add_column(0, "topology", pa.repeat(pa.scalar(name), len(table)))
                if writer is None:
                    writer = pa_parquet.ParquetWriter(temporary, table.schema, compression="zstd")
                writer.write_table(table)
        finally:
            if writer is not None:
                writer.close()


def _plain_columns(table: Any) -> Any:
    """Names as strings (Parquet has its own dictionaries), without pandas' notes, which name its version."""
    import pyarrow as pa

    for place, field in enumerate(table.schema):
        if pa.types.is_dictionary(field.type):
            table = table.set_column(place, field.name, table.column(place).cast(pa.string()))
    return table.replace_schema_metadata(None)
