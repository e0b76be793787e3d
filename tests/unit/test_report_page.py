"""The HTML page: what it says, that it needs nothing else, and that no name gets out of its place."""

from __future__ import annotations

import dataclasses
import json
import re
from collections import Counter
from html.parser import HTMLParser
from itertools import pairwise

import numpy as np
import pytest
from page_runs import HOSTILE, small_comparison
from report_runs import busy_run

from simulator.api import Comparison, Result, Terms
from simulator.cluster.result import TTFT_PARTS
from simulator.metrics.slo import SLO
from simulator.metrics.wording import percent, seconds
from simulator.planning.around import Around
from simulator.report.page.charts import MOST_WORKERS, distributions, load, tail_parts, traffic_of
from simulator.report.page.material import Material
from simulator.report.page.slowest import EACH, slowest


class Page(HTMLParser):
    """Elements of a page in order, and the text outside scripts and styles."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.text, self.scripts, self._inside = [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag in ("script", "style"):
            self._inside.append(tag)
            self.scripts.append("")

    def handle_endtag(self, tag):
        if self._inside and self._inside[-1] == tag:
            self._inside.pop()

    def handle_data(self, data):
        if self._inside:
            self.scripts[-1] += data
        else:
            self.text.append(data)

    def all(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    comparison = small_comparison()
    path = tmp_path_factory.mktemp("page") / "page.html"
    comparison.report(path, comparison.around(budget=3_000), command="simulate '<b>' --topology x")
    return comparison, Page(path.read_text(encoding="utf-8"))


def test_names_stay_text(made):
    _, page = made
    assert not page.all("img")
    assert [attributes.get("type") for attributes in page.all("script")] == ["application/json", None, None]
    assert not [name for _, attributes in page.elements for name in attributes if name.startswith("on")]
    words = "".join(page.text)
    assert words.count(HOSTILE) > 5
    assert "simulate '<b>'" in words


def test_data_survive_the_way_into_the_page(made):
    comparison, page = made
    data = json.loads(page.scripts[1])
    assert data["names"] == [HOSTILE, "split"]
    assert data["targets"] == {"ttft": 0.15, "tpot": 0.02}
    assert data["requests"][0][0]["id"].startswith(HOSTILE)
    assert len(data["rates"]["series"]) == 2
    assert len(data["map"]["winner"]) == 5
    frame = comparison.results[0].requests
    assert data["requests"][0][0]["ttft"] == pytest.approx(frame["ttft_s"].max(), rel=1e-3)


def test_nothing_is_loaded_from_elsewhere(made):
    _, page = made
    for tag, attributes in page.elements:
        assert "src" not in attributes, tag
        assert tag != "link"
        assert attributes.get("href", "#").startswith("#")
    policy = next(a["content"] for a in page.all("meta") if a.get("http-equiv") == "Content-Security-Policy")
    assert "default-src 'none'" in policy
    assert "http" not in policy


def test_figures_are_those_of_the_result(made):
    comparison, page = made
    words = " ".join("".join(page.text).split())
    assert " ".join(comparison.verdict.split()) in words
    for entry in comparison.document["topologies"]:
        assert percent(entry["slo_attainment"]) in words
        for key in ("ttft_s", "tpot_s", "e2e_s", "itl_s"):
            assert seconds(entry[key]["p95"]) in words


def test_structure_is_one_a_reader_can_walk(made):
    _, page = made
    levels = [int(tag[1]) for tag, _ in page.elements if re.fullmatch("h[1-6]", tag)]
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))
    ids = Counter(attributes["id"] for _, attributes in page.elements if "id" in attributes)
    assert set(ids.values()) == {1}
    for _, attributes in page.elements:
        for key in ("aria-labelledby", "href"):
            assert attributes.get(key, "#").lstrip("#") in {"", *ids}
        if attributes.get("role") == "img" or attributes.get("role") == "region":
            assert attributes["aria-label"]
    assert len(page.all("main")) == len(page.all("nav")) == len(page.all("header")) == len(page.all("footer")) == 1
    assert len(page.all("figure")) == sum(a.get("class", "").startswith("chart") for a in page.all("div"))
    assert len(page.all("details")) >= 5  # each group of charts also as a table
    assert all("scope" in attributes for attributes in page.all("th"))


def test_same_run_same_page(made, tmp_path):
    texts = []
    for name in "ab":
        comparison = small_comparison()
        comparison.report(tmp_path / name, comparison.around(budget=500))
        texts.append((tmp_path / name).read_bytes())
    assert texts[0] == texts[1]


def test_without_targets_rates_or_requests_that_completed(tmp_path):
    run = busy_run()
    lost = dataclasses.replace(
        run,
        record=dataclasses.replace(
            run.record,
            state=np.full(1500, 1, np.int8),
            first_token_s=np.full(1500, np.nan),
            last_token_s=np.full(1500, np.nan),
        ),
        itl_histogram=None,
    )
    Comparison((Result(lost, Terms()),)).report(tmp_path / "p.html")
    page = Page((tmp_path / "p.html").read_text(encoding="utf-8"))
    assert "No request completed" in "".join(page.text)
    assert not [a for a in page.all("section") if a["id"] in ("rates", "map")]


def test_distribution_is_the_quantile_function():
    run = busy_run()
    found = distributions(Material({"topologies": []}, [run]))["ttft"][0]
    ttft = run.record.first_token_s - run.record.arrival_s
    middle = found["share"].index(0.5)
    assert found["x"][middle] == pytest.approx(np.median(ttft), rel=1e-3)
    assert found["x"][-1] == pytest.approx(ttft.max(), rel=1e-3)


def test_slowest_requests_are_the_slowest():
    run = busy_run()
    found = slowest(run, SLO(ttft_s=0.5), 0.0)
    ttft = np.sort(run.record.first_token_s - run.record.arrival_s)[::-1]
    assert [row["ttft"] for row in found[:20]] == pytest.approx(ttft[:20], rel=1e-3)
    assert EACH < len(found) <= 3 * EACH
    assert all((row["ttft"] > 0.5) == ("ttft" in row["missed"]) for row in found)
    assert all(sum(row["parts"]) == pytest.approx(row["ttft"], rel=2e-3) for row in found)


def test_tail_is_the_slowest_hundredth():
    run = busy_run()
    ttft = np.sort(run.record.first_token_s - run.record.arrival_s)
    assert sum(tail_parts(run, 0.0).values()) == pytest.approx(ttft[-15:].mean())


def test_traffic_adds_up_to_the_bytes_that_were_sent():
    run = small_comparison().results[1].run
    moments = dataclasses.replace(run.moments, kv_bytes=np.arange(1.0, 121.0))
    run = dataclasses.replace(run, moments=moments)
    for worker in (0, 1):
        at, speed = traffic_of(run, worker)
        assert float((speed[:-1] * np.diff(at)).sum()) == pytest.approx(moments.kv_bytes.sum(), rel=1e-6)


def test_large_clusters_show_the_busiest_workers():
    run = busy_run()
    many = dataclasses.replace(
        run,
        series=tuple(
            dataclasses.replace(run.series[0], name=f"w{i}", kv_fraction=np.full(600, i / 100)) for i in range(40)
        ),
    )
    found = load(many, 1.0)
    assert [worker["name"] for worker in found["workers"]] == [f"w{i}" for i in range(40 - MOST_WORKERS, 40)]
    assert found["all"] == 40


def test_model_error_is_drawn_and_told(tmp_path):
    comparison = small_comparison(60)
    percents = dict.fromkeys(("mean", "p50", "p90", "p95", "p99"), 14.0)
    error = {
        "share": 0.8, "runs": 120, "outside": ["GPU <b>"], "taken_from": {"engine": "vllm", "load": "any"},
        "ttft_percent": percents, "tpot_percent": percents, "e2e_percent": percents | {"p50": 160.0},
    }  # fmt: skip
    first, second = comparison.document["topologies"]
    document = {**comparison.document, "topologies": [first, {**second, "model_error": error}]}
    comparison.report(tmp_path / "p.html", Around(), document=document)
    page = Page((tmp_path / "p.html").read_text(encoding="utf-8"))
    words = " ".join("".join(page.text).split())
    assert (
        "TTFT ± 14 %, TPOT ± 14 % and E2E within a factor 2.6, which held for 80 % of 120 measured runs (vllm)" in words
    )
    assert "Far from everything measured: GPU <b>." in words
    assert json.loads(page.scripts[1])["errors"] == [{}, {"ttft": 1.14, "tpot": 1.14, "e2e": 2.6}]


def test_every_part_of_the_first_token_has_its_colour(made):
    style = made[1].scripts[0]
    for part in TTFT_PARTS:
        name = f"part-{part.replace('_', '-')}"
        assert style.count(f"--{name}:") == 2, f"{name}: a colour for light and one for dark"
        assert f".{name} " in style
    used = {a["class"] for a in made[1].all("i")}
    assert {"part-queue", "part-prefill", "part-kv-transfer", "part-decode-admission"} <= used


def test_a_budget_of_nothing_runs_nothing():
    assert small_comparison(60).around(budget=0) == Around()
