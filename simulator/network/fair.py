"""Max-min fair shares of links, compiled: who is affected by a change, and what each of them gets.

A *flow* is a bundle of equal streams that keep step: ``level`` is what one stream moves, ``streams`` how many there
are. On link l the bundle puts a load of ``load * level``, ``load`` being the streams that cross it (a fraction where
streams are spread over parallel lanes of the link). Progressive filling: raise every level together; when a link is
full, its flows stop there and the others go on.

A flow may be *paced*: of its bytes, ``paced_bytes`` come into being evenly between ``pace_from_s`` and
``pace_until_s`` and the rest at the end of that (the layers of a step under way). It sends no faster than they come.
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
        "paced_bytes",
        "pace_from_s",
        "pace_until_s",  # minus infinity: all bytes are there
        "sent_bytes",
        "repace",  # the event is no end: the flow meets its pace, or the pace ends
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
    for k in range(flows.links.shape[1]):
        if flows.links[row, k] != NO_LINK:
            flows.marked[flows.links[row, k]] = True
    mark_rest(flows)


@compiled
def mark_rest(flows: Any) -> None:
    """Mark all that competes, directly or through others, for the links that are marked."""
    flows.member[:] = False
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
    flows.sent_bytes[row] += moved
    flows.since_s[row] = now_s
    for k in range(flows.links.shape[1]):
        if flows.links[row, k] != NO_LINK:
            flows.carried_bytes[flows.links[row, k]] += flows.share[row, k] * moved


#: Share of a rate that rounding may take.
_ROUNDING = 1e-12


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
def pace(flows: Any, row: int) -> float:
    """Bytes a second at which the flow's bytes come into being."""
    return flows.paced_bytes[row] / (flows.pace_until_s[row] - flows.pace_from_s[row])  # type: ignore[no-any-return]


@compiled
def backlog(flows: Any, row: int, now_s: float) -> float:
    """Bytes that are there and not sent; infinity for a flow without a pace."""
    if now_s >= flows.pace_until_s[row] - SAME_INSTANT_S:
        return np.inf
    made = pace(flows, row) * (now_s - flows.pace_from_s[row])
    return max(made - flows.sent_bytes[row], 0.0)  # type: ignore[no-any-return]


@compiled
def most(flows: Any, row: int, now_s: float) -> float:
    """The level above which the flow cannot go for want of bytes."""
    left = backlog(flows, row, now_s)
    if left == np.inf:
        return np.inf
    speed = pace(flows, row)
    return np.inf if left > speed * SAME_INSTANT_S else speed / flows.streams[row]


@compiled
def slowest_paced(flows: Any, now_s: float) -> tuple[int, float]:
    """The marked flow that its pace stops first, and the level at which it does; -1 where none has a pace."""
    best, level = -1, np.inf
    for row in range(flows.state.size):
        if flows.member[row]:
            here = most(flows, row, now_s)
            if here < level:
                best, level = row, here
    return best, level


@compiled
def settle_rate(flows: Any, row: int, level: float, now_s: float) -> None:
    """Fix the flow's level from ``now_s`` on, find its next event, and take its load off its links."""
    flows.member[row] = False
    rate = level * flows.streams[row]
    flows.rate_bytes_per_s[row] = rate
    flows.event_s[row] = now_s + flows.remaining_bytes[row] / rate if rate > 0 else np.inf
    flows.repace[row] = False
    left = backlog(flows, row, now_s)
    if left < np.inf:
        speed, until = pace(flows, row), flows.pace_until_s[row]
        empty = left <= speed * SAME_INSTANT_S
        meets = now_s + left / (rate - speed) if rate > speed else np.inf
        if empty and rate >= speed * (1 - _ROUNDING):  # a rate that is the pace's may have lost its last bit
            flows.event_s[row], flows.repace[row] = until, True
        elif meets < until:
            flows.event_s[row], flows.repace[row] = meets, True
    for k in range(flows.links.shape[1]):
        link = flows.links[row, k]
        if link != NO_LINK:
            flows.spare[link] -= flows.load[row, k] * level
            flows.demand[link] -= flows.load[row, k]


