"""One layer and one whole step of a transformer, built from the very kernels that the other groups time alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict

from simulator.calibration.measure.cases import STEADY_TOKENS, Group, numbers
from simulator.calibration.measure.ops import OWN, Array, Ops, Paged, Work
from simulator.calibration.measure.plan import ModelShape, Plan, StepCase
from simulator.calibration.measure.store import Case

#: Sets of weights a lone layer rotates through.
LAYER_COPIES = 6
#: Sets of expert choices that layers take in turn.
CHOICES = 8


class StepRun:
    """Buffers and launches of one step. Rows: one of each decoding sequence, then those of the chunk."""

    def __init__(
        self,
        ops: Ops,
        model: ModelShape,
        case: StepCase,
        library: str = OWN,
        reduce: Callable[[Array], object] | None = None,
    ) -> None:
        """``reduce`` sums partial activations over tensor-parallel ranks, ``model`` being one rank's part. Setting
        ``without`` leaves the launches of that name out of each layer."""
        self.reduce, self.without = reduce, ""
        self.ops, self.model, self.case, self.library = ops, model, case, library
        self.joint = library != OWN and bool(case.seqs and case.new)  # one launch for decodes and chunk
        tokens = case.seqs + case.new
        self.tokens, self.last = tokens, case.seqs + (1 if case.new else 0)
        self.x, self.residual = ops.random((tokens, model.hidden)), ops.random((tokens, model.hidden))
        self.normed = ops.empty((tokens, model.hidden))
        self.qkv = ops.empty((tokens, model.qkv))
        self.attended = ops.empty((tokens, model.q_heads * model.head_dim))
        self.norm = ops.random((model.hidden,))
        self.ids = ops.permutation(max(tokens, model.vocab))[:tokens] % model.vocab
        self.logits = ops.empty((self.last, model.vocab))
        self.sampled = ops.empty((self.last,), "int")
        self._feed_forward_room()
        self._places()

    def _feed_forward_room(self) -> None:
        ops, model, tokens = self.ops, self.model, self.tokens
        if model.experts:
            self.router = ops.empty((tokens, model.experts))
            self.choices = [ops.random((tokens, model.experts)) for _ in range(CHOICES)]
            self.chosen = ops.empty((tokens, model.top_k), "int")
            self.shares = ops.empty((tokens, model.top_k), "fp32")
        else:
            self.wide, self.narrow = ops.empty((tokens, 2 * model.ffn)), ops.empty((tokens, model.ffn))

    def _places(self) -> None:
        """Page tables: sequences have ``context`` tokens and write one more; the chunk lies in pages of its own."""
        ops, case = self.ops, self.case
        lengths = [case.context + 1] * case.seqs
        whole = case.past + case.new
        pages = [-(-n // ops.page) for n in (*lengths, whole) if n]
        self.pages = sum(pages)
        order = ops.permutation(self.pages)
        first = sum(pages[: case.seqs])
        own = order[:first].reshape(case.seqs, -1) if case.seqs else order[:0]
        self.table, self.lengths = own, ops.integers(lengths)
        self.chunk_table, self.chunk_lengths = order[first:].reshape(1, -1), ops.integers([whole])
        self.starts = ops.integers([0, case.new])
        decode_slots = own[:, case.context // ops.page] * ops.page + case.context % ops.page if case.seqs else order[:0]
        rows = ops.integers(list(range(case.past, whole)))
        chunk_slots = self.chunk_table[0][rows // ops.page] * ops.page + rows % ops.page
        self.slots = join(ops, decode_slots, chunk_slots)
        if self.joint:
            width = max(own.shape[1], self.chunk_table.shape[1])
            self.all_tables = ops.integers([[0] * width] * (case.seqs + 1))
            self.all_tables[: case.seqs, : own.shape[1]] = own
            self.all_tables[case.seqs, : self.chunk_table.shape[1]] = self.chunk_table[0]
            self.all_lengths = ops.integers([*lengths, whole])
            self.all_starts = ops.integers([*range(case.seqs + 1), case.seqs + case.new])
        self.positions = join(ops, ops.integers([case.context] * case.seqs), rows)

    def caches(self, layer: int) -> tuple[Paged, Paged]:
        """The layer's cache, as the decoding sequences and as the chunk see it."""
        model, case = self.model, self.case
        shape = (self.pages, self.ops.page, model.kv_heads, model.head_dim)
        k, v = (self.ops.weights(shape, "kv", 2 * layer + i) for i in range(2))
        decoding = Paged(k, v, self.table, self.lengths, case.context + 1)
        return decoding, Paged(k, v, self.chunk_table, self.chunk_lengths, case.past + case.new)

    def layer(self, index: int) -> None:
        """Launch one layer with the ``index``-th set of weights."""
        for name, launch in self.launches(index):
            if name != self.without:
                launch()

    def launches(self, index: int) -> list[tuple[str, Callable[[], None]]]:
        """What a layer is made of, by name and in order."""
        ops, m = self.ops, self.model
        decoding, chunk = self.caches(index)

        def norm() -> None:
            ops.add_norm(self.x, self.residual, self.norm, self.normed)

        return [
            ("add_norm", norm),
            ("qkv", lambda: self._multiply(self.normed, self.qkv, index)),
            ("rotate", lambda: ops.rotate(self.qkv, self.positions, m.q_heads + m.kv_heads, m.head_dim)),
            ("write_cache", lambda: ops.write_cache(self.qkv, m.q_heads, decoding, self.slots)),
            ("attention", lambda: self._attend(decoding, chunk)),
            ("out", lambda: self._multiply(self.attended, self.x, index)),
            ("sum", self._sum),
            ("second_norm", norm),
            *self._feed_forward(index),
        ]

    def _attend(self, decoding: Paged, chunk: Paged) -> None:
        ops, case, library = self.ops, self.case, self.library
        if self.joint:
            both = Paged(chunk.k, chunk.v, self.all_tables, self.all_lengths, max(decoding.longest, chunk.longest))
            ops.prefill_attention(self.qkv, self.all_starts, case.new, both, self.attended, library)
            return
        if case.new:
            rest, out = self.qkv[case.seqs :], self.attended[case.seqs :]
            ops.prefill_attention(rest, self.starts, case.new, chunk, out, library)
        if case.seqs:
            rows, out = self.qkv[: case.seqs], self.attended[: case.seqs]
            ops.decode_attention(rows, self.model.q_heads, decoding, out, library)

    def _feed_forward(self, index: int) -> list[tuple[str, Callable[[], None]]]:
        ops, m = self.ops, self.model
        if not m.experts:
            return [
                ("gate_up", lambda: self._multiply(self.normed, self.wide, index)),
                ("activate", lambda: ops.activate(self.wide, self.narrow)),
                ("down", lambda: self._multiply(self.narrow, self.x, index)),
                ("second_sum", self._sum),
            ]
        # tokens of random weights grow alike, and would all choose the same experts: choices are drawn apart
        drawn = self.choices[index % len(self.choices)]
        up = ops.weights((m.experts, 2 * m.expert_ffn, m.hidden), "bf16", index)
        down = ops.weights((m.experts, m.hidden, m.expert_ffn), "bf16", index)
        return [
            ("router", lambda: self._multiply(self.normed, self.router, index)),
            ("choose", lambda: ops.choose(drawn, m.top_k, self.chosen, self.shares)),
            ("experts", lambda: ops.experts(self.normed, self.chosen, self.shares, (up, down), self.x)),
        ]

    def _sum(self) -> None:
        if self.reduce is not None:
            self.reduce(self.x)

    def _multiply(self, x: Array, out: Array, index: int) -> None:
        self.ops.matmul(x, self.ops.weights((out.shape[1], x.shape[1]), "bf16", index), out)

    def step(self) -> None:
        """Launch the whole step: embedding, layers, norm, head, sampling."""
        ops, m = self.ops, self.model
        table = ops.weights((m.vocab, m.hidden), "bf16", 0)
        ops.embed(table, self.ids, self.x)
        for index in range(m.layers):
            self.layer(index)
        last = slice(0, self.last)
        ops.add_norm(self.x[last], self.residual[last], self.norm, self.normed[last])
        ops.matmul(self.normed[last], table, self.logits)
        ops.sample(self.logits, self.sampled)


