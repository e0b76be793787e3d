"""Pictures of runs: latency distributions, where TTFT goes, and the load over time. PNG through matplotlib's Agg."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from simulator.cluster.result import Floats, RunResult
from simulator.files import replacing
from simulator.metrics.latency import latencies
from simulator.metrics.slo import SLO
from simulator.metrics.summary import Entry
from simulator.metrics.verdict import PART_NAMES
from simulator.metrics.wording import seconds, target

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: Colours told apart with every common colour blindness (Okabe and Ito, 2008), yellow left out: it fades on white.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
DASHES: tuple[Any, ...] = ("-", (0, (6, 1.5)), (0, (6, 1.5, 1.5, 1.5)), (0, (1.5, 1)))
GREY = "#5f6368"

#: Compute in blues, what disaggregation adds in warm colours, the rest in greys.
PART_COLOURS = {
    "queue": "#56B4E9",
    "cache_load": "#009E73",
    "prefill": "#0072B2",
    "kv_wait": "#F0C05A",
    "kv_transfer": "#D55E00",
    "decode_admission": "#CC79A7",
    "host": "#80868b",
}

#: More topologies than this are not legible side by side.
COLUMNS = 4

STYLE: dict[Any, Any] = {
    "font.size": 9.5,
    "axes.titlesize": 10.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#9aa0a6",
    "axes.labelcolor": "#3c4043",
    "xtick.color": "#5f6368",
    "ytick.color": "#5f6368",
    "axes.grid": True,
    "grid.color": "#e8eaed",
    "grid.linewidth": 0.8,
    "axes.axisbelow": True,
    "legend.frameon": False,
    "lines.linewidth": 1.8,
    "savefig.dpi": 130,
    "figure.dpi": 130,
    "font.family": "DejaVu Sans",
}


def write_pictures(
    folder: Path, *, runs: Sequence[RunResult], entries: Sequence[Entry], slo: SLO, warmup_s: float, heading: str
) -> list[Path]:
    """Write ``latency.png``, ``ttft_parts.png`` and ``load.png`` (``load_2.png`` ... beyond four topologies)."""
    written = [_save(latency_figure(runs, entries, slo, warmup_s, heading), folder / "latency.png")]
    if any(entry["ttft_s"]["mean"] is not None for entry in entries):
        written.append(_save(parts_figure(entries, heading), folder / "ttft_parts.png"))
    for page, start in enumerate(range(0, len(runs), COLUMNS)):
        names = [entry["name"] for entry in entries[start : start + COLUMNS]]
        figure = load_figure(runs[start : start + COLUMNS], names, warmup_s, heading)
        if figure is not None:
            written.append(_save(figure, folder / ("load.png" if page == 0 else f"load_{page + 1}.png")))
    return written


def canvas(width_in: float, height_in: float, rows: int, columns: int, **more: Any) -> tuple[Figure, Any]:
    """A figure of its own canvas: no pyplot, so nothing global is touched and nothing is left open."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width_in, height_in), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(rows, columns, squeeze=False, **more)


def _save(figure: Figure, path: Path) -> Path:
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", metadata={"Software": "pd-simulator"})
    return path


def _styled() -> Any:
    import matplotlib as mpl

    return mpl.rc_context(STYLE)


def latency_figure(
    runs: Sequence[RunResult], entries: Sequence[Entry], slo: SLO, warmup_s: float, heading: str
) -> Figure:
    """TTFT and TPOT of every topology as cumulative shares of the counted requests, with the targets."""
    with _styled():
        figure, axes = canvas(9.6, 4.3, 1, 2, sharey=True)
        handles: list[Any] = []
        for number, (run, entry) in enumerate(zip(runs, entries, strict=True)):
            values = latencies(run.record, warmup_s)
            colour, dash = COLOURS[number % len(COLOURS)], DASHES[number % len(DASHES)]
            for axis, column in zip(axes[0], (values.ttft_s, values.tpot_s), strict=True):
                line = _distribution(axis, column[values.measured], colour, dash)
                if axis is axes[0][0]:
                    line.set_label(f"{entry['name']} (saturated)" if entry["saturated"] else entry["name"])
                    handles.append(line)
        for axis, name in zip(axes[0], ("ttft", "tpot"), strict=True):
            _dress_distribution(axis, name, slo)
        axes[0][0].set_ylabel("share of completed requests")
        _head(figure, "Latency distributions", heading)
        figure.legend(handles=handles, loc="outside lower center", ncols=min(3, len(handles)))
        return figure


def _distribution(axis: Axes, values: Floats, colour: str, dash: Any) -> Any:
    ordered = np.sort(values[~np.isnan(values)])
    shares = np.arange(1, ordered.size + 1) / max(ordered.size, 1)
    if ordered.size > 4000:  # more steps than pixels
        keep = np.unique(
            np.concatenate([np.linspace(0, ordered.size - 1, 3600).astype(int), np.arange(-400, 0) % ordered.size])
        )
        ordered, shares = ordered[keep], shares[keep]
    return axis.step(np.maximum(ordered, 1e-6), shares, where="post", color=colour, linestyle=dash)[0]


