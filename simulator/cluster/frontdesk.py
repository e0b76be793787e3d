"""The front end of an engine: one process through which every request and every token goes."""

from __future__ import annotations

import math
from collections.abc import Callable

#: Seconds over which the share of time that tokens take is averaged.
SMOOTHING_S = 0.5
#: Of the front end's time, tokens never take more than this: requests still get through.
MOST_FOR_TOKENS = 0.95


class FrontDesk:
    """When a request leaves the front end for its engine.

    ``request_s``, ``token_s``: the front end's own work for a request and for a token sent to a client. It is one
    process: tokens go first, requests share what time is left, in the order in which they come. ``tokens``: how many
    have been sent so far.
    """

    def __init__(self, request_s: float, token_s: float, tokens: Callable[[], int]) -> None:
        self._request_s, self._token_s, self._tokens = request_s, token_s, tokens
        self._seen_s, self._seen_tokens = 0.0, 0
        self._backlog_s = 0.0  # work for requests that have come, not yet done
        self._share = 0.0  # of its time that tokens take

    @property
    def queues(self) -> bool:
        """Whether requests can wait for one another here."""
        return self._request_s > 0.0

    def leaves_s(self, now: float, before_s: float, prompt_s: float = 0.0) -> float:
        """A request comes in at ``now``, and takes ``before_s`` without waiting: when it reaches its engine.
        ``prompt_s``: of this, the work on its prompt (tokenising), which others wait for as well."""
        if not self.queues:
            return now + before_s
        self._look(now)
        waiting_s = self._backlog_s
        self._backlog_s += self._request_s + prompt_s
        return now + before_s + waiting_s / (1.0 - self._share)

    def _look(self, now: float) -> None:
        passed = now - self._seen_s
        if passed <= 0.0:
            return
        tokens = self._tokens()
        busy = min((tokens - self._seen_tokens) * self._token_s / passed, MOST_FOR_TOKENS)
        self._share += (busy - self._share) * -math.expm1(-passed / SMOOTHING_S)
        self._backlog_s = max(self._backlog_s - passed * (1.0 - busy), 0.0)
        self._seen_s, self._seen_tokens = now, tokens
