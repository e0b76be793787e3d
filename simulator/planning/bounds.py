"""Roofline bounds: the highest rate that an engine's step costs allow, whatever the scheduling.

Every term is the cheapest that the engine's own cost table holds, so that no run beats the bound for long: a step of n
tokens is charged as if all steps had the batch with the cheapest token; waiting, transfers and memory are free.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from simulator.cluster.plan import ClusterPlan, WorkerPlan
from simulator.cost.table import StepCostTable
from simulator.workload.trace import FloatArray, Trace

#: A piece of finite length lets a cluster finish its backlog after the last arrival: bounds are loosened by this.
SLACK = 1.1
_UNLIMITED = 10**9


@dataclass(frozen=True)
class TokenCosts:
    """Least seconds of an engine for a prompt token, for a decoded one, and for each token of context it reads."""

    prompt_s: float
    decode_s: float
    context_s: float


@dataclass(frozen=True, eq=False)
class Work:
    """What each request asks for: prompt tokens that no cache can hold, decode steps, and tokens these read."""

    prompt: FloatArray
    decode: FloatArray
    context: FloatArray
    needed: float  # share of the requests that must be served well

    def seconds(self, prompt_s: float, decode_s: float, context_s: float) -> float:
        """Least engine seconds a request: the mean over all, the costliest that may be missed left out."""
        each = np.sort(self.prompt * prompt_s + self.decode * decode_s + self.context * context_s)
        return float(each[: int(np.ceil(self.needed * each.size))].sum()) / each.size


def work_of(trace: Trace, needed: float) -> Work:
    """The work of a trace's requests; where prefixes or sessions are shared, all that could be cached is free."""
    decode = np.maximum(trace.output_tokens - 1, 0).astype(np.float64)
    prompt = trace.input_tokens.astype(np.float64)
    if trace.hash_ids is not None or trace.session is not None:
        prompt = np.zeros(len(trace))
    context = decode * trace.input_tokens + decode * (decode + 1) / 2
    return Work(prompt, decode, context, needed)


def token_costs(worker: WorkerPlan) -> TokenCosts:
    """The least costs in a worker's table."""
    most = (worker.max_step_tokens, worker.max_sequences, int(worker.settings.get("num_speculative_tokens", 0)) + 1)
    return _costs(_Table(worker.step_cost), *most)


class _Table:
    """A table as a key: the same object, the same costs."""

    def __init__(self, table: StepCostTable) -> None:
        self.table = table

    def __hash__(self) -> int:
        return id(self.table)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Table) and other.table is self.table


@lru_cache(maxsize=256)
def _costs(key: _Table, step_tokens: int, sequences: int, per_step: int) -> TokenCosts:
    table = key.table
    step_tokens = step_tokens if step_tokens > 0 else _UNLIMITED  # whole prompts, however long
    if table.affine:
        least = table.per_token_s + table.base_s / step_tokens
        decode = table.per_token_s + table.base_s / max(min(sequences, step_tokens), 1)
        return TokenCosts(least, min(least, decode) / per_step, table.per_context_token_s / per_step)
    tokens = np.arange(1, min(step_tokens, table.mixed_s.size - 1) + 1)
    mixed = float(((table.mixed_s[tokens] + table.mixed_add_s[1:].min()) / tokens).min())
    seqs = np.arange(1, min(sequences, table.decode_s.size - 1) + 1)
    alone = float(((table.decode_s[seqs] + table.decode_add_s[seqs]) / seqs).min())
    knots = table.context_knots[table.context_knots > 0]
    attention = table.decode_attention_s[1:, table.context_knots > 0]
    count = np.arange(1, attention.shape[0] + 1)[:, None]
    reading = float((attention / (count * knots[None, :])).min())
    return TokenCosts(mixed, min(alone, mixed) / per_step, reading / per_step)


def most_rate(plan: ClusterPlan, work: Work) -> tuple[float, str]:
    """The highest rate (requests/s) the cluster's engines allow, and which phase says so."""
    entry = workers_rate(plan.of_role("prefill"), work)
    last = workers_rate(plan.of_role("decode"), work)
    both = workers_rate(plan.of_role("colocated", "mixed"), work)
    if not plan.topology.disaggregated:
        return both, "prefill and decode"
    prefill, decode = entry + both, last + both
    return min(prefill, decode), "prefill" if prefill <= decode else "decode"


def workers_rate(workers: tuple[WorkerPlan, ...], work: Work) -> float:
    """Requests a second of workers of one role; each does its role's part of a request."""
    total = 0.0
    for worker in workers:
        costs = token_costs(worker)
        prompt_s = 0.0 if worker.role == "decode" else costs.prompt_s
        decode_s, context_s = (0.0, 0.0) if worker.role == "prefill" else (costs.decode_s, costs.context_s)
        seconds = work.seconds(prompt_s, decode_s, context_s)
        total += 1 / seconds if seconds > 0 else np.inf
    return float(total)
