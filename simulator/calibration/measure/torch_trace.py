"""Graphs replayed for a while on a GPU, each run noted on its clock, with the driver's readings beside them."""

from __future__ import annotations

import math
import threading
import time

import torch

from simulator.calibration.measure.cuda_calls import Meter
from simulator.calibration.measure.ops import Pattern, Trace

#: Seconds between two readings, and readings that are kept at most.
EVERY_S, MOST_READINGS = 0.005, 60


class Readings:
    """A thread that reads the meter while work runs."""

    def __init__(self, meter: Meter) -> None:
        self.meter, self.lines = meter, list[dict[str, float]]()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._read)

    def __enter__(self) -> Readings:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        self._thread.join()

    def _read(self) -> None:
        while not self._stop.wait(EVERY_S):
            self.lines.append({"read_s": time.perf_counter(), **self.meter.read()})

    def since(self, start: float) -> dict[str, list[float]]:
        """The readings by name, ``read_s`` in seconds since ``start``; evenly thinned."""
        kept = self.lines[:: max(1, math.ceil(len(self.lines) / MOST_READINGS))]
        found = {name: [line[name] for line in kept] for name in (kept[0] if kept else {})}
        if found:
            found["read_s"] = [t - start for t in found["read_s"]]
        return found


def traced(device: torch.device, graphs: list[torch.cuda.CUDAGraph], pattern: Pattern, once: float) -> Trace:
    """Replay the graphs in turn as the pattern says; ``once``: seconds one takes, roughly."""
    count = max(1, math.ceil(pattern.on_s / once)) if pattern.on_s else len(graphs)
    runs = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(count * pattern.rounds)]
    start = 0.0
    with Readings(Meter(device.index or 0)) as readings:
        for turn in range(pattern.rounds):
            torch.cuda.synchronize(device)
            time.sleep(pattern.off_s)
            start = start or time.perf_counter()
            for i in range(count):
                before, after = runs[turn * count + i]
                before.record()
                graphs[i % len(graphs)].replay()
                after.record()
        torch.cuda.synchronize(device)
        time.sleep(EVERY_S)
    first = runs[0][0]
    began = [first.elapsed_time(before) * 1e-3 for before, _ in runs]
    took = [before.elapsed_time(after) * 1e-3 for before, after in runs]
    return Trace(began, took, [i // count for i in range(len(runs))], readings.since(start))
