"""Number formats of weights, KV cache and arithmetic, and how the GPUs of one engine share a model."""

from __future__ import annotations

from dataclasses import dataclass, fields

from simulator.errors import TopologyError, unknown
from simulator.units import BYTES_PER_NUMBER

#: FP8 latent of MLA with its scales: 512 fp8 values, four fp32 scales and 64 bf16 rotary values, 656 bytes in all
#: (the "fp8_ds_mla" layout of vLLM and FlashMLA, https://github.com/deepseek-ai/FlashMLA).
FP8_DS_MLA = "fp8_ds_mla"
KV_FORMATS = (*BYTES_PER_NUMBER, FP8_DS_MLA)

#: Arithmetic of a GEMM where none is stated: what the tensor core multiplies for weights of each format.
#: int4 and mxfp4 weights are widened to bf16 in registers (W4A16: Marlin, AWQ, the Hopper path of gpt-oss).
_GEMM_ARITHMETIC = {
    "fp32": "fp32",
    "bf16": "bf16",
    "fp16": "bf16",
    "fp8": "fp8",
    "fp8_block": "fp8",
    "int8": "int8",
    "nvfp4": "nvfp4",
    "mxfp4": "bf16",
    "int4": "bf16",
}
_ARITHMETIC = ("bf16", "fp8", "nvfp4", "mxfp4", "int8", "fp32")


@dataclass(frozen=True)
class Precision:
    """Number formats of one engine. Names of stored formats are those of ``units.BYTES_PER_NUMBER``.

    ``weights``: the linear layers and the experts. Embeddings, output head, router, norms and biases stay in bf16, as
    in published checkpoints. ``kv_cache``: the cache; also ``fp8_ds_mla``. ``activations``: arithmetic of the GEMMs
    (None: what ``weights`` implies, see ``gemm_arithmetic``). ``attention``: arithmetic of the attention kernel
    (None: bf16). ``attention_weights``: format of the attention projections (None: as ``weights``, but bf16 with
    mxfp4, whose published checkpoints quantise the experts alone).
    """

    weights: str = "bf16"
    kv_cache: str = "bf16"
    activations: str | None = None
    attention: str | None = None
    attention_weights: str | None = None

    def __post_init__(self) -> None:
        allowed = {
            "weights": tuple(BYTES_PER_NUMBER),
            "kv_cache": KV_FORMATS,
            "activations": _ARITHMETIC,
            "attention": _ARITHMETIC,
            "attention_weights": tuple(BYTES_PER_NUMBER),
        }
        for f in fields(self):
            value = getattr(self, f.name)
            optional = f.name not in ("weights", "kv_cache")
            if value not in allowed[f.name] and not (optional and value is None):
                raise TopologyError(unknown(f"precision.{f.name}", "format", value, allowed[f.name]))

    @property
    def attention_weight_format(self) -> str:
        """Stored format of the attention projections."""
        if self.attention_weights is not None:
            return self.attention_weights
        return "bf16" if self.weights == "mxfp4" else self.weights

    @property
    def linear_weight_format(self) -> str:
        """Stored format of dense MLPs and shared experts."""
        return self.weights

    @property
    def gemm_arithmetic(self) -> str:
        """Arithmetic of dense and expert GEMMs, a key of ``Gpu.peak_flops``."""
        return self.activations or _GEMM_ARITHMETIC[self.weights]

    @property
    def attention_gemm_arithmetic(self) -> str:
        """Arithmetic of the attention projections' GEMMs, a key of ``Gpu.peak_flops``."""
        stored = self.attention_weight_format
        return self.gemm_arithmetic if stored == self.weights else _GEMM_ARITHMETIC[stored]

    @property
    def attention_arithmetic(self) -> str:
        """Arithmetic of the attention kernel, a key of ``Gpu.peak_flops``."""
        return self.attention or "bf16"


@dataclass(frozen=True)
class Parallel:
    """How one engine's GPUs share a model: ``tp * pp * dp`` of them.

    ``tp`` splits every layer, ``pp`` the stack of layers. ``dp`` > 1 is attention data parallelism: each of the dp
    ranks holds a full copy (over its tp GPUs) of all but the routed experts and serves its own requests; the routed
    experts are shared by all tp * dp GPUs. ``ep`` = tp * dp: whole experts are dealt out to those GPUs; ``ep`` = 1:
    each expert is cut over them.
    """

    tp: int = 1
    pp: int = 1
    dp: int = 1
    ep: int = 1

    def __post_init__(self) -> None:
        for f in fields(self):
            value = getattr(self, f.name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise TopologyError(f"parallel.{f.name}: {value!r} is not a whole number of 1 or more")
        if self.ep not in (1, self.tp * self.dp):
            allowed = f"1 or tp * dp = {self.tp * self.dp}"
            raise TopologyError(f"parallel.ep: {self.ep} with tp {self.tp} and dp {self.dp}; allowed: {allowed}")

    @property
    def gpus(self) -> int:
        """GPUs of one engine."""
        return self.tp * self.pp * self.dp

    @property
    def expert_gpus(self) -> int:
        """GPUs that share the routed experts of one pipeline stage."""
        return self.tp * self.dp


def share(width: int, ranks: int) -> int:
    """One rank's part of ``width``, rounded up."""
    return -(-width // ranks)
