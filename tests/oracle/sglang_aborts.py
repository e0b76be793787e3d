"""SGLang's scheduler when clients leave (``abort_s`` of a request), one step at a time."""

from __future__ import annotations

from sglang_stepper import INSTANT_S, Stepper


class AbortStepper(Stepper):
    """Messages are read where arrivals are; of one moment, arrivals come first."""

    def __init__(self, settings, requests):
        super().__init__(settings, requests)
        leave = [(line["abort_s"], i) for i, line in enumerate(requests) if "abort_s" in line]
        self.leave = sorted(leave, reverse=True)
        self.stopping = None  # a prompt under way that gets no further chunk

    def arrive(self):
        super().arrive()
        while self.leave and self.leave[-1][0] <= self.now + INSTANT_S:
            self.abort(self.requests[self.leave.pop()[1]])

    def abort(self, r):
        if r is self.chunked:
            self.stopping = r
        elif r in self.waiting:
            self.waiting.remove(r)
        elif r in self.running.reqs or (self.last is not None and r in self.last.reqs):
            r.to_finish = True

    def plan(self):
        if self.stopping is not None:
            self.release(self.stopping, checkpoint=False)
            self.stopping.finished = True
            self.stopping = self.chunked = None
        return super().plan()


def run_aborts(settings, requests):
    """The stepper at its end, with each request's token times and whether it got them all before its client left."""
    stepper = AbortStepper(settings, requests)
    stepper.run()
    assert stepper.free + stepper.tree.evictable == stepper.pool_size, "KV tokens are lost"
    assert stepper.free_rows == stepper.max_running
    for r, line in zip(stepper.requests, requests, strict=True):
        whole = min(r.output_length, max(r.max_new_tokens, 1))
        r.answered = len(r.times) == whole and r.times[-1] <= line.get("abort_s", r.times[-1]) + INSTANT_S
    return stepper
