"""Drives production SGLang engines by hand, for comparison with the step-by-step oracle."""

from __future__ import annotations

import numpy as np

from simulator.cost.table import affine_cost
from simulator.engine.engine import Engine, EngineSpec
from simulator.engine.state import PREFILLED, READ, DeskColumns
from simulator.kv.content import OUTPUT_CONTENT, PRIVATE_CONTENT, make_content

END_S = 1e9


def content_of(requests):
    """Content columns in which, as in the cases, all outputs are one token that no prompt holds."""
    n = len(requests)
    blocks = [list(r.get("hash_ids") or ()) for r in requests]
    return make_content(
        np.array([r["input_length"] for r in requests], np.int64),
        np.array([b for row in blocks for b in row], np.int64),
        np.cumsum([0, *(len(row) for row in blocks)], dtype=np.int64),
        512,
        PRIVATE_CONTENT + np.arange(n, dtype=np.int64),
        np.full(n, OUTPUT_CONTENT, np.int64),
    )


def make_engine(settings, requests, desk, content, role="colocated", macro=True, logging=False, told=False):
    step_time, table = settings["step_time"], settings.get("table")
    spec = EngineSpec(
        policy="sglang",
        role=role,
        settings={name: value for name, value in settings.items() if name != "table"},
        kv_blocks=settings["max_total_num_tokens"] // settings["page_size"],
        cost=table or affine_cost(step_time["base_s"], step_time["per_token_s"], step_time["per_context_token_s"]),
        macro=macro,
        logging=logging,
        tell_finished=told,
        extra={"max_output_tokens": np.array([r.get("max_new_tokens", -1) for r in requests])},
    )
    return Engine(spec, content, desk.record)


def in_order(requests):
    return sorted(range(len(requests)), key=lambda i: (requests[i]["arrival_s"], i))


def rows_of(requests, desk):
    return [
        {
            "i": i,
            "arrival_s": r["arrival_s"],
            "input_length": r["input_length"],
            "output_length": r["output_length"],
            "first_token_s": desk.first_token_s[i],
            "last_token_s": desk.last_token_s[i],
            "cached_tokens": desk.cached_tokens[i],
            "retractions": desk.preemptions[i],
            "token_sum_s": desk.token_sum_s[i],
        }
        for i, r in enumerate(requests)
    ]


def run_engine(settings, requests, macro=True, logging=False, told=False):
    """Rows as the oracle gives them, steps (empty without ``logging``), and the engine at its end."""
    desk = DeskColumns(len(requests))
    engine = make_engine(settings, requests, desk, content_of(requests), macro=macro, logging=logging, told=told)
    for i in in_order(requests):
        r = requests[i]
        if told:  # come back whenever the engine asks for it
            while engine.wake_s < r["arrival_s"]:
                engine.advance(engine.wake_s)
        engine.advance(r["arrival_s"])
        engine.submit(i, r["input_length"], r["output_length"], r["arrival_s"])
    while told and engine.wake_s < END_S:
        engine.advance(engine.wake_s)
    engine.advance(END_S)
    return rows_of(requests, desk), steps_of(engine) if logging else [], engine


def steps_of(engine):
    starts, ends, first, rows, tokens = engine.step_log()
    steps = []
    for b in range(len(starts)):
        entries = range(first[b], first[b + 1] if b + 1 < len(starts) else len(rows))
        steps.append(
            {
                "start_s": starts[b],
                "end_s": ends[b],
                "tokens": {int(rows[j]): int(tokens[j]) for j in entries if tokens[j] > 0},
                "retracted": [int(rows[j]) for j in entries if tokens[j] < 0],
            }
        )
    return steps


def hand_over(settings, requests, transfer_s, macro=True):
    """A prefill and a decode engine with a fixed transfer time between them; returns the rows and both engines."""
    desk = DeskColumns(len(requests))
    content = content_of(requests)
    prefill = make_engine(settings, requests, desk, content, "prefill", macro)
    decode = make_engine(settings, requests, desk, content, "decode", macro)
    agenda = [(requests[i]["arrival_s"], k, "arrive", i) for k, i in enumerate(in_order(requests))]
    prefill_slot = {}
    count = len(agenda)
    while agenda or min(prefill.wake_s, decode.wake_s) < END_S:
        agenda.sort()
        now = min(agenda[0][0] if agenda else END_S, prefill.wake_s, decode.wake_s)
        for engine in (prefill, decode):
            news = engine.advance(now)
            for kind, row, slot, _, at, _ in zip(*news, strict=True) if news else ():
                count += 1
                if kind == PREFILLED:
                    prefill_slot[row] = slot
                    agenda.append((at, count, "decode", row))
                elif kind == READ:
                    agenda.append((at + transfer_s, count, "moved", (row, slot)))
        agenda.sort()
        while agenda and agenda[0][0] <= now:
            at, _, what, about = agenda.pop(0)
            if what == "arrive":
                prefill.submit(about, requests[about]["input_length"], 1, at)
            elif what == "decode":
                decode.submit(about, requests[about]["input_length"], requests[about]["output_length"], at, remote=True)
            else:
                decode.transfer_ended(about[1], at)
                prefill.transfer_ended(prefill_slot[about[0]], at)
    decode.advance(END_S)
    return rows_of(requests, desk), desk, prefill, decode
