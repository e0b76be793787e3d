"""The machine through torch: Triton kernels and CUDA graphs on a GPU, plain torch on a CPU."""

from __future__ import annotations

import ctypes
import math
import platform
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import cached_property

import torch
import torch.nn.functional as F  # noqa: N812

from simulator.calibration.measure import torch_kernels
from simulator.calibration.measure.check import flash_errors, kernel_errors
from simulator.calibration.measure.cuda_calls import memcpy, smi
from simulator.calibration.measure.flash3 import Flash3, find_library
from simulator.calibration.measure.ops import OWN, Array, Paged, Pattern, Timing, Trace, Work, one_gpu
from simulator.calibration.measure.plan import Plan
from simulator.calibration.measure.store import Row
from simulator.calibration.measure.timing import summary, wall_clock, wall_trace
from simulator.calibration.measure.torch_pools import Pools
from simulator.calibration.measure.torch_trace import traced

_TYPES = {
    "bf16": torch.bfloat16,
    "kv": torch.bfloat16,
    "fp8": torch.float8_e4m3fn,
    "fp32": torch.float32,
    "int": torch.int32,
}
#: Numbers in the pool that weights are taken from, on a GPU and elsewhere.
GPU_POOL, CPU_POOL = 8 * 2**30, 2**21
#: Bytes of pinned host memory.
PINNED = 2**30
#: A graph is filled with launches until it takes this long; copies rotate up to the second.
GRAPH_S, ROTATE_S, MOST_LAUNCHES = 4e-4, 3e-3, 128
FEWEST, MOST_SAMPLES = 7, 60
#: Work that is to be steady runs for so long, but at most so often, before it is timed.
SETTLE_S, MOST_SETTLING = 0.25, 2000
#: Before bursts the GPU rests; a burst is so long at most (an H200 lowers its clock after 30 to 100 ms above its power
#: limit, and forgets within 100 ms), and steady work is timed for so long (after some 0.7 s clocks fall once more).
REST_S, BURST_S, LAST_S = 0.12, 0.02, 0.2
#: A graph whose runs are noted over time takes at least so long.
TRACED_S = 1e-3
_QUERY = "clocks.sm,clocks.mem,power.draw,temperature.gpu"
_STATE = ("sm_mhz", "memory_mhz", "power_w", "temperature_c")


