"""What tests of measured workloads have in common: a run of a folder, its error, and checks that hold for every folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from simulator.cli import main
from simulator.validation.workloads import WorkloadResult

#: Measurements that ship with the package.
MEASURED = Path(__file__).resolve().parents[2] / "hardware_profiles" / "measured"


def rows_of(folder: Path) -> list[dict[str, Any]]:
    return pd.read_csv(folder / "workloads.csv").to_dict("records")


def row_of(folder: Path, **columns: str) -> dict[str, Any]:
    """The folder's run with these cells."""
    return next(row for row in rows_of(folder) if all(row[name] == cell for name, cell in columns.items()))


def requests_of(folder: Path, row: dict[str, Any]) -> pd.DataFrame:
    return pd.read_csv(folder / f"{row['stage']}.{row['workload']}.requests.csv.gz")


def error(found: WorkloadResult, metric: str, statistic: str = "mean") -> float:
    return next(f.error_percent for f in found.figures if (f.metric, f.statistic) == (metric, statistic))


def say_what_requests_say(folder: Path, ttft_tolerance: float, tpot_tolerance: float) -> None:
    """Means and percentiles of ``workloads.csv`` are those of the requests beside it."""
    for row in rows_of(folder):
        table = requests_of(folder, row)
        ttft_ms = 1e3 * (table.first_token_s - table.arrival_s)
        tpot_ms = 1e3 * (table.last_token_s - table.first_token_s) / (table.output_tokens - 1)
        assert len(table) == row["requests"]
        assert ttft_ms.mean() == pytest.approx(row["ttft_mean_ms"], rel=ttft_tolerance)
        assert np.percentile(tpot_ms, 90) == pytest.approx(row["tpot_p90_ms"], rel=tpot_tolerance)


def refusal(folder: Path, column: str, cell: str, copy: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """The one line that ``validate workloads`` says of the folder's first run with another cell."""
    table = pd.read_csv(folder / "workloads.csv").head(1).astype(object)
    table[column] = cell
    table.to_csv(copy / "workloads.csv", index=False)
    name = f"{table.stage[0]}.{table.workload[0]}.requests.csv.gz"
    (copy / name).write_bytes((folder / name).read_bytes())
    assert main(["validate", "workloads", str(copy)]) == 2
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1 and captured.out == ""
    return captured.err
