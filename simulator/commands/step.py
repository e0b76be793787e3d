"""``simulate step``: one step's cost, operator by operator."""

from __future__ import annotations

import re
import sys
from collections import Counter
from dataclasses import asdict, dataclass, replace
from typing import Any

from simulator.commands.describe import write_facts
from simulator.commands.options import json_target
from simulator.cost.engine_costs import EngineCosts, load_engine_costs
from simulator.cost.step import OperatorCost, explain_step
from simulator.errors import InputError
from simulator.hardware.profiles import load_gpu
from simulator.metrics.wording import count, figures, percent, seconds
from simulator.models.catalogue import load_model
from simulator.models.precision import Parallel, Precision
from simulator.report.terminal import plain_table, show_table

_CHUNK = re.compile(r"(?:(\d+)x)?(\d+)(?:\+(\d+))?")
_DECODE = re.compile(r"(\d+)x(\d+)")


@dataclass(frozen=True)
class StepRequest:
    """What the command was asked, as texts and degrees."""

    model: str
    gpu: str
    tp: int = 1
    pp: int = 1
    dp: int = 1
    ep: int = 1
    weights: str = "bf16"
    kv_cache: str = "bf16"
    engine: str = "vllm"
    prefill: tuple[str, ...] = ()
    decode: str | None = None
    draft_tokens: int = 0
    expert_placement: str | None = None
    redundant_experts: int | None = None
    micro_batches: int | None = None


def step(asked: StepRequest, *, json: str | None = None) -> int:
    """Print the operator table, or write it as JSON. Raises InputError."""
    target = json_target(json)
    chunks = [chunk for text in asked.prefill for part in text.split(",") for chunk in _chunks(part)]
    seqs, mean_context = _decoding(asked.decode)
    if not chunks and not seqs:
        raise InputError("--prefill and --decode are both missing; a step computes at least one of them")
    parallel = Parallel(asked.tp, asked.pp, asked.dp, asked.ep)
    model, gpu = load_model(asked.model), load_gpu(asked.gpu)
    model.check_parallel(parallel, "simulate step")
    precision = Precision(asked.weights, asked.kv_cache)
    lines = explain_step(
        model,
        gpu,
        precision,
        parallel,
        _costs(asked),
        prefill=chunks,
        decode=(seqs, float(seqs * mean_context)),
        queries=1 + asked.draft_tokens,
    )
    if target is None:
        _print(lines, _heading(asked, f"{model.name} on {gpu.name}", chunks, (seqs, mean_context)))
    else:
        facts: dict[str, Any] = {**asdict(asked), "seconds": sum(line.seconds for line in lines)}
        write_facts({**facts, "operators": [asdict(line) for line in lines]}, target)
    return 0


def _costs(asked: StepRequest) -> EngineCosts:
    """The engine profile's costs, with its spreading of experts as asked for."""
    costs = load_engine_costs(asked.engine)
    wanted = {"placement": asked.expert_placement, "redundant": asked.redundant_experts}
    changes = {key: value for key, value in wanted.items() if value is not None}
    if asked.micro_batches is not None:
        changes["micro_batches"] = asked.micro_batches
    return replace(costs, experts=replace(costs.experts, **changes))  # type: ignore[arg-type]


def _chunks(text: str) -> list[tuple[int, int]]:
    """``2048``, ``2048+512`` or ``4x2048+512``: new tokens, and tokens computed before, of each of four prompts."""
    found = _CHUNK.fullmatch(text.strip())
    if found is None or int(found[2]) < 1 or found[1] == "0":
        raise InputError(f"--prefill: '{text}' is not NEW or NEW+PAST; write tokens, as 2048, 2048+512 or 4x2048")
    return [(int(found[2]), int(found[3] or 0))] * int(found[1] or 1)


def _decoding(text: str | None) -> tuple[int, int]:
    """``64x1500``: sequences, and their mean context."""
    if text is None:
        return 0, 0
    found = _DECODE.fullmatch(text.strip())
    if found is None or int(found[1]) < 1:
        raise InputError(f"--decode: '{text}' is not SEQUENCESxCONTEXT; write as 64x1500")
    return int(found[1]), int(found[2])


def _heading(asked: StepRequest, names: str, chunks: list[tuple[int, int]], decode: tuple[int, int]) -> str:
    degrees = [f"{name} {getattr(asked, name)}" for name in ("tp", "pp", "dp", "ep") if getattr(asked, name) > 1]
    work = []
    for (new, past), times in Counter(chunks).items():
        each = f"{count(new)} prompt tokens" + (f" after {count(past)}" if past else "")
        work.append(f"{count(times)} x {each}" if times > 1 else each)
    if decode[0]:
        drafts = f", {asked.draft_tokens} drafts" if asked.draft_tokens else ""
        work.append(f"{count(decode[0])} decoding over {count(decode[1])} tokens each{drafts}")
    place = ", ".join([names, *degrees, f"weights {asked.weights}", f"engine {asked.engine}"])
    return f"One step of {place}: {', '.join(work)}"


def _print(lines: list[OperatorCost], heading: str) -> None:
    from rich.console import Console
    from rich.text import Text

    total = sum(line.seconds for line in lines)
    table = plain_table()
    table.add_column("operator", no_wrap=True)
    for name in ("launches", "time", "share", "TFLOP", "GB"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("bound by", no_wrap=True)
    for line in lines:
        work = [figures(line.flops / 1e12) if line.flops else "–", figures(line.bytes / 1e9) if line.bytes else "–"]
        share = percent(line.seconds / total if total else 0.0)
        table.add_row(line.operator, f"{line.launches:,.0f}", seconds(line.seconds), share, *work, line.bound_by)
    table.add_section()
    sums = [sum(line.flops for line in lines) / 1e12, sum(line.bytes for line in lines) / 1e9]
    table.add_row("step", "", seconds(total), "100 %", *[figures(value) for value in sums], "")
    console = Console(file=sys.stdout, highlight=False, emoji=False)
    console.print(Text(heading, style="bold"), soft_wrap=True)
    console.print()
    show_table(console, table)
    console.print()
    console.print(Text("Where the figures are from (one GPU; FLOP and bytes of its share):"), soft_wrap=True)
    for source in dict.fromkeys(line.source for line in lines):
        names = dict.fromkeys(line.operator for line in lines if line.source == source)
        console.print(Text(f"  {', '.join(names)}: {source}"), soft_wrap=True)
