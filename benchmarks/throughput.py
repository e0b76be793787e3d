"""How fast the simulator is: requests simulated a second of CPU time, peak memory, and growth with the trace.

    python benchmarks/throughput.py                      every load, 10 thousand and 100 thousand requests
    python benchmarks/throughput.py --requests 1000000 --only chat-80%

Each line is a process of its own, after a small run that loads the compiled engine. Chat requests are drawn from the
shipped chat trace; their rate is a share of the capacity found first (the highest rate whose queue stays bounded).
``MOONCAKE`` in the environment may name the public conversation trace for the line with prefixes.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from simulator.cluster.assembly import assemble
from simulator.cluster.collect import collect
from simulator.cluster.run import Cluster, RunOptions
from simulator.cluster.topology import load_topology
from simulator.workload.arrivals import Arrivals
from simulator.workload.load import load_trace
from simulator.workload.trace import Trace

EIGHT = "llama-3.1-8b/h100_sxm/8c"
PAIRS = "llama-3.1-8b/h100_sxm/8p8d"
#: Three tiers below the prefill engines; copies to the store leave by the cards that handovers use.
TIERS = "cache={host: {gib: 32}, ssd: {gib: 256, gbyte_per_s: 12}, pool: {gib: 1024, gbyte_per_s: 100}}"
#: name -> topology, rate (requests/s), shape, macro-steps
LOADS: dict[str, tuple[str, float, str, bool]] = {
    "chat-30%": (EIGHT, 0.3, "chat", True),
    "chat-80%": (EIGHT, 0.8, "chat", True),
    "chat-120%": (EIGHT, 1.2, "chat", True),
    "chat-80%-stepper": (EIGHT, 0.8, "chat", False),
    "chat-80%-sglang": (f"{EIGHT}/sglang", 0.8, "chat", True),
    "long-prompts": (EIGHT, 0.8, "long", True),
    "8P8D": (PAIRS, 0.8, "chat", True),
    "8P8D-prefixes": (PAIRS, 0.8, "prefixes", True),
    "8P8D-caches": (PAIRS, 0.8, "prefixes", True),
    "mooncake": ("llama-3.1-8b/h100_sxm/4c", 0.0, "mooncake", True),
}


def drawn(shape: str, requests: int, rate: float) -> Trace:
    """Requests of a shape with Poisson arrivals."""
    rng = np.random.default_rng(0)
    arrivals = np.cumsum(rng.exponential(1 / rate, requests))
    if shape == "long":
        prompts = np.clip(rng.lognormal(8.8, 0.5, requests), 500, 30_000).astype(int)
        return Trace.from_columns(arrivals, prompts, rng.integers(5, 30, requests), name="long")
    base = load_trace("chat")
    pick = rng.integers(0, len(base), requests)
    if shape == "prefixes":
        return with_prefixes(arrivals, base.input_tokens[pick], base.output_tokens[pick], rng)
    return Trace.from_columns(arrivals, base.input_tokens[pick], base.output_tokens[pick], name="chat")


def with_prefixes(arrivals: np.ndarray, prompts: np.ndarray, outputs: np.ndarray, rng: np.random.Generator) -> Trace:
    """Chat whose prompts begin with one of 2,000 shared prefixes, some much more often than others, over half of it."""
    blocks = -(-prompts // 512)
    family = rng.zipf(1.2, len(prompts)) % 2000
    ids: list[int] = []
    for row, (first, count) in enumerate(zip(family.tolist(), blocks.tolist(), strict=True)):
        shared = count // 2
        ids += [64 * first + i for i in range(shared)] + [1_000_000 + 64 * row + i for i in range(count - shared)]
    offsets = np.concatenate([[0], np.cumsum(blocks)])
    return Trace.from_columns(
        arrivals, prompts, outputs, hash_ids=np.array(ids), hash_offsets=offsets, block_tokens=512, name="prefixes"
    )


def simulate(topology: str, trace: Trace, macro: bool = True, changes: tuple[str, ...] = ()) -> tuple[float, Cluster]:
    """CPU seconds of one run, set-up and collecting included."""
    plan = assemble(load_topology(topology, changes))
    start = time.process_time()
    cluster = Cluster(plan, trace, Arrivals(), RunOptions(macro=macro))
    cluster.run()
    collect(cluster, 0, "trace")
    return time.process_time() - start, cluster


def capacity(topology: str, shape: str) -> float:
    """The highest rate (requests/s) whose queue stays bounded: the wait at the end is not much above that halfway."""
    low, high = 1.0, 2000.0
    for _ in range(9):
        rate = (low * high) ** 0.5
        _, cluster = simulate(topology, drawn(shape, 40_000, rate))
        tenths = np.array_split(cluster.desk.first_token_s - cluster.arrival_s, 10)
        bounded = tenths[9].mean() < 1.5 * tenths[4].mean() + 0.1
        low, high = (rate, high) if bounded else (low, rate)
    return low


def peak_gb() -> float:
    """Most memory this process had (not what it inherited when it was started)."""
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return float(line.split()[1]) * 1024 / 1e9
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


def one(name: str, requests: int, rate: float) -> dict[str, float | str]:
    """Measure one line in this process."""
    topology, _, shape, macro = LOADS[name]
    changes = (TIERS,) if name == "8P8D-caches" else ()
    simulate(topology, drawn("prefixes" if shape == "prefixes" else "chat", 200, 5.0), macro, changes)
    trace = load_trace(Path(os.environ["MOONCAKE"])) if shape == "mooncake" else drawn(shape, requests, rate)
    seconds, cluster = simulate(topology, trace, macro, changes)
    steps = sum(worker.engine.totals().batches for worker in cluster.workers)
    return {"name": name, "requests": len(trace), "cpu_s": seconds, "steps": steps, "peak_gb": peak_gb()}


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, nargs="+", default=[10_000, 100_000])
    parser.add_argument("--only", nargs="+", choices=sorted(LOADS), default=None)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--rate", type=float, default=0.0, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        print(json.dumps(one(given.one, given.requests[0], given.rate)))
        return
    print(f"{'load':18} {'requests':>9} {'rate/s':>7} {'CPU s':>7} {'requests/s':>10} {'us/step':>8} {'GB':>5}")
    found: dict[tuple[str, str], float] = {}
    for name, (topology, share, shape, macro) in LOADS.items():
        if (given.only and name not in given.only) or (shape == "mooncake" and "MOONCAKE" not in os.environ):
            continue
        if share and (topology, shape) not in found:
            found[topology, shape] = capacity(topology, shape)
        rate = share * found.get((topology, shape), 0.0)
        for requests in given.requests if macro and share else given.requests[:1]:
            command = [sys.executable, __file__, "--one", name, "--requests", str(requests), "--rate", str(rate)]
            line = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
            seconds, done = line["cpu_s"], line["requests"]
            cells = f"{name:18} {done:9,} {rate:7.1f} {seconds:7.2f} {done / seconds:10,.0f}"
            print(f"{cells} {1e6 * seconds / line['steps']:8.2f} {line['peak_gb']:5.2f}", flush=True)


if __name__ == "__main__":
    main()
