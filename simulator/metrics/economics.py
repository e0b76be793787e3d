"""What a run costs in dollars and in joules, from the price and the power of its GPUs."""

from __future__ import annotations

from typing import Any

from simulator.cluster.result import PoolStats, RunResult
from simulator.hardware.power import power_draw
from simulator.units import MILLION, SECONDS_PER_HOUR


def cost_of(run: RunResult, tokens_per_s: float | None, output_tokens_per_s: float | None) -> dict[str, float | None]:
    """Price of the cluster and of a million tokens at this throughput; ``None`` where a GPU has no price.

    ``tokens_per_s`` counts prompt and output tokens of completed requests.
    """
    prices = [
        None if pool.usd_per_hour is None else pool.usd_per_hour * pool.gpus * pool.on_share for pool in run.pools
    ]
    known = [price for price in prices if price is not None]
    usd_per_hour = sum(known) if prices and len(known) == len(prices) else None
    return {
        "usd_per_hour": usd_per_hour,
        "usd_per_million_tokens": _per_million(usd_per_hour, tokens_per_s),
        "usd_per_million_output_tokens": _per_million(usd_per_hour, output_tokens_per_s),
    }


def _per_million(usd_per_hour: float | None, tokens_per_s: float | None) -> float | None:
    if usd_per_hour is None or not tokens_per_s:
        return None
    return usd_per_hour / SECONDS_PER_HOUR / tokens_per_s * MILLION


def energy_of(run: RunResult, tokens_per_s: float | None, output_tokens_per_s: float | None) -> dict[str, Any]:
    """Mean power of the GPUs and joules a token; ``None`` where the power of a GPU is not known.

    A pool draws ``idle + (rated - idle) x share of the phase`` while it runs a step, and idle power otherwise.
    """
    watts = {pool.name: pool_watts(pool) for pool in run.pools}
    known = [value for value in watts.values() if value is not None]
    mean = sum(known) if watts and len(known) == len(watts) else None
    return {
        "mean_watts": mean,
        "joules_per_token": mean / tokens_per_s if mean is not None and tokens_per_s else None,
        "joules_per_output_token": mean / output_tokens_per_s if mean is not None and output_tokens_per_s else None,
        "watts_by_pool": watts,
    }


def pool_watts(pool: PoolStats) -> float | None:
    """Mean power of all GPUs of a pool over the run."""
    if pool.power_watts is None or pool.idle_power_watts is None:
        return None
    draw = power_draw(pool.power_watts, pool.idle_power_watts)
    return draw.mean_watts(pool.utilisation, pool.prefill_share) * pool.gpus * pool.on_share
