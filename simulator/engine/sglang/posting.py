"""What keeps the loop of an SGLang engine from its next planning: launches that do not fit, and writes to post."""

from __future__ import annotations

from simulator.compiled import compiled
from simulator.engine.sglang.columns import RING
from simulator.engine.sglang.ranks import rank_of
from simulator.engine.sglang.state import pages


@compiled
def hold_before(e, now, seconds):  # type: ignore[no-untyped-def]
    """The host has just launched a step with prompts, kernel by kernel; it looks at the results of the one before when
    all of them are in the GPU's queue."""
    before = (e.planned - 2) % RING
    launched = max(now + e.cost.queue_launch_s, e.gpu_free_s - seconds * e.cost.queue_share)
    if e.cost.queue_launch_s > 0.0 and e.planned - e.completed == 2:
        e.batch_end_s[before] = max(e.batch_end_s[before], launched)


@compiled
def plan_if_idle(e, now):  # type: ignore[no-untyped-def]
    """Something has changed: an engine with nothing in flight plans as soon as its loop is free."""
    if e.planned == e.completed:
        e.plan_at_s = min(e.plan_at_s, max(now, e.posting_until_s))


@compiled
def posting_s(e, r):  # type: ignore[no-untyped-def]
    """Seconds for which the loop posts the writes of the prompts that a step has completed, before it plans again."""
    e.rank_posting_s[:] = 0.0
    for i in range(e.batch_firsts[r]):
        s = e.firsts[r, i]
        k = rank_of(e, s) if e.binding else 0
        e.rank_posting_s[k] += e.send_post_s + e.send_post_page_s * pages(e, e.prompt[s])
        e.rank_posting_s[k] += e.send_post_run_s * e.desk.kv_runs[e.row[s]]
    return e.rank_posting_s.max()
