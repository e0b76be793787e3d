"""One engine as the cluster sees it: submit, advance, and look. No clock of its own, and no SimPy."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from simulator.compiled import group_of
from simulator.cost.table import StepCostTable, step_cost_record
from simulator.engine import steps
from simulator.engine.abandoning import abandon
from simulator.engine.makers import (
    first_token_made,
    longest_prompt,
    make_distserve,
    make_splitwise,
    make_tensorrt_llm,
    make_vllm,
    make_vllm_v0,
)
from simulator.engine.pacing import set_cost, slowed
from simulator.engine.reads import will_hold
from simulator.engine.rules import REMADE
from simulator.engine.sglang.policy import SGLANG
from simulator.engine.state import COLOCATED, DECODE, PREFILL
from simulator.engine.withdrawing import progress, withdraw
from simulator.errors import InputError, unknown


@dataclass(frozen=True)
class EngineSpec:
    """What makes one engine: its policy, its settings under the engine's own names, its memory and its speed.

    ``kv_blocks`` counts usable blocks. ``settings`` are resolved: a value for each name the policy reads.
    """

    policy: str
    role: str
    settings: dict[str, Any]
    kv_blocks: int
    cost: StepCostTable
    tell_finished: bool = False
    tell_prompts: bool = False
    tell_evicted: bool = False
    tell_chunks: bool = False
    logging: bool = False
    macro: bool = True
    extra: dict[str, Any] = field(default_factory=dict)


class News(NamedTuple):
    """Something the cluster has to hear of; arrays over news: kind, row, slot, value, moment, and since when."""

    kind: NDArray[np.int64]
    row: NDArray[np.int64]
    slot: NDArray[np.int64]
    value: NDArray[np.int64]
    at_s: NDArray[np.float64]
    from_s: NDArray[np.float64]


class Load(NamedTuple):
    """What a real router could see of an engine."""

    running: int
    waiting: int
    holding: int
    free_blocks: int
    blocks: int
    pending_prompt_tokens: int

    @property
    def requests(self) -> int:
        return self.running + self.waiting + self.holding


class Totals(NamedTuple):
    """Sums over an engine's run."""

    batches: int
    busy_s: float
    peak_blocks: int
    preemptions: int
    decode_tokens: int
    prefill_tokens: int
    hit_tokens: int
    lookup_tokens: int
    gap_sum_s: float
    gap_max_s: float


class Policy(NamedTuple):
    """The functions of one scheduling policy; see ``simulator.engine.steps`` for what each does."""

    make: Callable[[EngineSpec, Any, Any], Any]
    block_size: Callable[[dict[str, Any]], int]
    submit: Callable[..., float]
    transfer_ended: Callable[..., float]
    abandon: Callable[..., float]
    pulse: Callable[..., tuple[int, float]]
    take_news: Callable[..., tuple[NDArray[Any], ...]]
    load: Callable[..., tuple[int, ...]]
    survey: Callable[..., None]
    overlaps: Callable[..., None]
    will_hold: Callable[..., None]
    take_evicted: Callable[..., NDArray[np.int64]]
    totals: Callable[..., tuple[float, ...]]
    series: Callable[..., tuple[NDArray[Any], ...]]
    step_log: Callable[..., tuple[NDArray[Any], ...]]
    progress: Callable[..., tuple[NDArray[np.int64], NDArray[np.int64]]]
    withdraw: Callable[..., tuple[bool, float]]


def shared(make: Callable[[EngineSpec, Any, Any], Any], block_setting: str = "block_size") -> Policy:
    """A policy on the state machine of ``simulator.engine.steps``: it differs in what it plans."""
    return Policy(
        make,
        lambda s: int(s[block_setting]),
        steps.submit,
        steps.transfer_ended,
        abandon,
        steps.pulse,
        steps.take_news,
        steps.load,
        steps.survey,
        steps.overlaps,
        will_hold,
        steps.take_evicted,
        steps.totals,
        steps.series,
        steps.step_log,
        progress,
        withdraw,
    )


POLICIES: dict[str, Policy] = {
    "vllm-v1": shared(make_vllm),
    "vllm-v0": shared(make_vllm_v0),
    "tensorrt-llm": shared(make_tensorrt_llm, "tokens_per_block"),
    "distserve": shared(make_distserve),
    "splitwise": shared(make_splitwise),
    "sglang": Policy(*SGLANG),
}


