"""Published figures: rows are well formed, errors are what they say, and the command tells misses from skips."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from simulator.cli import main
from simulator.cluster.simulation import run_plan
from simulator.errors import InputError
from simulator.validation.published import all_rows, chosen_rows, runs, validate_published
from simulator.validation.published.rows import DATA, Check, Row, public_data
from simulator.workload.arrivals import Arrivals
from simulator.workload.trace import Trace

ROWS = list(all_rows())
#: Systems whose figures need no run of a cluster, and no data.
QUICK = ("deepep", "deepseek", "sglang", "splitwise")


def row(simulated: float, published: float, **changes: object) -> Check:
    values = {
        "id": "x",
        "system": "s",
        "source": "a paper",
        "setup": "a set-up",
        "kind": "predicted",
        "unit": "ms",
        "published": published,
        "tolerance": 10.0,
        "simulate": lambda: simulated,
        **changes,
    }
    return Row(**values).check()  # type: ignore[arg-type]


def test_every_row_has_an_id_of_its_own_a_source_and_a_tolerance() -> None:
    ids = Counter(row.id for row in ROWS)
    assert max(ids.values()) == 1
    for one in ROWS:
        assert one.source and one.setup and one.published > 0
        assert 0 < one.tolerance <= 20
        assert one.kind == "predicted" or one.note, f"{one.id} is fitted, but does not say what was"


def test_there_are_predictions_of_every_system() -> None:
    predicted = Counter(row.system for row in ROWS if row.kind == "predicted")
    assert sum(predicted.values()) >= 30
    assert {"mooncake", "sglang", "deepseek", "deepep", "splitwise", "distserve"} <= set(predicted)


def test_most_predictions_that_need_no_cluster_are_met() -> None:
    report = validate_published(QUICK)
    met, missed, skipped = report.counted("predicted")
    assert skipped == 0
    assert met >= 60 and missed <= 25
    assert report.counted("fitted")[1] == 0


def test_errors_are_relative_and_those_of_shares_in_points() -> None:
    assert row(11.0, 10.0).error == pytest.approx(10.0)
    assert row(10.9, 10.0).ok and not row(11.1, 10.0).ok
    share = row(0.52, 0.5, in_points=True, tolerance=2.0)
    assert share.error == pytest.approx(2.0)
    assert not row(float("nan"), 10.0).ok


def test_missing_data_skip_a_row_and_fail_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(DATA, str(tmp_path))
    skipped = row(0.0, 1.0, simulate=lambda: float(public_data("traces", "none.csv").stat().st_size))
    assert skipped.ok is None and "none.csv" in skipped.skipped
    report = validate_published(["mooncake-hits"])
    assert report.ok and report.counted("predicted") == (0, 0, 6)


def test_names_choose_systems_and_beginnings_of_ids() -> None:
    assert {row.system for row in chosen_rows(["deepep"])} == {"deepep"}
    assert all(row.id.startswith("splitwise-bloom") for row in chosen_rows(["splitwise-bloom"]))
    with pytest.raises(InputError, match="did you mean 'deepep'"):
        chosen_rows(["deepp"])


def test_the_slowest_gaps_of_a_request_are_those_behind_prompts() -> None:
    """One engine at 10 ms a step and 1 ms a prompt token: the second request's prompt stalls the first once."""
    topology = {
        "name": "one",
        "engine": {"profile": "vllm-0.25", "async_scheduling": False, "prefix_caching": False},
        "step_time": {"kind": "affine", "base_s": 0.01, "per_token_s": 0.001},
        "kv_blocks": 1000,
        "pools": [{"name": "whole", "role": "colocated"}],
    }
    columns = (np.array([0.0, 0.1]), np.array([16, 500]), np.array([21, 3]))
    trace = Trace.from_columns(*columns, name="two", source="two")
    done = run_plan(runs.plan_of(topology), trace, Arrivals(), options=runs.EVERY_BATCH)
    slowest = runs.slowest_gaps_s(done, 0.1)
    plain, both, stalled = 0.011, 0.012, 0.511
    # ten per cent of twenty gaps are two: the stall, and one of those beside the second request's decode
    assert slowest[0] == pytest.approx((stalled + both) / 2, abs=1e-9)
    assert plain < slowest[1] <= both + 1e-9


def test_the_highest_rate_is_that_of_a_queue_of_fixed_service() -> None:
    """M/D/1: more than t services of wait have probability (1 - r) / (r e^x - 1) e^(-x t), where r (e^x - 1) = x; at a
    utilisation r of 0.58, x is 1 and one in ten waits longer than two services."""
    topology = {
        "name": "one",
        "engine": {"profile": "vllm-0.25", "async_scheduling": False, "prefix_caching": False, "max_num_seqs": 1},
        "step_time": {"kind": "affine", "base_s": 0.1},
        "kv_blocks": 1000,
        "pools": [{"name": "whole", "role": "colocated"}],
    }
    trace = runs.requests(4000, 16, 1)
    found = runs.highest_rate(
        runs.plan_of(topology), trace, lambda record: bool(np.percentile(runs.ttft_s(record), 90) <= 0.3), 20.0
    )
    assert found == pytest.approx(5.8, rel=0.05)


def test_the_command_fails_where_a_figure_is_missed_and_writes_json(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert main(["validate", "published", "--only", "deepep", "--json", str(tmp_path / "out.json")]) == 0
    document = json.loads((tmp_path / "out.json").read_text())
    assert document["ok"] and len(document["checks"]) == 20
    first = document["checks"][0]
    assert {"id", "system", "kind", "published", "simulated", "error_percent", "tolerance_percent", "ok"} <= set(first)
    assert "deepep-ll-dispatch-ep8" in capsys.readouterr().out
    assert main(["validate", "published", "--only", "splitwise-bloom176b-h100"]) == 1
    assert "missed" in capsys.readouterr().out
    assert main(["validate", "published", "--only", "nothing"]) == 2
