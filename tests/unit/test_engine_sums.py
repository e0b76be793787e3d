"""Sums that an engine keeps against what they are sums of, for every policy; and runs ahead against single steps."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from engine_play import BASE, Play, Seen

TIGHT, ROOMY = 12, 400
PLAIN = [
    Play("vllm-v1", ()),
    Play("vllm-v1", (), {"async_scheduling": True}),
    Play("vllm-v1", (), blocks=TIGHT),
    Play("vllm-v1", (), {"async_scheduling": True}, blocks=TIGHT),
    Play("vllm-v0", ()),
    Play("vllm-v0", (), blocks=TIGHT),
    Play("tensorrt-llm", ()),
    Play("tensorrt-llm", (), {"enable_chunked_prefill": True, "overlap_scheduler": True}),
    Play("tensorrt-llm", (), {"capacity_scheduler_policy": "MAX_UTILIZATION"}, blocks=TIGHT),
    Play("tensorrt-llm", (), {"capacity_scheduler_policy": "MAX_UTILIZATION", "overlap_scheduler": True}, blocks=TIGHT),
    Play("tensorrt-llm", (), {"capacity_scheduler_policy": "STATIC_BATCH"}),
    Play("tensorrt-llm", (), {"overlap_scheduler": True, "max_num_tokens": 120}, extra={"ranks": 2}),
    Play("splitwise", ()),
    Play("splitwise", (), {"max_prompt_tokens": 60, "max_preemptions": 1}, blocks=TIGHT),
    Play("sglang", ()),
    Play("sglang", (), {"overlap": True}),
    Play("sglang", (), {"mixed_chunk": True, "page_size": 1}),
    Play("sglang", (), {"schedule_conservativeness": 0.1, "page_size": 4}, blocks=36),
    Play("sglang", (), {"schedule_conservativeness": 0.1, "page_size": 4, "overlap": True}, blocks=36),
]
HANDED = [
    Play("vllm-v1", (), {"async_scheduling": True}, role="decode"),
    Play("vllm-v1", (), {"async_scheduling": True, "defer_block_frees": True}, role="decode", blocks=TIGHT),
    Play("tensorrt-llm", (), role="decode"),
    Play("tensorrt-llm", (), {"overlap_scheduler": True}, role="decode", blocks=TIGHT),
    Play("splitwise", (), role="decode"),
    Play("splitwise", (), role="decode", blocks=TIGHT),
    Play("distserve", (), role="decode"),
    Play("distserve", (), {"accept_block_fraction": 1.0}, role="decode", blocks=TIGHT),
    Play("sglang", (), role="decode"),
    Play("sglang", (), {"overlap": True}, role="decode"),
    Play("sglang", (), {"page_size": 4}, role="decode", blocks=40),
]
DRAFTS = {
    "num_speculative_tokens": 2,
    "speculative_acceptance": 0.7,
    "speculative_acceptance_decay": 0.9,
    "speculative_draft_cost": 0.1,
    "speculative_seed": 3,
}
CACHED = {"prefix_caching": True}
OVERLAP = {"async_scheduling": True}
REUSE = {"enable_block_reuse": True}
RADIX = {"disable_radix_cache": False, "schedule_policy": "lpm", "schedule_conservativeness": 0.1, "ignore_eos": False}
OTHERS = [
    Play("vllm-v1", (), CACHED, shared=True, blocks=TIGHT),
    Play("vllm-v1", (), CACHED | OVERLAP, shared=True, blocks=TIGHT),
    Play("vllm-v1", (), CACHED, blocks=TIGHT),
    Play("vllm-v1", (), CACHED | OVERLAP, blocks=TIGHT),
    Play("vllm-v1", (), CACHED | OVERLAP, shared=True, outside=True),
    Play("vllm-v1", (), CACHED, shared=True, outside=True, blocks=TIGHT),
    Play("vllm-v0", (), CACHED, shared=True, blocks=TIGHT),
    Play("vllm-v1", (), CACHED | OVERLAP, role="decode", blocks=TIGHT, shared=True),
    Play("vllm-v1", (), DRAFTS),
    Play("vllm-v1", (), DRAFTS | OVERLAP, blocks=TIGHT),
    Play("vllm-v1", (), DRAFTS | OVERLAP, role="decode", blocks=TIGHT),
    Play("tensorrt-llm", (), DRAFTS),
    Play(
        "tensorrt-llm",
        (),
        DRAFTS | {"overlap_scheduler": True, "capacity_scheduler_policy": "MAX_UTILIZATION"},
        blocks=13,
    ),
    Play("tensorrt-llm", (), REUSE, shared=True, blocks=TIGHT),
    Play("tensorrt-llm", (), REUSE | {"overlap_scheduler": True}, shared=True, outside=True),
    Play("tensorrt-llm", (), REUSE | {"enable_chunked_prefill": True}, shared=True, outside=True, blocks=TIGHT),
    Play("tensorrt-llm", (), {"batch_wait_timeout_iters": 3, "batch_wait_max_tokens_ratio": 0.9}),
    Play(
        "tensorrt-llm",
        (),
        {"max_num_tokens": 120, "attention_dp_enable_balance": True, "attention_dp_timeout_iters": 4},
        extra={"ranks": 2},
    ),
    Play("sglang", (), RADIX, shared=True, blocks=TIGHT),
    Play("sglang", (), RADIX | {"overlap": True, "page_size": 1}, shared=True, blocks=150),
    Play("sglang", (), RADIX | {"mixed_chunk": True, "page_size": 4}, blocks=38),
    Play("sglang", (), {"scheduler_recv_interval": 4}),
    Play("sglang", (), {"chunked_prefill_size": -1, "disable_radix_cache": True, "page_size": 1}, blocks=140),
]
GROUPS = [
    Play("vllm-v1", (), {"stream_interval": 4}),
    Play("vllm-v1", (), {"stream_interval": 3} | OVERLAP),
    Play("tensorrt-llm", (), {"stream_interval": 4}),
    Play("tensorrt-llm", (), {"stream_interval": 3, "overlap_scheduler": True}),
    Play("tensorrt-llm", (), {"stream_interval": 3, "stream_first_token": True}),
    Play("splitwise", (), {"stream_interval": 4, "max_preemptions": 0}),
]
FIRST_STAGE = [Play(policy, (), role="prefill", blocks=TIGHT) for policy in BASE if policy != "vllm-v0"]


EVERY = PLAIN + HANDED + OTHERS + GROUPS


def named(play: Play) -> str:
    told = "-".join(f"{name}={value}" for name, value in play.settings.items())
    return f"{play.policy}-{play.role}-{play.blocks}-{told}"


def drawn(play: Play, seed: int, count: int = 9) -> Play:
    """Some requests: short and long prompts, one token or many, close together or far apart."""
    rng = np.random.default_rng(seed)
    at = np.cumsum(rng.choice([0.0, 0.004, 0.05, 0.3], count))
    arrivals = [(float(t), int(rng.integers(1, 46)), int(rng.integers(1, 30))) for t in at]
    probes = tuple(float(t) for t in rng.uniform(0.0, at[-1] + 0.8, 8))
    return replace(play, arrivals=tuple(arrivals), probes=probes)


def sent_times(play: Play, times: list[float]) -> list[float]:
    """When the client has each token: with the last of its group, or with the last of all."""
    size = play.settings.get("stream_interval", 1)
    early = size > 1 and (play.policy != "tensorrt-llm" or play.settings.get("stream_first_token", False))
    shift = size - 1 if early else 0
    last = [(i + shift) // size * size + size - 1 - shift for i in range(len(times))]
    return [times[min(i, len(times) - 1)] for i in last]


def places(gaps: list[float]) -> list[int]:
    """The histogram's bins of some gaps: a thousand a decade, from a microsecond on."""
    return sorted(int((np.log10(max(gap, 1e-6)) + 6.0) * 1000.0) for gap in gaps)


