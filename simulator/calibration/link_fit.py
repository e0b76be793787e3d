"""Links from measured copies: time to begin, time a piece, bandwidth; what copies and other work cost each other."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import yaml
from numpy.typing import NDArray

from simulator.calibration.measured import Measured
from simulator.errors import InputError

Floats = NDArray[np.float64]
US = 1e-6
#: Rows a fit of three numbers needs, and the share of them held back to measure its error.
LEAST_ROWS, HELD_BACK = 8, 0.2
#: Layout of a copy in one piece.
RANGE = "range"
#: One setup may take up to this long, one piece too.
MOST_S = 1e-2


@dataclass(frozen=True)
class LinkFit:
    """``setup_s + pieces * per_piece_s + bytes / bandwidth_bytes_per_s``; relative errors on a fifth of the rows that a
    fit on the others does not see."""

    name: str
    setup_s: float
    per_piece_s: float
    bandwidth_bytes_per_s: float
    rows: int
    held_back: Floats


def _terms(pieces: Floats, size: Floats, seconds: Floats, known_per_byte: float | None) -> Floats:
    """Setup, seconds a piece, seconds a byte that bring the sum closest to the measured times, in the logarithm; the
    last one as it is ``known``, if it is."""
    try:
        from scipy.optimize import least_squares
    except ImportError:  # pragma: no cover - scipy is a development dependency
        raise InputError("fitting links needs scipy: pip install scipy") from None
    per_byte = float(np.min(seconds / size)) if known_per_byte is None else known_per_byte
    free = 3 if known_per_byte is None else 2
    scale = np.array([float(np.min(seconds)), float(np.min(seconds / pieces)), per_byte])

    def misfit(x: Floats) -> Floats:
        setup, per_piece, byte = np.append(x, [1.0] * (3 - free)) * scale
        found: Floats = np.log(setup + per_piece * pieces + byte * size) - np.log(seconds)
        return found

    most = np.array([MOST_S, MOST_S, 1.0]) / np.array([scale[0], scale[1], 1e-3])
    bounds = (np.array([0.0, 0.0, 1e-3])[:free], most[:free])
    start = np.array([0.5, 0.5, 1.0])[:free]
    x = least_squares(misfit, start, bounds=bounds, loss="soft_l1", f_scale=0.1).x
    found: Floats = np.append(x, [1.0] * (3 - free)) * scale
    return found


def fit_link(name: str, table: pd.DataFrame, seed: int = 0, bandwidth: float | None = None) -> LinkFit:
    """Fit rows with columns ``pieces``, ``bytes`` and ``median_us``; ``bandwidth`` (bytes/s) where it is known already:
    pieces all of one size cannot tell what a piece takes from what its bytes do. Raises InputError for too few."""
    if len(table) < LEAST_ROWS:
        raise InputError(f"link {name}: {len(table)} rows; expected at least {LEAST_ROWS}")
    pieces, size = (table[column].to_numpy(np.float64) for column in ("pieces", "bytes"))
    seconds = table["median_us"].to_numpy(np.float64) * US
    out = np.random.default_rng(seed).random(len(table)) < HELD_BACK
    known = None if bandwidth is None else 1.0 / bandwidth
    seen = _terms(pieces[~out], size[~out], seconds[~out], known)
    forecast = seen[0] + seen[1] * pieces[out] + seen[2] * size[out]
    setup, per_piece, per_byte = _terms(pieces, size, seconds, known).tolist()
    error: Floats = np.abs(forecast / seconds[out] - 1.0)
    return LinkFit(name, setup, per_piece, 1.0 / per_byte, len(table), error)


def host_links(measured: Measured) -> list[LinkFit]:
    """Host to device and back, by how the blocks are copied: a copy a block, or one kernel for all."""
    table = measured.table("copies")
    if table.empty:
        return []
    table = table.assign(bytes=table["block_bytes"] * table["blocks"], pieces=table["blocks"])
    chosen = table[table["way"].isin(["host_to_device", "device_to_host"]) & table["method"].isin(["calls", "kernel"])]
    groups = chosen.groupby(["way", "method"])
    return [fit_link(f"{way}/{method}", part) for (way, method), part in groups if len(part) >= LEAST_ROWS]


def peer_links(measured: Measured) -> list[LinkFit]:
    """From one GPU to the other, by how the pieces are copied: ``peer/METHOD`` with one stream, over all layouts, and
    ``peer/METHOD/STREAMS streams``, with the bandwidth of one stream where their pieces are all of one size."""
    table = measured.table("peers")
    if table.empty:
        return []
    table = table.assign(bytes=table["piece_bytes"] * table["pieces"])
    found: dict[str, LinkFit] = {}
    for (method, streams), part in table.groupby(["method", "streams"]):  # one stream comes first
        alone = f"peer/{method}"
        name = alone if streams == 1 else f"{alone}/{streams} streams"
        known = found[alone].bandwidth_bytes_per_s if alone in found and part["piece_bytes"].nunique() == 1 else None
        if len(part) >= LEAST_ROWS:
            found[name] = fit_link(name, part, bandwidth=known)
    return list(found.values())


def layout_errors(measured: Measured, fit: LinkFit) -> dict[str, float]:
    """Layout of the pieces -> median relative error of the fit on its own copies: how far one law fits all."""
    table, (_, method, *rest) = measured.table("peers"), fit.name.split("/")
    streams = int(rest[0].split()[0]) if rest else 1
    table = table[(table["method"] == method) & (table["streams"] == streams)]
    size, pieces = (table["piece_bytes"] * table["pieces"]).to_numpy(float), table["pieces"].to_numpy(float)
    forecast = fit.setup_s + pieces * fit.per_piece_s + size / fit.bandwidth_bytes_per_s
    off = np.abs(forecast / (table["median_us"].to_numpy(float) * US) - 1.0)
    return {str(layout): float(part.median()) for layout, part in pd.Series(off).groupby(table["layout"].to_numpy())}


def interference(measured: Measured) -> dict[tuple[str, str, str, str], float]:
    """(method, work, side, who is timed) -> how many times longer it takes while the other runs. Method "graph, range":
    a copy in one piece, not in many."""
    table = measured.table("interference")
    if "layout" in table:
        whole = (table["method"] + ", " + RANGE).where(table["layout"] == RANGE)
        table = table.assign(method=whole.fillna(table["method"]))
    found = {}
    for key, part in table.groupby(["method", "beside", "side", "timed"]) if not table.empty else ():
        times = part.groupby("loaded")["median_us"].median()
        if len(times) == 2:
            found[tuple(str(k) for k in key)] = float(times[True] / times[False])
    return found  # type: ignore[return-value]


def beside_work(measured: Measured, method: str = f"graph, {RANGE}") -> float:
    """How many times longer the bytes of copies by ``method`` take beside work: the mean over products and decode
    attention, on the sender and on the receiver; 1 where it was not measured, or where they are none the slower. Copies
    of small pieces do not say: they wait for the pieces' starts, not for bytes."""
    found = [f for (by, _, _, timed), f in interference(measured).items() if by == method and timed == "copy"]
    return max(1.0, float(np.mean(found))) if found else 1.0


