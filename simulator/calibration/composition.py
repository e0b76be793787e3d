"""A step put together from kernels that were timed alone, beside the same step timed whole."""

from __future__ import annotations

import heapq
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd

from simulator.calibration.measure.ops import OWN
from simulator.calibration.measure.plan import ModelShape, Plan, StepCase
from simulator.calibration.measure.trace import chunks
from simulator.calibration.measured import Measured
from simulator.calibration.measured_rows import BF16, US

#: Seconds after a rest at which an H200 lowers its clock for work above its power limit: 30 to 90 ms, the median of 16
#: such layers and products is this (docs/calibration.md).
HELD_BACK_AFTER_S = 0.045
#: Query rows of a block of this program's prefill attention.
PREFILL_ROWS = 128


@dataclass(frozen=True)
class Composed:
    """One step: seconds timed whole, and its kernels by name, as they run after a rest and after a while of nothing
    else. ``rested``: which of the two the whole is."""

    model: str
    step: StepCase
    library: str
    rested: bool
    whole_s: float
    burst_s: Mapping[str, float]
    steady_s: Mapping[str, float]

    @property
    def sum_s(self) -> float:
        """The step as the sum of its kernels. After a rest, the power limit begins to hold once the GPU has worked for
        a while; what is left then takes as much longer as the kernels do in steady work."""
        burst, steady = sum(self.burst_s.values()), sum(self.steady_s.values())
        if not self.rested:
            return steady
        free = min(burst, HELD_BACK_AFTER_S)
        return free + (burst - free) * steady / burst

    @property
    def between_s(self) -> float:
        """The sum where the step ran neither after a rest nor for long: between the two, as their geometric mean."""
        return float(np.sqrt(sum(self.burst_s.values()) * sum(self.steady_s.values())))

    @property
    def error(self) -> float:
        """How much the sum is too long, as a fraction of the whole."""
        return self.sum_s / self.whole_s - 1.0

    @property
    def mixed(self) -> bool:
        """Whether the step has prompt tokens."""
        return self.step.new > 0


class _Curves:
    """Seconds of a kernel at any count, linear between the logarithms of measured ones; ``rested``: as in a burst after
    a rest, or else in steady work."""

    def __init__(self, measured: Measured, *, rested: bool) -> None:
        self.measured, self.rested = measured, rested
        self.sms = int(str(measured.machine["sms"]))

    def rows(self, group: str, about: Mapping[str, object]) -> pd.DataFrame:
        table = self.measured.table(group)
        for name, value in about.items():
            table = table[table[name] == value]
        if table.empty:
            raise KeyError(f"{group}: no row for {dict(about)}")
        return table.assign(seconds=_seconds(table, self.rested))

    def at(self, group: str, x: str, count: float, about: Mapping[str, object]) -> float:
        table = self.rows(group, about).sort_values(x)
        return _between(table[x].to_numpy(float), table["seconds"].to_numpy(float), count)

    def decode(self, seqs: int, context: int, about: Mapping[str, object]) -> float:
        table = self.rows("decode_attention", about)
        counts, times = [], []
        for batch, part in table.groupby("batch"):
            if part["context"].max() >= context:
                counts.append(float(str(batch)))
                times.append(self.at("decode_attention", "context", context, {**about, "batch": batch}))
        return _between(np.array(counts), np.array(times), seqs)

    def chunk(self, new: int, past: int, about: Mapping[str, object]) -> float:
        table = self.rows("prefill_attention", {**about, "batch": 1}).sort_values("new")
        pasts, times = [], []
        for before, part in table.groupby("past"):
            counts = [float(n) for n in part["new"]]
            at = float(new)
            if about["library"] == OWN:  # blocks of rows are dealt out, longest first: what takes long is the last wave
                heads, earlier = int(str(about["heads"])), int(str(before))
                *counts, at = [makespan(int(n), earlier, heads, self.sms) for n in (*counts, at)]
            pasts.append(float(str(before)))
            times.append(_between(np.array(counts), part["seconds"].to_numpy(float), at))
        return float(np.interp(past, pasts, times))


def _seconds(table: pd.DataFrame, rested: bool) -> np.ndarray:
    burst = table["median_us"].to_numpy(float) * US
    if rested or "steady_us" not in table:
        return burst
    steady = table["steady_us"].to_numpy(float) * US
    return np.where(np.isnan(steady), burst, steady)


