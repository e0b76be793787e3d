"""The requests worth a look: the slowest of each topology, with what their time was made of."""

from __future__ import annotations

from typing import Any

import numpy as np

from simulator.cluster.result import STATES, TTFT_PARTS, RunResult
from simulator.metrics.latency import good, latencies, meets
from simulator.metrics.slo import SLO
from simulator.report.page.charts import short

#: As many of each topology by TTFT, by TPOT and by E2E; and as many that never completed.
EACH = 80


def slowest(run: RunResult, slo: SLO, warmup_s: float) -> list[dict[str, Any]]:
    """A row a request, slowest TTFT first. Seconds; ``parts`` in the order of TTFT_PARTS."""
    record, values = run.record, latencies(run.record, warmup_s)
    rows = np.flatnonzero(values.measured)
    chosen: set[int] = set()
    for column in (values.ttft_s, values.tpot_s, values.e2e_s):
        order = np.argsort(-np.nan_to_num(column[rows], nan=-1.0), kind="stable")
        chosen |= set(rows[order[:EACH]].tolist())
    lost = np.flatnonzero(values.counted & ~values.completed)[:EACH]
    ordered = sorted(chosen, key=lambda row: (-values.ttft_s[row], row)) + lost.tolist()
    passed = good(values, slo) if slo or values.promised else np.ones(len(record), np.bool_)
    met = meets(values, slo)
    names = [series.name for series in run.series]
    found = []
    for row in ordered:
        times = (record.arrival_s, values.ttft_s, values.tpot_s, values.e2e_s)
        arrival, ttft, tpot, e2e = short([column[row] for column in times])
        found.append(
            {
                "id": run.trace.request_id[row] if run.trace.request_id is not None else f"#{row}",
                "arrival": arrival, "ttft": ttft, "tpot": tpot, "e2e": e2e,
                "input": int(record.input_tokens[row]), "output": int(record.output_tokens[row]),
                "cached": max(int(record.cached_tokens[row]), 0), "preemptions": int(record.preemptions[row]),
                "parts": short([getattr(record, f"part_{name}_s")[row] for name in TTFT_PARTS]),
                "state": STATES[record.state[row]], "good": bool(passed[row]),
                "missed": [name for name, within in met.items() if not within[row]],
                "prefill": _name(names, int(record.prefill_worker[row])),
                "decode": _name(names, int(record.decode_worker[row])),
                "reason": _name(record.reasons, int(record.reason[row])),
            }
        )  # fmt: skip
    return found


def _name(names: Any, number: int) -> str:
    return str(names[number]) if 0 <= number < len(names) else ""