def _dress_distribution(axis: Axes, name: str, slo: SLO) -> None:
    long_name = {"ttft": "Time to first token (TTFT)", "tpot": "Time per output token (TPOT)"}[name]
    axis.set_title(long_name)
    if not any(np.size(line.get_xdata()) for line in axis.lines):
        axis.text(0.5, 0.5, "nothing to show", transform=axis.transAxes, ha="center", color=GREY)
        return
    dress_times(axis)
    limit_s = slo.targets().get(name)
    if limit_s is not None:
        axis.axvline(limit_s, color=GREY, linestyle=(0, (4, 2)), linewidth=1.2, zorder=1)
        low, high = axis.get_xlim()
        axis.set_xlim(min(low, limit_s / 1.3), max(high, limit_s * 1.3))
        label = f"target {target(limit_s)}"
        low, high = axis.get_xlim()
        left = np.log(limit_s / low) > 0.6 * np.log(high / low)
        axis.annotate(
            label, (limit_s, 0.03), xytext=(-4 if left else 4, 0), textcoords="offset points", color=GREY,
            ha="right" if left else "left", fontsize=8.5,
        )  # fmt: skip


def dress_times(axis: Axes) -> None:
    """Axes of a cumulative distribution of times."""
    axis.set_xscale("log")
    _time_axis(axis)
    axis.set_ylim(0, 1.005)
    axis.yaxis.set_major_formatter(lambda share, _: f"{100 * share:.0f} %")
    axis.set_yticks([0, 0.25, 0.5, 0.75, 0.9, 1.0])


def _time_axis(axis: Axes) -> None:
    """Logarithmic ticks at 1, 2, 5 and with their own unit."""
    from matplotlib.ticker import LogLocator, NullFormatter

    low, high = axis.get_xlim()
    decades = np.log10(high / low)
    steps = (1.0,) if decades > 3 else (1.0, 2.0, 5.0) if decades > 1 else (1.0, 1.5, 2.0, 3.0, 5.0, 7.0)
    axis.xaxis.set_major_locator(LogLocator(base=10, subs=steps, numticks=30))
    axis.xaxis.set_major_formatter(lambda value, _: target(float(f"{value:.3g}")))
    axis.xaxis.set_minor_formatter(NullFormatter())


def parts_figure(entries: Sequence[Entry], heading: str) -> Figure:
    """Mean TTFT of each topology as a bar of its parts."""
    with _styled():
        shown = [entry for entry in entries if entry["ttft_s"]["mean"] is not None]
        figure, axes = canvas(9.6, 2.0 + 0.42 * len(shown), 1, 1)
        axis = axes[0][0]
        places = np.arange(len(shown))
        starts = np.zeros(len(shown))
        largest = max(entry["ttft_s"]["mean"] for entry in shown)
        scale, unit = (1e3, "ms") if largest < 1 else (1.0, "s")
        for part, colour in PART_COLOURS.items():
            widths = np.array([entry["ttft_parts_s"][part] for entry in shown]) * scale
            if widths.any():
                axis.barh(
                    places, widths, left=starts, color=colour, height=0.62, label=PART_NAMES[part], edgecolor="white"
                )
            starts += widths
        limit = _bar_limit(shown) * scale
        for place, entry in zip(places, shown, strict=True):
            mean, cut = seconds(entry["ttft_s"]["mean"]), starts[place] > limit
            text = f"{mean}, saturated → " if cut else f"  {mean}"
            axis.text(
                min(starts[place], limit), place, text, va="center", ha="right" if cut else "left",
                color="#202124",
            )  # fmt: skip
        axis.set_yticks(places, [entry["name"] for entry in shown])
        axis.invert_yaxis()
        axis.set_xlim(0, limit)
        axis.set_xlabel(f"mean over completed requests ({unit})")
        axis.grid(axis="y", visible=False)
        _head(figure, "Where the time to first token goes", heading)
        figure.legend(loc="outside lower center", ncols=3)
        return figure


def _bar_limit(shown: Sequence[Entry]) -> float:
    """End of the bars' axis in seconds: saturated runs may run out of it, so that the others stay legible."""
    means = [entry["ttft_s"]["mean"] for entry in shown]
    steady = [entry["ttft_s"]["mean"] for entry in shown if not entry["saturated"]]
    if steady and max(means) > 3 * max(steady):
        return float(2 * max(steady))
    return float(max(means) * 1.15)


