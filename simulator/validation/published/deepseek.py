"""DeepSeek-V3 by SGLang on H100, and DeepSeek's own profile on H800: prefill over 32 GPUs, decode over 72 and more."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from simulator.models.precision import Parallel, Precision
from simulator.validation.published.rows import Kind, Row
from simulator.validation.published.steps import Engine

SGLANG, DEEPSEEK = "sglang", "deepseek"
SOURCE = "LMSYS, large-scale EP, 2025-05-05 (lm-sys/lm-sys.github.io blog)"
GPUS_PER_NODE, TOLERANCE = 8, 15.0
PREFILL_TOKENS = 16384
#: Prompt tokens of the run that drift was fitted to.
FITTED = 4096
#: Tokens that a request advances a step where one draft is verified and taken for right in 60 % of the cases.
DRAFTED = 1.6


def engine(gpus: int, gpu: str = "h100_sxm", **experts: Any) -> Engine:
    """DeepSeek-V3 with attention and experts spread over ``gpus``."""
    parallel, precision = Parallel(dp=gpus, ep=gpus), Precision("fp8_block", "bf16")
    return Engine("deepseek-v3", gpu, "sglang-deepep", parallel, precision, tuple(sorted(experts.items())))


def prefill(on: Engine, prompt: int, tokens: int = PREFILL_TOKENS) -> float:
    """Prompt tokens a second of one node, each GPU computing ``tokens`` a step."""
    prompts = [(prompt, 0)] * (tokens // prompt * on.parallel.dp)
    return tokens * GPUS_PER_NODE / on.prefill_s(prompts)


def decode(on: Engine, batch: int, context: int, queries: int = 1) -> float:
    """Output tokens a second of one node at ``batch`` requests a GPU."""
    step_s = on.decode_s(batch * on.parallel.dp, context, queries)
    return batch * GPUS_PER_NODE * (DRAFTED if queries > 1 else 1.0) / step_s


def _gain(slow: Callable[[], float], fast: Callable[[], float]) -> float:
    return fast() / slow()


def rows() -> Iterator[Row]:
    """Throughputs, and what balanced experts and two micro-batches gain."""
    yield from _prefill_rows()
    yield from _decode_rows()


def _prefill_rows() -> Iterator[Row]:
    on = engine(32)
    for prompt, rate in ((1024, 57674), (2048, 54543), (4096, 50302)):
        setup = f"EP32 on 32 H100, 16,384 tokens a GPU, {prompt}-token prompts, EPLB, two micro-batches"
        kind: Kind = "fitted" if prompt == FITTED else "predicted"
        note = "drift of experts' loads" if prompt == FITTED else ""
        yield _row(f"sglang-prefill-ep32-{prompt}", SGLANG, setup, kind, rate, partial(prefill, on, prompt), note=note)
    even = engine(32, placement="even")
    setup = "EP32 on 32 H100, 16,384 tokens a GPU, 4,096-token prompts"
    yield _row(
        "sglang-prefill-ep32-even", SGLANG, f"{setup}, even routing", "predicted", 59337, partial(prefill, even, 4096)
    )
    profile = partial(prefill, engine(32, "h800_sxm", placement="even"), 4096)
    note = "interference of exchange and computation"
    setup_h800 = "EP32 on H800, 16,384 tokens a GPU, 4,096-token prompts, even routing"
    yield _row("deepseek-profile-prefill-ep32", DEEPSEEK, setup_h800, "fitted", 62713, profile, note=note)
    ratio = partial(_gain, partial(prefill, on, 4096), partial(prefill, even, 4096))
    yield _row(
        "sglang-prefill-even-gain", SGLANG, f"{setup}: even routing over EPLB", "fitted", 59337 / 50302, ratio,
        note="drift of experts' loads", unit="x",
    )  # fmt: skip
    ratio = partial(_gain, partial(prefill, engine(32, placement="static"), 4096), partial(prefill, on, 4096))
    yield _row(
        "sglang-prefill-eplb-gain", SGLANG, f"{setup}: EPLB over experts in order", "fitted", 1.49, ratio,
        note="skew of experts' loads", unit="x",
    )  # fmt: skip
    half = PREFILL_TOKENS // 2
    ratio = partial(_gain, partial(prefill, engine(32, micro_batches=1), 4096, half), partial(prefill, on, 4096, half))
    setup = "EP32 on 32 H100, 8,192 tokens a GPU: two micro-batches over one (1.27 to 1.35)"
    yield _row("sglang-prefill-tbo-gain", SGLANG, setup, "predicted", 1.31, ratio, unit="x")


def _decode_rows() -> Iterator[Row]:
    on, alone = engine(72), engine(72, micro_batches=1)
    setup = "EP72 on 72 H100, 256 requests a GPU, KV 2,000"
    yield _row("sglang-decode-ep72", SGLANG, setup, "predicted", 22282, partial(decode, on, 256, 2000))
    drafted = "EP72 on 72 H100, 128 requests a GPU, KV 4,000, one draft, 60 % right"
    yield _row("sglang-decode-ep72-mtp", SGLANG, drafted, "predicted", 17373, partial(decode, on, 128, 4000, 2))
    yield _row(
        "sglang-decode-ep72-mtp-one-batch", SGLANG, f"{drafted}, one micro-batch", "predicted", 12929,
        partial(decode, alone, 128, 4000, 2), note=_ALONE,
    )  # fmt: skip
    for batch, gain in ((32, 0.73), (256, 1.255)):
        ratio = partial(_gain, partial(decode, alone, batch, 2000), partial(decode, on, batch, 2000))
        setup = f"EP72 on 72 H100, {batch} requests a GPU, KV 2,000: two micro-batches over one"
        yield _row(
            f"sglang-decode-tbo-gain-{batch}", SGLANG, setup, "predicted", gain, ratio, unit="x",
            note=_ALONE if batch > 128 else "",
        )  # fmt: skip
    ratio = partial(_gain, partial(decode, engine(72, placement="static"), 256, 2000), partial(decode, on, 256, 2000))
    setup = "EP72 on 72 H100, 256 requests a GPU: EPLB over experts in order"
    yield _row("sglang-decode-eplb-gain", SGLANG, setup, "predicted", 2.54, ratio, unit="x")
    even = engine(128, "h800_sxm", placement="even")
    setup = "EP128 on 128 H800, 128 requests a GPU, KV 4,096, one draft, 60 % right, even routing"
    yield _row(
        "deepseek-profile-decode-ep128", DEEPSEEK, setup, "predicted", 18598, partial(decode, even, 128, 4096, 2)
    )


_ALONE = "without a second micro-batch all of the busiest GPU's exchange shows here; there, less"


def _row(
    name: str,
    system: str,
    setup: str,
    kind: Kind,
    published: float,
    simulate: Callable[[], float],
    *,
    unit: str = "tokens/s/node",
    note: str = "",
) -> Row:
    return Row(name, system, SOURCE, setup, kind, unit, published, TOLERANCE, simulate, note=note)
