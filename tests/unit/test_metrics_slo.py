from __future__ import annotations

import pytest

from simulator.errors import InputError
from simulator.metrics.slo import SLO


def test_reads_units():
    assert SLO.parse("ttft=2s,tpot=50ms") == SLO(ttft_s=2.0, tpot_s=0.05)
    assert SLO.parse(" e2e = 1.5min , itl_p99=900us") == SLO(e2e_s=90.0, itl_p99_s=0.0009)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("ttft=2", "--slo: ttft: '2' is not a duration; write a number with a unit"),
        ("ttfd=2s", "--slo: unknown target 'ttfd' (did you mean 'ttft'?); allowed: e2e, itl_p99, tpot, ttft"),
        ("ttft", "--slo: 'ttft' is not a target"),
        ("", "--slo: '' is not a target"),
        ("ttft=1s,ttft=2s", "--slo: 'ttft' is given twice"),
        ("tpot=0ms", "--slo: tpot = 0ms; a target is above 0"),
        ("tpot=-1ms", "--slo: tpot: '-1ms' is not a duration"),
    ],
)
def test_refuses(text, says):
    with pytest.raises(InputError) as caught:
        SLO.parse(text)
    assert str(caught.value).startswith(says)


def test_takes_whatever_form():
    wanted = SLO(ttft_s=1.0)
    assert SLO.of("ttft=1s") == SLO.of({"ttft": "1s"}) == SLO.of(wanted) == wanted
    assert not SLO.of(None)
    with pytest.raises(InputError, match="slo: ttft_s = -1"):
        SLO(ttft_s=-1)


def test_empty_has_no_targets():
    assert not SLO()
    assert SLO().targets() == {}
    assert list(SLO().as_dict()) == ["ttft_s", "tpot_s", "e2e_s", "itl_p99_s"]


def test_targets_replaced_keep_the_others():
    slo = SLO.parse("ttft=2s,tpot=50ms;gold:ttft=1s")
    assert slo.with_targets({"ttft": 3.0, "e2e": 9.0}) == SLO(3.0, 0.05, 9.0, None, slo.tenants)


def test_gaps_are_needed_only_for_their_target():
    assert [SLO.parse(text).needs_gaps for text in ("ttft=1s", "itl_p99=1s", "ttft=1s;a:itl_p99=1s")] == [
        False,
        True,
        True,
    ]


def test_whole_messages():
    cases = {
        "ttft=2": "--slo: ttft: '2' is not a duration; write a number with a unit, as 50ms, 2s or 1min",
        "ttft": "--slo: 'ttft' is not a target; write name=duration, as ttft=2s,tpot=50ms",
        "ttft=1s; gold": "--slo: 'gold' names no tenant; write ttft=2s;gold:ttft=1s",
        "ttft=1s;go=ld:ttft=1s": "--slo: 'go=ld:ttft=1s' names no tenant; write ttft=2s;gold:ttft=1s",
        "ttft=1s; :ttft=1s": "--slo: ':ttft=1s' names no tenant; write ttft=2s;gold:ttft=1s",
        "ttft=1s;a:ttft=1s;a:ttft=1s": "--slo: tenant 'a' is given twice",
    }
    for text, said in cases.items():
        with pytest.raises(InputError) as caught:
            SLO.parse(text)
        assert str(caught.value) == said
    for place in ("x", "y"):
        with pytest.raises(InputError, match=f"^{place}: "):
            SLO.of("ttft", place)
        with pytest.raises(InputError, match=f"^{place}: "):
            SLO.of({"ttft": 3}, place)
    for wrong in (True, "1s", 0, float("inf"), float("nan")):
        with pytest.raises(InputError) as caught:
            SLO(e2e_s=wrong)
        assert str(caught.value) == f"slo: e2e_s = {wrong!r}; a target is a number of seconds above 0"
    assert SLO(tenants=(("a", SLO()),), e2e_s=1).e2e_s == 1
    with pytest.raises(InputError, match="itl_p99_s"):
        SLO(itl_p99_s=-1.0)
