"""How the cluster makes an SGLang engine and what it may call on it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from simulator.compiled import compiled
from simulator.cost.table import step_cost_record
from simulator.engine.sglang import steps
from simulator.engine.sglang.abandoning import abandon
from simulator.engine.sglang.ranks import UNBOUND, binding
from simulator.engine.sglang.state import make_state
from simulator.engine.sglang.withdrawing import progress, withdraw
from simulator.engine.state import COLOCATED, DECODE, PREFILL
from simulator.engine.steps import series, step_log, take_news
from simulator.errors import InputError

if TYPE_CHECKING:
    from simulator.engine.engine import EngineSpec

_ROLES = {"colocated": COLOCATED, "mixed": COLOCATED, "prefill": PREFILL, "decode": DECODE}

#: Of the allowed output, admission keeps room for this share at first, for this share of it at last, and goes from
#: one to the other in so many decode steps (SGLANG_INIT_NEW_TOKEN_RATIO, ..._MIN_..._FACTOR, ..._DECAY_STEPS).
INIT_NEW_TOKEN_RATIO = 0.7
MIN_NEW_TOKEN_RATIO_FACTOR = 0.14
NEW_TOKEN_RATIO_DECAY_STEPS = 600
#: What a decode engine keeps free for each live request (--num-reserved-decode-tokens).
RESERVED_DECODE_TOKENS = 512


def make_sglang(spec: EngineSpec, content: Any, desk: Any) -> Any:
    """State of an SGLang engine (settings under SGLang's names; ``kv_blocks`` counts pages, all usable).

    ``spec.extra["max_output_tokens"]`` may hold what each row of the trace allows (-1: as long as its output): this,
    never the length, is what admission sees.
    """
    s = spec.settings
    if int(s.get("stream_interval", 1)) != 1:
        raise InputError(
            f"engine: stream_interval: found {s['stream_interval']}; this engine sends every token (allowed: 1)"
        )
    page = int(s["page_size"])
    pool = spec.kv_blocks * page
    chunk = max(int(s["chunked_prefill_size"]), 0)
    init = min(INIT_NEW_TOKEN_RATIO * float(s["schedule_conservativeness"]), 1.0)
    least = min(init * MIN_NEW_TOKEN_RATIO_FACTOR, 1.0)
    caching = not s["disable_radix_cache"] and spec.role != "decode"
    limits = np.ascontiguousarray(spec.extra.get("max_output_tokens", np.zeros(0)), dtype=np.int64)
    return make_state(
        _ROLES[spec.role],
        2 if s["overlap"] else 1,
        int(s["max_running_requests"]),
        chunk,
        int(s["max_prefill_tokens"]),
        bool(s["mixed_chunk"]) and chunk > 0,
        s["schedule_policy"] == "lpm" and caching,
        bool(s["ignore_eos"]),
        bool(s["ignore_eos"]) and bool(s.get("reserve_known_lengths", True)),
        bool(s.get("prompts_within_budget", False)),
        binding(s) if spec.role == "prefill" and spec.cost.ranks > 1 else UNBOUND,
        *(spec.extra.get("send_post_s", (0.0, 0.0, 0.0)) if spec.role == "prefill" else (0.0, 0.0, 0.0)),
        page,
        pool,
        min(int(s["context_length"]) - 1, pool - 1),
        init,
        least,
        (init - least) / NEW_TOKEN_RATIO_DECAY_STEPS,
        RESERVED_DECODE_TOKENS,
        int(s.get("scheduler_recv_interval", 1)),
        caching,
        spec.tell_finished,
        spec.tell_chunks,
        spec.logging,
        spec.macro and not spec.logging,
        limits,
        step_cost_record(spec.cost),
        content,
        desk,
    )


@compiled
def take_evicted(e):  # type: ignore[no-untyped-def]
    """Nothing: this engine's tree has no keys that caches below could know."""
    return np.zeros(0, np.int64)


@compiled
def will_hold(e, s, tokens):  # type: ignore[no-untyped-def]
    """Never called: this engine does not ask caches below it."""


#: In the order of ``simulator.engine.engine.Policy``'s fields.
SGLANG = (
    make_sglang,
    lambda settings: int(settings["page_size"]),
    steps.submit,
    steps.transfer_ended,
    abandon,
    steps.pulse,
    take_news,
    steps.load,
    steps.survey,
    steps.overlaps,
    will_hold,
    take_evicted,
    steps.totals,
    series,
    step_log,
    progress,
    withdraw,
)