def makespan(new: int, past: int, heads: int, processors: int) -> float:
    """Keys that the busiest processor reads where blocks of a chunk's rows, one for each head, are dealt out longest
    first to whoever is free. A few rows fill part of a block, and take that much less."""
    tiles = -(-new // PREFILL_ROWS)
    busy = [0.0] * processors
    for tile in range(tiles, 0, -1):
        rows = min(new, PREFILL_ROWS)
        for _ in range(heads):
            heapq.heapreplace(busy, busy[0] + past + min(tile * PREFILL_ROWS, new) + rows / PREFILL_ROWS)
    return max(busy)


def _between(x: np.ndarray, y: np.ndarray, at: float) -> float:
    return float(np.exp(np.interp(np.log(at), np.log(x), np.log(y))))


def _attention(curves: _Curves, model: ModelShape, step: StepCase, library: str) -> dict[str, float]:
    about = {"heads": model.q_heads, "kv_heads": model.kv_heads, "width": model.head_dim, "library": library}
    if library != OWN and step.seqs and step.new:  # one launch for both
        asked = {"seqs": step.seqs, "context": step.context, "new": step.new, "past": step.past}
        return {"attention": float(curves.rows("mixed_attention", {**about, **asked})["seconds"].iloc[0])}
    # a sequence reads what was computed before, and the token it just wrote
    decode = {"decode attention": curves.decode(step.seqs, step.context + 1, about)} if step.seqs else {}
    return decode | ({"attention": curves.chunk(step.new, step.past, about)} if step.new else {})


def parts(curves: _Curves, whole: ModelShape, step: StepCase, library: str, ranks: int = 1) -> dict[str, float]:
    """Seconds of a step's kernels, all layers, on one of ``ranks`` that share the model ``whole``; their sums left out.
    Small kernels were measured on a whole model: on a share of its width they take as long as on a share of the tokens,
    which are as many bytes. Raises KeyError where a kernel was not measured."""
    model = whole.shard(ranks) if ranks > 1 else whole
    tokens, last = step.seqs + step.new, step.seqs + (1 if step.new else 0)
    heads = {"heads": whole.q_heads, "kv_heads": whole.kv_heads, "width": whole.head_dim}

    def gemm(count: int, n: int, k: int) -> float:
        return curves.at("gemm_bf16", "m", count, {"n": n, "k": k})

    def element(op: str, count: float, **about: object) -> float:
        return curves.at("elements", "tokens", count, {"op": op, **about})

    one = {f"product {n} x {k}": gemm(tokens, n, k) for n, k in model.gemms() if n != model.vocab}
    one |= _attention(curves, model, step, library)
    one["norms"] = 2 * element("add_norm", tokens, hidden=model.hidden)
    one |= {op: element(op, tokens / ranks, **heads) for op in ("rotate", "write_cache")}
    if model.experts:
        one["choose"] = element("choose", tokens, experts=model.experts)
        about = {"hidden": model.hidden, "width": model.expert_ffn, "experts": model.experts, "skew": 0.0}
        one["experts"] = curves.at("experts", "tokens", tokens, about)
    else:
        one["activate"] = element("activate", tokens / ranks, hidden=whole.ffn)
    head = {
        "head": gemm(last, model.vocab, model.hidden),
        "sample": element("sample", last / ranks, vocab=whole.vocab),
        "last norm": element("add_norm", last, hidden=model.hidden),
        "embed": element("embed", tokens, hidden=model.hidden, vocab=whole.vocab),
    }
    return {**{name: value * model.layers for name, value in one.items()}, **head}


def composed_steps(measured: Measured, plan: Plan, *, rested: bool) -> Iterator[Composed]:
    """Every step that was replayed from a graph, after a rest or in steady work, beside its kernels; steps that lack
    one are left out."""
    table = measured.table("step")
    if table.empty:
        return
    table = table[table["mode"] == "graph"]
    table = table.assign(seconds=_seconds(table, rested))
    burst, steady = (_Curves(measured, rested=each) for each in (True, False))
    models = {model.name: model for model in plan.models}
    for row in table.to_dict("records"):
        step = StepCase(*(int(row[name]) for name in ("seqs", "context", "new", "past")))
        model, library = models[str(row["model"])], str(row["library"])
        try:
            found = [parts(curves, model, step, library) for curves in (burst, steady)]
        except KeyError:
            continue
        yield Composed(model.name, step, library, rested, float(row["seconds"]), *found)


def composed_tp_steps(
    measured: Measured, kernels: Measured, plan: Plan, all_reduce: Callable[[float], float]
) -> Iterator[Composed]:
    """Every tensor-parallel step of ``measured`` that was replayed from a graph, beside its ``kernels``, measured on
    one GPU, and two sums a layer, ``all_reduce(bytes)`` seconds each. See ``Composed.between_s``."""
    table = measured.table("tp_step")
    burst, steady = (_Curves(kernels, rested=each) for each in (True, False))
    models = {model.name: model for model in plan.models}
    for row in table[table["mode"] == "graph"].to_dict("records"):
        step = StepCase(*(int(row[name]) for name in ("seqs", "context", "new", "past")))
        model = models[str(row["model"])]
        message = (step.seqs + step.new) * model.hidden * BF16
        sums = {"all-reduce": 2 * model.layers * all_reduce(message)}
        found = [parts(curves, model, step, OWN, int(row["tp"])) | sums for curves in (burst, steady)]
        yield Composed(model.name, step, OWN, False, float(row["median_us"]) * US, *found)


def composed_prompts(measured: Measured, plan: Plan) -> Iterator[Composed]:
    """Lone prompts after a rest, computed in chunks of the plan's budget one right after the other."""
    table = measured.table("trace")
    table = table[table["what"] == "prompt"] if not table.empty else table
    burst, steady = (_Curves(measured, rested=each) for each in (True, False))
    models = {model.name: model for model in plan.models}
    for row in table.to_dict("records"):
        model, library, new = models[str(row["model"])], str(row["library"]), int(row["new"])
        pieces = chunks(new, plan.prompt_budget)
        took = np.array(json.loads(str(row["took_s_readings"]))).reshape(-1, len(pieces))
        sums: list[dict[str, float]] = []
        for curves in (burst, steady):
            steps = [parts(curves, model, StepCase(0, 0, n, past), library) for n, past in pieces]
            sums.append({f"step {i}": sum(step.values()) for i, step in enumerate(steps)})
        whole = float(np.median(took.sum(axis=1)))
        yield Composed(model.name, StepCase(0, 0, new), library, True, whole, *sums)
