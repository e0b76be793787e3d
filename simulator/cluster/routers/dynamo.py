"""NVIDIA Dynamo's KV-aware router: a cost a worker, the least of them or a draw.

Formula and worked example: Dynamo's ``docs/design-docs/router-design.md``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from simulator.cluster.routers.base import PENDING_TOKENS, Asked, Pool, least


@dataclass(frozen=True)
class Weights:
    """How prefill counts against decode, and what a cached block of each kind takes off it."""

    prefill_load_scale: float = 1.0
    overlap_credit: float = 1.0
    host_weight: float = 0.75
    disk_weight: float = 0.25
    shared_weight: float = 0.5


def cost(
    weights: Weights,
    prefill_blocks: float,
    decode_blocks: float,
    device: float,
    host: float = 0.0,
    disk: float = 0.0,
    shared: float = 0.0,
) -> float:
    """A worker's cost in blocks: prompt work it has and would get, less what is cached, and what it decodes."""
    cached = weights.overlap_credit * device + weights.host_weight * host
    cached += weights.disk_weight * disk + weights.shared_weight * shared
    return weights.prefill_load_scale * max(prefill_blocks - cached, 0.0) + decode_blocks


def draw(costs: Sequence[float], temperature: float, uniform: float) -> int:
    """The cheapest; with a temperature a softmax draw over costs divided by their range. ``uniform`` in [0, 1)."""
    values = np.array(costs, dtype=np.float64)
    width = float(values.max() - values.min())
    if temperature <= 0:
        return least(values)
    if width == 0 or not math.isfinite(width):
        return int(uniform * len(costs))
    scores = np.exp(-(values - values.min()) / width / temperature)
    reached = np.cumsum(scores) / scores.sum()
    return min(int(np.searchsorted(reached, uniform, side="right")), len(costs) - 1)


def dynamo(pool: Pool, request: Asked) -> int:
    """Least cost; options ``prefill_load_scale``, ``overlap_credit``, ``host_weight``, ``disk_weight``,
    ``shared_weight`` and ``temperature``."""
    gauges = pool.look(request.now_s)
    given, default = pool.options, Weights()
    names = ("prefill_load_scale", "overlap_credit", "host_weight", "disk_weight", "shared_weight")
    weights = Weights(*(_chosen(getattr(given, name), getattr(default, name)) for name in names))
    size, used, device = pool.block_size, pool.used_blocks(), pool.device_tokens(request)
    costs = []
    for i, worker in enumerate(pool.workers):
        below = (0, 0, 0) if pool.below is None else pool.below.tiers(request, worker.index, int(device[i]))
        prompt = (gauges[i, PENDING_TOKENS] + request.input_tokens) / size
        decode = used[i] + request.input_tokens / size
        costs.append(cost(weights, prompt, decode, device[i] / size, *(tokens / size for tokens in below)))
    temperature = given.temperature or 0.0
    return draw(costs, temperature, float(pool.random.random()) if temperature > 0 else 0.0)


def _chosen(given: float | None, default: float) -> float:
    return default if given is None else given
