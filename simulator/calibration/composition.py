"""A step put together from kernels that were timed alone, beside the same step timed whole."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd

from simulator.calibration.measure.plan import ModelShape, Plan, StepCase
from simulator.calibration.measured import Measured
from simulator.calibration.measured_rows import seconds


@dataclass(frozen=True)
class Composed:
    """One step: seconds timed whole, and the sum of its kernels by part."""

    model: str
    step: StepCase
    library: str
    whole_s: float
    parts_s: Mapping[str, float]

    @property
    def error(self) -> float:
        """How much the sum is too long, as a fraction of the whole."""
        return sum(self.parts_s.values()) / self.whole_s - 1.0

    @property
    def mixed(self) -> bool:
        """Whether the step has prompt tokens."""
        return self.step.new > 0


class _Curves:
    """Seconds of a kernel at any count, linear between the logarithms of measured ones."""

    def __init__(self, measured: Measured) -> None:
        self.measured = measured

    def rows(self, group: str, about: Mapping[str, object]) -> pd.DataFrame:
        table = self.measured.table(group)
        for name, value in about.items():
            table = table[table[name] == value]
        if table.empty:
            raise KeyError(f"{group}: no row for {dict(about)}")
        return table.assign(seconds=seconds(table))

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
        alone = {**about, "batch": 1}
        pasts = sorted(self.rows("prefill_attention", alone)["past"].unique())
        times = [self.at("prefill_attention", "new", new, {**alone, "past": p}) for p in pasts]
        return float(np.interp(past, pasts, times))


def _between(x: np.ndarray, y: np.ndarray, at: float) -> float:
    return float(np.exp(np.interp(np.log(at), np.log(x), np.log(y))))


def _attention(curves: _Curves, model: ModelShape, step: StepCase, library: str) -> float:
    about = {"heads": model.q_heads, "kv_heads": model.kv_heads, "width": model.head_dim, "library": library}
    if library != "own" and step.seqs and step.new:  # one launch for both
        asked = {"seqs": step.seqs, "context": step.context, "new": step.new, "past": step.past}
        return float(curves.rows("mixed_attention", {**about, **asked})["seconds"].iloc[0])
    total = curves.decode(step.seqs, step.context, about) if step.seqs else 0.0
    return total + (curves.chunk(step.new, step.past, about) if step.new else 0.0)


def parts(curves: _Curves, model: ModelShape, step: StepCase, library: str) -> dict[str, float]:
    """Seconds of a step's parts, all layers. Raises KeyError where a kernel was not measured."""
    tokens, last = step.seqs + step.new, step.seqs + (1 if step.new else 0)
    heads = {"heads": model.q_heads, "kv_heads": model.kv_heads, "width": model.head_dim}

    def gemm(count: int, n: int, k: int) -> float:
        return curves.at("gemm_bf16", "m", count, {"n": n, "k": k})

    def element(op: str, count: int, **about: object) -> float:
        return curves.at("elements", "tokens", count, {"op": op, **about})

    products = sum(gemm(tokens, n, k) for n, k in model.gemms() if n != model.vocab)
    small = 2 * element("add_norm", tokens, hidden=model.hidden)
    small += element("rotate", tokens, **heads) + element("write_cache", tokens, **heads)
    if model.experts:
        small += element("choose", tokens, experts=model.experts)
        about = {"hidden": model.hidden, "width": model.expert_ffn, "experts": model.experts, "skew": 0.0}
        experts = curves.at("experts", "tokens", tokens, about)
    else:
        small += element("activate", tokens, hidden=model.ffn)
        experts = 0.0
    head = gemm(last, model.vocab, model.hidden) + element("sample", last, vocab=model.vocab)
    head += element("add_norm", last, hidden=model.hidden)
    head += element("embed", tokens, hidden=model.hidden, vocab=model.vocab)
    one = {
        "products": products,
        "attention": _attention(curves, model, step, library),
        "experts": experts,
        "small": small,
    }
    return {**{name: value * model.layers for name, value in one.items()}, "head": head}


def composed_steps(measured: Measured, plan: Plan) -> Iterator[Composed]:
    """Every step that was replayed from a graph, beside its kernels; steps that lack one are left out."""
    curves, table = _Curves(measured), measured.table("step")
    if table.empty:
        return
    table = table[table["mode"] == "graph"].assign(seconds=seconds)
    models = {model.name: model for model in plan.models}
    for row in table.to_dict("records"):
        step = StepCase(*(int(row[name]) for name in ("seqs", "context", "new", "past")))
        model, library = models[str(row["model"])], str(row["library"])
        try:
            found = parts(curves, model, step, library)
        except KeyError:
            continue
        yield Composed(model.name, step, library, float(row["seconds"]), found)
