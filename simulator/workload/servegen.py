"""ServeGen data (arXiv 2505.09999): rates, burstiness and lengths of clients in windows of time, made into requests.

The files hold no requests. ``chunk-N-trace.csv`` tells, window by window (600 s), a client's rate, coefficient of
variation (CV) and family of gaps; ``chunk-N-dataset.json`` tells, for longer windows (6 h), probabilities of lengths.
Each client and window gets rate x window requests. Their gaps are drawn from the family with that CV and stretched to
fill the window: the count is exact, where a renewal process started afresh every window would send
(CV^2 - 1) / 2 requests too many, hundreds for the burstiest clients.
"""

from __future__ import annotations

import json
import re
import tarfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from simulator.errors import TraceError
from simulator.workload.checks import MAX_REQUESTS, MAX_TOKENS
from simulator.workload.distributions import gaps_gamma, gaps_weibull, stream
from simulator.workload.sources import GZIP_MAGIC, MAX_RATIO, MAX_UNPACKED_BYTES, display_name, first_bytes
from simulator.workload.trace import Trace, encode_names
from simulator.workload.window import Window

_MEMBER = re.compile(r"(?:^|.*/)chunk-(\d+)-(trace\.csv|dataset\.json)$")
_TAR_MAGIC_AT = 257
_FAMILIES = {"Gamma": gaps_gamma, "Weibull": gaps_weibull}


@dataclass(frozen=True)
class _Client:
    """One client: windows (start s, rate 1/s, CV, family) and, by start s, lengths and their probabilities."""

    number: int
    windows: list[tuple[float, float, float, str]]
    lengths: dict[float, tuple[NDArray[np.float64], ...]]


def is_servegen(path: Path) -> bool:
    """A folder with ServeGen's files, or a tar archive (plain or gzip)."""
    if path.is_dir():
        return any(True for _ in _files(path))
    head = first_bytes(path, 512)
    if head.startswith(GZIP_MAGIC):
        try:
            return tarfile.is_tarfile(path)
        except (OSError, EOFError, ValueError, zlib.error):
            return False
    return head[_TAR_MAGIC_AT : _TAR_MAGIC_AT + 5] == b"ustar"


def load(path: Path, window: Window, seed: int) -> Trace:
    """Requests of all clients in the window, in order of arrival; the same seed gives the same requests."""
    if window.duration_s is None:
        raise TraceError(f"{path}: ServeGen data are rates, not requests; say how long with --duration (and --start)")
    clients, without = _clients(path)
    share = _usable(path, clients, without, window)
    expected = sum(rate * length for c in clients for _, length, rate, _, _ in _overlaps(c, window)) * window.rate_scale
    if expected > MAX_REQUESTS:
        raise TraceError(
            f"{path}: {expected:,.0f} requests in {window.duration_s:g} s; at most {MAX_REQUESTS:,} are allowed; "
            "shorten --duration or lower --rate-scale"
        )
    parts = [_requests(client, window, seed) for client in clients]
    arrival_s, inputs, outputs = (np.concatenate([p[i] for p in parts]) for i in range(3))
    if len(arrival_s) == 0:
        raise TraceError(f"{path}: no request arrives from {window.start_s or 0:g} s to {window.end_s:g} s")
    order = np.argsort(arrival_s, kind="stable")[: window.limit]
    owners = np.repeat([c.number for c in clients], [len(p[0]) for p in parts])[order]
    tenant, tenant_names = encode_names([f"client-{n}" for n in owners.tolist()])
    notes = [f"made from ServeGen statistics with seed {seed}: {len(clients)} clients"]
    if window.rate_scale != 1.0:
        notes.append(f"clients' rates multiplied by {window.rate_scale:g}")
    if without:
        notes.append(f"{len(without)} clients without lengths left out, {share:.1%} of the requests")
    return Trace.from_columns(
        arrival_s[order],
        inputs[order],
        outputs[order],
        name=display_name(path),
        source=str(path),
        tenant=tenant,
        tenant_names=tenant_names,
        notes=tuple(notes),
    )


