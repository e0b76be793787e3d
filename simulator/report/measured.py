"""A measured run beside its replay: tables for people, distribution curves."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from simulator.files import replacing
from simulator.metrics.wording import count, seconds
from simulator.report.pictures import COLOURS, DASHES, STYLE, canvas, dress_times
from simulator.report.terminal import plain_table
from simulator.validation.clients.measured import METRICS
from simulator.validation.fit_run import Fit
from simulator.validation.measured_run import STATISTICS, RunComparison, mean_errors

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from rich.table import Table

NAMES = {
    "ttft": "Time to first token (TTFT)",
    "tpot": "Time per output token (TPOT)",
    "e2e": "End to end (E2E)",
}
#: Errors shown green and yellow, in per cent; beyond them red.
GOOD_PERCENT, FAIR_PERCENT = 10.0, 20.0


def headline(comparison: RunComparison) -> str:
    """What was measured, in a line."""
    run = comparison.measured
    how = {"closed": f"{run.clients} clients", "rate": f"Poisson, {run.rate:g} requests/s", "timed": "as sent"}[
        run.load
    ]
    lengths = f"input mean {run.input_tokens.mean():,.0f}, output mean {run.output_tokens.mean():,.0f} tokens"
    return (
        f"{run.name} ({run.client}): {count(len(run))} requests, {how}, {lengths}; topology {comparison.topology.name}"
    )


def error_text(percent: float) -> Any:
    """``+3.1 %``, coloured by size."""
    from rich.text import Text

    size = abs(percent)
    style = "green" if size <= GOOD_PERCENT else "yellow" if size <= FAIR_PERCENT else "red"
    return Text(f"{percent:+.1f} %", style=style)


def figures_table(comparison: RunComparison) -> Table:
    """One row a statistic: measured, simulated and error of each metric."""
    table = plain_table()
    table.add_column("", no_wrap=True)
    shown = [metric for metric in METRICS if comparison.figure(metric, "mean") is not None]
    for metric in shown:
        for name in (f"{metric.upper()} measured", "simulated", "error"):
            table.add_column(name, justify="right", no_wrap=True)
    for name in STATISTICS:
        cells: list[Any] = []
        for metric in shown:
            figure = comparison.figure(metric, name)
            assert figure is not None
            cells += [seconds(figure.measured_s), seconds(figure.simulated_s), error_text(figure.error_percent)]
        table.add_row(name, *cells)
    return table


def runs_table(comparisons: Sequence[RunComparison]) -> Table:
    """One row a run: errors of the statistics most looked at."""
    table = plain_table()
    table.add_column("error of", no_wrap=True)
    shown = [(metric, name) for metric in METRICS for name in ("mean", "p50", "p90", "p99")]
    for metric, name in shown:
        table.add_column(f"{metric.upper()} {name}", justify="right", no_wrap=True)
    for comparison in comparisons:
        figures = [comparison.figure(metric, name) for metric, name in shown]
        cells = ["–" if figure is None else error_text(figure.error_percent) for figure in figures]
        table.add_row(comparison.measured.name, *cells)
    means = mean_errors(comparisons)
    cells = [f"{means[m][n]:.1f} %" if n in means.get(m, {}) else "–" for m, n in shown]
    table.add_row("mean absolute error", *cells)
    return table


def fit_table(fit: Fit) -> Table:
    """One row a parameter: before and after."""
    table = plain_table()
    table.add_column(f"fitted: {fit.kind}", no_wrap=True)
    for name in ("before", "after"):
        table.add_column(name, justify="right", no_wrap=True)
    for key, value in fit.after_s.items():
        table.add_row(key, seconds(fit.before_s[key]), seconds(value))
    return table


def comparison_figure(comparison: RunComparison) -> Figure:
    """Cumulative distributions of TTFT, TPOT and E2E, measured and simulated."""
    import matplotlib as mpl

    with mpl.rc_context(STYLE):
        figure, axes = canvas(12.4, 4.3, 1, 3, sharey=True)
        handles = []
        for axis, metric in zip(axes[0], METRICS, strict=True):
            both = (comparison.measured.latencies(metric), comparison.simulated[metric])
            for values, label, colour, dash in zip(both, ("measured", "simulated"), COLOURS, DASHES, strict=False):
                ordered = np.sort(np.maximum(values, 1e-6))
                shares = np.arange(1, ordered.size + 1) / max(ordered.size, 1)
                line = axis.step(ordered, shares, where="post", color=colour, linestyle=dash, label=label)[0]
                if metric == METRICS[0]:
                    handles.append(line)
            axis.set_title(NAMES[metric])
            dress_times(axis)
        axes[0][0].set_ylabel("share of requests")
        figure.suptitle(headline(comparison), x=0.01, ha="left", fontsize=9.5)
        figure.legend(handles=handles, loc="outside lower center", ncols=2)
        return figure


def write_comparison(comparison: RunComparison, folder: Path) -> Path:
    """The picture as ``NAME.png``."""
    safe = "".join(letter if letter.isalnum() or letter in "-_." else "_" for letter in comparison.measured.name)
    path = folder / f"{safe}.png"
    with replacing(path) as temporary:
        comparison_figure(comparison).savefig(temporary, format="png", metadata={"Software": "pd-simulator"})
    return path
