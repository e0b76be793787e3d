"""Picture of a check: every curve before and now, with the points that moved marked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from simulator.files import replacing
from simulator.planning.curves import LATENCIES
from simulator.report.pictures import COLOURS, STYLE

_RED = "#B3261E"
_PANEL_IN = 3.6


def write_curves(points: Sequence[Mapping[str, Any]], path: Path) -> Path:
    """A row a curve, a column a metric; dashed: the baseline, solid: now, red: points beyond their tolerance."""
    import matplotlib as mpl
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    topologies = list(dict.fromkeys(point["topology"] for point in points))
    colours = {name: COLOURS[number % len(COLOURS)] for number, name in enumerate(topologies)}
    curves = list(dict.fromkeys(point["curve"] for point in points))
    metrics = {c: list(dict.fromkeys(p["metric"] for p in points if p["curve"] == c)) for c in curves}
    columns = max(len(names) for names in metrics.values())
    with mpl.rc_context(STYLE):
        size = (max(_PANEL_IN * columns, 5.0), 2.8 * len(curves) + 0.6)
        figure = Figure(figsize=size, layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.subplots(len(curves), columns, squeeze=False)
        for row, curve in enumerate(curves):
            for column, axis in enumerate(axes[row]):
                if column >= len(metrics[curve]):
                    axis.set_axis_off()
                    continue
                metric = metrics[curve][column]
                chosen = [p for p in points if p["curve"] == curve and p["metric"] == metric]
                _panel(axis, chosen, f"{curve}: {metric}", colours)
        named = {label: line for row in axes for axis in row for line, label in _legend(axis)}
        figure.legend(list(named.values()), list(named), loc="outside lower center", ncols=4)
        with replacing(path) as temporary:
            figure.savefig(temporary, format="png", metadata={"Software": "pd-simulator"})
    return path


def _legend(axis: Any) -> list[tuple[Any, str]]:
    return list(zip(*axis.get_legend_handles_labels(), strict=True))


def _panel(axis: Any, points: Sequence[Mapping[str, Any]], title: str, colours: Mapping[str, str]) -> None:
    for topology in dict.fromkeys(point["topology"] for point in points):
        members = [point for point in points if point["topology"] == topology]
        rates, colour = [point["rate"] for point in members], colours[topology]
        axis.plot(rates, _numbers(members, "before"), color=colour, linestyle=(0, (4, 2)), linewidth=1.2)
        axis.plot(rates, _numbers(members, "now"), color=colour, marker="o", markersize=3.5, label=topology)
    moved = [point for point in points if point["verdict"] != "same" and point["now"] is not None]
    if moved:
        axis.plot(
            [p["rate"] for p in moved], [p["now"] for p in moved], "o", color=_RED, markersize=9, fillstyle="none"
        )
        for point in moved:
            if point["change_percent"] is not None:
                text = f"{point['change_percent']:+.1f} %"
                axis.annotate(
                    text, (point["rate"], point["now"]), xytext=(6, 4), textcoords="offset points", color=_RED
                )
    latency = points[0]["metric"] in LATENCIES
    axis.set_title(f"{title} (s)" if latency else title)
    axis.set_xlabel("rate (requests/s)")
    axis.set_xticks(sorted({point["rate"] for point in points}))
    axis.set_ylim(0, 1.12 * max(np.nanmax(_numbers(points, key), initial=0.0) for key in ("before", "now")) or 1.0)


def _numbers(points: Sequence[Mapping[str, Any]], key: str) -> list[float]:
    return [float("nan") if point[key] is None else point[key] for point in points]