def _usable(path: Path, clients: list[_Client], without: list[_Client], window: Window) -> float:
    """Share of the window's requests that belong to clients without lengths."""

    def total(some: list[_Client]) -> float:
        return sum(rate * length for c in some for _, length, rate, _, _ in _overlaps(c, window))

    known, lost = total(clients), total(without)
    if known == 0 and lost > 0:
        raise TraceError(f"{path}: tells rates and no token lengths of the clients active in the window")
    return lost / (known + lost) if lost else 0.0


def _overlaps(client: _Client, window: Window) -> Iterator[tuple[float, float, float, float, str]]:
    """Start, length, rate, CV and family of the parts of a client's windows inside the wanted one."""
    starts = [w[0] for w in client.windows]
    steps = [b - a for a, b in pairwise(starts)]
    ends = [*starts[1:], starts[-1] + (steps[-1] if steps else 600.0)] if starts else []
    for (start, rate, cv, family), end in zip(client.windows, ends, strict=True):
        begin, stop = max(start, window.start_s or 0.0), min(end, window.end_s)
        if rate > 0 and stop > begin:
            yield begin, stop - begin, rate, cv, family


def _requests(client: _Client, window: Window, seed: int) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    rng = stream(seed, 0x5E6E, client.number)
    arrivals, inputs, outputs = [np.empty(0)], [np.empty(0, np.int64)], [np.empty(0, np.int64)]
    begin_of_lengths = np.array(sorted(client.lengths))
    for begin, length, rate, cv, family in _overlaps(client, window):
        wanted = rate * length * window.rate_scale
        count = int(wanted) + int(rng.random() < wanted - int(wanted))
        if count == 0:
            continue
        gaps = _FAMILIES.get(family, gaps_gamma)(rng, count + 1, cv if cv > 0 and family else 1.0)
        total = gaps.sum()
        ends = np.cumsum(gaps[:-1]) / total if total > 0 else rng.random(count)
        arrivals.append(begin - (window.start_s or 0.0) + np.sort(ends) * length)
        # The window of lengths this falls in, or the nearest that has any.
        at = begin_of_lengths[max(0, int(np.searchsorted(begin_of_lengths, begin, side="right")) - 1)]
        values_in, prob_in, values_out, prob_out = client.lengths[float(at)]
        inputs.append(rng.choice(values_in, count, p=prob_in).astype(np.int64))
        outputs.append(rng.choice(values_out, count, p=prob_out).astype(np.int64))
    return np.concatenate(arrivals), np.concatenate(inputs), np.concatenate(outputs)


def _clients(path: Path) -> tuple[list[_Client], list[_Client]]:
    """Clients with and without lengths, by number."""
    windows: dict[int, list[tuple[float, float, float, str]]] = {}
    lengths: dict[int, dict[float, tuple[NDArray[np.float64], ...]]] = {}
    for name, number, kind, data in _members(path):
        place = f"{path}:{name}"
        if kind == "trace.csv":
            windows[number] = _read_windows(data, place)
        else:
            lengths[number] = _read_lengths(data, place)
    if not windows:
        raise TraceError(f"{path}: holds no chunk-N-trace.csv; is this ServeGen data?")
    clients = [_Client(n, windows[n], lengths.get(n, {})) for n in sorted(windows)]
    return [c for c in clients if c.lengths], [c for c in clients if not c.lengths]


def _files(folder: Path) -> Iterator[tuple[Path, re.Match[str]]]:
    """ServeGen's files in a folder, at most two levels down as in its repository (language/m-small)."""
    for depth in ("", "*/", "*/*/"):
        for file in sorted(folder.glob(depth + "chunk-*")):
            match = _MEMBER.match(file.name)
            if match and file.is_file():
                yield file, match


