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
