"""What would turn the answer: the same two clusters with other lengths, targets and bandwidth."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from simulator.cluster.topology import load_topology
from simulator.hardware.profiles import load_gpu
from simulator.planning.candidates import Candidate
from simulator.planning.capacity import find_capacity
from simulator.planning.replicates import Bench
from simulator.planning.runs import topology_text
from simulator.units import BITS_PER_BYTE, GB
from simulator.workload.trace import Trace

#: Replications and share of the requests of one look; how close its search goes.
_REPLICATIONS, _SHARE, _CLOSE = 3, 0.5, 0.04
_LENGTHS, _TARGETS, _BANDWIDTH = (0.5, 2.0), (0.5, 2.0), (0.25, 4.0)


@dataclass(frozen=True)
class Variation:
    """One thing changed: what, by which factor, what is tried then, and the two clusters then."""

    factor: str
    times: float
    bench: Bench
    colocated: Candidate
    disaggregated: Candidate


def variations(bench: Bench, colocated: Candidate, disaggregated: Candidate) -> Iterator[Variation]:
    """Everything that is varied; what a trace or a topology does not allow is left out."""
    short = bench.cut(_REPLICATIONS, max(int(bench.requests * _SHARE), 40))
    pair = (colocated, disaggregated)
    if not any(piece.turn is not None for piece in bench.pieces):  # a session's prompts hold its earlier outputs
        for name in ("input_tokens", "output_tokens"):
            for times in _LENGTHS:
                pieces = tuple(_longer(piece, name, times) for piece in short.pieces)
                yield Variation(name, times, replace(short, pieces=pieces), *pair)
    for name, target_s in bench.slo.targets().items():
        for times in _TARGETS:
            slo = bench.slo.with_targets({name: target_s * times})
            yield Variation(name, times, replace(short, slo=slo), *pair)
    for times in _BANDWIDTH:
        other = _wider(disaggregated, times)
        if other is not None:
            yield Variation("bandwidth", times, short, colocated, other)


def sensitivity(
    bench: Bench, colocated: Candidate, disaggregated: Candidate, guesses: tuple[float, float], weight: float,
    said: Callable[[str], None],
) -> list[dict[str, Any]]:  # fmt: skip
    """The ratio of what they carry, disaggregated over colocated times ``weight``, for each variation."""
    rows = []
    for change in variations(bench, colocated, disaggregated):
        said(f"{change.factor} x {change.times:g}")
        rates = [
            find_capacity(change.bench, candidate.text, guess, close=_CLOSE, sure=False).rate
            for candidate, guess in zip((change.colocated, change.disaggregated), guesses, strict=True)
        ]
        ratio = weight * rates[1] / rates[0] if rates[0] > 0 else None
        pays = ratio > 1 if ratio is not None else (True if rates[1] > 0 else None)
        row = {"factor": change.factor, "times": change.times, "unit": "requests/s", "colocated": rates[0]}
        rows.append({**row, "disaggregated": rates[1], "ratio": ratio, "pays": pays})
    return rows


def _longer(piece: Trace, name: str, times: float) -> Trace:
    """A piece with prompts or outputs ``times`` as long. Prefixes grow with their prompts, block by block."""
    column = np.maximum(1, np.ceil(getattr(piece, name) * times)).astype(np.int64)
    changes: dict[str, Any] = {name: column}
    if name == "input_tokens" and piece.hash_ids is not None:
        block = piece.block_tokens * times
        changes |= {"block_tokens": int(block)} if block == int(block) else {"hash_ids": None, "hash_offsets": None}
    allowed = piece.max_output_tokens
    if name == "output_tokens" and (allowed >= 0).any():
        scaled = np.maximum(np.rint(allowed * times).astype(np.int64), column)
        changes["max_output_tokens"] = np.where(allowed >= 0, scaled, allowed)
    return piece.with_(**changes)


def _wider(candidate: Candidate, times: float) -> Candidate | None:
    """The cluster with a network ``times`` as fast; None where there is none to change."""
    topology = candidate.topology
    network = topology.network
    if network is None or network.kind not in ("rdma", "ethernet") or topology.kv_transfer.explicit:
        return None
    rates = [load_gpu(pool.gpu).nic_bandwidth_bytes_per_s * BITS_PER_BYTE / GB for pool in topology.pools if pool.gpu]
    now = network.nic_gbit_per_s or min(rates, default=0.0)
    if now <= 0:
        return None
    changed = load_topology(topology, [f"network.nic_gbit_per_s={now * times}"])
    return replace(candidate, topology=changed, text=topology_text(changed))
