"""Small random cases of the vLLM scheduler for hypothesis: settings and requests in the form ``run_case`` takes.

Pools are drawn just above what the largest request needs, so that waiting, preemption and eviction are common. All
times are multiples of 4e-8 s: two events are either at one instant, to rounding, or clearly apart, and what counts as
one instant (1e-12 s or 1e-9 s) makes no difference.
"""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

HASHED_TOKENS = 512

STEP_TIMES = [
    {"base_s": 0.005, "per_token_s": 2e-05, "per_context_token_s": 4e-08},
    {"base_s": 0.001, "per_token_s": 1e-04, "per_context_token_s": 2e-06},
    {"base_s": 0.01, "per_token_s": 0.0, "per_context_token_s": 0.0},
]
TRANSFERS = [
    {"setup_s": 0.002, "per_block_s": 2e-05},
    {"setup_s": 0.05, "per_block_s": 0.001},
    {"setup_s": 0.0, "per_block_s": 0.0},
    {"setup_s": 0.01, "per_block_s": 0.0},
]

gaps_ms = st.one_of(st.just(0), st.integers(0, 30), st.integers(0, 200))
prompts = st.one_of(st.integers(1, 40), st.integers(1, 700), st.integers(1, 20).map(lambda n: 32 * n))
outputs = st.one_of(st.just(1), st.integers(1, 30), st.integers(20, 250))


@st.composite
def prefixed_prompts(draw: st.DrawFn) -> tuple[int, list[int]]:
    """Prompt length and hash ids: a path in a small tree, cut anywhere in its last block or at the block's end."""
    family = draw(st.integers(0, 2))
    turns = draw(st.lists(st.integers(0, 1), min_size=0, max_size=2))
    ids = [family * 10 + 1]
    for turn in turns:
        ids.append(ids[-1] * 10 + turn)
    cut = draw(st.one_of(st.just(0), st.integers(0, HASHED_TOKENS - 1)))
    return len(ids) * HASHED_TOKENS - cut, ids


@st.composite
def request_lists(draw: st.DrawFn, prefixes: bool, max_requests: int) -> list[dict[str, Any]]:
    prefixed = prefixed_prompts()
    plain = prompts.map(lambda n: (n, None))
    prompt = st.one_of(prefixed, prefixed, plain) if prefixes else plain
    fewest = draw(st.sampled_from([1, max_requests // 2, max_requests]))
    rows = draw(st.lists(st.tuples(gaps_ms, prompt, outputs), min_size=max(1, fewest), max_size=max_requests))
    now_ms, requests = 0, []
    for gap_ms, (tokens, ids), output in rows:
        now_ms += gap_ms
        request: dict[str, Any] = {"arrival_s": now_ms / 1000, "input_length": tokens, "output_length": output}
        requests.append(request | ({"hash_ids": ids} if ids else {}))
    return requests


@st.composite
def engine_settings(draw: st.DrawFn, largest: int, block_size: int) -> dict[str, Any]:
    """What may differ between the engines; ``largest`` is the most tokens one request holds KV for."""
    seqs = draw(st.sampled_from([1, 2, 3, 5, 8, 16, 256]))
    spare = draw(st.sampled_from([0, 1, 3, 10, 30, 100, 1000]))
    return {
        "max_num_seqs": seqs,
        "max_num_batched_tokens": max(seqs, draw(st.sampled_from([16, 50, 64, 256, 512, 2048, 8192]))),
        "num_blocks": 1 + -(-largest // block_size) + spare,
        "async_scheduling": draw(st.booleans()),
    }


@st.composite
def cases(
    draw: st.DrawFn,
    disaggregated: bool | None = None,
    prefix_caching: bool | None = None,
    max_requests: int = 25,
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """(settings, requests); ``disaggregated`` and ``prefix_caching`` are drawn where not given."""
    if disaggregated is None:
        disaggregated = draw(st.booleans())
    if prefix_caching is None:
        prefix_caching = draw(st.booleans())
    requests = draw(request_lists(prefix_caching, max_requests))
    block_size = draw(st.sampled_from([16, 8, 32]))
    prompt = max(r["input_length"] for r in requests)
    whole = max(r["input_length"] + r["output_length"] for r in requests)
    settings = {
        "engine": "vllm",
        "max_model_len": whole + draw(st.sampled_from([0, 1, 10_000])),
        "block_size": block_size,
        "prefix_caching": prefix_caching,
        "step_time": draw(st.sampled_from(STEP_TIMES)),
        **draw(engine_settings(prompt if disaggregated else whole, block_size)),
    }
    if disaggregated:
        decode = draw(engine_settings(whole, block_size))
        decode["prefix_caching"] = draw(st.sampled_from([prefix_caching, not prefix_caching]))
        settings |= {"disaggregated": True, "transfer": draw(st.sampled_from(TRANSFERS)), "decode": decode}
    return settings, requests
