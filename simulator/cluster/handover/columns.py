"""What is noted of each request's KV on its way from the engine that computed it to the one that decodes."""

from __future__ import annotations

import numpy as np


class HandoverColumns:
    """One row a request; moments and durations in seconds.

    ``entered_s``: it left the front end. ``prompt_done_s``: the prefill engine has made the prompt. ``read_start_s``:
    KV first moved, or what it takes to move it began. ``read_end_s``: all of it can be used. ``wait_before_s``: the
    prompt could not begin, for want of memory where it is decoded; ``wait_after_s``: it was done, and KV waited for
    memory or its turn. ``host_before_s``, ``host_s``: the decode engine's front end, before and after the prompt.
    ``busy_s``: KV moved. Slots: where an engine keeps the request at present, -1 where it does not.
    """

    def __init__(self, rows: int) -> None:
        self.entered_s = np.full(rows, np.nan)
        self.prompt_done_s = np.full(rows, np.nan)
        self.read_start_s = np.full(rows, np.nan)
        self.read_end_s = np.full(rows, np.nan)
        self.wait_before_s, self.wait_after_s = np.zeros(rows), np.zeros(rows)
        self.host_before_s, self.host_s = np.zeros(rows), np.zeros(rows)
        self.busy_s, self.wire_bytes = np.zeros(rows), np.zeros(rows)
        self.blocks = np.zeros(rows, np.int64)
        self.prefill_slot = np.full(rows, -1, np.int64)
        self.decode_slot = np.full(rows, -1, np.int64)

    def begin_anew(self, row: int) -> None:
        """As before the request was handed over; what has been sent stays counted."""
        for column in (self.entered_s, self.prompt_done_s, self.read_start_s, self.read_end_s):
            column[row] = np.nan
        for column in (self.wait_before_s, self.wait_after_s, self.host_before_s, self.host_s):
            column[row] = 0.0
        self.prefill_slot[row] = self.decode_slot[row] = -1
