"""What a machine must be able to do for the measuring program: arrays, kernels, copies, and timing them.

``NumpyOps`` does it in plain arrays (tests, machines without torch), ``TorchOps`` with torch and Triton.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from simulator.calibration.measure.plan import Plan
from simulator.calibration.measure.store import Row

#: The kernels that come with this program.
OWN = "own"
#: An array of whatever library the machine has.
Array = Any


def one_gpu(device: str, current: Callable[[], int]) -> str:
    """``device``, and where that is a GPU without a number, the ``current`` one by its number: 'cuda' alone means
    whichever is current when it is used, which is another one while work beside it is set up there."""
    return f"cuda:{current()}" if device == "cuda" else device


@dataclass(frozen=True)
class Timing:
    """Seconds of one run of a piece of work: median and quartiles over ``samples``; ``steady_s``: median after a while
    of the same work, where that was asked for."""

    median_s: float
    q25_s: float
    q75_s: float
    samples: int
    steady_s: float | None = None


@dataclass(frozen=True)
class Work:
    """Something to time. ``run(i)`` does it once on the ``i``-th of ``copies`` sets of data, so that caches do not
    flatter. ``eager``: launch by launch from the host, not replayed from a graph. ``steady``: timed again after a while
    of the same work, at the clocks that power allows for long: work that computes much is faster in a short burst.
    ``beside``: a machine and what runs there all the while. ``on``: the GPU that runs it, if not the first."""

    run: Callable[[int], None]
    copies: int = 1
    eager: bool = False
    steady: bool = False
    beside: tuple[Ops, Work] | None = None
    on: Ops | None = None


@dataclass(frozen=True)
class Paged:
    """KV cache in pages. ``k``, ``v``: (pages, page, kv heads, width); ``table``: (sequences, pages of each);
    ``lengths``: tokens of each sequence to attend to; ``longest`` of them."""

    k: Array
    v: Array
    table: Array
    lengths: Array
    longest: int


@dataclass(frozen=True)
class Pattern:
    """When work is run to see clocks and power over time: after a pause of ``off_s``, for ``on_s`` (0: once for each of
    its copies), ``rounds`` times over."""

    on_s: float
    off_s: float
    rounds: int = 1


@dataclass(frozen=True)
class Trace:
    """What was seen: seconds since the first run at which each run began, and seconds it took; and the meter's
    readings, by name, with the seconds they were taken at (``read_s``). ``rounds``: in which round each run was."""

    began_s: list[float]
    took_s: list[float]
    rounds: list[int]
    readings: dict[str, list[float]]


class Ops(Protocol):
    """One machine. ``kind``: 'cuda', 'cpu' or 'numpy'. Matrices are row-major; weights are (out, in). Formats are
    'bf16', 'fp8', 'fp32' and 'int'; 'kv' is bf16 of unit size for caches, which steps write to. Outputs are written
    into arrays handed in."""

    kind: str
    page: int

    def machine(self) -> dict[str, object]:
        """Provenance: device, driver, libraries."""

    def state(self) -> dict[str, float]:
        """Clocks, power and temperature now; empty if unknown."""

    def errors(self) -> dict[str, float]:
        """Error of each kernel beside a plain one, as a fraction of the result's norm; empty if all are plain."""

    def gpus(self) -> int:
        """GPUs that reach each other."""

    def peer(self, index: int) -> Ops:
        """The machine through another of its GPUs."""

    def memory_bytes(self) -> int:
        """Memory of the device."""

    def l2_bytes(self) -> int:
        """Last cache of the device: copies rotate through several times as much."""

    def random(self, shape: Sequence[int], kind: str = "bf16") -> Array:
        """Random numbers of unit size."""

    def weights(self, shape: Sequence[int], kind: str, index: int) -> Array:
        """The ``index``-th set of small random numbers of this shape; sets do not overlap until a pool is used up."""

    def empty(self, shape: Sequence[int], kind: str = "bf16") -> Array:
        """Room for a result."""

    def integers(self, values: Sequence[int] | Sequence[Sequence[int]]) -> Array:
        """Whole numbers of 32 bits."""

    def permutation(self, count: int) -> Array:
        """0 .. count - 1 in random order."""

    def matmul(self, x: Array, w: Array, out: Array) -> None:
        """``x w^T``."""

    def quantise(self, x: Array, out: Array, scales: Array) -> None:
        """fp8 of each row of ``x`` with a scale of its own."""

    def matmul_fp8(self, x: Array, scales: Array, w: Array, out: Array) -> None:
        """``x w^T`` of fp8, in bf16; ``scales``: one a row of ``x``, (rows, 1), or one for all, (1, 1)."""

    def add_norm(self, x: Array, residual: Array, weight: Array, out: Array) -> None:
        """``residual += x``, and its root-mean-square norm times ``weight``."""

    def rotate(self, qkv: Array, positions: Array, heads: int, width: int) -> None:
        """Rotary embedding of the first ``heads`` heads of each row, in place."""

    def write_cache(self, qkv: Array, q_heads: int, cache: Paged, slots: Array) -> None:
        """Keys and values of each row to their slot (page times page size plus place) of the cache."""

    def activate(self, x: Array, out: Array) -> None:
        """``silu`` of the first half of each row times the second half."""

    def embed(self, table: Array, tokens: Array, out: Array) -> None:
        """Rows of the table."""

    def sample(self, logits: Array, out: Array) -> None:
        """Greedy: index of the largest logit, in fp32."""

    def paged_libraries(self) -> tuple[str, ...]:
        """Kernels for paged caches: 'own', and 'vllm' where its FlashAttention 3 is at hand."""

    def prefill_attention(
        self, qkv: Array, starts: Array, longest: int, cache: Paged, out: Array, library: str = OWN
    ) -> None:
        """Causal attention of chunks over paged K and V, their own tokens included (``lengths`` counts them). Sequence
        ``b`` has rows ``starts[b] .. starts[b+1]`` of ``qkv`` (queries first in each row), ``longest`` at most."""

    def dense_attention(self, q: Array, k: Array, v: Array, library: str) -> Array:
        """Causal attention of whole prompts, (sequences, heads, tokens, width), by a kernel of the library."""

    def dense_libraries(self) -> tuple[str, ...]:
        """Kernels of the library that ``dense_attention`` knows here."""

    def decode_attention(self, qkv: Array, q_heads: int, cache: Paged, out: Array, library: str = OWN) -> None:
        """One query a sequence over its paged cache."""

    def choose(self, logits: Array, top_k: int, ids: Array, shares: Array) -> None:
        """The ``top_k`` largest of each row and the softmax over them."""

    def experts(self, x: Array, ids: Array, shares: Array, weights: tuple[Array, Array], out: Array) -> None:
        """Gated experts of each row, weighted by ``shares``. ``weights``: (experts, 2 width, hidden) and (experts,
        hidden, width)."""

    def stream(self, source: Array, target: Array) -> None:
        """Copy within the device, by the library."""

    def empty_kernel(self) -> None:
        """The smallest piece of work."""

    def host_buffer(self, size: int) -> Array:
        """Bytes in host memory that the device can reach."""

    def device_buffer(self, size: int) -> Array:
        """Bytes in device memory."""

    def copy_bytes(self, source: Array, target: Array, moves: Sequence[tuple[int, int, int]], streams: int = 1) -> None:
        """One copy a (source offset, target offset, bytes), started from the host, dealt out over ``streams``."""

    def gather_bytes(self, source: Array, target: Array, block: int, order: Array) -> None:
        """One kernel that copies ``block`` bytes for each entry of ``order`` from its place to the next one."""

    def ranks(self, plan: Plan) -> list[Row]:
        """Rows of several processes with a GPU each; none where there are no such."""

    def time(self, work: Work, seconds: float) -> Timing:
        """Time the work for about ``seconds``."""

    def trace(self, work: Work, pattern: Pattern) -> Trace:
        """Run the work, each copy a graph of its own, and note every run; clocks and power beside it where known."""

    def finish(self) -> None:
        """Wait for all work, and give back what earlier cases held."""
