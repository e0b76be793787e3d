"""One load, offered again slower, faster or with other prompts: short runs around the one that was asked for."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from simulator.cluster.plan import ClusterPlan
from simulator.cluster.run import RunOptions
from simulator.cluster.simulation import run_plan
from simulator.errors import InputError
from simulator.metrics.slo import SLO
from simulator.metrics.summary import Entry, summarise
from simulator.workload.arrivals import Arrivals
from simulator.workload.trace import Trace

#: Topology's name -> the cluster it was worked out to.
Plans = Mapping[str, ClusterPlan]
#: Called with the share of the work that is done, 0 to 1.
Progress = Callable[[float], None]


@dataclass(frozen=True)
class Offer:
    """A load as it was offered (``trace`` with its arrivals applied), and how it is judged."""

    trace: Trace
    arrivals: Arrivals
    slo: SLO
    seed: int = 0
    warmup_s: float = 0.0

    @property
    def closed(self) -> bool:
        """Whether clients wait for their answers: then their number is what can be turned, not a rate."""
        return self.arrivals.kind == "closed"

    @property
    def level(self) -> float | None:
        """Requests a second, or clients; None where there is no such thing (all at once, a single request)."""
        if self.closed:
            return float(self.arrivals.clients or 1)
        return rate_of(self.trace)

    def shortened(self, requests: int) -> Offer:
        """The first ``requests`` of it; the warm-up keeps its share of the time."""
        if requests >= len(self.trace):
            return self
        cut = self.trace.select(slice(0, requests))
        share = cut.span_s / self.trace.span_s if self.trace.span_s > 0 else 1.0
        return dataclasses.replace(self, trace=cut, warmup_s=self.warmup_s * share)

    def at(self, times: float) -> Offer:
        """``times`` as many requests a second (or clients)."""
        if self.closed:
            clients = max(1, round((self.arrivals.clients or 1) * times))
            return dataclasses.replace(self, arrivals=Arrivals("closed", clients=clients))
        faster = self.trace.with_(arrival_s=self.trace.arrival_s / times)
        return dataclasses.replace(self, trace=faster, warmup_s=self.warmup_s / times)

    def with_prompts(self, times: float) -> Offer:
        """Prompts ``times`` as long, without shared prefixes and sessions, which fit the old lengths alone."""
        trace = self.trace
        prompts = np.maximum(1, np.rint(trace.input_tokens * times)).astype(np.int64)
        plain = Trace.from_columns(
            trace.arrival_s,
            prompts,
            trace.output_tokens,
            max_output_tokens=trace.max_output_tokens,
            name=trace.name,
            source=trace.source,
        )
        return dataclasses.replace(self, trace=plain)

    def run(self, plan: ClusterPlan) -> Entry | None:
        """The figures of one run; None where the cluster can serve nothing of it."""
        kind = self.arrivals if self.closed else Arrivals("trace")  # drawn arrivals are in the trace already
        options = RunOptions(slo_itl=self.slo.needs_gaps)
        try:
            return summarise(run_plan(plan, self.trace, kind, seed=self.seed, options=options), self.slo, self.warmup_s)
        except InputError:
            return None


def rate_of(trace: Trace) -> float | None:
    """Requests a second between the first and the last arrival."""
    return (len(trace) - 1) / trace.span_s if trace.span_s > 0 else None
