"""Engines in hundreds of small plays drawn at random: books, sums, times and what is left in the end."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from engine_chance import ROLES, chance
from engine_play import UNEVEN, Play, Seen
from test_engine_audit import Audited
from test_engine_costs import LINEAR, told
from test_engine_sums import assert_same

SEEDS = {"vllm-v1": 24, "tensorrt-llm": 24, "sglang": 24}


@pytest.mark.parametrize(
    ("policy", "role", "seed"), [(*pair, seed) for pair in ROLES for seed in range(SEEDS.get(pair[0], 12))]
)
def test_whatever_comes_the_books_add_up_and_all_is_given_back(policy: str, role: str, seed: int) -> None:
    play = chance(policy, role, seed)
    audited = Audited(replace(play, told=True, macro=False))
    ahead, steps = Seen(play), Seen(replace(play, macro=False, logging=True))
    assert_same(ahead, steps)
    for seen in (audited, ahead, steps):
        nothing_left(seen)
    if not play.withdrawn and not play.abandoned:
        assert_same(ahead, audited)
        all_made(ahead)


def nothing_left(seen: Seen) -> None:
    load, totals = seen.engine.load(), seen.engine.totals()
    assert (load.running, load.waiting, load.holding, load.pending_prompt_tokens) == (0, 0, 0, 0)
    assert load.free_blocks == load.blocks == seen.play.blocks
    assert seen.engine.progress() == {}
    assert 0 < totals.peak_blocks <= load.blocks or not totals.batches
    stay = set(range(len(seen.makes))) - seen.gone - set(seen.play.abandoned)
    if seen.play.role != "prefill":
        assert np.isfinite(seen.desk.last_token_s[sorted(stay)]).all()
        assert np.isnan(seen.desk.last_token_s[sorted(seen.gone)]).all()


def all_made(seen: Seen) -> None:
    """Every request has its tokens: gaps are one fewer, and in all as long as from the first token to the last."""
    desk, totals = seen.desk, seen.engine.totals()
    assert totals.preemptions == desk.preemptions.sum()
    if seen.play.role == "prefill":
        return
    if seen.play.settings.get("stream_interval", 1) > 1 and (totals.preemptions or seen.play.role == "decode"):
        return  # where a group is cut by a pause or a handover, its first gap is that of single tokens
    assert seen.engine.series()[4].sum() == (seen.makes - 1).sum()
    assert totals.gap_sum_s == pytest.approx((desk.last_token_s - desk.first_token_s).sum())


def plain(play: Play) -> bool:
    """Whether the log alone tells what is in a step."""
    settings = play.settings
    cached = settings.get("prefix_caching") or settings.get("enable_block_reuse")
    cached = cached or settings.get("disable_radix_cache") is False
    return not (cached or "num_speculative_tokens" in settings or play.withdrawn or play.abandoned)


PLAIN = [(*pair, seed) for pair in ROLES for seed in range(40) if plain(chance(*pair, seed))]


@pytest.mark.parametrize(("policy", "role", "seed"), PLAIN)
def test_whatever_comes_steps_take_what_their_entries_cost(policy: str, role: str, seed: int) -> None:
    play = chance(policy, role, seed)
    cost = LINEAR if seed % 2 else UNEVEN
    seen = Seen(replace(play, cost=cost, macro=False, logging=True))
    logged = [tokens for _, _, entries in seen.batches() for _, tokens in entries]
    assert min(logged, default=1) >= -1 and 0 not in logged
    paused = logged.count(-1)
    if seen.engine.totals().preemptions > (0 if policy == "sglang" else paused):
        return  # some pauses left nothing to be planned, and stand in no step
    found = [end - start for start, end, _ in seen.batches()]
    steps, times = told(seen)
    wanted = [step.seconds(cost, policy == "sglang") for step in steps]
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-12)
    if role != "prefill" and play.settings.get("stream_interval", 1) == 1:
        assert_tokens(seen, times)


def assert_tokens(seen: Seen, times: list[list[float]]) -> None:
    """Tokens come with the ends of the steps that make them; one that came with the KV before them."""
    brought = seen.play.role == "decode" and seen.engine.passes_first_token
    for row, made in enumerate(times):
        first = seen.desk.first_token_s[row]
        tokens = ([first] if brought else []) + made[: int(seen.makes[row]) - brought]
        assert len(tokens) == seen.makes[row]
        assert (tokens[0], tokens[-1]) == (first, seen.desk.last_token_s[row])
        assert seen.desk.token_sum_s[row] == pytest.approx(sum(tokens))
        for at, _, progress, _ in seen.probed:
            if row in progress and (at >= first or not brought):
                on_its_way = seen.play.settings.get("overlap") and progress[row] == seen.makes[row] - 1
                assert progress[row] == sum(t <= at for t in tokens) or on_its_way
