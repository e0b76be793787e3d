"""Max-min fair shares of links, compiled: who is affected by a change, and what each of them gets.

A *flow* is a bundle of equal streams that keep step: ``level`` is what one stream moves, ``streams`` how many there
are. On link l the bundle puts a load of ``load * level``, ``load`` being the streams that cross it (a fraction where
streams are spread over parallel lanes of the link). Progressive filling: raise every level together; when a link is
full, its flows stop there and the others go on.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from simulator.compiled import compiled, record
from simulator.units import SAME_INSTANT_S

FREE, WAITING, FLOWING = 0, 1, 2
NO_LINK = -1

#: Columns of the flows (one row a transfer under way) and of the links.
FlowColumns = record(
    "FlowColumns",
    (
        "state",  # FREE, WAITING (before its bytes flow) or FLOWING
        "event_s",  # when it starts to flow, or ends
        "order",  # which transfer came first
        "remaining_bytes",
        "rate_bytes_per_s",
        "since_s",  # when remaining_bytes was last brought up to date
        "streams",
        "links",  # [row, k], NO_LINK where unused
        "load",  # [row, k], streams on that link
        "share",  # [row, k], part of the flow's bytes that crosses that link
        "capacity_bytes_per_s",
        "carried_bytes",
        "spare",  # [link], scratch
        "demand",  # [link], scratch
        "marked",  # [link], scratch
        "member",  # [row], scratch
    ),
    __name__,
)


@compiled
def mark_component(flows: Any, row: int) -> None:
    """Mark the links and flows that compete, directly or through others, with the flow in ``row``."""
    flows.marked[:] = False
    flows.member[:] = False
    for k in range(flows.links.shape[1]):
        if flows.links[row, k] != NO_LINK:
            flows.marked[flows.links[row, k]] = True
    grown = True
    while grown:
        grown = False
        for other in range(flows.state.size):
            if flows.state[other] != FLOWING or flows.member[other]:
                continue
            touches = False
            for k in range(flows.links.shape[1]):
                link = flows.links[other, k]
                if link != NO_LINK and flows.marked[link]:
                    touches = True
                    break
            if touches:
                grown = True
                flows.member[other] = True
                for k in range(flows.links.shape[1]):
                    if flows.links[other, k] != NO_LINK:
                        flows.marked[flows.links[other, k]] = True


@compiled
def settle(flows: Any, row: int, now_s: float) -> None:
    """Move the bytes of one flow up to ``now_s``."""
    moved = min(flows.rate_bytes_per_s[row] * (now_s - flows.since_s[row]), flows.remaining_bytes[row])
    flows.remaining_bytes[row] -= moved
    flows.since_s[row] = now_s
    for k in range(flows.links.shape[1]):
        if flows.links[row, k] != NO_LINK:
            flows.carried_bytes[flows.links[row, k]] += flows.share[row, k] * moved


@compiled
def fullest_link(flows: Any) -> tuple[int, float]:
    """The marked link whose flows stop first, and the level at which they do; -1 when no flow is left to raise."""
    best, level = NO_LINK, np.inf
    for link in range(flows.marked.size):
        if flows.marked[link] and flows.demand[link] > 1e-9:
            here = max(flows.spare[link], 0.0) / flows.demand[link]
            if here < level:
                best, level = link, here
    return best, level


@compiled
def fill(flows: Any, now_s: float) -> None:
    """Give the marked flows their fair rates from ``now_s`` on."""
    flows.spare[:] = flows.capacity_bytes_per_s
    flows.demand[:] = 0.0
    left = 0
    for row in range(flows.state.size):
        if flows.member[row]:
            left += 1
            settle(flows, row, now_s)
            for k in range(flows.links.shape[1]):
                if flows.links[row, k] != NO_LINK:
                    flows.demand[flows.links[row, k]] += flows.load[row, k]
    level = 0.0
    while left > 0:
        full, reached = fullest_link(flows)
        level = max(level, reached)  # rounding must not starve the last flow of a link that filled in a tie
        for row in range(flows.state.size):
            if not flows.member[row]:
                continue
            crosses = False
            for k in range(flows.links.shape[1]):
                if flows.links[row, k] == full:
                    crosses = True
                    break
            if not crosses:
                continue
            left -= 1
            flows.member[row] = False
            flows.rate_bytes_per_s[row] = level * flows.streams[row]
            flows.event_s[row] = now_s + flows.remaining_bytes[row] / flows.rate_bytes_per_s[row]
            for k in range(flows.links.shape[1]):
                link = flows.links[row, k]
                if link != NO_LINK:
                    flows.spare[link] -= flows.load[row, k] * level
                    flows.demand[link] -= flows.load[row, k]
        flows.demand[full] = 0.0


@compiled
def next_row(flows: Any) -> int:
    """The row whose event comes first (events within an instant: the transfer that came first), or -1."""
    best, when = -1, np.inf
    for row in range(flows.state.size):
        if flows.state[row] == FREE:
            continue
        at = flows.event_s[row]
        if at < when - SAME_INSTANT_S or (best >= 0 and at <= when + SAME_INSTANT_S and before(flows, row, best)):
            best, when = row, at
    return best


@compiled
def before(flows: Any, row: int, other: int) -> bool:
    """Whether ``row`` came before ``other``."""
    return flows.order[row] < flows.order[other]  # type: ignore[no-any-return]


@compiled
def release(flows: Any, row: int, now_s: float) -> None:
    """Take a flow out and share what it held among those it competed with."""
    flowing = flows.state[row] == FLOWING
    flows.state[row] = FREE
    if flowing:
        settle(flows, row, now_s)
        mark_component(flows, row)
        fill(flows, now_s)


@compiled
def advance(flows: Any, now_s: float, rows: Any, finish_s: Any) -> int:
    """Run every event up to ``now_s``. Fills ``rows`` and ``finish_s`` with the transfers that ended; how many."""
    ended = 0
    while ended < rows.size:
        row = next_row(flows)
        if row < 0 or flows.event_s[row] > now_s + SAME_INSTANT_S:
            break
        at = flows.event_s[row]
        if flows.state[row] == WAITING and flows.remaining_bytes[row] > 0:
            flows.state[row] = FLOWING
            flows.since_s[row] = at
            flows.rate_bytes_per_s[row] = 0.0
            mark_component(flows, row)
            fill(flows, at)
            continue
        release(flows, row, at)
        rows[ended] = row
        finish_s[ended] = at
        ended += 1
    return ended


@compiled
def next_event(flows: Any) -> float:
    """Seconds of the earliest event, infinity when nothing is under way."""
    when = np.inf
    for row in range(flows.state.size):
        if flows.state[row] != FREE and flows.event_s[row] < when:
            when = flows.event_s[row]
    return when
