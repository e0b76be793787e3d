"""The table for people: marks, widths, and that nothing is cut off."""

from __future__ import annotations

import io

import pytest
from report_runs import busy_run, run_of

from simulator.api import Comparison, Result, Terms
from simulator.metrics.slo import SLO
from simulator.metrics.wording import figures, percent, seconds, target
from simulator.report.facts import facts_text
from simulator.report.terminal import print_report, render

TERMS = Terms(SLO(ttft_s=2.0, tpot_s=0.05))
NAMES = ["2 colocated", "1P1D", "llama-3.1-70b/h100_sxm:tp4/2p2d", "a-name-without-any-end-or-break-in-it-at-all"]


def compared(count=2, terms=TERMS):
    return Comparison(
        tuple(Result(busy_run(NAMES[i % 4], n=300, split=bool(i % 2), gpus=2), terms) for i in range(count))
    )


def test_best_values_are_marked_once_a_row():
    text = render(compared().document)
    line = next(line for line in text.splitlines() if line.startswith("TPOT p99"))
    assert line.rstrip().endswith("*")
    assert line.count("*") == 1
    assert "targets: TTFT 2 s, TPOT 50 ms" in text
    assert "1P1D meets the targets" in text


def test_a_single_run_has_no_marks_and_no_targets_no_goodput():
    text = render(compared(1, Terms()).document)
    assert "*" not in text
    assert "no targets (--slo)" in text
    assert "good requests/s" not in text


@pytest.mark.parametrize("width", [40, 80, 200])
@pytest.mark.parametrize("count", [1, 2, 4])
def test_nothing_is_cut_off(count, width):
    text = render(compared(count).document, width=width)
    assert "…" not in text
    assert "..." not in text
    flat = "".join(text.split())
    assert all("".join(NAMES[i].split()) in flat for i in range(count) if len(NAMES[i]) <= 20)


def test_80_columns_hold_a_terminal():
    assert max(len(line.rstrip()) for line in render(compared(4).document, width=80).splitlines()) <= 80


def test_plain_text_in_a_pipe():
    stream = io.StringIO()
    print_report(compared().document, stream)
    assert "\x1b" not in stream.getvalue()


def test_failures_and_saturation_appear_when_there_are_any():
    rows = [{"first": 1.0, "last": 2.0}, {"state": 1, "reason": 0}]
    text = repr(Result(run_of(rows), TERMS))
    assert "1 of 2" in text
    assert "rejected" in text
    assert "rejected" not in repr(Result(run_of(rows[:1]), TERMS))


def test_tenants_get_a_table():
    run = run_of([{"first": 1.0, "last": 2.0}] * 2, tenant=[0, 1], tenant_names=("gold", "free"))
    text = repr(Result(run, TERMS))
    assert "colocated by tenant" in text
    assert "gold" in text


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0482, "48.2 ms"), (1.934, "1.93 s"), (95.2, "95.2 s"), (1234.5, "1,230 s"), (0.9999, "1.00 s"), (0.0009996, "1.00 ms"), (8.5e-4, "850 us"), (0, "0 s"), (None, "–"), (-0.02, "-20.0 ms")],
)  # fmt: skip
def test_seconds(value, text):
    assert seconds(value) == text


@pytest.mark.parametrize(
    ("share", "text"),
    [(0.93, "93 %"), (0.714, "71.4 %"), (1.0, "100 %"), (0.9999, "> 99.9 %"), (0.0001, "< 0.1 %"), (0.0, "0 %"), (None, "–")],
)  # fmt: skip
def test_percent_says_all_and_none_only_of_all_and_none(share, text):
    assert percent(share) == text


def test_figures_and_targets():
    assert [figures(v) for v in (0, 0.01234, 9.999, 12345.0, -4.5678)] == ["0", "0.0123", "10.0", "12,300", "-4.57"]
    assert [target(v) for v in (2.0, 0.05, 90.0, 0.0009)] == ["2 s", "50 ms", "90 s", "900 us"]


def test_facts_take_their_unit_from_the_name():
    text = facts_text(
        {
            "name": "x",
            "memory_bytes": 80e9,
            "bandwidth_bytes_per_s": 3.35e12,
            "settings": {"max_num_seqs": 8},
            "pool": [{"name": "p", "busy_ratio": 0.5}],
            "notes": [],
        }
    )
    assert "memory     80.00 GB (80,000,000,000 bytes)" in text
    assert "3.35 TB/s" in text
    assert "  max_num_seqs  8" in text
    assert "pool p\n  busy  50 %" in text
    assert "notes      none" in text
