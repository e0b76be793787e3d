"""Tokens sent to the client in groups: an engine may gather ``stream_interval`` of them before it writes.

A token's time is when the client sees it, so a group's tokens share one moment. The first token goes out at once
(``stream_first``: groups end with tokens 1, n + 1, 2n + 1, ...) or waits for its group like all others (n, 2n, ...);
what is left goes out with the last token. Gaps across a preemption or a handover are counted from token to token.
"""

from __future__ import annotations

from simulator.compiled import compiled
from simulator.engine.state import DECODING, LEAVING, count_gap


@compiled
def sending_batch(e, s):  # type: ignore[no-untyped-def]
    """The batches, modulo the interval, after which a decoding request's tokens are sent.

    Batch b makes its token number b + offset - prompt + 2.
    """
    wanted = 1 if e.rules.stream_first else 0
    return (wanted - (e.offset[s] - e.prompt[s] + 2)) % e.rules.stream_interval


@compiled
def wait_for_group(e, s):  # type: ignore[no-untyped-def]
    """The request's first token is made; its group is not complete."""
    for i in range(e.unsent_count):
        if e.unsent[i] == s:
            return
    e.unsent[e.unsent_count] = s
    e.unsent_count += 1


@compiled
def send_groups(e, r, end):  # type: ignore[no-untyped-def]
    """Batch ``completed`` ends: send first groups, and count the gaps of all groups that are complete with it."""
    b, n = e.completed, e.rules.stream_interval
    first_groups = 0
    for i in range(e.batch_firsts[r]):
        s = e.firsts[r, i]
        decodes = (e.status[s] == DECODING or e.status[s] == LEAVING) and e.first_batch[s] == b < e.last_batch[s]
        if decodes and sending_batch(e, s) == b % n:
            first_groups += 1
    kept = 0
    for i in range(e.unsent_count):
        s = e.unsent[i]
        if e.status[s] != DECODING and e.status[s] != LEAVING:
            continue
        if e.received[s] + b - e.first_batch[s] + 1 >= n:
            e.desk.first_token_s[e.row[s]] = end
            first_groups += 1 if e.last_batch[s] > b else 0
            count_gap(e, 0.0, n - 1 if e.last_batch[s] > b else 0)
        else:
            e.unsent[kept] = s
            kept += 1
    e.unsent_count = kept
    later_groups = e.batch_sent[r] - first_groups
    if later_groups > 0:
        count_gap(e, end - e.stream_end_s[(b + 1) % (n + 1)], later_groups)
        count_gap(e, 0.0, later_groups * (n - 1))
    e.stream_end_s[b % (n + 1)] = end


@compiled
def send_last(e, s, b, end):  # type: ignore[no-untyped-def]
    """The request's last token is made in batch ``b``: what is left of its group goes with it."""
    n, made = e.rules.stream_interval, e.target[s]
    if e.desk.first_token_s[e.row[s]] != e.desk.first_token_s[e.row[s]] or (not e.rules.stream_first and made <= n):
        e.desk.first_token_s[e.row[s]] = end
        count_gap(e, 0.0, made - 1)
        return
    left = (made - 1 if e.rules.stream_first else made) % n
    left = n if left == 0 else left
    if made > 1:
        count_gap(e, end - e.stream_end_s[(b - left) % (n + 1)], 1)
        count_gap(e, 0.0, left - 1)
