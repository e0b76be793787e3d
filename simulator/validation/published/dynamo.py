"""NVIDIA Dynamo: the worked example of its router, and how much less than an ideal pairing TensorRT-LLM reaches."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from simulator.cluster.routers.dynamo import Weights, cost, draw
from simulator.validation.published.rows import Row

SYSTEM = "dynamo"
SOURCE = "ai-dynamo/dynamo docs/design-docs/router-design.md"
#: Prompt blocks that each worker would compute, blocks it decodes, and its cost.
WORKERS = ((8, 10, 18), (5, 5, 10), (2, 9, 11))
CHOSEN = 2


def rows() -> Iterator[Row]:
    """Costs of three workers, and which is chosen."""
    for number, (prompt, decoding, published) in enumerate(WORKERS, 1):
        setup = f"worker {number} of the example: {prompt} prompt blocks to compute, {decoding} decoding"
        yield Row(
            f"dynamo-router-cost-{number}", SYSTEM, SOURCE, setup, "fitted", "blocks", published, 0.1,
            partial(_cost, number), note="the formula is theirs",
        )  # fmt: skip
    setup = "number of the worker that the example chooses"
    yield Row("dynamo-router-choice", SYSTEM, SOURCE, setup, "fitted", "worker", CHOSEN, 0.1, _choice, note="as costs")


def _cost(number: int) -> float:
    prompt, decoding, _ = WORKERS[number - 1]
    return cost(Weights(), prompt, decoding, 0.0)


def _choice() -> float:
    return 1.0 + draw([_cost(number) for number in range(1, len(WORKERS) + 1)], 0.0, 0.0)
