"""Model errors: the table from residuals, the look-up, and where it is shown."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import yaml

from simulator import simulate
from simulator.cli import main
from simulator.metrics.model_error import ErrorTable, load_error_table, load_of
from simulator.validation.error_table import build_error_table, interval
from simulator.workload.trace import Trace

TRACE = Trace.from_columns(np.arange(60) * 0.3, np.full(60, 800), np.full(60, 60))
ON_H100 = {
    "name": "one",
    "model": "llama-3.1-8b",
    "engine": {"profile": "vllm-0.25", "max_model_len": 8192},
    "pools": [{"name": "engine", "role": "colocated", "gpu": "h100_sxm"}],
}


def row(model: str = "llama-3.1-8b", off: float = 1.1, **more: object) -> dict[str, object]:
    known = {
        "backend": "vllm",
        "system": "h100_sxm",
        "precision": "bf16",
        "mode": "agg",
        "quality": "ok",
        "problem": None,
    }
    lengths = {"isl": 1000, "osl": 100, "concurrency": 4, "engines": ["1 colocated tp1 pp1 dp1 ep1"]}
    measured = {"ttft_mean_ms": 100.0, "tpot_mean_ms": 10.0}
    made = {f"simulated_{name}": value * off for name, value in measured.items()}
    return {"model": model, **known, **lengths, **measured, **made, **more}


def rows_file(tmp_path: Path, rows: list[dict[str, object]]) -> Path:
    path = tmp_path / "rows.json"
    path.write_text(json.dumps({"rows": rows}))
    return path


def test_intervals_hold_their_share_of_deployments_left_out() -> None:
    draw = np.random.default_rng(1)
    groups = [np.abs(draw.normal(0, 0.1, n)).tolist() for n in (30, 8, 12, 15, 40, 9, 17, 25)]
    width, covered = interval(groups)
    assert covered >= 0.8
    assert 10 < width < 20
    wider, _ = interval([[2 * value for value in group] for group in groups])
    assert math.log1p(wider / 100) == pytest.approx(2 * math.log1p(width / 100))


def test_a_deployment_of_many_loads_does_not_outvote_the_others() -> None:
    width, _ = interval([[0.01] * 200, [0.5], [0.5], [0.5], [0.5]])
    assert width == pytest.approx(100 * math.expm1(0.5))


def test_the_table_has_a_cell_for_each_regime_with_enough_runs(tmp_path: Path) -> None:
    models = ("llama-3.1-8b", "llama-3.1-70b", "qwen3-32b", "gpt-oss-120b")
    rows = [row(model, off, osl=100 + i) for model in models for i, off in enumerate((0.9, 1.05, 1.1))]
    rows.append(row(system="gb200", problem="does not fit"))
    table = ErrorTable.model_validate(yaml.safe_load(build_error_table(rows_file(tmp_path, rows))))
    keys = {cell.key for cell in table.cells}
    assert ("vllm", "colocated", "idle", "measured") in keys
    assert not any(key[3] == "derived" for key in keys)
    assert table.hull.gpus == ["h100_sxm"]
    cell = table.find("vllm", "colocated", "idle", "measured")
    assert cell.runs == 12 and cell.deployments == 4
    assert cell.tpot_percent == pytest.approx(100 * (1 / 0.9 - 1), abs=0.1)
    assert table.find("sglang", "disaggregated", "loaded", "derived").key == ("any",) * 4


def test_rows_that_are_no_rows_are_refused(tmp_path: Path, capsys) -> None:  # type: ignore[no-untyped-def]
    bad = row()
    del bad["osl"]
    for content, words in (('{"rows": []}', "no simulated run"), (json.dumps({"rows": [bad]}), "'osl' is missing")):
        path = tmp_path / "rows.json"
        path.write_text(content)
        assert main(["validate", "errors", str(path)]) == 2
        assert words in capsys.readouterr().err


def test_forecasts_carry_the_error_of_their_regime() -> None:
    shipped = load_error_table()
    assert shipped is not None
    found = simulate(TRACE, ON_H100)
    error = found.summary()["model_error"]
    cell = shipped.find("vllm", "colocated", "idle", "measured")
    assert error["regime"] == {"engine": "vllm", "mode": "colocated", "load": "idle", "profile": "measured"}
    assert error["ttft_percent"]["mean"] == cell.ttft_percent
    assert error["ttft_percent"]["p99"] > cell.ttft_percent
    assert error["outside"] == []
    assert f"(± {error['tpot_percent']['p99']:.0f} %)" in repr(found)


def test_what_lies_outside_everything_measured_is_said() -> None:
    pool = {"name": "engine", "role": "colocated", "gpu": "mi300x", "parallel": {"tp": 8}}
    strange = {**ON_H100, "model": "llama-3.1-405b", "engine": {"profile": "vllm-0.25"}, "pools": [pool]}
    found = simulate(Trace.from_columns([0.0, 5.0], [40_000, 40_000], [10, 10]), strange)
    error = found.summary()["model_error"]
    assert error["regime"]["profile"] == "derived"
    assert [what.split()[0] for what in error["outside"]] == ["GPU", "model", "prompts", "outputs"]
    assert "is far from everything measured: GPU mi300x" in repr(found).replace("\n", " ")


def test_a_step_time_given_outright_has_no_model_error() -> None:
    given = {**ON_H100, "step_time": {"base_s": 0.01}, "kv_blocks": 5000}
    found = simulate(TRACE, given)
    assert found.summary()["model_error"] is None
    assert "±" not in repr(found)


def test_loads() -> None:
    assert [load_of(n, saturated=False) for n in (1, 8, 9, 128, 129)] == [
        "idle",
        "idle",
        "loaded",
        "loaded",
        "saturated",
    ]
    assert load_of(1, saturated=True) == "saturated"
