"""What a model is, as far as time and memory are concerned: shapes, and the bytes that follow from them."""

from __future__ import annotations

from dataclasses import dataclass, field

from simulator.errors import TopologyError
from simulator.models import accounting
from simulator.models.precision import Parallel, Precision


@dataclass(frozen=True)
class Mla:
    """Multi-head latent attention (DeepSeek-V2, arXiv 2405.04434). ``q_rank`` 0: queries are not compressed."""

    kv_rank: int
    q_rank: int
    rope_dim: int
    nope_dim: int
    v_dim: int


@dataclass(frozen=True)
class Moe:
    """Mixture of experts. Layers from ``first_dense_layers`` on have ``experts`` routed experts of width
    ``expert_ffn``, ``top_k`` of them for a token, and ``shared_experts`` that every token takes (together
    ``shared_ffn`` wide; 0: ``shared_experts * expert_ffn``). ``groups``, ``top_groups``: group-limited routing, 1
    where absent."""

    experts: int
    top_k: int
    shared_experts: int
    expert_ffn: int
    first_dense_layers: int = 0
    groups: int = 1
    top_groups: int = 1
    shared_ffn: int = 0

    @property
    def shared_width(self) -> int:
        """Width of all shared experts together; 0 without any."""
        return self.shared_ffn or self.shared_experts * self.expert_ffn


@dataclass(frozen=True)
class Details:
    """Small tensors, for exact counts: biases, norms and learned positions."""

    qkv_bias: bool = False
    out_bias: bool = False
    mlp_bias: bool = False
    router_bias: bool = False
    expert_bias: bool = False
    norm_bias: bool = False
    qk_norm: bool = False
    sinks: bool = False
    embedding_norm: bool = False
    shared_gate: bool = False
    positions: int = 0


@dataclass(frozen=True)
class Model:
    """Shapes of a decoder-only transformer.

    ``head_dim`` is that of K and V heads (for MLA: ``nope_dim + rope_dim`` of Q and K; V has ``mla.v_dim``). ``ffn``
    is the width of the dense MLP (0 if every layer is MoE), ``gated`` whether MLPs have a gate matrix. ``windows``
    has one number a layer: tokens a sliding window sees, 0 for full attention. ``source`` says where the shapes come
    from.
    """

    name: str
    layers: int
    hidden: int
    q_heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    ffn: int
    gated: bool
    windows: tuple[int, ...]
    mla: Mla | None = None
    moe: Moe | None = None
    tie_embeddings: bool = False
    mtp_layers: int = 0
    max_context: int = 0
    source: str = ""
    details: Details = field(default_factory=Details)

    def __post_init__(self) -> None:
        problem = accounting.problem(self)
        if problem:
            raise TopologyError(f"{self.name}: {problem}")

    def is_moe_layer(self, layer: int) -> bool:
        """Whether this layer (0-based) has routed experts."""
        return self.moe is not None and layer >= self.moe.first_dense_layers

    @property
    def softmax_in_groups(self) -> bool:
        """Whether experts are chosen by softmax scores in groups, be it one: DeepSeek-V2. V3 and what followed choose
        by sigmoid scores and a bias."""
        return self.mla is not None and self.moe is not None and not self.details.router_bias

    @property
    def moe_layers(self) -> int:
        """Number of layers with routed experts."""
        return 0 if self.moe is None else max(self.layers - self.moe.first_dense_layers, 0)

    @property
    def dense_layers(self) -> int:
        """Number of layers with a dense MLP."""
        return self.layers - self.moe_layers

    def kv_heads_per_rank(self, tp: int) -> int:
        """KV heads one tensor-parallel rank holds: they are copied, not split, once tp exceeds their number."""
        return max(1, self.kv_heads // tp)

    def stage_layers(self, pp: int) -> tuple[range, ...]:
        """Layers of each pipeline stage, see ``accounting.stage_layers``."""
        return accounting.stage_layers(self.layers, pp)

    def parameters(self) -> int:
        """All parameters, without multi-token-prediction layers (counted apart in published figures)."""
        return accounting.parameters(self)

    def active_parameters(self, *, embedding: bool = True) -> int:
        """Parameters one token passes through: all but the routed experts not chosen for it.

        ``embedding`` False leaves out the input embedding, which is looked up and not multiplied.
        """
        return accounting.active_parameters(self, embedding=embedding)

    def mtp_parameters(self) -> int:
        """Parameters of the multi-token-prediction layers alone (embedding and head are shared with the model)."""
        return accounting.mtp_parameters(self)

    def weight_bytes(self, precision: Precision, parallel: Parallel, *, mtp: bool = False) -> int:
        """Bytes of weights on the fullest GPU of an engine; ``mtp`` counts the multi-token-prediction layers too."""
        return accounting.weight_bytes(self, precision, parallel, mtp=mtp)

    def kv_bytes_per_token(self, kv_precision: str = "bf16", tp: int = 1, pp: int = 1) -> float:
        """Bytes each further token adds on the fullest GPU once every window is full (layers with windows add none)."""
        return accounting.kv_bytes_per_token(self, kv_precision, tp, pp)

    def kv_bytes(self, context: int, kv_precision: str = "bf16", tp: int = 1, pp: int = 1) -> float:
        """Bytes of KV of one sequence of ``context`` tokens on the fullest GPU; windows hold no more than they see."""
        return accounting.kv_bytes(self, context, kv_precision, tp, pp)

    def kv_layer_bytes_per_token(self, kv_precision: str = "bf16", tp: int = 1) -> float:
        """Bytes one token takes in one layer on one GPU: what a block, or a transfer's descriptor, is made of."""
        return accounting.kv_layer_bytes_per_token(self, kv_precision, tp)

    def check_parallel(self, parallel: Parallel, place: str = "parallel") -> None:
        """Raise TopologyError if ``parallel`` cannot split this model; ``place`` opens the message."""
        accounting.check_parallel(self, parallel, place)
