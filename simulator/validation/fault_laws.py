"""Laws that no fault may break: what has to hold of a run that is over, whatever failed in it."""

from __future__ import annotations

import numpy as np

from simulator.cluster.collect import collect
from simulator.cluster.result import COMPLETED, TTFT_PARTS, UNFINISHED
from simulator.cluster.run import Cluster

#: Sums of times may differ by rounding.
_ROUNDING_S = 1e-9


def broken_laws(cluster: Cluster) -> list[str]:
    """What does not hold, in words; nothing where all is well."""
    return [*_states(cluster), *_times(cluster), *_tokens(cluster), *_memory(cluster), *_excuses(cluster)]


def _states(cluster: Cluster) -> list[str]:
    """Every request ends in one state, with its cause where it has no answer."""
    answered = ~np.isnan(cluster.desk.last_token_s)
    found = []
    if not np.array_equal(answered, cluster.state == COMPLETED):
        found.append("some are completed without a last token, or have one and are not")
    if ((cluster.reason < 0) & ~answered).any() and cluster.faults is not None:
        found.append("some have no answer and no cause")
    if cluster.faults is not None and cluster.faults.open != int((cluster.state == UNFINISHED).sum()):
        found.append(f"{cluster.faults.open} requests are open by count, not by state")
    return found


def _times(cluster: Cluster) -> list[str]:
    """Nothing happens before what causes it, and the parts of TTFT are all there is to it."""
    record = collect(cluster, cluster.options.seed, "trace").record
    found = []
    done = record.state == COMPLETED
    first, last, arrival = record.first_token_s[done], record.last_token_s[done], record.arrival_s[done]
    if not ((arrival < first) & (first <= last)).all():
        found.append("a token came before its request, or the last before the first")
    parts = [getattr(record, f"part_{name}_s")[done] for name in TTFT_PARTS]
    if done.any() and min(part.min() for part in parts) < -_ROUNDING_S:
        found.append("a part of TTFT is negative")
    if done.any() and np.abs(sum(parts) - (first - arrival)).max() > _ROUNDING_S:
        found.append("the parts of TTFT do not add up")
    return found


def _tokens(cluster: Cluster) -> list[str]:
    """Output tokens that a client has and those that were still to be made are those of the trace; as are prompts."""
    if cluster.faults is None:
        return []
    kept = cluster.faults.attempts.kept_tokens
    inputs, outputs = cluster.lengths
    if not np.array_equal(np.array(outputs) + kept, cluster.trace.output_tokens):
        return ["output tokens were lost or made up"]
    return [] if np.array_equal(np.array(inputs) - kept, cluster.trace.input_tokens) else ["prompt tokens were lost"]


def _memory(cluster: Cluster) -> list[str]:
    """With all requests ended, no engine holds anything and nothing is under way."""
    if (cluster.state == UNFINISHED).any():
        return []
    found = []
    for worker, plan in zip(cluster.workers, cluster.plan.workers, strict=True):
        load = worker.engine.load()
        if not worker.down and (load.requests or load.free_blocks != load.blocks or load.pending_prompt_tokens):
            found.append(f"{plan.name} still holds {load}")
        if worker.at:
            found.append(f"{plan.name} still has {sorted(worker.at)} on its list")
    return found


def _excuses(cluster: Cluster) -> list[str]:
    """A request stays open only where something failed for good, or was never sent."""
    plan = cluster.plan.faults
    if plan is None or cluster.faults is None:
        return []
    begun = (cluster.prefill_worker >= 0) | (cluster.faults.attempts.number > 0)
    open_rows = (cluster.state == UNFINISHED) & begun
    if not open_rows.any():
        return []
    for_good = any(event.duration_s is None for event in plan.events)
    return [] if for_good else [f"requests {np.flatnonzero(open_rows)[:9].tolist()} stay open for no reason"]
