"""A step-cost table read in plain Python, straight from the words of ``StepCostTable``: slow, and on its own."""

from __future__ import annotations

import math
from collections.abc import Sequence

from vllm_stepper import LaunchSeconds, Pace, StepSeconds, affine

from simulator.cost.table import StepCostTable


def at_count(values: Sequence[float], n: int) -> float:
    """The entry of count n; past the end, on the line through the last two entries."""
    if n < len(values):
        return float(values[n])
    slope = values[-1] - values[-2]
    return float(values[-1] + slope * (n - len(values) + 1))


def piece(knots: Sequence[float], x: float) -> tuple[int, float]:
    """The piece between two knots that x lies on, or is nearest to, and x's place on it (0 to 1 inside)."""
    i = max((k for k in range(len(knots) - 1) if knots[k] <= x), default=0)
    return i, (x - knots[i]) / (knots[i + 1] - knots[i])


def decode_attention(table: StepCostTable, contexts: Sequence[int]) -> float:
    if not contexts:
        return 0.0
    row = min(len(contexts), len(table.decode_attention_s) - 1)
    i, u = piece(table.context_knots, sum(contexts) / len(contexts))
    low, high = table.decode_attention_s[row][i], table.decode_attention_s[row][i + 1]
    return float(low + (high - low) * u) * len(contexts) / row


def chunk_attention(table: StepCostTable, new: int, past: int) -> float:
    i, u = piece(table.chunk_new_knots, new)
    j, v = piece(table.chunk_past_knots, past)
    a = table.chunk_attention_s
    little, much = a[i][j] + (a[i + 1][j] - a[i][j]) * u, a[i][j + 1] + (a[i + 1][j + 1] - a[i][j + 1]) * u
    return float(little + (much - little) * v)


def table_seconds(table: StepCostTable) -> StepSeconds:
    """The step time of a table, in the form the stepper takes."""
    if table.affine:
        return affine({name: getattr(table, name) for name in ("base_s", "per_token_s", "per_context_token_s")})

    def seconds(singles: Sequence[tuple[int, int]], chunks: Sequence[tuple[int, int]], finished: int) -> float:
        attention = decode_attention(table, [past for _, past in singles])
        sequences = len(singles) + len(chunks)
        if not chunks:
            gpu = at_count(table.decode_s, sequences) + attention
            return max(at_count(table.decode_floor_s, sequences), gpu) + at_count(table.decode_add_s, sequences)
        tokens = len(singles) + sum(new for new, _ in chunks)
        gpu = at_count(table.mixed_s, tokens) + attention + sum(chunk_attention(table, *chunk) for chunk in chunks)
        gpu = (gpu + table.per_finished_prefill_s * finished) * (1 + table.mixed_slower)
        return max(at_count(table.mixed_floor_s, sequences), gpu) + at_count(table.mixed_add_s, sequences)

    return seconds


def hashed(word: int) -> int:
    """Xor-shifts and odd factors, on 32 bits."""
    x = word % 2**32
    for shift, factor in ((16, 0x7FEB352D), (15, 0x31848BAB)):
        x = (x ^ x >> shift) * factor % 2**32
    return x ^ x >> 16


def table_launch(table: StepCostTable) -> LaunchSeconds:
    """When a step of a table may begin and is launched, counted from its planning."""

    def exponential(word: int) -> float:
        return -math.log((word + 0.5) / 2**32)

    def launch(now: float, number: int, tokens: int, sequences: int, with_chunks: bool) -> tuple[float, float]:
        if not with_chunks:
            graph = at_count(table.decode_launch_s, sequences)
            return graph, graph
        beside = table.launch_seq_s * min(sequences, table.launch_most_seqs)
        mean, share = at_count(table.mixed_launch_s, tokens) + beside, table.launch_jitter
        word = hashed(hashed(hashed(table.launch_seed + 1) + number) + tokens)
        place = (hashed(hashed(table.launch_seed + 1) ^ hashed(int(now / table.launch_stretch_s))) + 0.5) / 2**32
        mean *= 1 + table.launch_swing * (2 * place - 1)
        seconds = mean * (1 - share) + mean * share * exponential(word)
        word = hashed(word)
        if exponential(word) < table.stall_rate_hz * seconds:
            seconds += table.stall_s * exponential(hashed(word))
        return table.mixed_prepare_s, seconds

    return launch


def table_pace(table: StepCostTable) -> Pace:
    """The power limit of a table: the mean power of the last moments, and what is above the limit takes longer."""
    power, worked = 0.0, 0.0

    def energy(singles: Sequence[tuple[int, int]], chunks: Sequence[tuple[int, int]]) -> float:
        context = table.context_energy_s * sum(past for _, past in singles)
        if not chunks:
            return at_count(table.decode_energy_s, len(singles)) + context
        tokens = len(singles) + sum(new for new, _ in chunks)
        attention = sum(chunk_attention(table, *chunk) for chunk in chunks)
        return at_count(table.mixed_energy_s, tokens) + context + table.attention_drive * attention

    def pace(
        start: float, seconds: float, singles: Sequence[tuple[int, int]], chunks: Sequence[tuple[int, int]]
    ) -> float:
        nonlocal power, worked
        idle, window = table.power_idle, table.power_window_s
        wanted = idle + energy(singles, chunks) / seconds
        power = idle + (power - idle) * math.exp((worked - start) / window)
        full = seconds  # how long full clocks last: the mean nears what is wanted, and stops at the limit
        if wanted > 1:
            full = window * math.log1p((1 - power) / (wanted - 1))
        if full >= seconds:
            power, taken = wanted - (wanted - power) * math.exp(-seconds / window), seconds
        else:
            slower = ((wanted - idle) / (1 - idle)) ** table.power_exponent
            power, taken = 1.0, full + (seconds - full) * slower
        worked = start + taken
        return taken

    return pace
