"""Topologies in one word, so that nobody needs a file: ``llama-3.1-8b/h100_sxm/1p1d``.

    MODEL[@WEIGHTS] / GPU[:tpN][:ppN][:dpN][:epN][+GPU...] / POOLS [/ ENGINE]

POOLS is ``2c`` (two colocated engines), ``1p1d`` (one prefill, one decode) or with a mixed pool ``2p2d1m``. With two
GPUs joined by ``+`` the first is the first pool's, the second the second's. A split topology gets the GPUs' own
NICs (``network: {kind: rdma}``).
"""

from __future__ import annotations

import re
from typing import Any

from simulator.errors import TopologyError

GRAMMAR = "MODEL[@WEIGHTS]/GPU[:tpN][+GPU[:tpN]]/POOLS[/ENGINE], POOLS as 2c or 1p1d"
_ROLES = {"c": "colocated", "p": "prefill", "d": "decode", "m": "mixed"}
_POOLS = re.compile(r"(?:\d+[cpdm])+")
_POOL = re.compile(r"(\d+)([cpdm])")
_DEGREE = re.compile(r"(tp|pp|dp|ep)(\d+)")


def is_shorthand(name: str) -> bool:
    """Whether ``name`` looks like a topology in one word."""
    parts = name.split("/")
    return len(parts) in (3, 4) and _POOLS.fullmatch(parts[2].split(":")[0]) is not None


def expand(name: str) -> dict[str, Any]:
    """The plain values a topology file would hold."""
    model, gpus, pools, *engine = name.split("/")
    weights = model.split("@")[1] if "@" in model else None
    pools, *shared = pools.split(":")
    found = _POOL.findall(pools)
    hardware = [_gpu(text, shared, name) for text in gpus.split("+")]
    if len(hardware) not in (1, len(found)):
        raise TopologyError(f"{name}: {len(hardware)} GPU types for {len(found)} pools; give one, or one a pool")
    values: dict[str, Any] = {
        "name": name,
        "model": model.split("@")[0],
        "pools": [
            {"name": _ROLES[role], "role": _ROLES[role], "workers": int(count), **hardware[i % len(hardware)]}
            for i, (count, role) in enumerate(found)
        ],
    }
    if weights:
        values["precision"] = {"weights": weights}
    if engine:
        values["engine"] = engine[0]
    if any(role in "pd" for _, role in found):
        values["network"] = {"kind": "rdma"}
    return values


def _gpu(text: str, shared: list[str], name: str) -> dict[str, Any]:
    gpu, *degrees = text.split(":")
    parallel: dict[str, int] = {}
    for degree in [*shared, *degrees]:
        match = _DEGREE.fullmatch(degree)
        if match is None:
            raise TopologyError(f"{name}: '{degree}' is not a degree of parallelism; allowed: tpN, ppN, dpN, epN")
        parallel[match.group(1)] = int(match.group(2))
    return {"gpu": gpu, "parallel": parallel} if parallel else {"gpu": gpu}
