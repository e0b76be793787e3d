"""Splitwise (ISCA 2024): its table of prompt and token times on DGX-A100 and DGX-H100."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from simulator.models.precision import Parallel
from simulator.validation.published import runs
from simulator.validation.published.rows import Kind, Row
from simulator.validation.published.steps import Engine

SYSTEM = "splitwise"
SOURCE = "Mutinifni/splitwise-sim data/perf_model.csv, medians (arXiv 2311.18677)"
PROMPTS = (512, 1024, 2048, 4096, 8192)
BATCHES = (1, 8, 16, 32, 64)
#: Tokens already made, on average, when a batch of 512-token prompts was timed over 128 outputs.
MADE = 64
TOLERANCE = 15.0
#: (model, GPU, TP): prompt ms at batch 1 by prompt tokens, token ms of 512-token prompts by batch.
TABLE: dict[tuple[str, str, int], tuple[tuple[float, ...], tuple[float, ...]]] = {
    ("llama-2-70b", "a100_80gb_sxm", 8): ((93, 155, 274, 661, 1550), (45.0, 46.5, 50.4, 53.0, 71.6)),
    ("llama-2-70b", "h100_sxm", 8): ((54, 78, 137, 390, 845), (30.6, 32.5, 34.2, 38.6, 50.2)),
    ("bloom-176b", "a100_80gb_sxm", 8): ((174, 289, 540, 1348, 3593), (49.3, 53.0, 57.3, 65.4, 96.6)),
    ("bloom-176b", "h100_sxm", 8): ((76, 133, 253, 689, 1535), (36.2, 38.1, 40.6, 45.8, 63.8)),
    ("llama-2-70b", "a100_80gb_sxm", 4): ((127, 227, 403), (44.5, 45.8, 48.5, 52.3, 72.9)),
    ("llama-2-70b", "h100_sxm", 4): ((60, 106, 201), (29.4, 31.4, 32.8, 36.9, 52.4)),
    ("llama-2-70b", "a100_80gb_sxm", 2): ((195, 377, 688), (59.9,)),
    ("llama-2-70b", "h100_sxm", 2): ((84, 158, 310), (37.1, 40.4, 42.0)),
}
#: Milliseconds of the layer-wise handover that stay visible, by GPU and Gbit/s; at the mean prompt of its code trace.
EXPOSED = (("a100_80gb_sxm", 200, 8.0), ("h100_sxm", 400, 5.0))
EXPOSED_PROMPT = 1500
_WAITS = (
    "machines there wait for one another's signals after the last layer; here only its bytes and the set-up are left"
)
#: Rows that host times were fitted to.
_FIT = "host times of profile splitwise; host_speed of the A100"
_LARGE = "a batch of 64 takes longer there than its half by more than sequences and memory explain"
_H100 = "early H100 software reached some 0.7 of the arithmetic that today's kernels do, which the tables hold"
#: Prompt tokens from which the table bends upwards.
LONG = 4096
_LONG = "4,096 tokens and more take a third longer a token there, the more the higher TP; no mechanism is known"


def rows() -> Iterator[Row]:
    """Every figure of the table."""
    for (model, gpu, tp), (prompts, tokens) in TABLE.items():
        engine = Engine(model, gpu, "splitwise", Parallel(tp=tp))
        name = f"{model.split('-')[0]}{model.rsplit('-', 1)[1]}-{gpu.split('_')[0]}-tp{tp}"
        for size, ms in zip(PROMPTS, prompts, strict=False):
            yield _row(engine, f"{name}-prompt-{size}", f"prompt of {size} tokens", ms, prompt=size)
        for batch, ms in zip(BATCHES, tokens, strict=False):
            yield _row(engine, f"{name}-token-{batch}", f"token step, batch {batch}, 512 tokens", ms, batch=batch)

    for gpu, nic, ms in EXPOSED:
        setup = (
            f"llama-2-70b on {gpu}, TP 8, {nic} Gbit/s a GPU, prompt of {EXPOSED_PROMPT}: handover beyond the prompt"
        )
        yield Row(
            f"splitwise-exposed-{gpu.split('_')[0]}", SYSTEM, "arXiv 2311.18677, figure 14", setup, "predicted", "ms",
            ms, TOLERANCE, partial(_exposed_ms, gpu, nic), note=_WAITS,
        )  # fmt: skip


def _exposed_ms(gpu: str, nic_gbit_per_s: int) -> float:
    """What is left of a layer-wise handover when its prompt is done."""
    pools = [{"name": role, "role": role, "gpu": gpu, "parallel": {"tp": 8}} for role in ("prefill", "decode")]
    topology = {
        "name": "apart",
        "model": "llama-2-70b",
        "engine": "splitwise",
        "pools": pools,
        "network": {"kind": "rdma", "nic_gbit_per_s": nic_gbit_per_s},
        "kv_transfer": {"mode": "layerwise"},
    }
    moments = runs.alone(runs.plan_of(topology), EXPOSED_PROMPT, 2).moments
    assert moments is not None
    return 1e3 * float((moments.kv_end_s - moments.prefill_end_s)[0])


def _row(engine: Engine, name: str, work: str, ms: float, *, prompt: int = 0, batch: int = 0) -> Row:
    kind, note = _kind(engine, prompt, batch)

    def simulate() -> float:
        seconds = engine.prefill_s([(prompt, 0)]) if prompt else engine.decode_s(batch, PROMPTS[0] + MADE)
        return 1e3 * seconds

    setup = f"{engine.model} on {engine.gpu}, TP {engine.parallel.tp}, {work}"
    return Row(f"splitwise-{name}", SYSTEM, SOURCE, setup, kind, "ms", ms, TOLERANCE, simulate, note=note)


def _kind(engine: Engine, prompt: int, batch: int) -> tuple[Kind, str]:
    a100, tp = engine.gpu == "a100_80gb_sxm", engine.parallel.tp
    if engine.model == "llama-2-70b":
        on_a100 = a100 and ((tp == 8 and (batch or prompt == PROMPTS[0])) or (tp == 2 and batch == 1))
        if on_a100 or (not a100 and tp == 8 and batch == 1):
            return "fitted", _FIT
    if prompt >= LONG:
        return "predicted", _LONG
    if batch == BATCHES[-1]:
        return "predicted", _LARGE
    return "predicted", "" if a100 else _H100