def assert_same(one: Seen, other: Seen) -> None:
    for name in ("first_token_s", "last_token_s", "token_sum_s", "prefill_start_s", "prefill_end_s", "decode_start_s"):
        np.testing.assert_allclose(getattr(one.desk, name), getattr(other.desk, name), rtol=0, atol=1e-9, err_msg=name)
    for name in ("cached_tokens", "preemptions"):
        assert getattr(one.desk, name).tolist() == getattr(other.desk, name).tolist()
    assert one.engine.totals() == pytest.approx(other.engine.totals(), abs=1e-9)
    for ours, theirs in zip(one.engine.series(), other.engine.series(), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-9)
    assert [(load, made) for _, load, made, _ in one.probed] == [(load, made) for _, load, made, _ in other.probed]


@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("play", EVERY + FIRST_STAGE, ids=named)
def test_running_ahead_is_the_same_as_step_by_step(play: Play, seed: int) -> None:
    case = drawn(play, seed)
    ahead, steps = Seen(case), Seen(replace(case, macro=False, logging=True))
    assert_same(ahead, steps)
    told = Seen(replace(case, told=True))
    assert_same(ahead, told)
    ends = {row: at for kind, row, _, at in told.news if kind == 1}
    if play.role != "prefill":
        assert ends == {row: told.desk.last_token_s[row] for row in range(len(case.arrivals))}


