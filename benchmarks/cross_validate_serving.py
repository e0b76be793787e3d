"""Cross-validates the fitted host times on measured serving runs, deployment by deployment, and prints the table.

    python benchmarks/cross_validate_serving.py POINTS.csv.gz [--jobs 2] [--sample 480] [--factors 0.75 1 1.35]

Simulates all rows of quality ``ok`` once a factor; about a minute each on two idle cores.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from simulator.validation.serving import validate_serving
from simulator.validation.serving_folds import cross_validated, write_scaled


def main() -> None:
    """Simulate, choose, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("points", type=Path)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--sample", type=int, help="this many runs, spread over deployments (default: all)")
    parser.add_argument("--factors", type=float, nargs="+", default=[0.75, 1.0, 1.35])
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        outcomes = {}
        for factor in sorted({*given.factors, 1.0}):
            profiles = write_scaled(Path(folder) / f"{factor:g}", factor)
            report = validate_serving(
                given.points,
                sample=given.sample,
                jobs=given.jobs,
                choose=lambda p: p.quality == "ok",
                profiles=profiles,
            )
            outcomes[factor] = report.done
    print("| profile | deployments | runs | TTFT fitted | held out | TPOT fitted | held out |")
    print("|---|---|---|---|---|---|---|")
    for fold in cross_validated(outcomes):
        cells = [
            f"{median:.1f} / {mean:.1f}"
            for metric in ("ttft", "tpot")
            for median, mean in (fold.fitted_percent[metric], fold.held_out_percent[metric])
        ]
        print(f"| {fold.name} | {fold.deployments} | {fold.runs} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
