"""Each step takes what its entries cost: their tokens, what was computed before them, the prompts that end in it."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

import numpy as np
import pytest
from engine_play import UNEVEN, Play, Seen
from test_engine_sums import HANDED, OTHERS, OVERLAP, PLAIN, drawn, named

from simulator.cost.table import StepCostTable
from simulator.engine.engine import POLICIES

COUNTS = np.arange(400.0)
KNOTS = np.array([0.0, 1000.0])
#: Linear in everything, so that any sum can be told by hand; no two numbers are alike.
LINEAR = StepCostTable(
    affine=False,
    decode_s=0.011 + 0.0003 * COUNTS,
    decode_add_s=0.0002 + 0.00001 * COUNTS,
    mixed_s=0.017 + 0.0005 * COUNTS,
    mixed_floor_s=0.0 * COUNTS,
    mixed_add_s=0.0003 + 0.00007 * COUNTS,
    per_finished_prefill_s=0.0009,
    context_knots=KNOTS,
    decode_attention_s=np.outer(COUNTS, 0.000013 * KNOTS),
    chunk_new_knots=KNOTS,
    chunk_past_knots=KNOTS,
    chunk_attention_s=np.array([[0.0, 0.0], [0.0031, 0.0031 + 0.0007 * 1000.0]]),
)


@dataclass
class Step:
    """What is in a step: computed tokens before each single token, (tokens, computed before) of chunks, prompts ended."""

    singles: list[int] = field(default_factory=list)
    chunks: list[tuple[int, int]] = field(default_factory=list)
    finished: int = 0

    def seconds(self, cost: StepCostTable, counts_singles: bool) -> float:
        """``counts_singles``: a prompt that ends with a single token makes it a step with prompts (SGLang)."""
        tokens = len(self.singles) + sum(new for new, _ in self.chunks)
        context, count = sum(self.singles), len(self.singles) + len(self.chunks)
        if cost.affine:
            before = context + sum(past for _, past in self.chunks)
            return (
                cost.base_s
                + math.hypot(cost.per_token_s * tokens, cost.weights_s)
                + cost.per_context_token_s * before
                + cost.per_sequence_s * count
            )
        attention = 0.000013 * context
        if not self.chunks and not (counts_singles and self.finished):
            return 0.011 + 0.0003 * tokens + attention + 0.0002 + 0.00001 * tokens
        attention += sum(0.0031 * new / 1000 + 0.0007 * new * past / 1000 for new, past in self.chunks)
        return 0.017 + 0.0005 * tokens + attention + 0.0009 * self.finished + 0.0003 + 0.00007 * count


def steps_of(seen: Seen) -> list[Step]:
    """The contents of each step, told from the log alone: nothing is cached, a paused request starts over."""
    return told(seen)[0]


def told(seen: Seen) -> tuple[list[Step], list[list[float]]]:
    """The contents of each step, and the ends of those in which each request's tokens were made here."""
    play, steps = seen.play, []
    times: list[list[float]] = [[] for _ in play.arrivals]
    prompts = [prompt for _, prompt, _ in play.arrivals]
    there = play.role == "decode"
    known = [prompt + (1 if there and seen.engine.passes_first_token else 0) for prompt in prompts]
    computed = [n - 1 if there else 0 for n in known]
    starts = [not there or play.policy != "sglang"] * len(known)  # its decode engine has no steps with prompts
    for _, end, entries in seen.batches():
        step = Step()
        for row, tokens in entries:
            if tokens < 0:
                computed[row] = known[row] - 1 if play.policy == "distserve" else 0
                starts[row] = True
                continue
            if tokens == 1:
                step.singles.append(computed[row])
            else:
                step.chunks.append((tokens, computed[row]))
            computed[row] += tokens
            if computed[row] == known[row]:
                step.finished += starts[row]
                known[row], starts[row] = known[row] + 1, False
                times[row].append(end)
        steps.append(step)
    return steps, times


@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize("cost", [UNEVEN, LINEAR], ids=["affine", "table"])
@pytest.mark.parametrize("play", PLAIN + HANDED, ids=named)
def test_steps_take_what_their_entries_cost(play: Play, cost: StepCostTable, seed: int) -> None:
    case = drawn(play, seed)
    seen = Seen(replace(case, cost=cost, macro=False, logging=True))
    if play.policy == "sglang" and seen.engine.totals().preemptions:
        return  # which of its tokens were lost with a retraction is not in the log
    found = [end - start for start, end, _ in seen.batches()]
    wanted = [step.seconds(cost, play.policy == "sglang") for step in steps_of(seen)]
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-12)
    assert_totals(seen)


def assert_totals(seen: Seen) -> None:
    """Sums of tokens, from the log; and as many blocks at the most as the samples show."""
    totals, steps = seen.engine.totals(), seen.batches()
    assert totals.batches == len(steps)
    assert totals.busy_s == pytest.approx(sum(end - start for start, end, _ in steps))
    made = sum(len([1 for _, tokens in entries if tokens == 1]) for _, _, entries in steps)
    assert totals.decode_tokens <= made
    chunks = sum(tokens for _, _, entries in steps for _, tokens in entries if tokens > 1)
    assert totals.prefill_tokens + totals.decode_tokens == made + chunks
    assert all(tokens == -1 or tokens > 0 for _, _, entries in steps for _, tokens in entries)
    assert totals.preemptions == sum(tokens < 0 for _, _, entries in steps for _, tokens in entries)
    assert (totals.hit_tokens, set(seen.desk.cached_tokens.tolist()) <= {0, -1}) == (0, True)


@pytest.mark.parametrize("play", [p for p in PLAIN + HANDED + OTHERS if POLICIES[p.policy].withdraw], ids=named)
def test_a_pace_of_two_takes_twice_as_long(play: Play) -> None:
    """All requests are there from the start, so that every moment is twice as late, to the last bit."""
    case = drawn(play, 4)
    case = replace(case, arrivals=tuple((0.0, prompt, output) for _, prompt, output in case.arrivals), probes=())
    once = Seen(case)

    class Slow(Seen):
        def happen(self, now: float, what: int, row: int) -> None:
            if row == 0:
                self.engine.set_pace(2.0)
            super().happen(now, what, row)

    twice = Slow(replace(case, read_s=2.0 * case.read_s))
    for name in ("first_token_s", "last_token_s", "token_sum_s", "prefill_end_s"):
        np.testing.assert_array_equal(getattr(twice.desk, name), 2.0 * getattr(once.desk, name))


def test_a_step_planned_before_the_pace_changes_keeps_its_time() -> None:
    """Steps of one second: planned at 0, 1 and 2; the pace changes at 2.5, so that the fourth takes three."""
    play = Play(
        "vllm-v1",
        ((0.0, 4, 5),),
        cost=replace(UNEVEN, base_s=1.0, per_token_s=0.0, per_context_token_s=0.0, per_sequence_s=0.0, weights_s=0.0),
    )

    class Slow(Seen):
        def happen(self, now: float, what: int, row: int) -> None:
            super().happen(now, what, row)
            if what == 2:
                self.engine.set_pace(3.0)

    assert Slow(replace(play, probes=(2.5,))).desk.last_token_s.tolist() == [9.0]
    assert Slow(replace(play, probes=(2.5,), settings=OVERLAP)).desk.last_token_s.tolist() == [7.0]