@compiled
def fill(flows: Any, now_s: float) -> None:
    """Give the marked flows their fair rates from ``now_s`` on."""
    flows.spare[:] = flows.capacity_bytes_per_s
    flows.demand[:] = 0.0
    left = 0
    paced = False
    for row in range(flows.state.size):
        if flows.member[row]:
            left += 1
            settle(flows, row, now_s)
            paced = paced or now_s < flows.pace_until_s[row]
            for k in range(flows.links.shape[1]):
                if flows.links[row, k] != NO_LINK:
                    flows.demand[flows.links[row, k]] += flows.load[row, k]
    level = 0.0
    while left > 0:
        full, reached = fullest_link(flows)
        if paced:
            slow, enough = slowest_paced(flows, now_s)
            if enough < reached:
                left -= 1
                settle_rate(flows, slow, enough, now_s)
                continue
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
            settle_rate(flows, row, level, now_s)
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
def earliest_end(flows: Any, row: int) -> float:
    """Seconds before which a transfer cannot end: one that waits has its links to itself at best."""
    if flows.state[row] != WAITING or flows.remaining_bytes[row] <= 0:
        return flows.event_s[row]  # type: ignore[no-any-return]
    level = np.inf
    for k in range(flows.links.shape[1]):
        link = flows.links[row, k]
        if link != NO_LINK:
            level = min(level, flows.capacity_bytes_per_s[link] / flows.load[row, k])
    if level <= 0:
        return np.inf
    flowing_s = flows.remaining_bytes[row] / (level * flows.streams[row])
    return flows.event_s[row] + flowing_s  # type: ignore[no-any-return]


@compiled
def next_event(flows: Any) -> tuple[float, float]:
    """Seconds of the earliest event, and those before which no transfer ends; infinity when nothing is under way."""
    event_s, end_s = np.inf, np.inf
    for row in range(flows.state.size):
        if flows.state[row] != FREE:
            event_s = min(event_s, flows.event_s[row])
            end_s = min(end_s, earliest_end(flows, row))
    return event_s, end_s


@compiled
def start(flows: Any, row: int, size_bytes: float, event_s: float, order: int) -> float:
    """A transfer waits in ``row`` until ``event_s``; all its bytes are there. Returns before when it cannot end."""
    flows.remaining_bytes[row] = size_bytes
    flows.event_s[row] = event_s
    flows.order[row] = order
    flows.sent_bytes[row] = 0.0
    flows.repace[row] = False
    flows.pace_until_s[row] = -np.inf
    flows.state[row] = WAITING
    return earliest_end(flows, row)  # type: ignore[no-any-return]


@compiled
def lay(flows: Any, row: int, links: Any, load: Any, share: Any, streams: float) -> None:
    """The links that the flow in ``row`` crosses, and what it puts on them."""
    for k in range(links.size):
        flows.links[row, k] = links[k]
        flows.load[row, k] = load[k]
        flows.share[row, k] = share[k]
    flows.streams[row] = streams


@compiled
def advance(flows: Any, now_s: float, rows: Any, finish_s: Any) -> tuple[int, float, float]:
    """Run every event up to ``now_s``. Fills ``rows`` and ``finish_s`` with the transfers that ended; how many, and
    what ``next_event`` says."""
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
        if flows.state[row] == FLOWING and flows.repace[row]:
            if at >= flows.pace_until_s[row] - SAME_INSTANT_S:
                flows.pace_until_s[row] = -np.inf
            mark_component(flows, row)
            fill(flows, at)
            continue
        release(flows, row, at)
        rows[ended] = row
        finish_s[ended] = at
        ended += 1
    event_s, end_s = next_event(flows)
    return ended, event_s, end_s


@compiled
def set_capacity(flows: Any, link: int, capacity_bytes_per_s: float, now_s: float) -> None:
    """A link's capacity changes: those that compete for it share it anew."""
    flows.capacity_bytes_per_s[link] = capacity_bytes_per_s
    flows.marked[:] = False
    flows.marked[link] = True
    mark_rest(flows)
    fill(flows, now_s)
