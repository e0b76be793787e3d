"""vLLM 0.25.1 behind its HTTP server, measured by us on two hosts: closed loops, and what front end and clients took."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from simulator.cli import main
from simulator.validation.workloads import WorkloadResult, replay

MEASURED = Path(__file__).resolve().parents[2] / "hardware_profiles" / "measured" / "h200_vllm_http"


def rows() -> pd.DataFrame:
    return pd.read_csv(MEASURED / "workloads.csv")


def replayed(name: str, **changes: Any) -> WorkloadResult:
    row = rows().query("workload == @name").to_dict("records")[0]
    return replay({**row, **changes}, MEASURED)


def error(found: WorkloadResult, metric: str, statistic: str = "mean") -> float:
    return next(f.error_percent for f in found.figures if (f.metric, f.statistic) == (metric, statistic))


@pytest.mark.parametrize("name", ["drawn_c16", "fixed_c32", "drawn_c64", "long_drawn_c4"])
def test_closed_loops_over_http(name: str) -> None:
    found = replayed(name)
    assert abs(error(found, "ttft")) < 10 and abs(error(found, "ttft", "p99")) < 10
    assert abs(error(found, "tpot")) < 12


def test_the_front_end_of_an_in_process_client_is_not_that_of_a_server() -> None:
    """64 clients of equal lengths: without the server's own costs a third of the wait for the first token is missing."""
    name = "fixed_c64"
    own = replayed(name)
    other = replayed(name, engine_profile="vllm-0.25")
    assert abs(error(own, "ttft")) < 15
    assert error(other, "ttft") < error(own, "ttft") - 15


def test_rows_say_what_the_requests_say() -> None:
    for row in rows().to_dict("records"):
        table = pd.read_csv(MEASURED / f"{row['stage']}.{row['workload']}.requests.csv.gz")
        ttft_ms = 1e3 * (table.first_token_s - table.arrival_s)
        tpot_ms = 1e3 * (table.last_token_s - table.first_token_s) / (table.output_tokens - 1)
        assert len(table) == row["requests"] == 10 * row["clients"]
        assert ttft_ms.mean() == pytest.approx(row["ttft_mean_ms"], rel=1e-3)
        assert np.percentile(tpot_ms, 90) == pytest.approx(row["tpot_p90_ms"], rel=1e-3)
        # never more than that many at once
        edges = np.concatenate([table.arrival_s + 1e-6, table.last_token_s])
        steps = np.concatenate([np.ones(len(table)), -np.ones(len(table))])
        assert np.cumsum(steps[np.argsort(edges)]).max() <= row["clients"]


@pytest.mark.parametrize(
    ("column", "value", "said"),
    [
        ("clients", "-4", "clients"),
        ("clients", "many", "clients"),
        ("engine_profile", "vllm-0.25-htp", "vllm-0.25-http"),
    ],
)
def test_bad_columns_are_refused_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], column: str, value: str, said: str
) -> None:
    table = rows().head(1).astype({"clients": object})
    table[column] = value
    table.to_csv(tmp_path / "workloads.csv", index=False)
    name = f"{table.stage[0]}.{table.workload[0]}.requests.csv.gz"
    shutil.copy(MEASURED / name, tmp_path / name)
    assert main(["validate", "workloads", str(tmp_path)]) == 2
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1 and said in captured.err and captured.out == ""
