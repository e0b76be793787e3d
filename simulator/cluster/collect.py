"""From the columns of a finished run to its result: what the client saw, and where the time to first token went."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from simulator.cluster.faults.lives import series, step_log, totals_of
from simulator.cluster.plan import WorkerPlan
from simulator.cluster.result import (
    ItlHistogram,
    PoolStats,
    RunRecord,
    RunResult,
    RunTopology,
    WorkerSeries,
)
from simulator.cluster.run import Cluster
from simulator.cluster.schema import PoolPart
from simulator.cluster.steps import Moments, WorkerSteps
from simulator.cost.table import prefill_rate
from simulator.engine.columns import GAP_BINS
from simulator.engine.engine import Totals
from simulator.hardware.profiles import load_gpu

Floats = NDArray[np.float64]

GAP_EDGES_S: Floats = 10.0 ** (np.arange(GAP_BINS + 1) / 1000.0 - 6.0)


def collect(cluster: Cluster, seed: int, arrivals: str) -> RunResult:
    """The result of a run that is over."""
    record = _record(cluster)
    plan = cluster.plan
    topology = plan.topology
    reached = ~np.isnan(record.last_token_s)
    first = float(record.arrival_s.min()) if len(record) else 0.0
    last = float(record.last_token_s[reached].max()) if reached.any() else float("nan")
    gpu_counts: Counter[str] = Counter()
    for worker in plan.workers:
        gpu_counts[worker.gpu or "unstated"] += worker.parallel.gpus
    return RunResult(
        topology=RunTopology(
            topology.name,
            plan.gpus,
            topology.model or "",
            topology.profile,
            topology.source,
            dict(gpu_counts),
            not any(worker.step_cost.affine for worker in plan.workers),
        ),
        trace=cluster.trace,
        record=record,
        series=tuple(_series(cluster, worker) for worker in plan.workers),
        itl_histogram=_gaps(cluster),
        pools=_pools(cluster, last - first),
        network=_network(cluster, last - first),
        cache=_cache(cluster),
        warnings=cluster.warnings,
        seed=seed,
        arrivals=arrivals,
        first_arrival_s=first,
        last_completion_s=last,
        moments=_moments(cluster),
        steps=tuple(_steps(cluster, worker) for worker in plan.workers) if cluster.options.logging else (),
        faults={} if cluster.faults is None else cluster.faults.summary(cluster.events.happened),
        autoscaling={} if cluster.scaler is None else cluster.scaler.summary(),
    )


def _moments(cluster: Cluster) -> Moments:
    desk, over = cluster.desk, cluster.moved
    return Moments(desk.prefill_start_s, desk.prefill_end_s, over.read_start_s, over.read_end_s, over.wire_bytes)


def _steps(cluster: Cluster, plan: WorkerPlan) -> WorkerSteps:
    drafted = plan.settings.get("num_speculative_tokens", 0)
    start, end, first, row, tokens = step_log(cluster.workers[plan.index])
    return WorkerSteps(start, end, first, row, tokens, 1 + int(drafted or 0))


def _last_worker(cluster: Cluster) -> NDArray[np.int64]:
    """The worker that makes a request's tokens, -1 where there is none."""
    return np.where(cluster.decode_worker >= 0, cluster.decode_worker, cluster.prefill_worker)


def _after_s(cluster: Cluster) -> Floats:
    """Host seconds between a token's step and the client, by request."""
    by_worker = np.array([worker.frontend_after_s for worker in cluster.plan.workers])
    last = _last_worker(cluster)
    return np.where(last >= 0, by_worker[last], 0.0)


def _behind_s(cluster: Cluster) -> Floats:
    """Host seconds that a request's first token waits for those of the same step that are handed out before it: of all
    that were decoding then, and of half of the others that began with it."""
    desk, found = cluster.desk, np.zeros(len(cluster.trace))
    maker = _last_worker(cluster)
    for worker in cluster.plan.workers:
        if worker.deliver_token_s == 0.0:
            continue
        rows = np.flatnonzero((maker == worker.index) & ~np.isnan(desk.first_token_s))
        began, ended = np.sort(desk.first_token_s[rows]), np.sort(desk.last_token_s[rows])
        now = desk.first_token_s[rows]
        before, until = (np.searchsorted(began, now, side) for side in ("left", "right"))
        decoding = before - np.searchsorted(ended, now, "left")
        found[rows] = worker.deliver_token_s * (np.maximum(decoding, 0) + (until - before - 1) / 2.0)
    return found


def _late_s(cluster: Cluster, made_s: Floats) -> Floats:
    """Seconds that tokens made at these moments, one of each request, are late because front ends cannot keep up."""
    maker, found = _last_worker(cluster), np.zeros_like(made_s)
    for index, line in cluster.front.lines.items():
        rows = np.flatnonzero((maker == index) & ~np.isnan(made_s))
        found[rows] = line.late_at(made_s[rows])
    return found


