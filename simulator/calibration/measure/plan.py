"""What to measure: shapes and counts, as plain numbers that can be kept in a file."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

Pair = tuple[int, int]


@dataclass(frozen=True)
class ModelShape:
    """A decoder-only transformer with gated feed-forward; ``experts`` 0: dense, else every layer has ``experts`` of
    width ``expert_ffn``, ``top_k`` of them for a token."""

    name: str
    layers: int
    hidden: int
    q_heads: int
    kv_heads: int
    head_dim: int
    ffn: int
    vocab: int
    experts: int = 0
    top_k: int = 0
    expert_ffn: int = 0

    @property
    def qkv(self) -> int:
        """Width of the joint projection to queries, keys and values."""
        return (self.q_heads + 2 * self.kv_heads) * self.head_dim

    def gemms(self) -> list[Pair]:
        """(n, k) of the step's projections, those of experts left out."""
        found = [(self.qkv, self.hidden), (self.hidden, self.q_heads * self.head_dim), (self.vocab, self.hidden)]
        if self.experts:
            return [*found, (self.experts, self.hidden)]
        return [*found, (2 * self.ffn, self.hidden), (self.hidden, self.ffn)]

    def shard(self, ranks: int) -> ModelShape:
        """One tensor-parallel rank's part of a dense model."""
        return replace(
            self,
            q_heads=self.q_heads // ranks,
            kv_heads=max(1, self.kv_heads // ranks),
            ffn=self.ffn // ranks,
            vocab=self.vocab // ranks,
        )


@dataclass(frozen=True)
class StepCase:
    """One step: ``seqs`` decoding sequences over ``context`` computed tokens each, and one chunk of ``new`` prompt
    tokens after ``past`` computed ones (``new`` 0: none)."""

    seqs: int
    context: int
    new: int = 0
    past: int = 0


@dataclass(frozen=True)
class Plan:
    """Cases of every group. Heads are (query heads, KV heads, head width) of one GPU; ``moe_shapes`` (hidden, width of
    an expert, experts, experts a token takes); ``prefill_chunks`` (sequences, new tokens, earlier tokens);
    ``copy_blocks`` (bytes of a block, blocks)."""

    models: tuple[ModelShape, ...]
    gemm_shapes: tuple[Pair, ...]
    gemm_rows: tuple[int, ...]
    fp8_rows: tuple[int, ...]
    attention_heads: tuple[tuple[int, int, int], ...]
    prefill_chunks: tuple[tuple[int, int, int], ...]
    decode_batches: tuple[int, ...]
    decode_contexts: tuple[int, ...]
    decode_tokens: int  # at most so many tokens of context in one decode case
    moe_shapes: tuple[tuple[int, int, int, int], ...]
    moe_tokens: tuple[int, ...]
    moe_skews: tuple[float, ...]
    element_tokens: tuple[int, ...]
    steps: tuple[StepCase, ...]
    step_rows: tuple[int, ...]  # rows of the step models' projections beside ``gemm_rows``: around the ends of tiles
    step_contexts: tuple[int, ...]  # contexts of the step models' decode attention beside ``decode_contexts``
    prompts: tuple[int, ...]  # lone prompts of the first model, in chunks of ``prompt_budget`` tokens
    prompt_budget: int
    copy_blocks: tuple[Pair, ...]
    stream_bytes: tuple[int, ...]
    peak_size: int  # rows and columns of the square product that finds the peak
    peer_bytes: tuple[int, ...]
    collective_bytes: tuple[int, ...]

    def to_json(self) -> str:
        """One line a field, so that a change can be read."""
        values = asdict(self)
        lines = [f"  {json.dumps(name)}: {json.dumps(values[name])}" for name in values]
        return "{\n" + ",\n".join(lines) + "\n}\n"


def _tuples(value: Any) -> Any:
    return tuple(_tuples(v) for v in value) if isinstance(value, list) else value


def read_plan(path: Path) -> Plan:
    """The plan in a file written with ``Plan.to_json``. Raises OSError, ValueError, TypeError or KeyError."""
    data = json.loads(path.read_text(encoding="utf-8"))
    known = {field.name for field in fields(Plan)}
    if set(data) != known:
        raise ValueError(f"keys {sorted(set(data) ^ known)} are missing or unknown")
    values = {name: _tuples(value) for name, value in data.items()}
    values["models"] = tuple(ModelShape(**m) for m in data["models"])
    values["steps"] = tuple(StepCase(**s) for s in data["steps"])
    return Plan(**values)


def tiny_plan() -> Plan:
    """A few small cases of every group, for a CPU: proves that the program works, says nothing about a GPU."""
    dense = ModelShape("tiny-dense", 2, 32, 4, 2, 16, 64, 96)
    moe = ModelShape("tiny-moe", 2, 32, 4, 2, 16, 0, 96, experts=4, top_k=2, expert_ffn=16)
    return Plan(
        models=(dense, moe),
        gemm_shapes=tuple(sorted({*dense.gemms(), *moe.gemms()})),
        gemm_rows=(1, 2, 4, 8, 16),
        fp8_rows=(1, 4, 16),
        attention_heads=((4, 2, 16), (2, 1, 16)),
        prefill_chunks=((1, 8, 0), (1, 16, 0), (2, 16, 0), (1, 8, 8), (1, 8, 24)),
        decode_batches=(1, 2, 4),
        decode_contexts=(8, 16, 32),
        decode_tokens=96,
        moe_shapes=((32, 16, 4, 2), (32, 8, 8, 2)),
        moe_tokens=(1, 4, 16),
        moe_skews=(0.0, 1.2),
        element_tokens=(1, 4, 16),
        steps=(StepCase(1, 16), StepCase(4, 16), StepCase(2, 8, 8, 0), StepCase(2, 8, 8, 16)),
        step_rows=(3, 10),
        step_contexts=(17,),
        prompts=(24,),
        prompt_budget=16,
        copy_blocks=((1024, 1), (1024, 4), (1024, 16), (4096, 1), (4096, 4), (4096, 16), (16384, 1), (16384, 4)),
        stream_bytes=(65536,),
        peak_size=64,
        peer_bytes=(4096, 16384, 65536, 262144, 1048576),
        collective_bytes=(4096, 65536),
    )
