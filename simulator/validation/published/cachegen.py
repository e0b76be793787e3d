"""CacheGen (SIGCOMM 2024): a long context whose KV cache is fetched over a slow link, against its text and 8-bit KV."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from simulator.cluster.plan import ClusterPlan
from simulator.validation.published import runs
from simulator.validation.published.rows import Row
from simulator.validation.published.steps import Engine

SYSTEM, SOURCE = "cachegen", "CacheGen, SIGCOMM 2024 (arXiv 2310.07240)"
MODEL, GPU = "mistral-7b", "a40"
#: 622 MB of 8-bit KV at 65,536 bytes a token.
TOKENS, BLOCK = 9491, 16
GBIT_PER_S = 3.0
#: Published sizes in MB, 8-bit and compressed; TTFT of the text and of 8-bit KV over that of CacheGen (3.1 to 4.7 and
#: 3.2 to 3.7).
EIGHT_BIT_MB, COMPRESSED_MB = 622.0, 176.0
TEXT, QUANTISED = 3.9, 3.45
TOLERANCE = 20.0


def rows() -> Iterator[Row]:
    """Sizes, then times."""
    setup = f"Mistral-7B on one A40, a LongChat context of {TOKENS} tokens"
    yield Row(
        "cachegen-size-8-bit", SYSTEM, SOURCE, f"{setup}: 8-bit KV", "fitted", "MB", EIGHT_BIT_MB, 2.0,
        partial(_megabytes, "fp8"), note="the context's tokens",
    )  # fmt: skip
    yield Row(
        "cachegen-size", SYSTEM, SOURCE, f"{setup}: compressed", "fitted", "MB", COMPRESSED_MB, TOLERANCE,
        partial(_megabytes, "cachegen"), note="ratio of compression cachegen",
    )  # fmt: skip
    over = f"{setup}, {GBIT_PER_S:g} Gbit/s: TTFT over CacheGen's of"
    yield Row("cachegen-ttft-text", SYSTEM, SOURCE, f"{over} the text", "predicted", "x", TEXT, TOLERANCE, _text)
    yield Row(
        "cachegen-ttft-8-bit", SYSTEM, SOURCE, f"{over} 8-bit KV", "predicted", "x", QUANTISED, TOLERANCE, _quantised
    )


def _fetch_s(compression: str) -> float:
    """Seconds to fetch the context's KV."""
    return runs.transfer_s(_plan(compression), -(-TOKENS // BLOCK))


def _megabytes(compression: str) -> float:
    plan = _plan(compression)
    assert plan.transfer is not None
    return float(plan.transfer.route(0, 1).wire_bytes(-(-TOKENS // BLOCK)) / 1e6)


def _plan(compression: str) -> ClusterPlan:
    pools = [{"name": role, "role": role, "gpu": GPU} for role in ("prefill", "decode")]
    network = {"kind": "ethernet", "nic_gbit_per_s": GBIT_PER_S, "efficiency": 1.0, "per_descriptor_s": 0.0}
    topology = {
        "name": compression,
        "model": MODEL,
        "engine": {"profile": "vllm-0.25", "max_model_len": 16384},
        "pools": pools,
        "network": network,
        "kv_transfer": {"compression": compression},
    }
    return runs.plan_of(topology)


def _first_token_s() -> float:
    """The token that follows the context, whoever brought it."""
    return Engine(MODEL, GPU, "vllm-0.25").decode_s(1, TOKENS)


def _text() -> float:
    return Engine(MODEL, GPU, "vllm-0.25").prefill_s([(TOKENS, 0)]) / (_fetch_s("cachegen") + _first_token_s())


def _quantised() -> float:
    first_s = _first_token_s()
    return (_fetch_s("fp8") + first_s) / (_fetch_s("cachegen") + first_s)
