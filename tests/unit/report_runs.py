"""Runs made by hand for the tests of metrics and reports: no simulation behind them."""

from __future__ import annotations

import numpy as np

from simulator.cluster.result import (
    ItlHistogram,
    PoolStats,
    RunRecord,
    RunResult,
    RunTopology,
    WorkerSeries,
)
from simulator.workload.trace import Trace

NAN = float("nan")
#: A thousand bins a decade: 0.23 % wide.
ITL_EDGES_S = np.geomspace(1e-6, 1e4, 10_001)


def run_of(rows, *, name="colocated", gpus=1, warnings=(), tenant=None, tenant_names=None, **more):
    """A run of ``rows``: dicts with arrival, first, last (s), and optionally input, output, state, cached, parts."""
    n = len(rows)

    def column(key, default, kind=float):
        return np.array([row.get(key, default) for row in rows], dtype=kind)

    arrival, first = column("arrival", 0.0), column("first", NAN)
    parts = {key: np.array([row.get("parts", {}).get(key, 0.0) for row in rows]) for key in PART_KEYS}
    rest = np.where(np.isnan(first), 0.0, first - arrival) - sum(parts.values())
    parts["prefill"] = parts["prefill"] + rest
    record = RunRecord(
        arrival_s=arrival,
        first_token_s=first,
        last_token_s=column("last", NAN),
        input_tokens=column("input", 100, np.int64),
        output_tokens=column("output", 11, np.int64),
        cached_tokens=column("cached", 0, np.int64),
        preemptions=column("preemptions", 0, np.int64),
        state=column("state", 0, np.int8),
        reason=column("reason", -1, np.int16),
        reasons=more.pop("reasons", ("too long",)),
        prefill_worker=column("prefill_worker", 0, np.int32),
        decode_worker=column("decode_worker", 0, np.int32),
        itl_p99_s=column("itl_p99", NAN) if any("itl_p99" in row for row in rows) else None,
        **{f"part_{key}_s": value for key, value in parts.items()},
    )
    trace = Trace(
        name="made",
        source="made.jsonl",
        arrival_s=np.sort(arrival),
        input_tokens=record.input_tokens,
        output_tokens=record.output_tokens,
        max_output_tokens=np.full(n, -1),
        tenant=None if tenant is None else np.array(tenant),
        tenant_names=tenant_names,
    )
    return RunResult(
        topology=RunTopology(name=name, gpus=gpus, model="llama-3.1-8b"),
        trace=trace,
        record=record,
        warnings=tuple(warnings),
        **more,
    )


PART_KEYS = ("queue", "cache_load", "prefill", "kv_wait", "kv_transfer", "decode_admission", "host")


def histogram_of(gaps_s):
    """The histogram a run would keep of these gaps."""
    gaps_s = np.asarray(gaps_s, dtype=float)
    counts, _ = np.histogram(gaps_s, ITL_EDGES_S)
    sums, _ = np.histogram(gaps_s, ITL_EDGES_S, weights=gaps_s)
    return ItlHistogram(ITL_EDGES_S, counts, sums, float(gaps_s.max()))


def busy_run(name="2 colocated", *, n=1500, rate=6.0, split=False, saturated=False, gpus=2, seed=1):
    """A believable large run, for tables and pictures: lognormal latencies, series of two workers."""
    rng = np.random.default_rng(seed)
    arrival = np.cumsum(rng.exponential(1 / rate, n))
    prompt, output = rng.lognormal(7, 0.8, n).astype(int) + 1, rng.lognormal(5, 0.7, n).astype(int) + 1
    queue = rng.exponential(0.08 if split else 0.3, n) + (0.02 * np.arange(n) if saturated else 0)
    prefill, host = prompt / 18_000, np.full(n, 0.008)
    wait, move = (rng.exponential(0.02, n), prompt * 131072 / 5e9) if split else (np.zeros(n), np.zeros(n))
    admission = rng.exponential(0.015, n) if split else np.zeros(n)
    first = arrival + queue + prefill + wait + move + admission + host
    tpot = rng.lognormal(np.log(0.021 if split else 0.034), 0.12 if split else 0.4, n)
    last = first + tpot * (output - 1)
    end = last.max()
    time = np.linspace(0, end, 600)
    running = ((arrival[None] < time[:, None]) & (last[None] > time[:, None])).sum(axis=1)
    waiting = ((arrival[None] < time[:, None]) & (first[None] > time[:, None])).sum(axis=1)
    roles = [("prefill", "prefill"), ("decode", "decode")] if split else [("main", "colocated")] * 2
    series = tuple(
        WorkerSeries(
            name=f"{pool}/{i}",
            pool=pool,
            role=role,
            gpu="h100_sxm",
            time_s=time,
            running=(waiting // 2 if role == "prefill" else running // (1 if split else 2)),
            waiting=(waiting // 2),
            kv_fraction=np.clip(running / 180 * (0.2 if role == "prefill" else 1), 0, 1),
        )
        for i, (pool, role) in enumerate(roles)
    )
    pools = tuple(
        PoolStats(
            pool, role, "h100_sxm", 2 // len(dict(roles)), gpus // len(dict(roles)), 0.71, 0.93, 12, 26_000, 16, 90_000
        )
        for pool, role in dict(roles).items()
    )
    zeros = np.zeros(n)
    record = RunRecord(
        arrival,
        first,
        last,
        prompt,
        output,
        zeros.astype(np.int64),
        zeros.astype(np.int64),
        zeros.astype(np.int8),
        (zeros - 1).astype(np.int16),
        (),
        zeros.astype(np.int32),
        (zeros + int(split)).astype(np.int32),
        queue,
        zeros,
        prefill,
        wait,
        move,
        admission,
        first - arrival - (queue + prefill + wait + move + admission),
    )
    trace = Trace("azure_conv", "azure_conv.csv.gz", arrival, prompt, output, np.full(n, -1))
    return RunResult(
        RunTopology(name, gpus, "llama-3.1-8b"),
        trace,
        record,
        series,
        histogram_of(np.repeat(tpot, 20)),
        pools,
        arrivals=f"poisson:{rate:g}",
        network={"bytes": int(prompt.sum()) * 131072} if split else {},
    )