def write_link(
    fit: LinkFit, kind: str, line_rate: float, source: str, out: Path, *, beside: float = 1.0, words: str = ""
) -> None:
    """A link profile of one link, which topologies name by its path. ``beside``: see ``Link.beside_work``, and
    ``words`` what else was seen of it, for its source."""
    error = f"held back: {100 * float(np.median(fit.held_back)):.1f} % in the median of {fit.rows} rows"
    entry = {
        "kind": kind,
        "bandwidth_bytes_per_s": line_rate,
        "efficiency": round(min(1.0, fit.bandwidth_bytes_per_s / line_rate), 4),
        "setup_s": float(f"{fit.setup_s:.4g}"),
        "per_descriptor_s": float(f"{fit.per_piece_s:.4g}"),
        "sources": {
            "bandwidth_bytes_per_s": "the GPU's profile",
            **dict.fromkeys(("efficiency", "setup_s", "per_descriptor_s"), f"{source}; {fit.name}, {error}"),
        },
    }
    if beside > 1.0:
        entry["beside_work"] = round(beside, 4)
        entry["sources"]["beside_work"] = f"{source}; {words}"  # type: ignore[index]
    partial = out.with_name(out.name + ".partial")
    partial.write_text(yaml.safe_dump({out.stem.replace(".", "_"): entry}, sort_keys=False), encoding="utf-8")
    partial.replace(out)
