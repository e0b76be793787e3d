"""DistServe (OSDI 2024): its latency models, and the rates of one A100 that its authors published."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache, partial
from typing import Any

import numpy as np

from simulator.cluster.result import RunRecord
from simulator.models.precision import Parallel
from simulator.validation.published import runs
from simulator.validation.published.rows import Kind, Row
from simulator.validation.published.steps import Engine

SYSTEM = "distserve"
SOURCE = "LLMServe/DistServe simdistserve/estimators (arXiv 2401.09670)"
BLOG = "hao-ai-lab blog on DistServe, figure 6"
TOLERANCE, RATE_TOLERANCE = 15.0, 20.0
MS = 1e-3
#: (model, TP): milliseconds of prefill, a + b sum(tokens) + c sum(tokens^2), and of decode, a + b sum(context) +
#: c requests, below 95 requests.
MODELS = {
    ("opt-13b", 1): ((18.10, 0.1019, 7.12e-6), (19.93, 6.27e-4, 0.0385)),
    ("opt-13b", 2): ((14.74, 0.0686, 2.45e-6), (13.29, 3.41e-4, 0.0630)),
    ("opt-66b", 2): ((43.06, 0.2742, 2.25e-5), (48.29, 9.42e-4, 0.128)),
    ("opt-66b", 4): ((29.44, 0.1514, 8.32e-6), (30.76, 4.52e-4, 0.0633)),
}
#: vLLM's of OPT-13B at TP 1.
VLLM = ((22.05, 0.1405, 8.08e-6), (23.48, 5.93e-4, 0.0607))
FITTED = ("opt-13b", 1)
PROMPTS, BATCHES, CONTEXT = (512, 1024), (1, 16, 64), 512
#: Targets of the blog's figure: TTFT and TPOT that 90 % of the requests keep.
TTFT_S, TPOT_S, SHARE = 0.4, 0.04, 90.0
INPUTS, OUTPUTS = 512, 64
#: KV tokens of OPT-13B on one A100 there.
KV_TOKENS, BLOCK = 66_144, 16
#: Published rates of the figure, and what each looks at.
LIMITS = {
    "colocated-ttft": (3.0, "TTFT within 0.4 s, whole requests"),
    "colocated-tpot": (1.6, "TPOT within 40 ms, whole requests"),
    "prefill-ttft": (5.6, "TTFT within 0.4 s, prompts alone"),
    "decode-tpot": (10.0, "TPOT within 40 ms, tokens alone"),
}
HOW = {"latency-model": "step times as its authors fitted them", "roofline": "step times from kernels"}
_LOWER = "every rate is about half of what the authors' own step times allow; what held the engine back is not stated"
A_RATE = "Poisson, 512 / 64 tokens, OPT-13B on one A100, 90 % of"


def rows() -> Iterator[Row]:
    """Latencies, then rates."""
    for (model, tp), (prefill, decode) in MODELS.items():
        engine = Engine(model, "a100_80gb_sxm", "distserve", Parallel(tp=tp))
        kind: Kind = "fitted" if (model, tp) == FITTED else "predicted"
        note = "host times of profile distserve" if kind == "fitted" else ""
        for size in PROMPTS:
            published = prefill[0] + prefill[1] * size + prefill[2] * size**2
            yield Row(
                f"distserve-{model}-tp{tp}-prompt-{size}", SYSTEM, SOURCE, f"{model} on A100, TP {tp}, {size} tokens",
                kind, "ms", published, TOLERANCE, partial(_prompt_ms, engine, size), note=note,
            )  # fmt: skip
        for batch in BATCHES:
            published = decode[0] + decode[1] * batch * CONTEXT + decode[2] * batch
            yield Row(
                f"distserve-{model}-tp{tp}-token-{batch}", SYSTEM, SOURCE,
                f"{model} on A100, TP {tp}, {batch} requests of {CONTEXT} tokens",
                kind, "ms", published, TOLERANCE, partial(_token_ms, engine, batch), note=note,
            )  # fmt: skip
    yield from _rates()


def _prompt_ms(engine: Engine, size: int) -> float:
    return engine.prefill_s([(size, 0)]) / MS


def _token_ms(engine: Engine, batch: int) -> float:
    return engine.decode_s(batch, CONTEXT) / MS


def _rates() -> Iterator[Row]:
    for how, words in HOW.items():
        for name, (rate, what) in LIMITS.items():
            yield Row(
                f"distserve-rate-{name}-{how}", SYSTEM, BLOG, f"{A_RATE} {what}; {words}",
                "predicted", "requests/s", rate, RATE_TOLERANCE, partial(_highest, how, name), note=_LOWER,
            )  # fmt: skip
        yield Row(
            f"distserve-gain-2p1d-{how}", SYSTEM, BLOG,
            f"rate of a GPU, two prompt GPUs and one token GPU over whole requests, both targets; {words}",
            "predicted", "x", 3.3 / 1.6, RATE_TOLERANCE, partial(_gain, how),
        )  # fmt: skip


@cache
def _highest(how: str, name: str) -> float:
    where = (_explicit if how == "latency-model" else _modelled)()
    trace = runs.requests(runs.REQUESTS, INPUTS, OUTPUTS)
    met = _prompt_in_time if name.endswith("ttft") else _tokens_in_time
    return runs.highest_rate(runs.plan_of(where[name.split("-", maxsplit=1)[0]]), trace, met, 64.0)


def _gain(how: str) -> float:
    apart = min(2 * _highest(how, "prefill-ttft"), _highest(how, "decode-tpot")) / 3
    return apart / min(_highest(how, "colocated-ttft"), _highest(how, "colocated-tpot"))


def _prompt_in_time(record: RunRecord) -> bool:
    return bool(np.percentile(runs.ttft_s(record), SHARE) <= TTFT_S)


def _tokens_in_time(record: RunRecord) -> bool:
    return bool(np.percentile(runs.tpot_s(record), SHARE) <= TPOT_S)


def _affine(model: tuple[float, float, float], new: float) -> dict[str, Any]:
    """A latency model as one affine step time; the square of a prompt is spread over its 512 tokens."""
    a, b, c = model
    return {"kind": "affine", "base_s": a * MS, "per_token_s": (b + c * new) * MS}


def _decoding(model: tuple[float, float, float]) -> dict[str, Any]:
    a, b, c = model
    return {"kind": "affine", "base_s": a * MS, "per_token_s": c * MS, "per_context_token_s": b * MS}


def _explicit() -> dict[str, dict[str, Any]]:
    prefill, decode = MODELS[FITTED]
    blocks = KV_TOKENS // BLOCK
    room = 64 * blocks
    # a mixed step's prompt tokens weigh most: decoding ones are charged as they are
    whole = {**_affine(VLLM[0], INPUTS), "per_context_token_s": VLLM[1][1] * MS}
    return {
        "colocated": {
            "name": "colocated",
            "engine": "vllm-0.5",  # as an early vLLM plans its batches
            "pools": [{"name": "whole", "role": "colocated", "step_time": whole, "kv_blocks": blocks}],
        },
        "prefill": _apart(_pool("prefill", 1, _affine(prefill, INPUTS), blocks), _pool("decode", 8, _NONE, room)),
        "decode": _apart(_pool("prefill", 8, _NONE, room), _pool("decode", 1, _decoding(decode), blocks)),
    }


#: A side that is not looked at: takes no time to speak of.
_NONE = {"kind": "affine", "base_s": 1e-5}


def _pool(role: str, workers: int, step_time: dict[str, Any], blocks: int) -> dict[str, Any]:
    return {"name": role, "role": role, "workers": workers, "step_time": step_time, "kv_blocks": blocks}


def _apart(*pools: dict[str, Any]) -> dict[str, Any]:
    transfer = {"mode": "pull", "setup_s": 0.0, "per_block_s": 0.0}
    return {"name": "apart", "engine": "distserve", "pools": list(pools), "kv_transfer": transfer}


def _modelled() -> dict[str, dict[str, Any]]:
    def apart(prefill: int, decode: int) -> dict[str, Any]:
        gpus = [("prefill", prefill), ("decode", decode)]
        pools = [{"name": r, "role": r, "gpu": "a100_80gb_sxm", "workers": n} for r, n in gpus]
        transfer = {"mode": "pull", "setup_s": 0.0, "per_block_s": 0.0}
        return {"name": "apart", "model": "opt-13b", "engine": "distserve", "pools": pools, "kv_transfer": transfer}

    whole = {"name": "whole", "role": "colocated", "gpu": "a100_80gb_sxm"}
    # an early vLLM is what Splitwise's profile was fitted to
    return {
        "colocated": {"name": "colocated", "model": "opt-13b", "engine": "splitwise", "pools": [whole]},
        "prefill": apart(1, 8),
        "decode": apart(8, 1),
    }
