"""Draws fault plans, simulates each, and counts what was lost: ``python benchmarks/faults.py --plans 500``."""

from __future__ import annotations

import argparse
from collections import Counter

import numpy as np

from simulator.cluster.result import STATES
from simulator.validation.fault_laws import broken_laws
from simulator.validation.fault_plans import draw_case, run_case


def main() -> int:
    """Prints a table; 1 where a law was broken."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--plans", type=int, default=500)
    options.add_argument("--seed", type=int, default=0)
    asked = options.parse_args()
    random = np.random.default_rng([asked.seed, 0xFA])
    counts: Counter[str] = Counter()
    broken: list[str] = []
    for number in range(asked.plans):
        case = draw_case(lambda choices: choices[int(random.integers(len(choices)))])
        cluster = run_case(case)
        counts.update({f"requests {name}": int((cluster.state == k).sum()) for k, name in enumerate(STATES)})
        counts["requests simulated"] += len(cluster.trace)
        if cluster.faults is not None:
            counts.update({f"{kind} faults": times for kind, times in cluster.events.happened.items()})
            counts["workers that died"] += cluster.faults.crashes
            counts["requests hit by a fault"] += int((cluster.faults.attempts.number > 0).sum())
            counts["attempts lost"] += int(cluster.faults.attempts.number.sum())
        broken += [f"plan {number}: {law}" for law in broken_laws(cluster)]
    print(f"plans drawn: {asked.plans:,} (seed {asked.seed})")
    for name, count in sorted(counts.items()):
        print(f"{name}: {count:,}")
    print(f"laws broken: {len(broken)}", *broken, sep="\n")
    return 1 if broken else 0


if __name__ == "__main__":
    raise SystemExit(main())
