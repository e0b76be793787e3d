"""Whether anything that the serving runs state predicts what is left of their error.

    simulate validate serving POINTS.csv.gz --json OUT.json
    pip install scikit-learn                      # needed by this script alone
    python benchmarks/serving_trees.py OUT.json

Boosted trees over all that a row states and all that is simulated forecast the error, trained on nine tenths and judged
on the last: of the *deployments*, as a model meets them that has not seen them, or of the *rows*, others of the same
deployment among those seen.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import pandas as pd
from serving_scatter import DEPLOYMENT, METRICS, errors_of

WORDS = [name for name in DEPLOYMENT if name != "engines"]
NUMBERS = ["isl", "osl", "concurrency", "simulated_ttft_mean_ms", "simulated_tpot_mean_ms"]
#: How the engines of a row are parallel, read from its words.
DEGREES = ("tp", "dp", "ep", "prefill", "decode")
FOLDS, REPEATS, MOST = 10, 5, 0.7


def features_of(rows: pd.DataFrame) -> pd.DataFrame:
    """Numbers for all that a row states: words as codes, the others as logarithms."""
    found = pd.DataFrame({name: rows[name].astype("category").cat.codes for name in WORDS})
    for name in NUMBERS:
        found[name] = np.log2(rows[name].astype(float))
    for name in DEGREES:
        before = name in ("prefill", "decode")
        pattern = rf"(\d+) {name}" if before else rf"{name}(\d+)"
        found[name] = np.log2(rows["engines"].str.extract(pattern, expand=False).astype(float))
    return found


def held_out_percent(rows: pd.DataFrame, metric: str, by: list[str]) -> tuple[float, float]:
    """Median and mean absolute error without what trees forecast of it; rows that share ``by`` stay together."""
    from sklearn.ensemble import HistGradientBoostingRegressor

    features, error = features_of(rows).to_numpy(), rows[metric].to_numpy()
    group = rows.groupby(by, dropna=False).ngroup().to_numpy()
    medians, means = [], []
    for seed in range(REPEATS):
        fold = np.random.default_rng(seed).permutation(group.max() + 1)[group] % FOLDS
        left = error.copy()
        for held in range(FOLDS):
            trees = HistGradientBoostingRegressor(
                loss="absolute_error", max_iter=150, learning_rate=0.05, max_leaf_nodes=12, min_samples_leaf=8
            )
            trees.fit(features[fold != held], np.clip(error[fold != held], -MOST, MOST))
            left[fold == held] -= trees.predict(features[fold == held])
        share = np.abs(np.expm1(left))
        medians.append(np.median(share))
        means.append(share.mean())
    return 100.0 * float(np.mean(medians)), 100.0 * float(np.mean(means))


def main() -> None:
    """Print what is left."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("rows", type=Path, help="the JSON of `simulate validate serving`")
    rows = errors_of(parser.parse_args().rows)
    print("| median / mean in per cent | " + " | ".join(metric.upper() for metric in METRICS) + " |")
    print("|---|---|---|")
    share = [np.abs(np.expm1(rows[metric])) for metric in METRICS]
    plain = [f"{100 * one.median():.1f} / {100 * one.mean():.1f}" for one in share]
    print(f"| error of {len(rows)} runs | " + " | ".join(plain) + " |")
    for name, by in (("deployments", DEPLOYMENT), ("rows", ["point"])):
        left = [held_out_percent(rows, metric, by) for metric in METRICS]
        print(f"| trees, {name} held out | " + " | ".join(f"{one:.1f} / {two:.1f}" for one, two in left) + " |")


if __name__ == "__main__":
    main()
