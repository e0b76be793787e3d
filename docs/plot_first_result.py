"""Draws docs/img/first_result.png: does splitting prefill from decode pay? From what `simulate` prints as JSON.

Needs SIMULATOR_DATA, the folder that holds traces/ with the public files (see docs/traces.md).
Run: SIMULATOR_DATA=... python docs/plot_first_result.py
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

TRACE = "azure_llm_2023/AzureLLMInferenceTrace_conv.csv.gz"
TOPOLOGIES = {
    "llama-3.1-70b/h100_sxm:tp4/3c": ("3 colocated engines", "#0072B2", "o"),
    "llama-3.1-70b/h100_sxm:tp4/2p1d": ("2 prefill + 1 decode", "#D55E00", "s"),
}
TARGETS = ("ttft=2s,tpot=30ms", "ttft=2s,tpot=100ms")
TIMES_FASTER = (1, 1.5, 2, 2.5, 3, 3.5, 4, 4.5, 5, 5.5)


def simulate(trace: Path, times_faster: float, slo: str) -> list[dict]:
    """Both topologies' entries of the result JSON."""
    command = [Path(sys.executable).with_name("simulate"), trace, "--rate-scale", str(times_faster), "--slo", slo]
    for name in TOPOLOGIES:
        command += ["--topology", name]
    done = subprocess.run([*command, "--json", "-", "--quiet"], capture_output=True, text=True, check=True)
    return json.loads(done.stdout)["topologies"]


def draw(axes: plt.Axes, trace: Path, slo: str) -> None:
    points: dict[str, list[tuple[float, float]]] = {name: [] for name in TOPOLOGIES}
    for times_faster in TIMES_FASTER:
        for entry in simulate(trace, times_faster, slo):
            points[entry["name"]].append((5.53 * times_faster, 100 * entry["slo_attainment"]))
            print(slo, entry["name"], *points[entry["name"]][-1])
    for name, (label, colour, marker) in TOPOLOGIES.items():
        axes.plot(*zip(*points[name], strict=True), color=colour, marker=marker, markersize=4, label=label)
    ttft, tpot = (part.split("=")[1].replace("ms", " ms").replace("2s", "2 s") for part in slo.split(","))
    axes.set_title(f"TTFT {ttft}, TPOT {tpot}", loc="left", fontsize=10.5, fontweight="bold")
    axes.set_xlabel("requests/s offered")
    axes.grid(color="#e8eaed")
    axes.spines[["top", "right"]].set_visible(False)


def main() -> None:
    if "SIMULATOR_DATA" not in os.environ:
        sys.exit("set SIMULATOR_DATA to the folder that holds traces/")
    trace = Path(os.environ["SIMULATOR_DATA"]) / "traces" / TRACE
    figure, grid = plt.subplots(1, 2, figsize=(9.6, 3.9), sharey=True, layout="constrained")
    for axes, slo in zip(grid, TARGETS, strict=True):
        draw(axes, trace, slo)
    grid[0].set_ylabel("% of requests that meet both targets")
    grid[0].set_ylim(0, 103)
    grid[0].legend(loc="lower left", frameon=False)
    figure.suptitle(
        "Azure conversation trace on 12 H100, Llama-3.1-70B, TP 4: splitting pays where tokens must come fast",
        x=0.01, ha="left", fontsize=11,
    )  # fmt: skip
    figure.savefig(Path(__file__).parent / "img" / "first_result.png", dpi=120)


if __name__ == "__main__":
    main()
