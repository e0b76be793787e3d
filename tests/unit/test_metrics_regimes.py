"""Which cell of the table of model errors a run is judged by, what counts as far from everything, and its limits."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
from pydantic import ValidationError
from report_runs import run_of

from simulator.cluster.result import PoolStats, RunTopology
from simulator.metrics import model_error as room
from simulator.metrics.model_error import ErrorTable, kind_of, load_error_table, load_of, model_error
from simulator.models.accounting import parameters
from simulator.models.catalogue import load_model

CELL = {
    "engine": "vllm",
    "mode": "colocated",
    "load": "idle",
    "profile": "measured",
    **{f"{name}_percent": 3.0 + i for i, name in enumerate(("ttft", "tpot", "e2e"))},
    **{f"{name}_covered": 0.9 for name in ("ttft", "tpot", "e2e")},
    "runs": 12,
    "deployments": 4,
}
SIZE = parameters(load_model("llama-3.1-8b"))
TABLE = {
    "source": "made",
    "share": 0.8,
    "extra_percent": {
        name: {"mean": 0.0, "p50": 4.0, "p90": 4.0, "p95": 4.0, "p99": 4.0} for name in ("ttft", "tpot", "e2e")
    },
    "hull": {
        "engines": ["vllm"],
        "gpus": ["h100_sxm"],
        "models": ["known"],
        "parameters": {"dense": (SIZE, SIZE), "moe": (1.0, 2.0), "mla": (3.0, 4.0)},
        "input_tokens": (100, 1000),
        "output_tokens": (10, 100),
        "in_flight": (1, 50),
    },
    "cells": [CELL],
}


def cells(*keys):
    return [CELL | dict(zip(("engine", "mode", "load", "profile"), key, strict=True)) for key in keys]


def test_the_nearest_cell_that_there_is():
    wanted = [
        ("vllm", "colocated", "idle", "measured"),
        ("vllm", "colocated", "any", "measured"),
        ("any", "colocated", "idle", "measured"),
        ("any", "colocated", "any", "measured"),
        ("any", "any", "any", "measured"),
        ("any", "any", "any", "any"),
    ]
    for first in range(len(wanted)):
        table = ErrorTable.model_validate(TABLE | {"cells": cells(*wanted[first:])})
        assert table.find(*wanted[0]).key == wanted[first]


@pytest.mark.parametrize(
    ("key", "good", "bad"),
    [
        *((f"{name}_percent", (0, 0.5), (-0.1, None)) for name in ("ttft", "tpot", "e2e")),
        *((f"{name}_covered", (0, 1), (-0.1, 1.1, None)) for name in ("ttft", "tpot", "e2e")),
        ("runs", (1,), (0, None)),
        ("deployments", (1,), (0, None)),
        ("engine", ("x",), (None,)),
        ("share", (0.01, 0.99), (0, 1, None)),
    ],
)
def test_a_table_keeps_its_limits(key, good, bad):
    def made(value):
        return TABLE | ({key: value} if key in TABLE else {"cells": [CELL | {key: value}]})

    for value in good:
        ErrorTable.model_validate(made(value))
    for value in bad:
        with pytest.raises(ValidationError):
            ErrorTable.model_validate(made(value))


def test_without_a_table_there_is_no_error(tmp_path):
    assert load_error_table(tmp_path / "none.yaml") is None
    assert load_error_table() is load_error_table()


def test_kinds_of_models():
    assert [kind_of(load_model(name)) for name in ("llama-3.1-8b", "qwen3-235b-a22b", "deepseek-v3")] == [
        "dense",
        "moe",
        "mla",
    ]


def judged(monkeypatch, *, prompt=200, output=20, gpu="h100_sxm", model="known", rate=2.0, workers=1, **more):
    """The model's error of a run of equal requests that take a second each, by ``TABLE``."""
    monkeypatch.setattr(room, "load_error_table", lambda: ErrorTable.model_validate(TABLE))
    run = run_of([{"first": 0.5, "last": 1.0, "input": prompt, "output": output}])
    roles = more.pop("roles", ("colocated",))
    pools = tuple(PoolStats(role, role, gpu, workers, workers, 0.5, 0.5, 0) for role in roles)
    topology = RunTopology("t", 1, model, more.pop("engine", "vllm-0.25"), modelled=more.pop("modelled", True))
    run = dataclasses.replace(run, pools=pools, topology=topology)
    entry = {"e2e_s": {"mean": 1.0}, "request_throughput_per_s": rate, "saturated": False, **more}
    return model_error(run, entry)


