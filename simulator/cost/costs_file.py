"""The ``costs`` mapping of an engine profile: what may stand there, and what it means."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from simulator.schema import Schema

#: Marks seconds that a faster host shortens.
OF_HOST = "of the host"
HostSeconds = Annotated[float, Field(ge=0, le=60), OF_HOST]
ColdSeconds = Annotated[float, Field(ge=0, le=3600), OF_HOST]
GpuSeconds = Annotated[float, Field(ge=0, le=1)]
NormBytes = Annotated[float, Field(ge=0, le=1e12)]
Multiple = Annotated[int, Field(ge=1, le=4096)]
Share = Annotated[float, Field(ge=0, le=1)]
Format = Literal["bf16", "fp8", "nvfp4", "mxfp4", "int8"]
#: Kernels before a GEMM that may quantise its activations; all of them where a profile says ``true``.
QUANTISING = ("norm", "attention", "activation")


class ExpertsFile(Schema):
    """How experts are spread over many GPUs: see ``simulator.cost.experts.ExpertParallelism``."""

    grouped: bool = False
    micro_batches: int = Field(ge=1, le=2, default=1)
    redundant: int = Field(ge=0, le=4096, default=0)
    placement: Literal["even", "static", "balanced"] = "even"
    skew: float = Field(ge=0, le=4, default=0.0)
    drift: float = Field(ge=0, le=4, default=0.0)


class ExpertBackend(Schema):
    """One way of an engine to run routed experts: what differs from its own."""

    #: whose rows of the expert tables it runs, where they are not those of ``kernels``
    expert_kernels: str = ""
    #: GPU seconds of a layer, and of a layer for each token, for sorting and copying tokens by expert beside those rows
    expert_routing_s: GpuSeconds = 0.0
    expert_token_s: GpuSeconds = 0.0
    #: how fast its experts widen their weights, over Marlin's kernels
    expert_widening: float = Field(gt=0, le=10, default=1.0)
    #: in place of the engine's own
    eager_moe_layer_s: HostSeconds | None = None
    #: its experts' kernels choose from the router's logits themselves
    router_choice_inside: bool = False
    source: str


class CostsFile(Schema):
    """What an engine adds to its kernels, the same for every deployment.

    Seconds are seconds of a host as sold with an H100 (``Gpu.host_speed``) unless they are said to be the GPU's. Every
    number has its origin in ``sources``.
    """

    # Kernels
    #: whose measured kernels it runs (vllm, sglang, trtllm), and whose all-reduce (rows of the collective tables)
    kernels: str
    all_reduce: str
    #: by format, whose GEMMs it runs where they are not those of ``kernels``
    gemm_kernels: dict[str, str] = Field(default_factory=dict)
    #: rotary embedding and KV write are part of the attention kernel, and in its table rows
    rope_in_attention: bool = False
    #: activations are quantised inside the kernel before (a norm, an all-reduce that the norm is part of, attention,
    #: the activation), not by a pass of their own; but for fp8_block, which always has one
    fused_quantisation: bool | tuple[Literal["norm", "all_reduce", "attention", "activation"], ...] = False
    #: the norm after an all-reduce is part of it, for messages of ``fused_norm_bytes`` at most (by ranks: of the
    #: largest number that is not above the engine's; none stated: of any size); these run ``fused_all_reduce``, if
    #: that is stated
    fused_norm_all_reduce: bool = False
    fused_norm_bytes: dict[Annotated[int, Field(ge=2)], NormBytes] = Field(default_factory=dict)
    fused_all_reduce: str = ""
    #: up to so many tokens the router and the compression of MLA, stored in bf16, run on kernels that read weights as
    #: fast as memory gives them; and the same for a router with a bias
    low_latency_tokens: int = Field(ge=0, le=10**6, default=0)
    low_latency_router_tokens: int = Field(ge=0, le=10**6, default=0)
    #: batch sizes that a pure decode step is padded to
    decode_graph_sizes: tuple[int, ...] = ()
    #: GPU seconds by which a kernel of a decode step's graph begins sooner, since it is set up while the one before it
    #: ends (programmatic dependent launch)
    dependent_launch_s: float = Field(ge=0, le=1e-5, default=0.0)
    #: GPU seconds that ranks wait for one another at each all-reduce of a step: in the tables' loop all start together
    all_reduce_wait_s: float = Field(ge=0, le=1e-3, default=0.0)
    #: GPU seconds of quantising the activations of a GEMM in fp8_block, which its rows do not hold
    block_quantise_s: float = Field(ge=0, le=1e-3, default=0.0)
    #: GPU seconds of choosing a token, for each logit, beside reading them
    sampling_logit_s: float = Field(ge=0, le=1e-6, default=0.0)

    # Experts
    #: the kernel of experts whose weights are widened, where it is not that of ``kernels`` in bf16
    widened_experts: str = ""
    #: by kernel (that one, or native): multiples to which it pads the hidden size and the width of experts in mxfp4
    mxfp4_padding: dict[str, tuple[Multiple, Multiple]] = Field(default_factory=dict)
    #: experts in fp8_block run DeepGEMM over a layout that is sized for the worst case, in which padding of up to one
    #: less than so many rows follows those of each expert (0: kernels of the tables)
    expert_block_rows: int = Field(ge=0, le=4096, default=0)
    #: ``beside``: a decode step computes shared experts next to the routed ones (a second stream, or one more expert of
    #: the same kernel), which leaves only their bytes to be read
    shared_experts: Literal["apart", "beside"] = "apart"
    expert_all_to_all: Literal["all_gather", "deepep"] = "all_gather"
    #: ``all_reduce``: a step with prompts brings the tokens of all data-parallel ranks together, and what experts made
    #: of them back, by all-reduces
    prompt_exchange: Literal["gather", "all_reduce"] = "gather"
    #: rows of the expert tables: balanced, skewed (power law 1.2), ``by_groups`` (skewed for models whose router
    #: chooses among groups of experts) or ``busiest`` (so, but steps with prompts take the slower of both where experts
    #: are spread over GPUs)
    routing: Literal["balanced", "skewed", "by_groups", "busiest"] = "balanced"
    #: ``identical``: all decoding sequences choose the same experts, as when random weights make them repeat one token
    decode_routing: Literal["independent", "identical"] = "independent"
    experts: ExpertsFile = ExpertsFile()
    #: measured rows of its experts have the router's choice in them (softmax and top-k), so it costs nothing more
    router_choice_in_rows: bool = False
    #: what choosing by softmax scores in groups (DeepSeek-V2) takes more in a layer than by the engine's own kernel
    grouped_choice_s: GpuSeconds = 0.0
    expert_backends: dict[str, ExpertBackend] = Field(default_factory=dict)

    # Host work of steps
    #: host work of a step is hidden behind the GPU work of the one before (asynchronous scheduling)
    overlap: bool
    #: host work of a step, and of each sequence in it (scheduling, inputs, outputs)
    host_step_s: HostSeconds
    host_seq_s: HostSeconds
    #: what no overlap hides, a step and a sequence; and where attention is data-parallel, whose ranks tell one another
    #: by host collectives what a step holds
    step_gap_s: HostSeconds
    seq_gap_s: HostSeconds = 0.0
    rank_gap_s: HostSeconds = 0.0

    # Launches of steps with prompts, whose kernels are not one CUDA graph
    #: a floor under such a step: host time to launch it, and for each layer
    mixed_step_s: HostSeconds
    mixed_layer_s: HostSeconds
    #: what such a step takes more than its GPU work
    mixed_gap_s: HostSeconds
    #: steps of more tokens launch every kernel on its own (0: they always do, or the floor above says it all): host
    #: seconds a layer, more with routed experts (Triton's kernels; those of one call take less), more with MLA, more
    #: for each GEMM in fp8_block (``simulator.cost.launches``); and for how long a layer the GPU idles between kernels
    mixed_graph_tokens: int = Field(ge=0, le=10**9, default=0)
    eager_layer_s: HostSeconds = 0.0
    eager_moe_layer_s: HostSeconds = 0.0
    eager_mla_layer_s: HostSeconds = 0.0
    eager_block_gemm_s: HostSeconds = 0.0
    eager_gap_s: HostSeconds = 0.0
    #: kernels that may wait on the GPU; a host that launches more stands still until there is room (0: not told apart)
    launch_queue: int = Field(ge=0, le=10**6, default=0)
    #: with overlap, such a step is launched while the one before it runs, whose tokens are handed out only afterwards,
    #: and ``mixed_step_s`` is what goes by before its first kernel (an engine of SGLang then looks at once for what has
    #: come meanwhile); without, launching is a floor under the step's own time. A pure decode step is launched in the
    #: host work of a step, and, but in SGLang's engines, holds results back in the same way
    launch_ahead: bool = False
    #: of such a launch, for each sequence of the step, up to so many
    launch_seq_s: HostSeconds = 0.0
    launch_most_seqs: int = Field(ge=1, le=2**31, default=2**31)
    #: share by which the host's pace makes a launch shorter or longer, and seconds for which it keeps that pace
    launch_swing: Share = 0.0
    launch_stretch_s: float = Field(gt=0, le=3600, default=1.0)
    #: share of a launch that is exponentially distributed
    launch_jitter: Share = 0.0
    #: what launching takes longer where kernels are fetched or compiled when first used: in an engine's first step with
    #: prompts, and in its first that goes on with a prompt computed in part (SGLang's policy alone looks at them)
    cold_prompt_s: ColdSeconds = 0.0
    cold_past_s: ColdSeconds = 0.0

    # Power
    #: steps keep to the GPU's power limit (``simulator.cost.power``); the kernels of the tables then stand for full
    #: clocks
    power_limit: bool = False
    #: by how much longer steps with prompts take on a GPU whose limit has not been measured
    power_slower: Share = 0.0
    #: by how much longer the kernels of a step with prompts take than those of the tables (a GPU at its limit runs
    #: slower than in the short bursts that were measured), but for linear layers in these formats, whose kernels stay
    #: below it
    mixed_slower: Share = 0.0
    full_clock_formats: tuple[Format, ...] = ()
    #: with a limit: how fast prefill attention is over earlier tokens at full clocks, over its speed on a chunk's own
    #: (0: as the tables' profile says)
    past_attention: float = Field(ge=0, le=2, default=0.0)

    # Front end
    #: a request before it is first scheduled, and each token of its prompt (parsing, tokenising, passing on)
    frontend_s: HostSeconds
    frontend_prompt_token_s: HostSeconds = 0.0
    #: from a token's step to the client, and for each token of the step that is handed out before it: a new request's
    #: is the last
    detokenise_s: HostSeconds
    deliver_token_s: HostSeconds = 0.0
    #: of these, the work of one process that others wait for: reading a request, passing it on, a token, and on a token
    #: for each that its answer has already
    frontend_accept_s: HostSeconds = 0.0
    frontend_request_s: HostSeconds = 0.0
    frontend_token_s: HostSeconds = 0.0
    frontend_answer_token_s: HostSeconds = 0.0
    #: tokens that have not been sent when the answer's next one comes go with it
    frontend_merges: bool = False

    #: where each of these is from
    sources: dict[str, str]
