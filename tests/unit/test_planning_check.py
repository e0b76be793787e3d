"""Latency curves against a baseline: what is unchanged passes, what moved is named, luck is not taken for change."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import yaml

from simulator.cli import main
from simulator.cluster import engines
from simulator.errors import InputError
from simulator.planning.check import check
from simulator.planning.runs import plan_of

OWN = Path(__file__).parents[1] / "data" / "curves" / "curves.yaml"
EXPLICIT = {
    "name": "explicit",
    "engine": {"profile": "vllm", "max_num_seqs": 32},
    "pools": [{"name": "only", "role": "colocated"}],
    "step_time": {"kind": "affine", "base_s": 0.01, "per_token_s": 5e-5},
    "kv_blocks": 20_000,
}


def spec(tmp_path, **changes):
    curve = {
        "name": "chat",
        "trace": "chat",
        "limit": 60,
        "rates": [2, 4],
        "topologies": [EXPLICIT],
        "seeds": [1, 2, 3],
        "metrics": ["ttft_p50", "tpot_p99"],
        "tolerance_percent": 3,
    }
    path = tmp_path / "curves.yaml"
    path.write_text(yaml.safe_dump({"baseline": "base.json", "curves": [{**curve, **changes}]}))
    return path


def slower(per_cent):
    step_time = {**EXPLICIT["step_time"], "base_s": 0.01 * (1 + per_cent / 100)}
    return [{**EXPLICIT, "step_time": step_time}]


def test_the_projects_own_curves_are_where_they_were():
    """Where a change moves them on purpose: simulate check tests/data/curves/curves.yaml --update."""
    found = check(OWN)
    assert found.moved == []
    assert len(found.document["points"]) == 32


def test_a_slowdown_of_five_per_cent_planted_in_decode_fails_and_names_the_curve(monkeypatch, capsys):
    build = engines.build_step_cost

    def slow(*words, **options):
        table = build(*words, **options)
        decode_s, attention_s = 1.05 * table.decode_s, 1.05 * table.decode_attention_s
        return dataclasses.replace(table, decode_s=decode_s, decode_attention_s=attention_s)

    monkeypatch.setattr(engines, "build_step_cost", slow)
    plan_of.cache_clear()
    try:
        assert main(["check", str(OWN), "--quiet"]) == 1
    finally:
        plan_of.cache_clear()
    told = capsys.readouterr().out.splitlines()
    assert any(line.startswith("chat on two H100: 1p1d at 4: tpot_p50: ") and "worse" in line for line in told)
    assert not any(line.startswith("explicit step times") for line in told)


def test_unchanged_passes_and_a_change_beyond_the_tolerance_is_told_in_its_direction(tmp_path):
    path = spec(tmp_path)
    assert check(path, update=True).updated
    assert check(path).ok
    spec(tmp_path, topologies=slower(2))
    assert check(path).ok
    spec(tmp_path, topologies=slower(6))
    moved = check(path).moved
    assert {(p["metric"], p["rate"], p["verdict"]) for p in moved} >= {
        ("tpot_p99", 2.0, "worse"),
        ("tpot_p99", 4.0, "worse"),
    }
    spec(tmp_path, topologies=slower(-6))
    assert {p["verdict"] for p in check(path).moved} == {"better"}


def test_other_seeds_alone_do_not_fail_and_a_large_change_under_other_seeds_does(tmp_path):
    path = spec(tmp_path)
    check(path, update=True)
    for seeds in ([4, 5, 6], [7, 8, 9], [10, 11, 12, 13]):
        spec(tmp_path, seeds=seeds)
        assert check(path).ok, seeds
    spec(tmp_path, seeds=[4, 5, 6], topologies=slower(300))
    assert not check(path).ok


def test_one_other_seed_cannot_tell_luck_from_change(tmp_path):
    path = spec(tmp_path)
    check(path, update=True)
    spec(tmp_path, seeds=[9])
    with pytest.raises(InputError, match="seeds: not those of the baseline"):
        check(path)


def test_points_that_come_and_go_and_another_trace_fail(tmp_path):
    path = spec(tmp_path)
    check(path, update=True)
    spec(tmp_path, rates=[4, 6])
    verdicts = {(p["rate"], p["verdict"]) for p in check(path).moved}
    assert verdicts == {(6.0, "not in the baseline"), (2.0, "no longer asked for")}
    spec(tmp_path, limit=50)
    assert {p["verdict"] for p in check(path).moved} == {"another trace"}


def test_outcome_as_json_junit_and_picture(tmp_path, capsys):
    path = spec(tmp_path)
    assert main(["check", str(path), "--update", "--quiet"]) == 0
    spec(tmp_path, topologies=slower(10))
    files = {name: tmp_path / name for name in ("o.json", "o.xml", "pictures")}
    words = ["--json", str(files["o.json"]), "--junit", str(files["o.xml"]), "--out", str(files["pictures"]), "--quiet"]
    assert main(["check", str(path), *words]) == 1
    assert "chat: explicit at 2: tpot_p99: " in capsys.readouterr().out
    document = json.loads(files["o.json"].read_text())
    point = next(p for p in document["points"] if p["metric"] == "tpot_p99" and p["rate"] == 2)
    assert point["change_percent"] == pytest.approx(100 * (point["now"] - point["before"]) / point["before"])
    assert document["ok"] is False
    suite = ElementTree.parse(files["o.xml"]).getroot().find("testsuite")
    failures = suite.findall("testcase/failure")
    assert (suite.get("name"), int(suite.get("tests"))) == ("chat", 4)
    assert int(suite.get("failures")) == len(failures) > 0
    assert "allowed 3.00 %" in failures[0].get("message")
    assert (files["pictures"] / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_a_trace_played_at_its_own_pace_meets_the_rates_asked_for(tmp_path):
    path = spec(tmp_path, arrivals="trace", seeds=[0], metrics=["request_throughput_per_s"], rates=[1, 2])
    points = check(path, update=True).document["points"]
    np.testing.assert_allclose([p["now"] for p in points], [1, 2], rtol=0.2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"metrics": ["ttft_p98"]}, "unknown metric 'ttft_p98'.*did you mean 'ttft_p9"),
        ({"metrics": ["slo_attainment"]}, "needs targets; give slo"),
        ({"arrivals": "poisson:3"}, "takes its rates from 'rates'"),
        ({"topologies": [EXPLICIT, EXPLICIT]}, "two are called 'explicit'"),
        ({"tolerence_percent": 3}, "unknown key 'tolerence_percent'.*did you mean 'tolerance_percent'"),
        ({"rates": []}, "rates"),
    ],
)
def test_bad_files_are_refused_in_one_line(tmp_path, change, message):
    with pytest.raises(InputError, match=message) as caught:
        check(spec(tmp_path, **change), update=True)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "base.json").exists()


def test_without_a_baseline_or_with_a_broken_one_the_way_out_is_told(tmp_path):
    path = spec(tmp_path)
    with pytest.raises(InputError, match="there is no baseline; write one with --update"):
        check(path)
    (tmp_path / "base.json").write_text('{"points": [1]}')
    with pytest.raises(InputError, match="not a baseline"):
        check(path)
