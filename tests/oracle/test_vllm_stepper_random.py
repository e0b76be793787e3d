"""Laws the stepper itself must keep on any case: blocks and tokens are conserved, limits hold, ties are ties."""

from __future__ import annotations

from typing import Any

from hypothesis import HealthCheck, given, settings
from random_cases import cases
from vllm_stepper import Case, run_case

AnyCase = tuple[dict[str, Any], list[dict[str, Any]]]
quick = settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))


@quick
@given(cases())
def test_every_block_comes_back_and_every_token_is_written(case: AnyCase) -> None:
    options, requests = case
    run = Case(options, requests, None, 1e-9)
    run.run(0)
    for row, times in zip(run.rows(), run.token_times, strict=True):
        assert times == sorted(times)
        assert times[0] > row["arrival_s"]
        assert row["cached_tokens"] < row["input_length"]
    for engine in run.engines:
        pool = engine.scheduler.pool
        assert not engine.scheduler.has_work()
        assert not engine.reads and not engine.sends
        assert len(pool.free) == pool.num_blocks - 1
        assert all(block.users == 0 for block in pool.free)
        assert {b for same in pool.cached.values() for b in same} == {b for b in pool.free if b.content is not None}


@quick
@given(cases())
def test_steps_keep_to_the_limits(case: AnyCase) -> None:
    options, requests = case
    _, steps = run_case(options, requests, keep_steps=1_000_000)
    ends: dict[str, float] = {}
    for step in steps:
        own = options | options["decode"] if step["engine"] == "decode" else options
        assert 0 < sum(step["tokens"].values()) <= own["max_num_batched_tokens"]
        assert len(step["tokens"]) <= own["max_num_seqs"]
        assert step["start_s"] >= ends.get(step["engine"], 0.0)
        ends[step["engine"]] = step["end_s"]


@quick
@given(cases())
def test_a_nanosecond_is_one_instant(case: AnyCase) -> None:
    assert run_case(*case, keep_steps=1_000_000) == run_case(*case, keep_steps=1_000_000, instant_s=1e-9)


@quick
@given(cases(disaggregated=False, prefix_caching=False))
def test_without_waiting_or_preemption_all_work_is_done_once(case: AnyCase) -> None:
    options, requests = case
    roomy = options | {"num_blocks": 4_000, "max_num_seqs": 256, "max_num_batched_tokens": 256}
    rows, steps = run_case(roomy, requests, keep_steps=1_000_000)
    assert not any(row["preemptions"] for row in rows)
    done = [sum(step["tokens"].get(i, 0) for step in steps) for i in range(len(requests))]
    assert done == [r["input_length"] + r["output_length"] - 1 for r in requests]
