"""How often the 95 % interval of a plan's highest rate covers the true value, and what common random numbers save.

python benchmarks/interval_coverage.py [--repeats 200] [--requests 200] [--replications 8]

One engine with an explicit step time, so that a run takes milliseconds. The true value is the rate at which the mean
attainment over many replications of the same length falls through the target.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass

import numpy as np

from simulator.cluster.topology import load_topology
from simulator.metrics.slo import SLO
from simulator.planning.capacity import Capacity, find_capacity
from simulator.planning.replicates import Bench, pieces_of
from simulator.planning.runs import topology_text
from simulator.planning.workforce import Workforce
from simulator.workload.arrivals import parse_arrivals
from simulator.workload.load import load_trace
from simulator.workload.trace import Trace

ENGINE = {
    "name": "one",
    "engine": {"profile": "vllm", "max_num_seqs": 32},
    "pools": [{"name": "only", "role": "colocated"}],
    "step_time": {"kind": "affine", "base_s": 0.01, "per_token_s": 5e-5},
    "kv_blocks": 20_000,
}
GUESS = 5.0
TARGETS = SLO(ttft_s=1.0, tpot_s=0.04)
#: Seeds of the repeats start at 0; the truth is drawn from seeds far away.
TRUTH_SEED = 1_000_000


@dataclass(frozen=True)
class Setting:
    """What is repeated: requests and replications of one plan, its targets and the share that must meet them."""

    trace: Trace
    requests: int = 200
    replications: int = 8
    slo: SLO = TARGETS
    attainment: float = 0.9

    def bench(self, seed: int, replications: int | None = None) -> Bench:
        """Pieces drawn with ``seed``."""
        count = replications or self.replications
        pieces = pieces_of(self.trace, parse_arrivals("poisson:1"), count, self.requests, seed)
        return Bench(pieces, self.slo, self.attainment, Workforce())

    def capacity(self, seed: int, replications: int | None = None, close: float = 0.02) -> Capacity:
        """The highest rate found with these draws."""
        return find_capacity(self.bench(seed, replications), topology_text(load_topology(ENGINE)), GUESS, close=close)


@dataclass(frozen=True)
class Coverage:
    """How many of ``repeats`` intervals hold ``truth``; how many lie above and below it; their mean relative width."""

    truth: float
    repeats: int
    covered: int
    above: int
    below: int
    width: float


def coverage(setting: Setting, repeats: int, replications_of_truth: int = 400) -> Coverage:
    """Repeat the search with other seeds and count."""
    truth = setting.capacity(TRUTH_SEED, replications_of_truth, close=0.003).rate
    found = [setting.capacity(seed) for seed in range(repeats)]
    above, below = sum(c.low > truth for c in found), sum(c.high < truth for c in found)
    width = float(np.mean([(c.high - c.low) / c.rate for c in found]))
    return Coverage(truth, repeats, repeats - above - below, above, below, width)


def main() -> None:
    """Print one table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=200)
    parser.add_argument("--requests", type=int, default=200)
    parser.add_argument("--replications", type=int, default=8)
    words = parser.parse_args()
    setting = Setting(load_trace("chat"), words.requests, words.replications)
    began = time.perf_counter()
    found = coverage(setting, words.repeats)
    print(f"true value {found.truth:.4g} requests/s; {found.covered} of {found.repeats} intervals cover it")
    print(f"above {found.above}, below {found.below}; mean width {100 * found.width:.1f} % of the rate")
    print(f"{time.perf_counter() - began:.0f} s")


if __name__ == "__main__":
    main()
