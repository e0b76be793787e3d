"""How much of the serving runs' error is scatter of single runs, and how much is a bias of whole groups.

    simulate validate serving POINTS.csv.gz --json OUT.json
    python benchmarks/serving_scatter.py OUT.json

*Scatter*: how far a run's error is from the middle of its two neighbours, of half and of twice its clients, same
deployment and lengths; whatever a model gets wrong smoothly drops out. *Without bias*: the error that is left when each
group's median error is taken off, which no choice of constants for a group could do better.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import pandas as pd

DEPLOYMENT = ["backend", "backend_version", "origin", "mode", "model", "system", "precision", "engines"]
GROUPS = {
    "engine version, model, GPU, weights": DEPLOYMENT[:-1],
    "the same and parallelism": DEPLOYMENT,
    "the same but parallelism, and clients": [*DEPLOYMENT[:-1], "doublings"],
}
METRICS = ("ttft", "tpot")


def errors_of(path: Path) -> pd.DataFrame:
    """Runs of quality ``ok`` with the logarithms of simulated over measured."""
    rows = pd.DataFrame(json.loads(path.read_text(encoding="utf-8"))["rows"])
    rows = rows[(rows["quality"] == "ok") & rows["simulated_ttft_mean_ms"].notna()].copy()
    rows["engines"] = rows["engines"].map("; ".join)
    rows["doublings"] = np.log2(rows["concurrency"]).round(3)
    for metric in METRICS:
        rows[metric] = np.log(rows[f"simulated_{metric}_mean_ms"] / rows[f"{metric}_mean_ms"])
    return rows


def scatter_percent(rows: pd.DataFrame, metric: str) -> tuple[float, int]:
    """Median departure of a run from the middle of its neighbours, one run's part of it; and of how many."""
    found: list[float] = []
    for _, runs in rows.groupby([*DEPLOYMENT, "isl", "osl"]):
        at = runs.groupby("doublings")[metric].mean()
        for place, error in at.items():
            below, above = at.get(place - 1.0), at.get(place + 1.0)
            if below is not None and above is not None:
                found.append(abs(error - (below + above) / 2.0) / np.sqrt(1.5))
    return 100.0 * float(np.median(found)), len(found)


def unbiased_percent(rows: pd.DataFrame, metric: str, by: list[str]) -> float:
    """Median absolute error once each group's median is taken off."""
    left = rows[metric] - rows.groupby(by)[metric].transform("median")
    return 100.0 * float(np.median(np.abs(np.expm1(left))))


def main() -> None:
    """Print both."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("json", type=Path)
    rows = errors_of(parser.parse_args().json)
    print("| median in per cent | TTFT | TPOT |\n|---|---|---|")
    whole = [100.0 * float(np.median(np.abs(np.expm1(rows[m])))) for m in METRICS]
    print(f"| error of {len(rows)} runs | {whole[0]:.1f} | {whole[1]:.1f} |")
    for name, by in GROUPS.items():
        cells = " | ".join(f"{unbiased_percent(rows, m, by):.1f}" for m in METRICS)
        print(f"| without the bias of each of {rows.groupby(by).ngroups} groups ({name}) | {cells} |")
    scatter = [scatter_percent(rows, m) for m in METRICS]
    print(
        f"| scatter of a run about its neighbours ({scatter[0][1]} runs) | {scatter[0][0]:.1f} | {scatter[1][0]:.1f} |"
    )


if __name__ == "__main__":
    main()
