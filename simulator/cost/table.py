"""One engine's step cost as arrays: what the cost room hands to the engine.

Everything that depends on counts alone is worked out once, exactly, for every count; what remains at run time is one
look-up and one linear interpolation a step. Decode time is affine in the summed context between knots on purpose.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from simulator.compiled import compiled, record

Floats = NDArray[np.float64]
#: Plain numbers of a table, by the name of their annotation, as compiled code takes them.
_NUMBERS: dict[Any, Callable[[Any], float]] = {"float": float, "int": int}


@dataclass(frozen=True)
class StepCostTable:
    """Seconds of one step. All arrays are float64; index = a count.

    A step with ``decode_seqs`` decoding sequences whose contexts sum to ``decode_context`` tokens (tokens computed
    before the step) and prefill chunks of ``new`` tokens after ``past`` computed ones takes

    * affine kind: ``base_s + work + per_context_token_s * (sum of tokens computed before the step) + per_sequence_s *
      sequences``, where ``work = sqrt((per_token_s * tokens)^2 + weights_s^2)`` (a roofline, see
      ``simulator.cost.roofline``, with an exponent of 2);
    * table kind: ``max(floor, gpu) + add`` with
      pure decode: ``gpu = decode_s[n] + attention(n, decode_context)``, floor and add ``decode_floor_s[n]``,
      ``decode_add_s[n]``, n = decode_seqs;
      any prefill token: ``gpu = (1 + mixed_slower) (mixed_s[tokens] + attention + sum of chunk attention)``, floor and
      add ``mixed_floor_s[seqs]``, ``mixed_add_s[seqs]``, plus ``per_finished_prefill_s`` for each prompt it completes.
      It starts ``mixed_prepare_s`` after its planning at the earliest; its launch by the host is over
      ``mixed_launch_s[tokens] + launch_seq_s * min(seqs, launch_most_seqs)`` after the planning on average, and it
      ends no earlier than that.
      The host's pace makes it up to the share ``launch_swing`` shorter or longer, drawn evenly for every
      ``launch_stretch_s`` of time. Of it the share ``launch_jitter`` is exponentially distributed. While it launches,
      the host is kept from it ``stall_rate_hz`` times a second (once a launch at most) for ``stall_s`` seconds on
      average, exponentially distributed (``launch_seed``: which draws).
      A pure decode step starts ``decode_launch_s[n]`` after its planning at the earliest.

    A step with prompts is launched for ``queue_launch_s`` at least, until no more than ``queue_share`` of its kernels
    are left (so many fit the GPU's queue): only then are results of the step before looked at (SGLang alone).

    Launching takes ``cold_prompt_s`` longer in the first step with prompts, and ``cold_past_s`` in the first that goes
    on with a prompt: kernels that are fetched or compiled when first used (SGLang's policy alone looks at them).

    ``decode_attention_s[n, k]``: decode attention (all layers) of n sequences with mean context ``context_knots[k]``;
    linear between knots, and beyond the last two. ``chunk_attention_s[i, j]``: prefill attention (all layers) of
    ``chunk_new_knots[i]`` new tokens over ``chunk_past_knots[j]`` earlier ones; bilinear, in sqrt-free plain counts.
    Counts above an array's end are extrapolated linearly from its last two entries.

    ``ranks`` over 1: attention is data-parallel, and a prompt is computed by one rank. All times above are those of
    tokens shared out evenly; with c chunks on r ranks the fullest rank holds ceil(c / r) of them, that is
    u = r * ceil(c / r) / c times its even share, and the others wait. The step then takes
    ``mixed_rank_s[(decodes + u * new) / r] - mixed_rank_s[(decodes + new) / r]`` longer (index: one rank's tokens,
    rounded up), as far as that is more than ``mixed_slack_s[tokens]``, the time its GPU work leaves to the host's
    launches; chunk attention takes u times as long.

    ``power_window_s`` over 0: the GPU has a power limit (``simulator.cost.power``). Energies are in seconds of that
    limit, of a step beyond idle: ``mixed_energy_s[tokens]``, ``decode_energy_s[n]``, ``context_energy_s`` for each
    token of KV that decode attention reads, ``attention_drive`` for each second of chunk attention.
    """

    affine: bool
    base_s: float = 0.0
    per_token_s: float = 0.0
    per_context_token_s: float = 0.0
    per_sequence_s: float = 0.0
    weights_s: float = 0.0
    decode_s: Floats = field(default_factory=lambda: np.zeros(2))
    decode_floor_s: Floats = field(default_factory=lambda: np.zeros(2))
    decode_add_s: Floats = field(default_factory=lambda: np.zeros(2))
    mixed_s: Floats = field(default_factory=lambda: np.zeros(2))
    mixed_floor_s: Floats = field(default_factory=lambda: np.zeros(2))
    mixed_add_s: Floats = field(default_factory=lambda: np.zeros(2))
    mixed_launch_s: Floats = field(default_factory=lambda: np.zeros(2))
    mixed_prepare_s: float = 0.0
    launch_jitter: float = 0.0
    launch_swing: float = 0.0
    launch_stretch_s: float = 1.0
    cold_prompt_s: float = 0.0
    cold_past_s: float = 0.0
    launch_seq_s: float = 0.0
    launch_most_seqs: int = 2**31
    stall_rate_hz: float = 0.0
    stall_s: float = 0.0
    launch_seed: int = 0
    queue_launch_s: float = 0.0
    queue_share: float = 1.0
    decode_launch_s: Floats = field(default_factory=lambda: np.zeros(2))
    mixed_slower: float = 0.0
    per_finished_prefill_s: float = 0.0
    context_knots: Floats = field(default_factory=lambda: np.array([0.0, 1.0]))
    decode_attention_s: Floats = field(default_factory=lambda: np.zeros((2, 2)))
    chunk_new_knots: Floats = field(default_factory=lambda: np.array([0.0, 1.0]))
    chunk_past_knots: Floats = field(default_factory=lambda: np.array([0.0, 1.0]))
    chunk_attention_s: Floats = field(default_factory=lambda: np.zeros((2, 2)))
    ranks: int = 1
    mixed_rank_s: Floats = field(default_factory=lambda: np.zeros(2))
    mixed_slack_s: Floats = field(default_factory=lambda: np.zeros(2))
    power_window_s: float = 0.0
    power_idle: float = 0.0
    power_exponent: float = 0.0
    mixed_energy_s: Floats = field(default_factory=lambda: np.zeros(2))
    decode_energy_s: Floats = field(default_factory=lambda: np.zeros(2))
    context_energy_s: float = 0.0
    attention_drive: float = 0.0


def affine_cost(
    base_s: float,
    per_token_s: float = 0.0,
    per_context_token_s: float = 0.0,
    per_sequence_s: float = 0.0,
    weights_s: float = 0.0,
) -> StepCostTable:
    """The explicit step time of a topology: for teaching, tests and exact cases."""
    return StepCostTable(True, base_s, per_token_s, per_context_token_s, per_sequence_s, weights_s)


StepCost = record("StepCost", tuple(field.name for field in fields(StepCostTable)), __name__)


# spelled out, as in ``simulator.engine``: machine code of a function that has no source file cannot be kept on disk
@compiled
def make_step_cost(  # type: ignore[no-untyped-def]
    affine,
    base_s,
    per_token_s,
    per_context_token_s,
    per_sequence_s,
    weights_s,
    decode_s,
    decode_floor_s,
    decode_add_s,
    mixed_s,
    mixed_floor_s,
    mixed_add_s,
    mixed_launch_s,
    mixed_prepare_s,
    launch_jitter,
    launch_swing,
    launch_stretch_s,
    cold_prompt_s,
    cold_past_s,
    launch_seq_s,
    launch_most_seqs,
    stall_rate_hz,
    stall_s,
    launch_seed,
    queue_launch_s,
    queue_share,
    decode_launch_s,
    mixed_slower,
    per_finished_prefill_s,
    context_knots,
    decode_attention_s,
    chunk_new_knots,
    chunk_past_knots,
    chunk_attention_s,
    ranks,
    mixed_rank_s,
    mixed_slack_s,
    power_window_s,
    power_idle,
    power_exponent,
    mixed_energy_s,
    decode_energy_s,
    context_energy_s,
    attention_drive,
):
    return StepCost(
        affine,
        base_s,
        per_token_s,
        per_context_token_s,
        per_sequence_s,
        weights_s,
        decode_s,
        decode_floor_s,
        decode_add_s,
        mixed_s,
        mixed_floor_s,
        mixed_add_s,
        mixed_launch_s,
        mixed_prepare_s,
        launch_jitter,
        launch_swing,
        launch_stretch_s,
        cold_prompt_s,
        cold_past_s,
        launch_seq_s,
        launch_most_seqs,
        stall_rate_hz,
        stall_s,
        launch_seed,
        queue_launch_s,
        queue_share,
        decode_launch_s,
        mixed_slower,
        per_finished_prefill_s,
        context_knots,
        decode_attention_s,
        chunk_new_knots,
        chunk_past_knots,
        chunk_attention_s,
        ranks,
        mixed_rank_s,
        mixed_slack_s,
        power_window_s,
        power_idle,
        power_exponent,
        mixed_energy_s,
        decode_energy_s,
        context_energy_s,
        attention_drive,
    )


@compiled
def at_count(values, n):  # type: ignore[no-untyped-def]
    """``values[n]``, continued linearly past the end."""
    last = values.size - 1
    if n <= last:
        return values[n]
    return values[last] + (values[last] - values[last - 1]) * (n - last)


@compiled
def knot_below(knots, x):  # type: ignore[no-untyped-def]
    """Index i of the piece ``knots[i]..knots[i+1]`` that holds x (first or last piece outside)."""
    i = np.searchsorted(knots, x, side="right") - 1
    return min(max(i, 0), knots.size - 2)


@compiled
def decode_attention_seconds(cost, seqs, context):  # type: ignore[no-untyped-def]
    """Decode attention of ``seqs`` sequences whose contexts sum to ``context`` tokens."""
    if seqs == 0:
        return 0.0
    row = min(seqs, cost.decode_attention_s.shape[0] - 1)
    mean = context / seqs
    i = knot_below(cost.context_knots, mean)
    x0, x1 = cost.context_knots[i], cost.context_knots[i + 1]
    y0, y1 = cost.decode_attention_s[row, i], cost.decode_attention_s[row, i + 1]
    return (y0 + (y1 - y0) * (mean - x0) / (x1 - x0)) * (seqs / row)


@compiled
def chunk_attention_seconds(cost, new, past):  # type: ignore[no-untyped-def]
    """Prefill attention of one chunk of ``new`` tokens over ``past`` computed ones."""
    i = knot_below(cost.chunk_new_knots, new)
    j = knot_below(cost.chunk_past_knots, past)
    u = (new - cost.chunk_new_knots[i]) / (cost.chunk_new_knots[i + 1] - cost.chunk_new_knots[i])
    v = (past - cost.chunk_past_knots[j]) / (cost.chunk_past_knots[j + 1] - cost.chunk_past_knots[j])
    a = cost.chunk_attention_s
    return (a[i, j] * (1 - u) + a[i + 1, j] * u) * (1 - v) + (a[i, j + 1] * (1 - u) + a[i + 1, j + 1] * u) * v


@compiled
def affine_work_seconds(cost, tokens):  # type: ignore[no-untyped-def]
    """Reading the weights and the arithmetic of ``tokens`` tokens beside it, of an explicit step time."""
    work = cost.per_token_s * tokens  # without weights to the last bit, as exact cases have it
    return math.sqrt(work * work + cost.weights_s * cost.weights_s) if cost.weights_s > 0.0 else work


@compiled
def decode_step_seconds(cost, seqs, context):  # type: ignore[no-untyped-def]
    """Seconds of a pure decode step: one new token for each of ``seqs`` sequences over ``context`` computed tokens."""
    if cost.affine:
        alone = cost.base_s + affine_work_seconds(cost, seqs)
        return alone + cost.per_context_token_s * context + cost.per_sequence_s * seqs
    gpu = at_count(cost.decode_s, seqs) + decode_attention_seconds(cost, seqs, context)
    return max(at_count(cost.decode_floor_s, seqs), gpu) + at_count(cost.decode_add_s, seqs)


@compiled
def decode_host_seconds(cost, seqs):  # type: ignore[no-untyped-def]
    """Host seconds of a pure decode step of ``seqs`` sequences, which hide behind the step before where it runs."""
    return 0.0 if cost.affine else at_count(cost.decode_floor_s, seqs)


@compiled
def launch_seconds(cost, tokens, seqs):  # type: ignore[no-untyped-def]
    """Host seconds to launch a step of ``seqs`` sequences and ``tokens`` tokens, some of them of prompts; 0 where that
    is not told apart."""
    if cost.affine:
        return 0.0
    mean = at_count(cost.mixed_launch_s, tokens)
    return mean + cost.launch_seq_s * min(seqs, cost.launch_most_seqs) if mean > 0.0 else 0.0


@compiled
def decode_launch_seconds(cost, seqs):  # type: ignore[no-untyped-def]
    """Host seconds to launch a pure decode step of ``seqs`` sequences; 0 where that is not told apart."""
    return 0.0 if cost.affine else at_count(cost.decode_launch_s, seqs)


@compiled
def mixed_step_seconds(  # type: ignore[no-untyped-def]
    cost, decodes, decode_context, chunks, new, past, chunk_attention_s, finished, uneven=0.0
):
    """Seconds of a step with ``chunks`` prefill chunks: ``new`` tokens over ``past`` computed ones in all.

    ``chunk_attention_s`` is the sum of ``chunk_attention_seconds`` over the chunks, ``finished`` how many prompts end,
    ``uneven`` how many times its even share the fullest rank holds (0: dealt out in turn). Launching is not in it.
    """
    if cost.affine:
        alone = cost.base_s + affine_work_seconds(cost, decodes + new)
        alone += cost.per_context_token_s * (decode_context + past)
        return alone + cost.per_sequence_s * (decodes + chunks)
    gpu = at_count(cost.mixed_s, decodes + new) + decode_attention_seconds(cost, decodes, decode_context)
    if cost.ranks > 1 and chunks > 0:
        share = uneven if uneven > 0.0 else cost.ranks * (-(-chunks // cost.ranks)) / chunks
        full, even = math.ceil((decodes + new * share) / cost.ranks), -(-(decodes + new) // cost.ranks)
        longer = at_count(cost.mixed_rank_s, full) - at_count(cost.mixed_rank_s, even)
        gpu += max(longer - at_count(cost.mixed_slack_s, decodes + new), 0.0)
        chunk_attention_s = chunk_attention_s * share
    gpu += chunk_attention_s + cost.per_finished_prefill_s * finished
    gpu *= 1.0 + cost.mixed_slower
    return max(at_count(cost.mixed_floor_s, decodes + chunks), gpu) + at_count(cost.mixed_add_s, decodes + chunks)


def step_cost_record(table: StepCostTable) -> object:
    """The table as the record that compiled code reads."""
    values = ((field.type, getattr(table, field.name)) for field in fields(table))
    return make_step_cost(*(_NUMBERS[kind](value) if kind in _NUMBERS else value for kind, value in values))


def prefill_rate(table: StepCostTable, tokens: int) -> float:
    """Prompt tokens a second when every step computes one fresh prompt of ``tokens`` tokens."""
    whole_s = prompt_seconds(table, 0, tokens)
    return tokens / whole_s if whole_s > 0 else math.inf


def prompt_seconds(table: StepCostTable, past: int, new: int) -> float:
    """Seconds of a step of its own that computes ``new`` tokens of a prompt of which ``past`` have been computed."""
    cost = step_cost_record(table)
    attention = 0.0 if table.affine else chunk_attention_seconds(cost, new, past)
    seconds = float(mixed_step_seconds(cost, 0, 0, 1, new, past, attention, 1))
    return max(seconds + table.mixed_prepare_s, float(launch_seconds(cost, new, 1)))