def test_errors_of_percentiles_add_as_squares(monkeypatch):
    monkeypatch.setitem(TABLE, "cells", cells(("any", "any", "any", "any")))
    found = judged(monkeypatch)
    assert found == {
        "share": 0.8,
        "regime": {"engine": "vllm", "mode": "colocated", "load": "idle", "profile": "measured"},
        "taken_from": {"engine": "any", "mode": "any", "load": "any", "profile": "any"},
        "runs": 12,
        "deployments": 4,
        "ttft_percent": {"mean": 3.0, **dict.fromkeys(("p50", "p90", "p95", "p99"), 5.0)},
        "tpot_percent": {"mean": 4.0, **dict.fromkeys(("p50", "p90", "p95", "p99"), pytest.approx(math.sqrt(32)))},
        "e2e_percent": {"mean": 5.0, **dict.fromkeys(("p50", "p90", "p95", "p99"), pytest.approx(math.sqrt(41)))},
        "outside": [],
    }
    for none in ({"e2e_s": {"mean": None}}, {"request_throughput_per_s": None}, {"modelled": False}):
        assert judged(monkeypatch, **none) is None


def test_regimes_of_runs(monkeypatch):
    monkeypatch.setitem(TABLE, "cells", cells(("any", "any", "any", "any")))

    def regime(**more):
        return list(judged(monkeypatch, **more)["regime"].values())

    assert regime(roles=("prefill", "decode")) == ["vllm", "disaggregated", "idle", "measured"]
    assert regime(gpu="l40s")[3] == "derived"
    assert regime(engine="sglang")[0] == "sglang"
    assert regime(rate=8.0)[2] == "idle" and regime(rate=8.1)[2] == "loaded"
    assert regime(rate=16.0, workers=2)[2] == "idle"  # two engines
    assert regime(rate=16.0, workers=1, roles=("prefill", "decode"))[2] == "loaded"  # prefill engines hold nobody
    assert regime(saturated=True)[2] == "saturated"
    assert [load_of(n, False) for n in (8.0, 128.0, 128.1)] == ["idle", "loaded", "saturated"]


def test_what_lies_far_from_everything(monkeypatch):
    monkeypatch.setitem(TABLE, "cells", cells(("any", "any", "any", "any")))

    def outside(**more):
        return judged(monkeypatch, **more)["outside"]

    assert outside(engine="sglang") == ["engine sglang"]
    assert outside(gpu="l40s") == ["GPU l40s"]
    assert outside(prompt=50) == outside(prompt=2000) == outside(output=5) == outside(output=200) == []
    assert outside(prompt=49) == ["prompts of 49 tokens (measured: 100 to 1,000)"]
    assert outside(prompt=2001) == ["prompts of 2,001 tokens (measured: 100 to 1,000)"]
    assert outside(output=4) == ["outputs of 4 tokens (measured: 10 to 100)"]
    assert outside(output=201) == ["outputs of 201 tokens (measured: 10 to 100)"]
    assert outside(rate=100.0) == []
    assert outside(rate=101.0) == ["101 requests in flight an engine (measured: up to 50)"]
    assert outside(model="llama-3.1-8b") == []  # as large as one that was measured
    assert outside(model="qwen3-235b-a22b") == ["model qwen3-235b-a22b"]
    assert outside(model="llama-3.1-70b") == ["model llama-3.1-70b"]
    for factor, far in ((1.99, False), (2.01, True), (1 / 1.99, False), (1 / 2.01, True)):
        hull = {**TABLE["hull"], "parameters": {"dense": (SIZE * factor, SIZE * factor)}}
        monkeypatch.setitem(TABLE, "hull", hull)
        assert outside(model="llama-3.1-8b") == (["model llama-3.1-8b"] if far else [])
    monkeypatch.setitem(TABLE, "hull", {**TABLE["hull"], "parameters": {}})
    assert outside(model="llama-3.1-8b") == ["model llama-3.1-8b"]
    assert np.isfinite(SIZE)
