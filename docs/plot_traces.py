"""Draws docs/img/traces.png: the shipped traces beside the public ones they follow, as distribution functions.

Needs SIMULATOR_DATA, the folder that holds traces/ with the public files (see docs/traces.md).
Run: SIMULATOR_DATA=... python docs/plot_traces.py
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

from simulator.workload import load_trace

PAIRS = {
    "chat": ("azure_llm_2023/AzureLLMInferenceTrace_conv.csv.gz", "Azure conversation"),
    "code": ("azure_llm_2023/AzureLLMInferenceTrace_code.csv.gz", "Azure code"),
    "long_context": ("mooncake_fast25/conversation_trace.jsonl.gz", "Mooncake conversation"),
    "agentic": ("mooncake_fast25/synthetic_trace.jsonl.gz", "Mooncake synthetic"),
}


def draw(axes: plt.Axes, values: np.ndarray, label: str, colour: str, style: str) -> None:
    ordered = np.sort(values[values > 0])
    axes.plot(ordered, (np.arange(len(ordered)) + 0.5) / len(ordered), style, color=colour, label=label, linewidth=1.4)
    axes.set_xscale("log")
    axes.grid(alpha=0.3)


def main() -> None:
    if "SIMULATOR_DATA" not in os.environ:
        sys.exit("set SIMULATOR_DATA to the folder that holds traces/")
    data = Path(os.environ["SIMULATOR_DATA"]) / "traces"
    figure, grid = plt.subplots(4, 3, figsize=(11, 11), sharey=True)
    for row, (name, (file, label)) in zip(grid, PAIRS.items(), strict=True):
        both = (
            (load_trace(data / file), label, "tab:grey", "-"),
            (load_trace(name), f"{name} (shipped)", "tab:red", "--"),
        )
        for trace, text, colour, style in both:
            draw(row[0], trace.input_tokens, text, colour, style)
            draw(row[1], trace.output_tokens, text, colour, style)
            draw(row[2], np.diff(trace.arrival_s), text, colour, style)
        row[0].legend(fontsize=8, loc="upper left")
        row[0].set_ylabel("share of requests")
    for axes, title in zip(grid[0], ("input tokens", "output tokens", "seconds between arrivals"), strict=True):
        axes.set_title(title)
    grid[2, 2].text(
        0.03, 0.7, "public stamps are rounded\nto 3 s; spread evenly", transform=grid[2, 2].transAxes, fontsize=8
    )
    figure.tight_layout()
    figure.savefig(Path(__file__).parent / "img" / "traces.png", dpi=80)


if __name__ == "__main__":
    main()
