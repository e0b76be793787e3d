"""DeepEP: dispatch and combine on H800, by number of GPUs."""

from __future__ import annotations

from collections.abc import Iterator

from simulator.cost.deepep import ExpertExchange
from simulator.cost.kernels import kernels_of
from simulator.hardware.profiles import load_gpu
from simulator.models.catalogue import load_model
from simulator.validation.published.rows import Kind, Row

SYSTEM = "deepep"
SOURCE = "deepseek-ai/DeepEP docs/legacy.md (V1)"
GB = 1e9
#: Microseconds of low-latency kernels by GPUs: 128 tokens a GPU, hidden 7,168, 8 of 256 experts.
LOW_LATENCY = {
    "dispatch": {8: 77, 16: 118, 32: 155, 64: 173, 128: 192, 256: 194},
    "combine": {8: 114, 16: 195, 32: 273, 64: 314, 128: 369, 256: 360},
}
#: GB/s of normal kernels by GPUs: 4,096 tokens a GPU, top 4 of 8 groups; over NVLink for 8, over RDMA beyond, where a
#: token counts once for each node it goes to, its own included.
NORMAL = {"dispatch": {8: 153, 16: 43, 32: 58, 64: 51}, "combine": {8: 158, 16: 43, 32: 57, 64: 50}}
#: What the fixed times, NVLink shares and the share left by forwarding were fitted to.
FITTED = (8, 16)
TOLERANCE = 10.0


def rows() -> Iterator[Row]:
    """All of both tables."""
    for way, times in LOW_LATENCY.items():
        for ranks, us in times.items():
            yield _row(way, ranks, "us", us, low_latency=True)
    for way, rates in NORMAL.items():
        for ranks, rate in rates.items():
            yield _row(way, ranks, "GB/s", rate, low_latency=False)


def exchange(way: str, ranks: int, *, low_latency: bool) -> ExpertExchange:
    """DeepSeek-V3's exchange between H800."""
    gpu, model = load_gpu("h800_sxm"), load_model("deepseek-v3")
    kernel = kernels_of(gpu).find("deepep_low_latency" if low_latency else "deepep_normal", "any", "any")
    assert model.moe is not None
    return ExpertExchange(gpu, ranks, model.hidden, model.moe, kernel, way, low_latency)


def _row(way: str, ranks: int, unit: str, published: float, *, low_latency: bool) -> Row:
    kind: Kind = "fitted" if ranks in FITTED else "predicted"
    mode = "low latency, 128 tokens" if low_latency else "normal, 4,096 tokens"
    name = f"deepep-{'ll' if low_latency else 'normal'}-{way}-ep{ranks}"
    setup = f"{mode} a GPU, hidden 7,168, 8 of 256 experts, {ranks} H800 with a 400 Gbit/s card each"

    def simulate() -> float:
        found = exchange(way, ranks, low_latency=low_latency)
        if low_latency:
            return 1e6 * float(found.time(128.0).seconds)
        counted = found.reached_gpus() if found.nodes == 1 else found.reached_nodes()
        return counted * found.token_bytes / float(found.wire_seconds(1.0)) / GB

    note = "fixed time and NVLink share" if kind == "fitted" else ""
    return Row(name, SYSTEM, SOURCE, setup, kind, unit, published, TOLERANCE, simulate, note=note)
