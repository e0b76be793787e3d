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


def test_report_is_written_with_the_command_that_made_it(inputs, tmp_path, capsys):
    trace, one, split = inputs
    page = tmp_path / "page.html"
    words = (trace, "--topology", one, "--topology", split, "--slo", "ttft=50ms", "--set", "kv_blocks=900")
    code, out, err = run(capsys, *words, "--report", page, "--report-rates", "5,20", "--report-budget", 500)
    assert code == 0
    assert f"wrote {page}" in err
    assert out == run(capsys, *words)[1]
    text = page.read_text()
    asked = (
        f"simulate {trace} --topology {one} --topology {split} --slo ttft=50ms --set kv_blocks=900 --report-rates 5,20"
    )
    assert asked in text
    for name in ("one", "split"):
        assert f'<th scope="row">{name}</th><td>20.0</td>' in text  # the second rate


def test_reports_that_are_refused(inputs, tmp_path, capsys):
    words = (inputs[0], "--topology", inputs[1])
    assert "no folder" in refused(capsys, *words, "--report", tmp_path / "no" / "p.html")
    assert "without --report" in refused(capsys, *words, "--report-rates", "2")
    for rates in ("2,,4", "-1", "many", "nan"):
        assert "--report-rates: " in refused(capsys, *words, "--report", tmp_path / "p.html", f"--report-rates={rates}")
    assert "--report-budget: -1" in refused(capsys, *words, "--report", tmp_path / "p.html", "--report-budget=-1")
    assert not (tmp_path / "p.html").exists()
