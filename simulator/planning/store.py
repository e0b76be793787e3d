"""Finished runs on disk, one Parquet file each, named by the run's content.

A file appears whole or not at all (written beside, then renamed), so a sweep may be killed at any moment, and two
sweeps may write to one store at once: the worst is that both compute the same run.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pa_parquet

from simulator.files import output_folder, replacing
from simulator.planning.runs import Outcome, Run, code


class Store:
    """A folder of finished runs. Raises InputError where it cannot be made or written to."""

    def __init__(self, folder: str | os.PathLike[str], option: str = "--store") -> None:
        self.folder = output_folder(folder, option)

    def path(self, key: str) -> Path:
        """Where the run with this key is, or would be."""
        return self.folder / f"{key}.parquet"

    def get(self, key: str) -> Outcome | None:
        """The outcome of a run, or None where it is not there (or its file cannot be read)."""
        path = self.path(key)
        if not path.is_file():
            return None
        try:
            row = pa_parquet.read_table(path).to_pylist()[0]
            return Outcome(json.loads(row["entry"]), row["problem"])
        except (OSError, pa.ArrowException, LookupError, ValueError):
            return None  # cut off by a full disk or a dead machine: done again, and replaced

    def put(self, key: str, run: Run, outcome: Outcome) -> None:
        """Keep an outcome."""
        row: dict[str, list[Any]] = {
            "key": [key],
            "simulator": [code()],
            "run": [json.dumps(asdict(run), sort_keys=True)],
            "entry": [json.dumps(outcome.entry)],
            "problem": [outcome.problem],
        }
        schema = pa.schema([(name, pa.string()) for name in row])
        with replacing(self.path(key)) as temporary:
            pa_parquet.write_table(pa.table(row, schema=schema), temporary)