def load_figure(runs: Sequence[RunResult], names: Sequence[str], warmup_s: float, heading: str) -> Figure | None:
    """Running and waiting requests and KV use over time: a column a topology, a line a pool. None without series."""
    if not any(run.series for run in runs):
        return None
    with _styled():
        width = 9.6 if len(runs) < 3 else 3.6 * len(runs)
        figure, axes = canvas(width, 6.4, 3, len(runs), sharex=True, sharey="row")
        rows = (("running", "running requests"), ("kv_fraction", "KV blocks in use"), ("waiting", "waiting requests"))
        for column, (run, name) in enumerate(zip(runs, names, strict=True)):
            axes[0][column].set_title(name)
            for row, (field, label) in enumerate(rows):
                axis = axes[row][column]
                _pool_lines(axis, run, field, bin_width_s(runs))
                if column == 0:
                    axis.set_ylabel(label)
                if warmup_s > 0:
                    axis.axvspan(0, warmup_s, color="#f1f3f4", zorder=0)
                if field == "kv_fraction":
                    axis.set_ylim(0, 1.03)
                    axis.yaxis.set_major_formatter(lambda share, _: f"{100 * share:.0f} %")
            axes[2][column].set_xlabel("time (s)")
            axes[0][column].legend(
                loc="lower right", bbox_to_anchor=(1.0, 0.99), borderaxespad=0, ncols=2, fontsize=8.5, handlelength=1.2
            )
        for axis in (axes[0][0], axes[2][0]):
            axis.set_ylim(bottom=0)  # shared along the row
        window = target(bin_width_s(runs))
        note = f"sums over a pool's workers, averaged over {window}; KV: mean, shaded up to the fullest worker"
        _head(figure, "Load over time", f"{heading}\n{note}" + ("; grey: warm-up" if warmup_s > 0 else ""))
        return figure


def _pool_lines(axis: Axes, run: RunResult, field: str, step_s: float) -> None:
    pools = list(dict.fromkeys(series.pool for series in run.series))
    for number, pool in enumerate(pools):
        members = [series for series in run.series if series.pool == pool]
        if not any(series.time_s.size for series in members):
            continue
        grid = np.arange(0.0, end_of([run]) + step_s, step_s)
        table = np.array([bin_means(series.time_s, getattr(series, field), grid) for series in members])
        grid = grid[:-1] + step_s / 2
        colour = COLOURS[number % len(COLOURS)]
        label = f"{pool} ({members[0].role})" if members[0].role not in pool else pool
        if field == "kv_fraction":
            axis.plot(grid, table.mean(axis=0), color=colour, linewidth=1.3, label=label)
            if len(members) > 1:
                axis.fill_between(grid, table.mean(axis=0), table.max(axis=0), color=colour, alpha=0.18, linewidth=0)
        else:
            axis.plot(grid, table.sum(axis=0), color=colour, linewidth=1.3, label=label)


def end_of(runs: Sequence[RunResult]) -> float:
    return max((float(s.time_s[-1]) for run in runs for s in run.series if s.time_s.size), default=1.0) or 1.0


def bin_width_s(runs: Sequence[RunResult]) -> float:
    """Width of a time bin: a round number that makes 150 to 400 of them."""
    rough = end_of(runs) / 400
    scale = 10.0 ** np.floor(np.log10(rough))
    return float(next(scale * step for step in (1, 2, 5, 10) if scale * step >= rough))


def bin_means(time_s: Floats, values: Any, grid: Floats) -> Floats:
    """Averages between ``grid`` times: a sample holds until the next one; 0 before the first."""
    if len(time_s) == 0:
        return np.zeros(grid.size - 1)
    held = np.asarray(values, dtype=np.float64)
    area = np.concatenate([[0.0], np.cumsum(held[:-1] * np.diff(time_s))])
    place = np.searchsorted(time_s, grid, side="right") - 1
    until = np.maximum(place, 0)
    areas = np.where(place < 0, 0.0, area[until] + held[until] * (grid - time_s[until]))
    return np.asarray(np.diff(areas) / np.diff(grid))


def _head(figure: Figure, title: str, heading: str) -> None:
    figure.suptitle(f"{title}: {heading}", x=0.01, ha="left", fontsize=11.5)


def heading_of(trace: Mapping[str, Any], models: Sequence[str]) -> str:
    """What was run, for titles: ``llama-3.1-8b, azure_conv (2,000 requests) at 5.4 requests/s, poisson:5.4``."""
    known = list(dict.fromkeys(model for model in models if model))
    load = [f"{trace['requests']:,} requests"]
    if trace.get("arrivals", "trace").startswith(("closed", "at-once")):
        load.append(trace["arrivals"])
    elif trace["rate_requests_per_s"]:
        load.append(f"{trace['rate_requests_per_s']:.3g} requests/s")
    return f"{trace['name']} ({', '.join(load)})" + (f", {known[0]}" if len(known) == 1 else "")
