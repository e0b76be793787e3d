"""Checks that hold for every folder of measured workloads."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from simulator.cli import main


def say_what_requests_say(folder: Path, tolerance: float) -> None:
    """Means and percentiles of ``workloads.csv`` are those of the requests beside it."""
    for row in pd.read_csv(folder / "workloads.csv").to_dict("records"):
        table = pd.read_csv(folder / f"{row['stage']}.{row['workload']}.requests.csv.gz")
        ttft_ms = 1e3 * (table.first_token_s - table.arrival_s)
        tpot_ms = 1e3 * (table.last_token_s - table.first_token_s) / (table.output_tokens - 1)
        assert len(table) == row["requests"]
        assert ttft_ms.mean() == pytest.approx(row["ttft_mean_ms"], rel=tolerance)
        assert np.percentile(tpot_ms, 90) == pytest.approx(row["tpot_p90_ms"], rel=2 * tolerance)


def refusal(folder: Path, column: str, cell: str, copy: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """The one line that ``validate workloads`` says of the folder's first run with another cell."""
    table = pd.read_csv(folder / "workloads.csv").head(1)
    table[column] = cell
    table.to_csv(copy / "workloads.csv", index=False)
    name = f"{table.stage[0]}.{table.workload[0]}.requests.csv.gz"
    (copy / name).write_bytes((folder / name).read_bytes())
    assert main(["validate", "workloads", str(copy)]) == 2
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1 and captured.out == ""
    return captured.err
