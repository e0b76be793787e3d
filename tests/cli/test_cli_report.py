"""``--timeline`` and ``--report`` through the command."""

from __future__ import annotations

import json

import pytest
from cli_inputs import refused, run, write_inputs


@pytest.fixture
def inputs(tmp_path):
    return write_inputs(tmp_path)


def test_timeline_is_written_and_the_result_stays(inputs, tmp_path, capsys):
    trace, one, split = inputs
    words = (trace, "--topology", one, "--topology", split, "--json", "-")
    path = tmp_path / "t.json"
    code, out, err = run(capsys, *words, "--timeline", path)
    assert code == 0
    assert out == run(capsys, *words)[1]
    assert f"wrote {path}" in err
    assert len(json.loads(path.read_text())["traceEvents"]) > 200
    _, _, err = run(capsys, *words, "--timeline", path, "--timeline-start", "1s")
    assert "the timeline shows 1 s to" in err
    assert min(e["ts"] + e.get("dur", 0) for e in json.loads(path.read_text())["traceEvents"] if e["ph"] == "X") >= 1e6


def test_refused(inputs, tmp_path, capsys):
    trace, one, _ = inputs
    assert "no folder" in refused(capsys, trace, "--topology", one, "--timeline", tmp_path / "no" / "t.json")
    assert "without --timeline" in refused(capsys, trace, "--topology", one, "--timeline-start", "1s")
