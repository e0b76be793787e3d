"""Bandwidth that changes over time: a file of ``time_s,gbit_per_s``."""

from __future__ import annotations

import csv
from bisect import bisect_right
from dataclasses import dataclass
from math import inf, isfinite
from pathlib import Path

from simulator.errors import TopologyError
from simulator.units import BITS_PER_BYTE, GB

_COLUMNS = ["time_s", "gbit_per_s"]


@dataclass(frozen=True)
class BandwidthTrace:
    """From ``time_s[i]`` on a link moves ``bytes_per_s[i]``; before the first moment what it has by itself."""

    time_s: tuple[float, ...]
    bytes_per_s: tuple[float, ...]

    def scaled(self, factor: float) -> BandwidthTrace:
        """So many such links side by side, or so much of one."""
        return BandwidthTrace(self.time_s, tuple(rate * factor for rate in self.bytes_per_s))

    def end_s(self, size_bytes: float, start_s: float) -> float:
        """When a transfer begun at ``start_s`` ends that has the link to itself."""
        i = max(bisect_right(self.time_s, start_s) - 1, 0)
        now, left = start_s, size_bytes
        for until, rate in zip((*self.time_s[i + 1 :], inf), self.bytes_per_s[i:], strict=True):
            if left <= rate * (until - now):
                return now + left / rate if left > 0 else now
            left -= rate * (until - now)
            now = until
        return inf


def steady(bytes_per_s: float) -> BandwidthTrace:
    """A link that does not change."""
    return BandwidthTrace((0.0,), (bytes_per_s,))


def read_bandwidth_trace(path: str | Path) -> BandwidthTrace:
    """Read a CSV with the header ``time_s,gbit_per_s``, times rising, rates 0 or more and the last above 0.

    Raises TopologyError, one line with the file and the line.
    """
    try:
        with Path(path).open(newline="", encoding="utf-8") as file:
            lines = [row for row in csv.reader(file) if row]
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not text"
        raise TopologyError(f"{path}: cannot be read: {reason}") from None
    if not lines or [cell.strip() for cell in lines[0]] != _COLUMNS:
        raise TopologyError(
            f"{path}: line 1: found {','.join(lines[0]) if lines else 'nothing'}; needed: time_s,gbit_per_s"
        )
    times: list[float] = []
    rates: list[float] = []
    for number, row in enumerate(lines[1:], start=2):
        at, rate = _numbers(row, f"{path}: line {number}")
        if times and at <= times[-1]:
            raise TopologyError(f"{path}: line {number}: time_s {at:g} does not come after {times[-1]:g}")
        times.append(at)
        rates.append(rate * GB / BITS_PER_BYTE)
    if not rates or rates[-1] == 0:
        raise TopologyError(f"{path}: the last gbit_per_s must be above 0, or transfers never end")
    return BandwidthTrace(tuple(times), tuple(rates))


def _numbers(row: list[str], place: str) -> tuple[float, float]:
    try:
        at, rate = (float(cell) for cell in row)
    except ValueError:
        raise TopologyError(f"{place}: found {','.join(row)}; needed: two numbers") from None
    if not (isfinite(at) and isfinite(rate) and at >= 0 and rate >= 0):
        raise TopologyError(f"{place}: found {','.join(row)}; both numbers must be 0 or more")
    return at, rate