class Engine:
    """One serving engine. Times are seconds of the simulated clock; rows are rows of the trace.

    ``advance(now)`` lives through everything before the instant ``now``; planning that falls into that instant stays
    due until a later call, so that whatever else arrives in it comes first. ``wake_s`` then says when to come again.
    ``passes_first_token``: a handed-over request brings its first token with it. ``longest_prompt``: tokens; None
    where any prompt can be computed.
    """

    def __init__(self, spec: EngineSpec, content: Any, desk: Any) -> None:
        if spec.policy not in POLICIES:
            raise InputError(unknown("engine", "policy", spec.policy, POLICIES))
        self.spec = spec
        self.policy = POLICIES[spec.policy]
        self.block_size = self.policy.block_size(spec.settings)
        self.state = self.policy.make(spec, content, desk)
        self.passes_first_token = first_token_made(spec.policy) != REMADE
        ranks = 1 if spec.role == "decode" else int(spec.extra.get("ranks", 1))  # a prompt read is not cut to a step
        self.longest_prompt = longest_prompt(spec.policy, spec.settings, ranks)
        self.wake_s = float("inf")
        self.seen_s = -1.0  # the moment it was last brought to
        self._pulse = self.policy.pulse
        self._alone: Survey | None = None

    def submit(
        self,
        row: int,
        prompt_tokens: int,
        target_tokens: int,
        now: float,
        *,
        remote: bool = False,
        hand_over: bool | None = None,
        outside: int = 0,
    ) -> None:
        """A request comes in; ``remote`` if its prompt's KV is to be read from a prefill engine.

        ``hand_over``: its KV is kept for another engine once the prompt is computed (as it is where nothing is said
        and the role is prefill). ``outside``: leading prompt tokens that caches below this engine seem to hold.
        """
        over = self.spec.role == "prefill" if hand_over is None else hand_over
        part = DECODE if remote else PREFILL if over else COLOCATED
        self.wake_s = self.policy.submit(self.state, row, prompt_tokens, target_tokens, part, outside, now)

    def overlap(self, content: Any, row: int, tokens: int, keys: NDArray[np.int64]) -> int:
        """Leading tokens of a prompt (of its first ``tokens``) in the prefix cache; ``keys``: of whole blocks."""
        if self._alone is None:
            self._alone = Survey([self])
        return int(self._alone.overlap(content, row, tokens, keys)[0])

    def will_hold(self, slot: int, tokens: int) -> None:
        """The load that a slot waits for ends with the KV of its prompt's first ``tokens`` tokens here."""
        self.policy.will_hold(self.state, slot, tokens)

    def take_evicted(self) -> NDArray[np.int64]:
        """Keys of blocks that the prefix cache has dropped since the last time (with ``spec.tell_evicted``)."""
        return self.policy.take_evicted(self.state)

    def transfer_ended(self, slot: int, now: float) -> None:
        """The read of a slot's KV has ended (told to both engines)."""
        self.wake_s = self.policy.transfer_ended(self.state, slot, now)

    def abandon(self, slot: int, recompute: bool, now: float) -> None:
        """At a decode engine: the KV a slot waits for will not come. It is computed here, or the slot given up."""
        self.wake_s = self.policy.abandon(self.state, slot, recompute, now)

    def withdraw(self, row: int, now: float) -> bool:
        """Take a row's request out, whatever is being done of it; whether it was here. Call ``advance`` first."""
        found, self.wake_s = self.policy.withdraw(self.state, row, now)
        return bool(found)

    def progress(self) -> dict[int, int]:
        """Rows of the requests that are here, with the output tokens that each one's client has of this engine."""
        rows, tokens = self.policy.progress(self.state)
        return dict(zip(rows.tolist(), tokens.tolist(), strict=True))

    def set_pace(self, factor: float) -> None:
        """Steps planned from now on take ``factor`` times as long as they should. Call ``advance`` first."""
        set_cost(self.state, step_cost_record(slowed(self.spec.cost, factor)))
        _, self.wake_s = self._pulse(self.state, self.seen_s)

    def advance(self, now: float) -> News | None:
        """Live up to ``now``; returns the news since the last call, or None."""
        count, self.wake_s = self._pulse(self.state, now)
        self.seen_s = now
        return self.take_news() if count else None

    def take_news(self) -> News:
        """The news since the last time."""
        return News(*self.policy.take_news(self.state))

    def load(self) -> Load:
        """Queue lengths and memory, as a router may see them."""
        return Load(*self.policy.load(self.state))

    def totals(self) -> Totals:
        """Sums over the run so far."""
        return Totals(*self.policy.totals(self.state))  # type: ignore[arg-type]

    def series(self) -> tuple[NDArray[Any], ...]:
        """Moments (s), running, waiting, blocks taken; and the histogram of token gaps."""
        return self.policy.series(self.state)

    def step_log(self) -> tuple[NDArray[Any], ...]:
        """With ``logging``: batch starts, ends, first entries; entries' rows and tokens (-1: preempted)."""
        return self.policy.step_log(self.state)


class Survey:
    """Engines of one policy, advanced and looked at together: for routers that compare many."""

    def __init__(self, engines: Sequence[Engine]) -> None:
        self._engines = list(engines)
        self._group = group_of([engine.state for engine in engines])
        self._survey = engines[0].policy.survey
        self.gauges = np.zeros((len(engines), 6))
        self._news = np.zeros(len(engines), np.int64)
        self._wakes = np.zeros(len(engines))
        self._overlaps = engines[0].policy.overlaps
        self._found = np.zeros(len(engines), np.int64)

    def look(self, now: float) -> list[int]:
        """Bring all engines to ``now``; ``gauges`` (engines x fields of ``Load``) is new. Who has news to take."""
        self._survey(self._group, now, self.gauges, self._news, self._wakes)
        for engine, wake in zip(self._engines, self._wakes.tolist(), strict=True):
            engine.wake_s, engine.seen_s = wake, now
        return [i for i, count in enumerate(self._news.tolist()) if count]

    def overlap(self, content: Any, row: int, tokens: int, keys: NDArray[np.int64]) -> NDArray[np.int64]:
        """Leading tokens of a prompt (of its first ``tokens``) that each engine holds; ``keys``: of whole blocks."""
        self._overlaps(self._group, content, row, tokens, keys, self._found)
        return self._found