def _record(cluster: Cluster) -> RunRecord:
    desk, over, trace = cluster.desk, cluster.moved, cluster.trace
    sent_s = _after_s(cluster)
    after = sent_s + _behind_s(cluster) + _late_s(cluster, desk.first_token_s)
    first = desk.first_token_s + after
    last = np.maximum(desk.last_token_s + sent_s + _late_s(cluster, desk.last_token_s), first)
    # some engines send the first token before the KV moves
    moved = ~np.isnan(over.read_end_s) & ~(desk.first_token_s <= desk.prefill_end_s)
    waited = over.wait_before_s + over.host_before_s
    before = cluster.front.before_s + over.host_before_s + np.where(moved, over.host_s, 0.0)
    loads = None if cluster.caches is None else cluster.caches.columns
    loading = np.zeros(len(trace)) if loads is None else loads.exposed_s()
    queue = desk.prefill_start_s - cluster.arrival_s - cluster.front.before_s - waited - loading
    prefill = desk.prefill_end_s - desk.prefill_start_s
    wait = over.wait_before_s + np.where(moved, over.wait_after_s, 0.0)
    transfer = np.where(moved, over.read_end_s - desk.prefill_end_s - over.wait_after_s - over.host_s, 0.0)
    before += np.where(moved, 0.0, desk.first_token_s - desk.prefill_end_s)  # gathered with the tokens after it
    admission = np.where(moved, desk.first_token_s - over.read_end_s, 0.0)
    missing = np.isnan(first)
    parts = [np.where(missing, np.nan, part) for part in (queue, loading, prefill, wait, transfer, admission)]
    # what is left is the host's: before + after but for the last bit, so that the parts add up
    host = np.where(missing, np.nan, (first - cluster.arrival_s) - sum(parts))
    host = np.where(np.abs(host - before - after) < 1e-9, host, before + after)
    preemptions = desk.preemptions
    return RunRecord(
        arrival_s=cluster.arrival_s,
        first_token_s=first,
        last_token_s=last,
        input_tokens=np.array(trace.input_tokens),
        output_tokens=np.array(trace.output_tokens),
        cached_tokens=desk.cached_tokens,
        preemptions=preemptions,
        state=cluster.state,
        reason=cluster.reason,
        reasons=tuple(cluster.reasons),
        prefill_worker=cluster.prefill_worker,
        decode_worker=cluster.decode_worker,
        part_queue_s=parts[0],
        part_cache_load_s=parts[1],
        part_prefill_s=parts[2],
        part_kv_wait_s=parts[3],
        part_kv_transfer_s=parts[4],
        part_decode_admission_s=parts[5],
        part_host_s=host,
        itl_p99_s=_itl_p99(cluster) if cluster.options.slo_itl else None,
        tenant=trace.tenant,
        tenant_names=trace.tenant_names or (),
        tenant_targets={name: part.targets() for name, part in cluster.plan.topology.tenants.items()},
        loaded_tokens={} if cluster.caches is None else cluster.caches.loaded_tokens(),
        attempts=None if cluster.faults is None else cluster.faults.attempts.number,
        lost_tokens=None if cluster.faults is None else cluster.faults.attempts.lost_tokens,
    )


def _itl_p99(cluster: Cluster) -> Floats:
    """99th percentile of each request's token gaps (s), from every batch written down; NaN below two tokens."""
    rows, ends = [], []
    for worker in cluster.workers:
        _, batch_end, first, row, tokens = step_log(worker)
        sizes = np.diff(np.append(first, row.size))
        end = np.repeat(batch_end, sizes)
        made = (tokens > 0) & (end >= cluster.desk.first_token_s[row]) & (end <= cluster.desk.last_token_s[row])
        rows.append(row[made])
        ends.append(end[made])
    row, end = np.concatenate(rows), np.concatenate(ends)
    order = np.lexsort((end, row))
    row, end = row[order], end[order]
    same = row[1:] == row[:-1]
    owner, gaps = row[1:][same], np.diff(end)[same]
    order = np.lexsort((gaps, owner))
    owner, gaps = owner[order], gaps[order]
    found, start, count = np.unique(owner, return_index=True, return_counts=True)
    place = 0.99 * (count - 1)
    low = np.floor(place).astype(np.int64)
    high = np.minimum(low + 1, count - 1)
    p99 = np.full(len(cluster.trace), np.nan)
    p99[found] = gaps[start + low] + (gaps[start + high] - gaps[start + low]) * (place - low)
    return p99


def _series(cluster: Cluster, plan: WorkerPlan) -> WorkerSeries:
    moments, running, waiting, blocks, _ = series(cluster.workers[plan.index])
    return WorkerSeries(
        plan.name, plan.pool, plan.role, plan.gpu or "", moments, running, waiting, blocks / max(plan.kv_blocks, 1)
    )


def _gaps(cluster: Cluster) -> ItlHistogram:
    counts = np.zeros(GAP_BINS, np.int64)
    largest = float("nan")
    for worker in cluster.workers:
        counts += series(worker)[4]
        largest = float(np.fmax(largest, totals_of(worker).gap_max_s))
    return ItlHistogram(GAP_EDGES_S, counts, None, largest)