def _members(path: Path) -> Iterator[tuple[str, int, str, bytes]]:
    if path.is_dir():
        for file, match in _files(path):
            yield str(file.relative_to(path)), int(match[1]), match[2], file.read_bytes()
        return
    packed, total = path.stat().st_size, 0
    try:
        with tarfile.open(path) as archive:
            for member in archive:
                found = _MEMBER.match(member.name)
                total += member.size
                if total > min(MAX_UNPACKED_BYTES, MAX_RATIO * max(packed, 1 << 20)):
                    raise TraceError(f"{path}: unpacks to more than {MAX_RATIO} times its size; reading stopped")
                content = archive.extractfile(member) if found and member.isfile() else None
                if found and content is not None:
                    yield member.name, int(found[1]), found[2], content.read()
    except (tarfile.TarError, zlib.error, EOFError, OSError) as error:
        raise TraceError(f"{path}: archive is cut or damaged: {error}") from None


def _read_windows(data: bytes, place: str) -> list[tuple[float, float, float, str]]:
    rows: list[tuple[float, float, float, str]] = []
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError:
        raise TraceError(f"{place}: is not UTF-8 text") from None
    for line, written in enumerate(text.splitlines(), start=1):
        row = written.split(",")
        try:
            start, rate, cv = (float(v) for v in row[:3])
            family = row[3]
        except (ValueError, IndexError):
            raise TraceError(f"{place}:{line}: allowed: start_s, rate, CV, family of gaps, two shapes") from None
        if not (0 <= start < 1e10 and 0 <= rate < 1e7 and 0 <= cv < 1e5):
            raise TraceError(f"{place}:{line}: start {start:g}, rate {rate:g} or CV {cv:g} is out of range")
        if rows and start <= rows[-1][0]:
            raise TraceError(f"{place}:{line}: window start {start:g} is not after {rows[-1][0]:g}")
        if family not in ("", *_FAMILIES):
            raise TraceError(f"{place}:{line}: family of gaps '{family}'; allowed: {', '.join(_FAMILIES)}")
        rows.append((start, rate, cv, family))
    return rows


def _read_lengths(data: bytes, place: str) -> dict[float, tuple[NDArray[np.float64], ...]]:
    try:
        windows = json.loads(data)
        entries = {float(start): dict(entry) for start, entry in windows.items()}
    except (ValueError, AttributeError, TypeError, RecursionError):
        raise TraceError(f"{place}: not a JSON object of windows") from None
    found: dict[float, tuple[NDArray[np.float64], ...]] = {}
    for start, entry in entries.items():
        if "input_tokens" not in entry or "output_tokens" not in entry:
            what = "images, audio or video" if "image_tokens" in entry else f"fields {', '.join(map(str, entry))[:80]}"
            raise TraceError(
                f"{place}: window {start:g} has {what}; allowed: input_tokens and output_tokens (text only)"
            )
        both = [_probabilities(entry[k], f"{place}: window {start:g}: {k}") for k in ("input_tokens", "output_tokens")]
        if len(both[0][0]) and len(both[1][0]):
            found[start] = (*both[0], *both[1])
    return found


def _probabilities(text: object, place: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Lengths and their probabilities from ``"{102: 0.25, 103: 0.75}"``; zero lengths (nothing served) are left out."""
    pairs = re.findall(r"([^{},:]+):([^{},:]+)", str(text))
    try:
        values = np.array([float(a) for a, _ in pairs])
        weights = np.array([float(b) for _, b in pairs])
    except ValueError:
        raise TraceError(f"{place}: allowed: {{length: probability, ...}}") from None
    if (values != np.floor(values)).any() or (values < 0).any() or (values > MAX_TOKENS).any():
        raise TraceError(f"{place}: lengths must be whole numbers from 0 to {MAX_TOKENS:,}")
    if not (np.isfinite(weights).all() and (weights >= 0).all()):
        raise TraceError(f"{place}: probabilities must be finite numbers from 0")
    values, weights = values[values >= 1], weights[values >= 1]
    return (values, weights / weights.sum()) if weights.sum() > 0 else (values[:0], weights[:0])
