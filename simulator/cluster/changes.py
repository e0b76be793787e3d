"""Links whose capacity follows a trace."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

from simulator.cluster.processes import Agenda, Transfers
from simulator.network.bandwidth import BandwidthTrace


def follow(agenda: Agenda, transfers: Transfers, changes: Mapping[str, BandwidthTrace]) -> None:
    """Have every link take the capacities of its trace at their moments."""
    for link, trace in changes.items():
        if trace.time_s:
            agenda.add(trace.time_s[0], partial(_change, agenda, transfers, link, trace, 0))


def _change(agenda: Agenda, transfers: Transfers, link: str, trace: BandwidthTrace, i: int, now: float) -> None:
    transfers.set_capacity(link, trace.bytes_per_s[i], now)
    if i + 1 < len(trace.time_s):
        agenda.add(trace.time_s[i + 1], partial(_change, agenda, transfers, link, trace, i + 1))