def _pools(cluster: Cluster, duration_s: float) -> tuple[PoolStats, ...]:
    stats = []
    for pool in cluster.plan.topology.pools:
        plans = [worker for worker in cluster.plan.workers if worker.pool == pool.name]
        totals = [totals_of(cluster.workers[worker.index]) for worker in plans]
        busy = sum(t.busy_s for t in totals) / len(plans)
        on = _on_share(cluster, plans, duration_s)
        stats.append(
            PoolStats(
                name=pool.name,
                role=pool.role,
                gpu=plans[0].gpu or "",
                workers=len(plans),
                gpus=sum(worker.parallel.gpus for worker in plans),
                utilisation=min(busy / (duration_s * on), 1.0) if duration_s * on > 0 else 0.0,
                kv_peak_fraction=max(t.peak_blocks / worker.kv_blocks for t, worker in zip(totals, plans, strict=True)),
                preemptions=int(sum(t.preemptions for t in totals)),
                kv_blocks=plans[0].kv_blocks,
                block_tokens=plans[0].block_size,
                steps=int(sum(t.batches for t in totals)),
                **_money_and_power(pool),
                prefill_share=_prefill_share(cluster, plans, totals),
                on_share=on,
                extra={
                    "prefill_tokens": int(sum(t.prefill_tokens for t in totals)),
                    "decode_tokens": int(sum(t.decode_tokens for t in totals)),
                },
            )
        )
    return tuple(stats)


def _on_share(cluster: Cluster, plans: Sequence[WorkerPlan], duration_s: float) -> float:
    """Share of their time that a pool's workers were on; all of it where nothing scales."""
    if cluster.scaler is None or duration_s <= 0:
        return 1.0
    return float(min(cluster.scaler.on_s[[plan.index for plan in plans]].sum() / (duration_s * len(plans)), 1.0))


def _money_and_power(pool: PoolPart) -> dict[str, float | None]:
    """Price and power of one of the pool's GPUs, as far as they are known."""
    if pool.gpu is None:
        return {"usd_per_hour": pool.usd_per_hour}
    gpu = load_gpu(pool.gpu)
    price = gpu.usd_per_hour if pool.usd_per_hour is None else pool.usd_per_hour
    return {"usd_per_hour": price, "power_watts": gpu.power_watts, "idle_power_watts": gpu.idle_power_watts}


def _prefill_share(cluster: Cluster, plans: Sequence[WorkerPlan], totals: Sequence[Totals]) -> float:
    """Share of a pool's busy time that prompts take. Where one step holds prompts and decodes, prompts count for what
    they would take alone, in steps of the mean prompt."""
    role, busy_s = plans[0].role, sum(t.busy_s for t in totals)
    if role in ("prefill", "decode") or busy_s <= 0:
        return 1.0 if role == "prefill" else 0.0
    tokens = sum(t.prefill_tokens for t in totals)
    usual = max(1, min(round(float(cluster.trace.input_tokens.mean())), plans[0].max_step_tokens))
    return float(min(1.0, tokens / prefill_rate(plans[0].step_cost, usual) / busy_s))


def _cache(cluster: Cluster) -> dict[str, object]:
    totals = [totals_of(cluster.workers[w.index]) for w in cluster.plan.workers if w.role != "decode"]
    looked_up = int(sum(t.lookup_tokens for t in totals))
    hits = int(sum(t.hit_tokens for t in totals))
    found: dict[str, object] = {
        "hit_token_ratio": hits / looked_up if looked_up else 0.0,
        "hit_tokens": hits,
        "looked_up_tokens": looked_up,
    }
    return found if cluster.caches is None else found | cluster.caches.summary()


def _network(cluster: Cluster, duration_s: float) -> dict[str, object]:
    if cluster.plan.transfer is None or cluster.handover is None:
        return {}
    over = cluster.moved
    moved = ~np.isnan(over.read_end_s)
    seconds = over.busy_s[moved]
    exposed = np.maximum(over.read_end_s - over.prompt_done_s - over.wait_after_s - over.host_s, 0.0)[moved]
    waited = (over.wait_before_s + over.wait_after_s)[moved]
    sent = float(over.wire_bytes.sum())
    network: dict[str, object] = {
        "mode": cluster.plan.transfer.mode,
        "transfers": int(moved.sum()),
        "bytes": sent,
        "blocks": int(over.blocks.sum()),
        "transfer_mean_s": float(seconds.mean()) if seconds.size else None,
        "transfer_p99_s": float(np.percentile(seconds, 99)) if seconds.size else None,
        "exposed_s": float(exposed.mean()) if seconds.size else None,
        "hidden_s": float(np.maximum(seconds - exposed, 0.0).mean()) if seconds.size else None,
        "waited_s": float(waited.mean()) if seconds.size else None,
    }
    if cluster.plan.transfer.compression.ladder is not None:
        network["chunks_by_level"] = dict(sorted(cluster.handover.levels.items()))
    if duration_s > 0:
        network["bytes_per_s"] = sent / duration_s
    return network
