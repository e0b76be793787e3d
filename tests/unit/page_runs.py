"""A small comparison with hostile names, for the tests of the page."""

from __future__ import annotations

import numpy as np

from simulator.api import compare
from simulator.workload.trace import Trace

HOSTILE = "</script><script>alert('x')</script><img src=x onerror=alert(1)>&amp;"
STEP = {"kind": "affine", "base_s": 0.01, "per_token_s": 1e-4}


def small_comparison(requests=120, **more):
    """Two topologies of stated step times, one of a hostile name, on a trace whose names are hostile too."""
    rng = np.random.default_rng(3)
    trace = Trace.from_columns(
        np.cumsum(rng.exponential(0.12, requests)),
        rng.integers(50, 900, requests),
        rng.integers(2, 40, requests),
        request_id=tuple(f"{HOSTILE}{i}" for i in range(requests)),
        name=HOSTILE,
        source=f"{HOSTILE}.jsonl",
    )
    one = {
        "name": HOSTILE,
        "step_time": STEP,
        "kv_blocks": 900,
        "pools": [{"name": "main", "role": "colocated", "workers": 2}],
    }
    split = {
        "name": "split",
        "step_time": STEP,
        "kv_blocks": 900,
        "kv_transfer": {"mode": "pull", "setup_s": 0.002, "per_block_s": 1e-4},
        "pools": [{"name": "prefill", "role": "prefill"}, {"name": "decode", "role": "decode"}],
    }
    return compare(trace, [one, split], slo="ttft=150ms,tpot=20ms", **more)
