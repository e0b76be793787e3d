"""Draws docs/img/serving.png: simulated against measured TTFT and TPOT of the serving runs, by engine.

Run: simulate validate serving POINTS.csv.gz --jobs 2 --json rows.json && python docs/plot_serving.py rows.json
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

COLOURS = {"vllm": "tab:blue", "sglang": "tab:orange", "trtllm": "tab:green"}


def draw(axes: plt.Axes, rows: list[dict[str, object]], metric: str) -> None:
    for engine, colour in COLOURS.items():
        for mode, marker in (("agg", "."), ("disagg", "x")):
            mine = [row for row in rows if row["backend"] == engine and row["mode"] == mode]
            if mine:
                measured, simulated = (
                    np.array([float(str(row[key])) for row in mine])
                    for key in (f"{metric}_mean_ms", f"simulated_{metric}_mean_ms")
                )
                label = engine if mode == "agg" else f"{engine}, pools"
                axes.plot(measured, simulated, marker, color=colour, label=label, markersize=4, alpha=0.6)
    both = np.array(
        [[float(str(row[k])) for k in (f"{metric}_mean_ms", f"simulated_{metric}_mean_ms")] for row in rows]
    )
    line = np.array([both.min() / 1.3, both.max() * 1.3])
    for factor, style in ((1.0, "-"), (0.8, ":"), (1.25, ":")):
        axes.plot(line, line * factor, style, color="black", linewidth=0.8)
    axes.set(
        xscale="log",
        yscale="log",
        xlim=line,
        ylim=line,
        xlabel=f"measured {metric.upper()}, ms",
        ylabel="simulated, ms",
    )
    axes.grid(alpha=0.3)


def main() -> None:
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    rows = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))["rows"]
    rows = [row for row in rows if row["quality"] == "ok" and row["problem"] is None]
    figure, pair = plt.subplots(1, 2, figsize=(11, 5))
    for axes, metric in zip(pair, ("ttft", "tpot"), strict=True):
        draw(axes, rows, metric)
    pair[0].legend(fontsize=8)
    figure.suptitle(f"{len(rows)} serving runs: equal (line), 20 % either way (dots)", fontsize=10)
    figure.tight_layout()
    figure.savefig(Path(__file__).parent / "img" / "serving.png", dpi=75)


if __name__ == "__main__":
    main()
