"""A run that reaches a limit is stopped, and what was simulated by then is told."""

from __future__ import annotations

import json

import numpy as np
import pytest

from simulator import simulate
from simulator.cli import main
from simulator.cluster.limits import Limits, memory_bytes
from simulator.errors import InputError

EXPLICIT = {
    "name": "explicit",
    "engine": "vllm",
    "pools": [{"name": "p", "role": "prefill"}, {"name": "d", "role": "decode"}],
    "step_time": {"base_s": 0.005, "per_token_s": 2e-5},
    "kv_blocks": 4000,
    "kv_transfer": {"setup_s": 0.01, "per_block_s": 1e-6},
}


@pytest.mark.parametrize("limits", [Limits(seconds=1e-9), Limits(memory_bytes=1.0)])
def test_what_was_finished_by_then_is_as_without_limits(limits: Limits) -> None:
    whole = simulate("chat", EXPLICIT).run.record
    stopped = simulate("chat", EXPLICIT, limits=limits)
    assert any("the limit; " in warning for warning in stopped.entry["warnings"])
    record = stopped.run.record
    done = ~np.isnan(record.last_token_s)
    assert 0 < done.sum() < len(record)
    assert stopped.entry["unfinished"] == (~done).sum()
    np.testing.assert_array_equal(record.last_token_s[done], whole.last_token_s[done])
    np.testing.assert_array_equal(record.first_token_s[done], whole.first_token_s[done])


def test_a_generous_limit_changes_nothing() -> None:
    limits = Limits(seconds=1e6, memory_bytes=memory_bytes() + 1e12)
    assert simulate("chat", EXPLICIT, limits=limits).to_json() == simulate("chat", EXPLICIT).to_json()


def test_the_command_tells(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["chat", "--topology", "1p1d", "--max-seconds", "1e-9", "--json", "-"]) == 0
    out, err = capsys.readouterr()
    entry = json.loads(out)["topologies"][0]
    assert entry["completed"] + entry["unfinished"] == entry["requests"] == 2000
    assert entry["unfinished"] > 0
    assert "warning: 1p1d: stopped after 1e-09 s of computing, the limit; " in err
    assert entry["warnings"][0] in err


@pytest.mark.parametrize("words", [["--max-seconds", "0"], ["--max-memory-gb", "-1"], ["--max-seconds", "nan"]])
def test_a_limit_of_nothing_is_refused(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["chat", "--topology", "1p1d", *words]) == 2
    assert "allowed: more than 0" in capsys.readouterr().err


def test_limits_are_checked_in_python() -> None:
    with pytest.raises(InputError, match="limit on memory: -1; allowed: more than 0"):
        Limits(memory_bytes=-1)
