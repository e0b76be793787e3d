"""What a request costs the front end before an engine sees it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pytest import MonkeyPatch

from simulator.api import simulate
from simulator.cluster.frontdesk import MOST_FOR_TOKENS, SHARE_WHEN_LATE, FrontDesk, FrontDoor, leave_moments
from simulator.cluster.plan import FrontWork
from simulator.cluster.processes import Clock
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
    own = {"frontend_prompt_token_s": PER_TOKEN_S, "frontend_s": 0.25, "frontend_request_s": 0.25}
    trace = Trace.from_columns([0.0, 0.5], [2000, 100], [4, 4])
    overrides = [f"engine.profile={profile_with(tmp_path, **own)}"]
    found = simulate(trace, "llama-3.1-8b/h100_sxm/1c", overrides=overrides).run.record
    start = found.first_token_s - found.part_prefill_s
    assert start[0] == pytest.approx(2.25, abs=0.02)
    # the first has left 0.5 s of its 2.25 s behind when the second comes, whose own 0.25 + 0.1 s follow
    assert start[1] == pytest.approx(0.5 + (2.25 - 0.5) + 0.35, abs=0.02)


class Asked(NamedTuple):
    """A request: when it is sent, what it takes if nobody is before it, and the work on its prompt beside that."""

    at_s: float
    before_s: float
    prompt_s: float = 0.0


def leaving(work: FrontWork, asked: list[Asked], tokens_per_s: float = 0.0) -> list[float]:
    """When each request leaves a front end that also sends ``tokens_per_s``."""
    clock, left = Clock(), {}

    def leave(row: int, now: float) -> None:
        left[row] = now

    in_turn_s = [work.request_s + one.prompt_s for one in asked]
    desk = FrontDesk(work, in_turn_s, lambda now: int(tokens_per_s * now), lambda: 0, leave)
    door = FrontDoor(clock, {0: desk}, [], [])
    for row, one in enumerate(asked):
        door.add(row, one.at_s + work.rest_s(one.before_s))
    clock.run()
    return [left[row] for row in range(len(asked))]


def test_requests_wait_for_one_process() -> None:
    work = FrontWork(request_s=0.1)
    assert leaving(work, [Asked(0.0, 0.5)] * 3) == pytest.approx([0.5, 0.6, 0.7])
    assert leaving(work, [Asked(0.0, 0.6, 1.0), Asked(0.0, 0.6)]) == pytest.approx([1.6, 1.7])
    assert leaving(work, [Asked(0.0, 0.5), Asked(7.0, 0.5)]) == pytest.approx([0.5, 7.5])
    assert leaving(FrontWork(), [Asked(1.0, 0.25), Asked(1.0, 0.5)]) == [1.25, 1.5]


def test_what_comes_in_is_read_before_anything_goes_on() -> None:
    """Reading takes 1 s, the rest 0.5 s: the first of three leaves after all three have been read."""
    work = FrontWork(accept_s=1.0, request_s=0.5)
    assert leaving(work, [Asked(0.0, 1.5)] * 3) == pytest.approx([3.5, 4.0, 4.5])
    # one that comes while the first is served is read at once, and holds it up
    assert leaving(work, [Asked(0.0, 1.5), Asked(1.25, 1.5)]) == pytest.approx([2.5, 3.0])
    assert leaving(work, [Asked(0.0, 1.5), Asked(1.5, 1.5)]) == pytest.approx([1.5, 3.0])


def test_tokens_go_first_but_never_take_all_of_the_time() -> None:
    """2,000 tokens a second of 0.25 ms are half of its time; 20,000 would be five times it. Tokens that queue take
    turns with requests; those that merge go first."""
    late = [Asked(10.0, 0.5)]
    cases = ((0.0, True, 0.0), (2000.0, True, 0.5), (2000.0, False, 0.5))
    crowded = ((20_000.0, True, MOST_FOR_TOKENS), (20_000.0, False, SHARE_WHEN_LATE))
    for rate, merges, share in cases + crowded:
        work = FrontWork(request_s=0.5, token_s=0.25e-3, merges=merges)
        warm = [Asked(9.0 + k / 100.0, 0.0) for k in range(90)]  # somebody looks now and then
        quick = leaving(replace(work, request_s=1e-6), [*warm, Asked(9.95, 0.0)], rate)
        assert quick[-1] == pytest.approx(9.95, abs=1e-3)
        assert leaving(work, late, rate)[0] == pytest.approx(10.0 + 0.5 / (1.0 - share), rel=0.02)


def test_a_burst_is_looked_at_a_few_times_a_request_not_once_for_each_that_waits(monkeypatch: MonkeyPatch) -> None:
    looks, serve = [], FrontDesk.serve
    monkeypatch.setattr(FrontDesk, "serve", lambda desk, now: (looks.append(now), serve(desk, now))[1])
    leaving(FrontWork(accept_s=0.001, request_s=0.001), [Asked(0.0, 0.002)] * 200)
    assert 200 < len(looks) < 1000  # 200 that come, as many that leave


@given(st.lists(st.tuples(st.floats(0.0, 2.0), st.floats(0.0, 0.2)), min_size=1, max_size=30), st.floats(0.0, 0.1))
def test_nobody_is_lost_overtaken_or_early(asked: list[tuple[float, float]], accept_s: float) -> None:
    """All leave, in the order of coming, no sooner than their own work allows; the process does one thing at a time."""
    asked = sorted(asked)
    work = FrontWork(accept_s=accept_s, request_s=0.01)
    left = leaving(work, [Asked(at, accept_s + 0.01, prompt) for at, prompt in asked])
    own = [accept_s + 0.01 + prompt for _, prompt in asked]
    assert left == sorted(left)
    assert all(end >= at + one - 1e-9 for end, (at, _), one in zip(left, asked, own, strict=True))
    assert left[-1] >= asked[0][0] + sum(own) - 1e-9
    assert left[-1] <= asked[-1][0] + sum(own) + 1e-9


@settings(deadline=None)  # compiled at the first call
@given(st.lists(st.tuples(st.floats(0.0, 2.0), st.floats(0.0, 0.2)), max_size=30), st.floats(0.0, 0.1))
def test_told_beforehand_they_leave_as_they_do_one_by_one(asked: list[tuple[float, float]], accept_s: float) -> None:
    asked = sorted(asked)
    work = FrontWork(accept_s=accept_s, request_s=0.01)
    one_by_one = leaving(work, [Asked(at, accept_s + 0.01, prompt) for at, prompt in asked])
    columns = np.array(asked, dtype=float).reshape(-1, 2).T
    assert leave_moments(columns[0], work.accept_s, work.request_s + columns[1]) == pytest.approx(one_by_one, abs=1e-9)


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


def servers(workers: int, before_s: float = 0.5) -> dict[str, Any]:
    """Engines of no delay, each behind a front end that reads for 0.2 s and passes on for 0.1 s."""
    return {
        "name": "servers",
        "engine": "vllm",
        "pools": [{"name": "all", "role": "colocated", "workers": workers}],
        "step_time": {"base_s": 1e-6},
        "frontend": {"before_s": before_s, "accept_s": 0.2, "request_s": 0.1},
        "kv_blocks": 100,
    }


def test_a_topology_may_say_what_its_front_end_takes() -> None:
    """Three requests at once: 0.2 s of reading each, then 0.1 s each on its way, to an engine of no delay."""
    server = servers(1, before_s=0.3)
    found = simulate(Trace.from_columns([0.0] * 3, [10] * 3, [1] * 3), server).run.record
    assert np.sort(found.first_token_s) == pytest.approx([0.7, 0.8, 0.9], abs=1e-4)
    alone = simulate(Trace.from_columns([0.0], [10], [1]), server).run.record
    assert alone.first_token_s == pytest.approx([0.3], abs=1e-4)
    # ten tokens a second of 0.05 s are half of its time
    busy = {**server, "frontend": {**server["frontend"], "token_s": 0.05}, "step_time": {"base_s": 0.1}}
    found = simulate(Trace.from_columns([0.0, 9.0], [10] * 2, [200, 1]), busy).run.record
    assert found.first_token_s[1] - 9.0 == pytest.approx(0.6 + 0.15, abs=0.1)


@pytest.mark.parametrize("arrivals", ["trace", "closed:4"])
def test_every_engine_has_a_front_end_of_its_own(arrivals: str) -> None:
    """Four requests at once: two behind each of two engines wait half as long as four behind one, known or not."""
    trace = Trace.from_columns([0.0] * 4, [10] * 4, [1] * 4)
    moments = [
        np.sort(simulate(trace, servers(workers), arrivals=arrivals).run.record.first_token_s) for workers in (1, 2)
    ]
    assert moments[0] == pytest.approx([1.1, 1.2, 1.3, 1.4], abs=1e-4)
    assert moments[1] == pytest.approx([0.7, 0.7, 0.8, 0.8], abs=1e-4)


def test_front_ends_of_engines_that_are_gone_take_nobody() -> None:
    """One of two engines dies at 2.0 s: four requests at 3.0 s wait behind one front end."""
    trace = Trace.from_columns([3.0] * 4, [10] * 4, [1] * 4)
    dies = {"events": [{"kind": "crash", "worker": "all-1", "at_s": 2.0}]}
    found = [
        np.sort(simulate(trace, {**servers(2), **more}).run.record.first_token_s) for more in ({}, {"faults": dies})
    ]
    assert found[0] == pytest.approx([3.7, 3.7, 3.8, 3.8], abs=1e-4)
    assert found[1] == pytest.approx([4.1, 4.2, 4.3, 4.4], abs=1e-4)