@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("play", EVERY + FIRST_STAGE, ids=named)
def test_all_is_given_back_and_gaps_add_up(play: Play, seed: int) -> None:
    seen = Seen(drawn(play, seed))
    load, totals, desk = seen.engine.load(), seen.engine.totals(), seen.desk
    assert (load.running, load.waiting, load.holding, load.pending_prompt_tokens) == (0, 0, 0, 0)
    assert load.free_blocks == load.blocks
    assert seen.engine.progress() == {}
    if play.role != "prefill":
        assert totals.gap_sum_s == pytest.approx((desk.last_token_s - desk.first_token_s).sum())
        assert seen.engine.series()[4].sum() == (seen.makes - 1).sum()
        for at, load, made, _ in seen.probed:
            arrived = {row for row, (come, *_) in enumerate(seen.play.arrivals) if come <= at}
            here = {row for row in arrived if desk.last_token_s[row] > at}
            assert set(made) == here and load.requests <= len(here)
            if not play.settings.get("overlap"):  # SGLang's overlapped loop leaves out whose last token is on its way
                assert load.requests == len(here)
    assert totals.preemptions == desk.preemptions.sum()


@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("play", PLAIN, ids=named)
def test_tokens_come_at_the_ends_of_their_steps(play: Play, seed: int) -> None:
    seen = Seen(replace(drawn(play, seed), macro=False, logging=True))
    times, desk, totals = seen.token_times(), seen.desk, seen.engine.totals()
    assert [len(row) for row in times] == seen.makes.tolist()
    np.testing.assert_allclose(desk.first_token_s, [row[0] for row in times])
    np.testing.assert_allclose(desk.last_token_s, [row[-1] for row in times])
    np.testing.assert_allclose(desk.token_sum_s, [sum(row) for row in times])
    assert totals.gap_max_s == pytest.approx(max(np.diff(row).max(initial=0.0) for row in times))
    batches = seen.batches()
    assert totals.batches == len(batches)
    assert totals.busy_s == pytest.approx(sum(end - start for start, end, _ in batches))
    for at, _, made, _ in seen.probed:
        assert made == {row: sum(t <= at for t in times[row]) for row in made}
    if totals.preemptions == 0:
        assert totals.prefill_tokens == sum(prompt for _, prompt, _ in seen.play.arrivals)


@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("play", EVERY, ids=named)
def test_those_taken_out_leave_nothing_behind(play: Play, seed: int) -> None:
    """Some clients go at random moments: the others get all their tokens, and nothing is held in the end."""
    case = drawn(play, seed)
    rng = np.random.default_rng(seed + 100)
    going = tuple((case.arrivals[row][0] + float(rng.uniform(0.0, 0.5)), row) for row in (1, 3, 4, 7))
    seen = Seen(replace(case, withdrawn=going))
    load, totals = seen.engine.load(), seen.engine.totals()
    assert (load.running, load.waiting, load.holding, load.pending_prompt_tokens) == (0, 0, 0, 0)
    assert load.free_blocks == load.blocks
    stay = [row for row in range(len(case.arrivals)) if row not in seen.gone]
    assert np.isfinite(seen.desk.last_token_s[stay]).all() and np.isnan(seen.desk.last_token_s[sorted(seen.gone)]).all()
    assert_same(seen, Seen(replace(case, withdrawn=going, macro=False, logging=True)))
    assert totals.gap_sum_s > 0.0


@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("play", PLAIN + GROUPS, ids=named)
def test_every_gap_between_tokens_is_counted_once(play: Play, seed: int) -> None:
    seen = Seen(replace(drawn(play, seed), macro=False, logging=True))
    times = [sent_times(play, row) for row in seen.token_times()]
    np.testing.assert_allclose(seen.desk.first_token_s, [row[0] for row in times])
    np.testing.assert_allclose(seen.desk.last_token_s, [row[-1] for row in times])
    gaps = [gap for row in times for gap in np.diff(row)]
    counts = seen.engine.series()[4]
    found = np.repeat(np.arange(counts.size), counts)
    assert len(found) == len(gaps)
    assert np.abs(found - places(gaps)).max() <= 1  # the last bit may tip a gap into the next bin
    assert seen.engine.totals().gap_sum_s == pytest.approx(sum(gaps))
    for at, _, made, _ in seen.probed:
        assert made == {row: sum(t <= at for t in times[row]) for row in made}


@pytest.mark.parametrize("recompute", [True, False])
@pytest.mark.parametrize("play", [*HANDED, *(p for p in OTHERS if p.role == "decode")], ids=named)
def test_kv_that_does_not_come_is_computed_here_or_given_up(play: Play, recompute: bool) -> None:
    case = replace(drawn(play, 3), abandoned={1: recompute, 4: False, 6: recompute})
    if play.policy == "distserve" and recompute:
        return  # its decoding stage computes no prompts
    seen = Seen(case)
    load = seen.engine.load()
    assert (load.running, load.waiting, load.holding, load.pending_prompt_tokens) == (0, 0, 0, 0)
    assert load.free_blocks == load.blocks
    never = {4} if recompute and play.policy != "sglang" else {1, 4, 6}
    assert set(np.flatnonzero(np.isnan(seen.desk.last_token_s)).tolist()) == never
    assert_same(seen, Seen(replace(case, macro=False, logging=True)))
