"""Traces written and read back; files are whole or not there."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from simulator.errors import TraceError
from simulator.workload import Trace, load_trace, same_requests, write_trace
from simulator.workload import write as writing

ENDINGS = (".jsonl", ".jsonl.gz", ".jsonl.zst", ".parquet")


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("name", ["code", "agentic", "long_context"])
def test_round_trip(name: str, ending: str, tmp_path: Path) -> None:
    trace = load_trace(name)
    file = write_trace(trace, tmp_path / f"copy{ending}")
    assert same_requests(load_trace(file), trace)
    assert load_trace(file).name == "copy"


@pytest.mark.parametrize("ending", ENDINGS)
def test_same_trace_same_bytes(ending: str, tmp_path: Path) -> None:
    trace = load_trace("agentic")
    assert (
        write_trace(trace, tmp_path / f"a{ending}").read_bytes()
        == write_trace(trace, tmp_path / f"b{ending}").read_bytes()
    )


def test_absent_values_are_not_written(tmp_path: Path) -> None:
    trace = Trace.from_columns([0.0, 1.0], [1, 2], [1, 2], max_output_tokens=[-1, 7])
    rows = [json.loads(line) for line in write_trace(trace, tmp_path / "t.jsonl").read_text().splitlines()]
    assert rows == [
        {"arrival_s": 0.0, "input_tokens": 1, "output_tokens": 1},
        {"arrival_s": 1.0, "input_tokens": 2, "output_tokens": 2, "max_output_tokens": 7},
    ]


def test_names_of_any_language(tmp_path: Path) -> None:
    trace = Trace.from_columns([0.0], [1], [1], request_id=('名"\\\n',))
    assert load_trace(write_trace(trace, tmp_path / "t.jsonl")).request_id == ('名"\\\n',)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("t.json", "unknown ending; allowed: .jsonl, .jsonl.gz"),
        ("t", "unknown ending"),
        ("missing/t.jsonl", "cannot be written: No such file"),
        ("folder.jsonl", "is a directory"),
    ],
)
def test_bad_targets(name: str, expected: str, tmp_path: Path) -> None:
    (tmp_path / "folder.jsonl").mkdir()
    with pytest.raises(TraceError) as caught:
        write_trace(load_trace("chat"), tmp_path / name)
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write_trace(Trace.from_columns([0.0], [1], [1]), tmp_path / "t.jsonl")
    before = file.read_bytes()

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(writing, "_plain", fail)
    with pytest.raises(TraceError, match="No space left"):
        write_trace(load_trace("chat"), file)
    assert file.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["t.jsonl"]