def join(ops: Ops, first: Array, second: Array) -> Array:
    """Two rows of whole numbers, one after the other."""
    out = ops.empty((len(first) + len(second),), "int")
    out[: len(first)], out[len(first) :] = first, second
    return out


def _cases(plan: Plan, ops: Ops) -> list[Case]:
    found: list[Case] = []
    for library in ops.paged_libraries():
        for model in plan.models:
            for step in plan.steps:
                # a decode step is launched kernel by kernel once, to see what that costs
                modes = ("graph", "eager") if step.new or step == plan.steps[0] else ("graph",)
                about = {"model": model.name, **asdict(step), "library": library}
                found += [{**about, "mode": mode} for mode in modes]
    return found


def _run_of(plan: Plan, ops: Ops, case: Case) -> StepRun:
    model = next(m for m in plan.models if m.name == case["model"])
    step = StepCase(*numbers(case, "seqs", "context", "new", "past"))
    return StepRun(ops, model, step, str(case["library"]))


def _step(plan: Plan, ops: Ops, case: Case) -> Work:
    run = _run_of(plan, ops, case)
    return Work(lambda i: run.step(), eager=case["mode"] == "eager", steady=run.tokens >= STEADY_TOKENS)


def _layer(plan: Plan, ops: Ops, case: Case) -> Work:
    run = _run_of(plan, ops, case)
    return Work(run.layer, LAYER_COPIES, eager=case["mode"] == "eager", steady=run.tokens >= STEADY_TOKENS)


#: Layers that are timed without one of their launches have at most so many rows: larger ones run into the power limit,
#: and lose more with a launch than its time.
MOST_LEFT_OUT = 600


def _left_out_cases(plan: Plan, ops: Ops) -> list[Case]:
    found: list[Case] = []
    for case in _cases(plan, ops):
        if case["mode"] == "graph" and sum(numbers(case, "seqs", "new")) <= MOST_LEFT_OUT:
            model = next(m for m in plan.models if m.name == case["model"])
            about = {name: value for name, value in case.items() if name != "mode"}
            feed_forward = ("router", "choose", "experts") if model.experts else ("gate_up", "activate", "down")
            found += [{**about, "without": name} for name in ("nothing", *COMMON, *feed_forward)]
    return found


#: Launches of a layer before its feed-forward part.
COMMON = ("add_norm", "qkv", "rotate", "write_cache", "attention", "out", "second_norm")


def _left_out(plan: Plan, ops: Ops, case: Case) -> Work:
    model = next(m for m in plan.models if m.name == case["model"])
    step = StepCase(*numbers(case, "seqs", "context", "new", "past"))
    run = StepRun(ops, model, step, str(case["library"]))
    run.layer(0)  # what a launch would have written is there, from an earlier one
    run.without = str(case["without"])
    return Work(run.layer, LAYER_COPIES)


STEPS = Group("step", _cases, _step)
LAYERS = Group("layer", _cases, _layer)
LEFT_OUT = Group("left_out", _left_out_cases, _left_out)
