"""What a request costs the front end before an engine sees it."""

from __future__ import annotations

import numpy as np
import pytest

from simulator.api import simulate
from simulator.cluster.frontdesk import FrontDesk
from simulator.workload.trace import Trace

PER_TOKEN_S = 1e-3


def profile_with(tmp_path, **costs: float) -> str:  # type: ignore[no-untyped-def]
    path = tmp_path / "own.yaml"
    lines = "".join(f"  {key}: {value}\n" for key, value in costs.items())
    path.write_text(f"extends: tensorrt-llm\nname: own\ncosts:\n{lines}  sources: {{}}\n", encoding="utf-8")
    return str(path)


def test_long_prompts_reach_their_engine_later_and_may_be_overtaken(tmp_path) -> None:  # type: ignore[no-untyped-def]
    profile = profile_with(tmp_path, frontend_prompt_token_s=PER_TOKEN_S, frontend_s=0.0, frontend_request_s=0.0)
    trace = Trace.from_columns([0.0, 0.5], [2000, 100], [4, 4])
    found = simulate(trace, "llama-3.1-8b/h100_sxm/1c", overrides=[f"engine.profile={profile}"]).run.record
    start = found.arrival_s + found.part_queue_s
    assert found.part_host_s[0] == pytest.approx(2.0, abs=0.02)
    assert found.part_host_s[1] == pytest.approx(0.1, abs=0.02)
    assert np.abs(start - found.arrival_s).max() < 1e-9  # nobody waits for an engine
    assert found.first_token_s[1] < found.first_token_s[0]


def test_short_prompts_wait_for_long_ones_that_one_process_tokenises(tmp_path) -> None:  # type: ignore[no-untyped-def]
    own = {"frontend_prompt_token_s": PER_TOKEN_S, "frontend_s": 0.0, "frontend_request_s": 0.25}
    trace = Trace.from_columns([0.0, 0.5], [2000, 100], [4, 4])
    overrides = [f"engine.profile={profile_with(tmp_path, **own)}"]
    found = simulate(trace, "llama-3.1-8b/h100_sxm/1c", overrides=overrides).run.record
    start = found.first_token_s - found.part_prefill_s
    assert start[0] == pytest.approx(2.0, abs=0.02)
    # the first has left 0.5 s of its 2.25 s behind when the second comes, whose own 0.1 s follow
    assert start[1] == pytest.approx(0.5 + (2.25 - 0.5) + 0.1, abs=0.02)


def test_requests_wait_for_one_process_that_tokens_keep_busy() -> None:
    sent = [0]
    desk = FrontDesk(0.1, 0.0, lambda: sent[0])
    assert [desk.leaves_s(0.0, 0.5) for _ in range(3)] == pytest.approx([0.5, 0.6, 0.7])
    assert desk.leaves_s(10.0, 0.0) == 10.0
    assert desk.leaves_s(20.0, 1.5, 1.0) == 21.5  # nobody before it
    assert desk.leaves_s(20.0, 0.5) == pytest.approx(20.5 + 0.1 + 1.0)
    assert FrontDesk(0.0, 0.0, lambda: 0).leaves_s(1.0, 0.25) == 1.25


def test_a_first_token_is_handed_out_after_those_of_its_step(tmp_path) -> None:  # type: ignore[no-untyped-def]
    """Three sequences decode when a fourth begins: its first token waits for theirs, and nothing else changes."""
    trace = Trace.from_columns([0.0, 1.0, 2.0, 3.0], [100] * 4, [2000, 2000, 2000, 200])
    runs = []
    for seconds in (0.0, 0.25):
        profile = tmp_path / f"{seconds}.yaml"
        profile.write_text(f"extends: vllm-0.19\nname: own\ncosts: {{deliver_token_s: {seconds}, sources: {{}}}}\n")
        found = simulate(trace, "llama-3.1-8b/h100_sxm/1c", overrides=[f"engine.profile={profile}"]).run.record
        runs.append(found)
    before, after = runs
    assert after.first_token_s - before.first_token_s == pytest.approx([0.0, 0.25, 0.5, 0.75])
    assert after.part_host_s - before.part_host_s == pytest.approx([0.0, 0.25, 0.5, 0.75])
    assert (after.last_token_s == before.last_token_s).all()
    together = Trace.from_columns([0.0, 0.0, 0.0], [100] * 3, [1, 1, 1])
    overrides = [f"engine.profile={tmp_path / '0.25.yaml'}"]
    found = simulate(together, "llama-3.1-8b/h100_sxm/1c", overrides=overrides).run.record
    assert (found.last_token_s >= found.first_token_s).all()
