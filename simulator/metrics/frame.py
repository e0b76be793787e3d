"""The per-request table: one row a request, in the trace's order, with units in the names."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from simulator.cluster.result import STATES, TTFT_PARTS, RunResult
from simulator.metrics.latency import good, latencies
from simulator.metrics.slo import SLO


def requests_frame(run: RunResult, slo: SLO | None = None, warmup_s: float = 0.0) -> pd.DataFrame:
    """One row a request: times, parts, workers, cached tokens, preemptions, state, reason.

    Times are seconds, NaN where a request did not get so far; workers are names, missing where none was reached.
    ``counted`` is False during the warm-up; ``good`` is there only with targets.
    """
    record, values = run.record, latencies(run.record, warmup_s)
    columns: dict[str, object] = {}
    if run.trace.request_id is not None:
        columns["request_id"] = list(run.trace.request_id)
    columns |= {
        "arrival_s": record.arrival_s,
        "first_token_s": record.first_token_s,
        "last_token_s": record.last_token_s,
        "input_tokens": record.input_tokens,
        "output_tokens": record.output_tokens,
        "cached_tokens": record.cached_tokens,
        "preemptions": record.preemptions,
        "ttft_s": values.ttft_s,
        "tpot_s": values.tpot_s,
        "e2e_s": values.e2e_s,
    }
    if record.itl_p99_s is not None:
        columns["itl_p99_s"] = record.itl_p99_s
    columns |= {f"{name}_s": getattr(record, f"part_{name}_s") for name in TTFT_PARTS}
    columns |= {f"{name}_tokens": tokens for name, tokens in record.loaded_tokens.items()}
    columns |= _workers(run)
    if record.attempts is not None and record.lost_tokens is not None:
        columns |= {"attempts_lost": record.attempts, "lost_output_tokens": record.lost_tokens}
    columns["state"] = pd.Categorical.from_codes(record.state.astype(np.int64), categories=pd.Index(STATES))
    columns["reason"] = _named(record.reason, record.reasons)
    for codes, names, title in (
        ("tenant", run.trace.tenant_names, "tenant"),
        ("session", run.trace.session_names, "session"),
    ):
        column = getattr(run.trace, codes)
        if column is not None:
            columns[title] = _named(column, names or ())
    if run.trace.turn is not None:
        columns["turn"] = run.trace.turn
    columns["counted"] = values.counted
    if slo or values.promised:
        columns["good"] = good(values, slo or SLO())
    return pd.DataFrame(columns)


def _workers(run: RunResult) -> dict[str, object]:
    names = [series.name for series in run.series]
    return {
        "prefill_worker": _named(run.record.prefill_worker, names),
        "decode_worker": _named(run.record.decode_worker, names),
    }


def _named(codes: NDArray[np.integer], names: Sequence[str]) -> pd.Categorical[str]:
    """Codes as names; -1 is missing, and a code without a name stands for itself."""
    highest = int(codes.max()) if codes.size else -1
    labels = [names[i] if i < len(names) else str(i) for i in range(max(highest + 1, len(names)))]
    if len(set(labels)) < len(labels):
        labels = [f"{label}#{i}" for i, label in enumerate(labels)]
    return pd.Categorical.from_codes(codes.astype(np.int64), categories=pd.Index(labels))