class TorchOps:
    """See ``Ops``."""

    page = 16

    def __init__(self, device: str, seed: int = 0, flash: str | None = None) -> None:
        self.kind = device.split(":", maxsplit=1)[0]
        self.device = torch.device(one_gpu(device, torch.cuda.current_device))
        torch.manual_seed(seed)
        self._kernels = torch_kernels.choose(self.kind)
        self._pools = Pools(self.device, min(GPU_POOL, self.memory_bytes() // 10) if self.kind == "cuda" else CPU_POOL)
        self._sides: list[torch.cuda.Stream] = []
        self._peers: dict[int, TorchOps] = {}
        path = find_library(flash) if self.kind == "cuda" else None
        self._flash = Flash3(path) if path is not None else None

    # -- the machine ---------------------------------------------------------------------------------------------

    def machine(self) -> dict[str, object]:
        found: dict[str, object] = {
            "torch": torch.__version__,
            "cuda": torch.version.cuda,
            "kernels": self._kernels.name,
            "paged_attention": self.paged_libraries(),
            "python": platform.python_version(),
            "host": f"{platform.machine()} {platform.system()}",
        }
        if self.kind == "cuda":
            about = torch.cuda.get_device_properties(self.device)
            found |= {
                "gpu": about.name,
                "gpus": torch.cuda.device_count(),
                "sms": about.multi_processor_count,
                "memory_bytes": about.total_memory,
                "l2_bytes": about.L2_cache_size,
                "driver": (smi("driver_version,power.limit,clocks.max.sm,clocks.max.mem") or ["unknown"]),
            }
        return found

    def state(self) -> dict[str, float]:
        values = smi(_QUERY) if self.kind == "cuda" else None
        with suppress(ValueError):
            return dict(zip(_STATE, [float(v) for v in values or ()], strict=False))
        return {}

    def gpus(self) -> int:
        return torch.cuda.device_count() if self.kind == "cuda" else 2

    def peer(self, index: int) -> TorchOps:
        if self.kind != "cuda":
            return self
        if index not in self._peers:
            self._peers[index] = TorchOps(f"cuda:{index}")
            torch.ones(1, device=self.device).to(f"cuda:{index}")  # lets kernels reach the other's memory
        return self._peers[index]

    def memory_bytes(self) -> int:
        return int(torch.cuda.get_device_properties(self.device).total_memory) if self.kind == "cuda" else 2**28

    def l2_bytes(self) -> int:
        return int(torch.cuda.get_device_properties(self.device).L2_cache_size) if self.kind == "cuda" else 2**10

    def errors(self) -> dict[str, float]:
        found = kernel_errors(self._kernels, self.device, torch.bfloat16)
        if self._flash is not None:
            found |= flash_errors(self._flash, self.device)
            self._flash.forget()
        return found

    # -- arrays --------------------------------------------------------------------------------------------------

    def random(self, shape: Sequence[int], kind: str = "bf16") -> Array:
        found = torch.randn(tuple(shape), dtype=torch.bfloat16, device=self.device)
        return found.to(_TYPES[kind])

    def weights(self, shape: Sequence[int], kind: str, index: int) -> Array:
        return self._pools.view(shape, kind, index)

    def empty(self, shape: Sequence[int], kind: str = "bf16") -> Array:
        return torch.empty(tuple(shape), dtype=_TYPES[kind], device=self.device)

    def integers(self, values: Sequence[int] | Sequence[Sequence[int]]) -> Array:
        return torch.tensor(values, dtype=torch.int32, device=self.device)

    def permutation(self, count: int) -> Array:
        return torch.randperm(count, device=self.device, dtype=torch.int32)

    # -- products ------------------------------------------------------------------------------------------------

    def matmul(self, x: Array, w: Array, out: Array) -> None:
        torch.mm(x, w.t(), out=out)

    def quantise(self, x: Array, out: Array, scales: Array) -> None:
        self._kernels.quantise(x, out, scales)

    def matmul_fp8(self, x: Array, scales: Array, w: Array, out: Array) -> None:
        if self.kind != "cuda":
            out.copy_((x.float() * scales) @ w.float().t())
            return
        ones = torch_kernels.ones(w.shape[0] if scales.numel() > 1 else 1, self.device)
        torch._scaled_mm(x, w.t(), scale_a=scales, scale_b=ones, out_dtype=out.dtype, use_fast_accum=True, out=out)

    # -- small kernels -------------------------------------------------------------------------------------------

    def add_norm(self, x: Array, residual: Array, weight: Array, out: Array) -> None:
        self._kernels.add_norm(x, residual, weight, out)

    def rotate(self, qkv: Array, positions: Array, heads: int, width: int) -> None:
        self._kernels.rotate(qkv, positions, heads, width)

    def write_cache(self, qkv: Array, q_heads: int, cache: Paged, slots: Array) -> None:
        self._kernels.write_cache(qkv, q_heads, cache, slots)

    def activate(self, x: Array, out: Array) -> None:
        self._kernels.activate(x, out)

    def embed(self, table: Array, tokens: Array, out: Array) -> None:
        torch.index_select(table, 0, tokens, out=out)

    def sample(self, logits: Array, out: Array) -> None:
        out.copy_(logits.float().argmax(dim=-1))

    # -- attention -----------------------------------------------------------------------------------------------

    def paged_libraries(self) -> tuple[str, ...]:
        return (OWN,) if self._flash is None else (OWN, "vllm")

    def prefill_attention(
        self, qkv: Array, starts: Array, longest: int, cache: Paged, out: Array, library: str = OWN
    ) -> None:
        if library == OWN:
            self._kernels.prefill(qkv, starts, longest, cache, out)
        else:
            self._flash.attend(qkv, starts, longest, cache, out)  # type: ignore[union-attr]

    def dense_attention(self, q: Array, k: Array, v: Array, library: str) -> Array:
        from torch.nn.attention import SDPBackend, sdpa_kernel

        kinds = {"cudnn": SDPBackend.CUDNN_ATTENTION, "flash": SDPBackend.FLASH_ATTENTION, "math": SDPBackend.MATH}
        with sdpa_kernel([kinds[library]]):
            return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)

    def dense_libraries(self) -> tuple[str, ...]:
        return ("cudnn",) if self.kind == "cuda" else ("math",)

    def decode_attention(self, qkv: Array, q_heads: int, cache: Paged, out: Array, library: str = OWN) -> None:
        if library == OWN:
            self._kernels.decode(qkv, q_heads, cache, out)
        else:
            self._flash.attend(qkv, None, 1, cache, out)  # type: ignore[union-attr]

    # -- experts -------------------------------------------------------------------------------------------------

    def choose(self, logits: Array, top_k: int, ids: Array, shares: Array) -> None:
        values, found = torch.topk(logits.float(), top_k, dim=-1)
        ids.copy_(found)
        shares.copy_(torch.softmax(values, dim=-1))

    def experts(self, x: Array, ids: Array, shares: Array, weights: tuple[Array, Array], out: Array) -> None:
        self._kernels.experts(x, ids, shares, weights, out)

    # -- copies --------------------------------------------------------------------------------------------------

    def stream(self, source: Array, target: Array) -> None:
        target.copy_(source)

    def empty_kernel(self) -> None:
        self._kernels.nothing(self.device)

    def host_buffer(self, size: int) -> Array:
        return self._pinned[:size]

    @cached_property
    def _pinned(self) -> torch.Tensor:
        size = PINNED if self.kind == "cuda" else CPU_POOL
        return torch.ones(size, dtype=torch.uint8, pin_memory=self.kind == "cuda")

    def device_buffer(self, size: int) -> Array:
        return torch.ones(size, dtype=torch.uint8, device=self.device)

    def copy_bytes(self, source: Array, target: Array, moves: Sequence[tuple[int, int, int]], streams: int = 1) -> None:
        if self.kind != "cuda":
            for a, b, size in moves:
                target[b : b + size] = source[a : a + size]
        elif streams == 1:
            self._copy(source, target, moves)
        else:
            start, sides = torch.cuda.Event(), self._side_streams(streams)
            start.record()
            for i, side in enumerate(sides):
                side.wait_event(start)
                with torch.cuda.stream(side):
                    self._copy(source, target, moves[i::streams])
                    done = torch.cuda.Event()
                    done.record()
                torch.cuda.current_stream(self.device).wait_event(done)

    def _side_streams(self, count: int) -> list[torch.cuda.Stream]:
        while len(self._sides) < count:
            self._sides.append(torch.cuda.Stream(self.device))
        return self._sides[:count]

    def _copy(self, source: Array, target: Array, moves: Sequence[tuple[int, int, int]]) -> None:
        call, stream = memcpy(), ctypes.c_void_p(torch.cuda.current_stream(self.device).cuda_stream)
        src, dst = source.data_ptr(), target.data_ptr()
        for a, b, size in moves:
            failed = call(ctypes.c_void_p(dst + b), ctypes.c_void_p(src + a), ctypes.c_size_t(size), 4, stream)
            if failed:
                raise RuntimeError(f"cudaMemcpyAsync: error {failed}")

    def gather_bytes(self, source: Array, target: Array, block: int, order: Array) -> None:
        self._kernels.gather(source, target, block, order)

    # -- timing --------------------------------------------------------------------------------------------------

    def ranks(self, plan: Plan) -> list[Row]:
        from simulator.calibration.measure.ranks import measure_ranks

        return measure_ranks(self.kind, plan) if self.gpus() > 1 else []

    def repeat(self, run: Callable[[], None], count: int) -> Timing:
        """Time ``count`` runs, launch by launch."""
        if self.kind == "cuda":
            return summary(self._event_seconds(run, count))
        return summary([wall_clock(Work(lambda i: run()), 0.0, count=1).median_s for _ in range(count)])

    def finish(self) -> None:
        if self._flash is not None:
            self._flash.forget()
        if self.kind == "cuda":
            torch.cuda.synchronize(self.device)
            if torch.cuda.memory_reserved(self.device) > 0.8 * self.memory_bytes():
                torch.cuda.empty_cache()

    def time(self, work: Work, seconds: float) -> Timing:
        if self.kind != "cuda":
            return wall_clock(work, seconds)
        if work.on is not None and work.on is not self:
            return work.on.time(replace(work, on=None), seconds)
        with torch.cuda.device(self.device):
            return self._timed(work, seconds) if work.beside is None else self._timed_beside(work, seconds)

    def _timed_beside(self, work: Work, seconds: float) -> Timing:
        """Time the work while replays of the other are queued on a stream of its own, enough for all samples."""
        assert work.beside is not None
        other, load = work.beside
        assert isinstance(other, TorchOps)
        alone = other.time(load, seconds)
        with torch.cuda.device(other.device):
            graph, launches = other._graph(load, alone.median_s)
            stream = torch.cuda.Stream(other.device)
        rough = self.time(replace(work, beside=None), seconds).median_s
        mine, count = self._graph(work, rough)
        samples = max(FEWEST, min(MOST_SAMPLES, int(seconds / (rough * count))))
        # slowed down by up to three times each, the load still outlasts the samples
        replays = math.ceil(10 * samples * rough * count / (alone.median_s * launches)) + 2
        with torch.cuda.device(other.device), torch.cuda.stream(stream):
            for _ in range(replays):
                graph.replay()
        found = summary([s / count for s in self._event_seconds(mine.replay, samples)])
        torch.cuda.synchronize(other.device)
        return found

    def trace(self, work: Work, pattern: Pattern) -> Trace:
        if self.kind != "cuda":
            return wall_trace(work, pattern)
        for i in range(work.copies):
            work.run(i)
        rough = self._event_seconds(lambda: work.run(0), 2)[-1]
        each = max(1, math.ceil(TRACED_S / rough)) if pattern.on_s else 1
        graphs = [self._captured(work, range(i, i + each)) for i in range(work.copies)]
        found = traced(self.device, graphs, pattern, self._event_seconds(graphs[0].replay, 2)[-1])
        for graph in graphs:
            graph.reset()
        return replace(found, took_s=[s / each for s in found.took_s])

    def _timed(self, work: Work, seconds: float) -> Timing:
        for i in range(2):
            work.run(i % work.copies)
        rough = self._event_seconds(lambda: work.run(0), 2)[-1]
        if work.eager:
            return self._sampled(work, lambda: work.run(0), rough, 1, seconds)
        graph, launches = self._graph(work, rough)
        once = self._event_seconds(graph.replay, 2)[-1]
        found = self._sampled(work, graph.replay, once, launches, seconds)
        graph.reset()
        return found

    def _sampled(self, work: Work, run: Callable[[], None], once: float, launches: int, seconds: float) -> Timing:
        count = max(FEWEST, min(MOST_SAMPLES, int(seconds / once)))
        if not work.steady:
            return summary([s / launches for s in self._event_seconds(run, count)])
        burst = summary([s / launches for s in self._rested(run, once, count)])
        for _ in range(min(math.ceil(SETTLE_S / once), MOST_SETTLING)):
            run()
        steady = summary([s / launches for s in self._event_seconds(run, min(count, max(3, int(LAST_S / once))))])
        return replace(burst, steady_s=steady.median_s)

    def _rested(self, run: Callable[[], None], once: float, count: int) -> list[float]:
        """Seconds of runs that come right after a pause, while power is still averaged with that of the pause."""
        each = max(1, min(count, int(BURST_S / once)))
        found: list[float] = []
        while len(found) < min(count, 3 * each):
            torch.cuda.synchronize(self.device)
            time.sleep(REST_S)
            found += self._event_seconds(run, each)
        return found

    def _event_seconds(self, run: Callable[[], None], count: int) -> list[float]:
        events = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(count)]
        for before, after in events:
            before.record()
            run()
            after.record()
        torch.cuda.synchronize(self.device)
        return [max(before.elapsed_time(after) * 1e-3, 1e-9) for before, after in events]

    def _graph(self, work: Work, rough: float) -> tuple[torch.cuda.CUDAGraph, int]:
        launches = max(min(work.copies, math.ceil(ROTATE_S / rough)), math.ceil(GRAPH_S / rough))
        launches = max(1, min(launches, MOST_LAUNCHES))
        return self._captured(work, range(launches)), launches

    def captured(self, run: Callable[[], None]) -> torch.cuda.CUDAGraph:
        """One run as a graph."""
        return self._captured(Work(lambda i: run()), range(1))

    def _captured(self, work: Work, indices: range) -> torch.cuda.CUDAGraph:
        graph, side = torch.cuda.CUDAGraph(), torch.cuda.Stream(self.device)
        torch.cuda.synchronize(self.device)
        with torch.cuda.stream(side):
            graph.capture_begin(capture_error_mode="thread_local")
            try:
                for i in indices:
                    work.run(i % work.copies)
            finally:
                graph.capture_end()
        torch.cuda.synchronize(self.device)
        return graph
