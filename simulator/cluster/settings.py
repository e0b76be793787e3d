"""What each serving engine can be told, under the engine's own names: one table an engine family.

A table is the single place that holds a setting's type, unit, default and meaning. Engine profiles
(``hardware_profiles/engines``) may change defaults; a topology's ``engine`` keys override both.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from simulator.cluster.setting import (
    BLOCK,
    EXPERTS,
    FROM_MEMORY,
    FROM_MODEL,
    FROM_PROFILE,
    SPECULATION,
    STREAM,
    Setting,
    Value,
)
from simulator.errors import TopologyError, unknown

__all__ = ["FAMILIES", "FROM_MEMORY", "FROM_MODEL", "FROM_PROFILE", "Family", "Setting", "Value", "markdown_table"]


@dataclass(frozen=True)
class Family:
    """The settings of one engine family, and which of them carry the meanings every engine shares."""

    name: str
    settings: tuple[Setting, ...]
    step_tokens: str
    """Setting that bounds the new tokens of a step."""
    sequences: str
    """Setting that bounds the running sequences."""
    context: str
    """Setting that bounds prompt plus output."""
    block: str
    """Setting that gives the tokens of a KV block."""
    memory_fraction: str
    """Setting that gives the share of GPU memory the engine may use."""
    blocks: str = ""
    """Setting that fixes the number of KV blocks (or tokens) by hand; empty where the engine has none."""

    def setting(self, name: str, place: str) -> Setting:
        """The setting called ``name`` or one of its aliases."""
        for entry in self.settings:
            if name == entry.name or name in entry.aliases:
                return entry
        raise TopologyError(unknown(place, f"setting of {self.name}", name, [s.name for s in self.settings]))

    def resolve(self, *layers: tuple[str, Mapping[str, object]]) -> dict[str, Value]:
        """Every setting's value: the table's default, then each ``(place, values)`` layer over the one before."""
        resolved: dict[str, Value] = {entry.name: entry.default for entry in self.settings}
        for place, values in layers:
            seen: dict[str, str] = {}
            for name, value in values.items():
                entry = self.setting(name, place)
                if entry.name in seen:
                    raise TopologyError(f"{place}: '{name}' and '{seen[entry.name]}' are the same setting; keep one")
                seen[entry.name] = name
                resolved[entry.name] = entry.checked(value, f"{place}.{name}")
        return resolved


VLLM = Family(
    "vllm",
    (
        Setting("max_num_seqs", 256, "sequences", "sequences that may run at once", 1),
        Setting("max_num_batched_tokens", 8192, "tokens", "new tokens of one step, decodes included", 1),
        BLOCK,
        Setting(
            "prefix_caching",
            True,
            "",
            "keep the KV blocks of finished requests for prompts that begin alike",
            aliases=("enable_prefix_caching",),
        ),
        Setting("async_scheduling", True, "", "plan the next step while the running one runs"),
        Setting(
            "scheduling_policy",
            "fcfs",
            "",
            "order of the waiting requests, and who is preempted: by arrival, or by the trace's priority first",
            choices=("fcfs", "priority"),
        ),
        Setting(
            "max_model_len", FROM_MODEL, "tokens", "longest prompt plus output; 0 takes the model's own maximum", 0
        ),
        Setting("gpu_memory_utilization", 0.9, "share of GPU memory", "what the engine may use in all", 0.01, 1.0),
        Setting("enforce_eager", False, "", "run without CUDA graphs"),
        Setting(
            "max_cudagraph_capture_size",
            512,
            "tokens",
            "steps with prompts of more tokens are launched kernel by kernel, not as piecewise CUDA graphs",
            0,
        ),
        Setting(
            "num_gpu_blocks_override",
            FROM_MEMORY,
            "blocks",
            "KV blocks, the one the engine keeps for itself included; 0 fills the memory",
            0,
            aliases=("num_blocks",),
        ),
        STREAM,
        *SPECULATION,
        *EXPERTS,
    ),
    step_tokens="max_num_batched_tokens",
    sequences="max_num_seqs",
    context="max_model_len",
    block="block_size",
    memory_fraction="gpu_memory_utilization",
    blocks="num_gpu_blocks_override",
)

SGLANG = Family(
    "sglang",
    (
        Setting(
            "max_running_requests",
            FROM_MEMORY,
            "requests",
            "requests that may run at once; 0 works it out from the KV tokens, as SGLang does",
            0,
        ),
        Setting(
            "chunked_prefill_size",
            8192,
            "tokens",
            "prompt tokens of one step; -1 takes whole prompts",
            1,
            also=(-1,),
        ),
        Setting("max_prefill_tokens", 16384, "tokens", "prompt tokens of one prefill batch of whole prompts", 1),
        Setting("schedule_policy", "fcfs", "", "order of the waiting requests", choices=("fcfs", "lpm")),
        Setting(
            "schedule_conservativeness",
            1.0,
            "factor",
            "scales the share of the allowed output that admission keeps room for",
            0.0,
        ),
        Setting(
            "mixed_chunk",
            False,
            "",
            "let decodes ride along in a chunked prefill step",
            aliases=("enable_mixed_chunk",),
        ),
        Setting("disable_radix_cache", False, "", "forget the KV of finished requests"),
        Setting("page_size", 1, "tokens", "tokens of one KV page", 1),
        Setting("overlap", True, "", "plan the next step while the running one runs"),
        Setting(
            "scheduler_recv_interval",
            1,
            "decode steps",
            "between two looks for new requests; after a step with prompts and when idle it looks at once",
            1,
        ),
        Setting(
            "mem_fraction_static",
            0.0,
            "share of GPU memory",
            "weights plus KV; 0 works it out as SGLang does, from what activations and graphs need",
            0.01,
            1.0,
            also=(0.0,),
        ),
        Setting("ignore_eos", False, "", "requests always run to their limit, and admission knows it"),
        Setting(
            "reserve_known_lengths",
            True,
            "",
            "with ignore_eos: room for all that running requests may yet write (0.5.23); false: times the new-token "
            "ratio (0.5.9 and before)",
        ),
        Setting(
            "prompts_within_budget",
            False,
            "",
            "a prompt longer than what a step has left of max_prefill_tokens waits for the next one, with chunks too "
            "(0.5.9 and before)",
        ),
        Setting(
            "load_balance_method",
            "auto",
            "",
            "how a prefill engine binds prompts to its data-parallel ranks: in turn, or by their random bootstrap room "
            "as auto does",
            choices=("auto", "round_robin", "follow_bootstrap_room"),
        ),
        Setting(
            "context_length", FROM_MODEL, "tokens", "longest prompt plus output; 0 takes the model's own maximum", 0
        ),
        Setting(
            "max_total_tokens",
            FROM_MEMORY,
            "tokens",
            "KV tokens; 0 fills the memory",
            0,
            aliases=("max_total_num_tokens",),
        ),
        STREAM,
        *EXPERTS,
    ),
    step_tokens="chunked_prefill_size",
    sequences="max_running_requests",
    context="context_length",
    block="page_size",
    memory_fraction="mem_fraction_static",
    blocks="max_total_tokens",
)

TENSORRT_LLM = Family(
    "tensorrt-llm",
    (
        Setting("max_batch_size", 2048, "requests", "requests that may run at once", 1),
        Setting("max_num_tokens", 8192, "tokens", "new tokens of one step, decodes included", 1),
        Setting("max_seq_len", FROM_MODEL, "tokens", "longest prompt plus output; 0 takes the model's own maximum", 0),
        Setting(
            "capacity_scheduler_policy",
            "GUARANTEED_NO_EVICT",
            "",
            "which requests may start: those whose whole allowed length fits, any that fit now, or one batch at a time",
            choices=("GUARANTEED_NO_EVICT", "MAX_UTILIZATION", "STATIC_BATCH"),
        ),
        Setting(
            "enable_chunked_prefill",
            False,
            "",
            "cut prompts that do not fit a step into chunks",
            aliases=("enable_chunked_context",),
        ),
        Setting(
            "free_gpu_memory_fraction",
            0.9,
            "share of free memory",
            "share of what weights and activations leave that KV blocks take",
            0.01,
            1.0,
        ),
        Setting("tokens_per_block", 32, "tokens", "tokens of one KV block", 1),
        Setting("enable_block_reuse", True, "", "keep the KV blocks of finished requests for prompts that begin alike"),
        Setting("overlap_scheduler", True, "", "plan the next step while the running one runs"),
        Setting(
            "batch_wait_timeout_iters",
            0,
            "steps",
            "for which prompts wait for company while others generate, at most",
            0,
        ),
        Setting(
            "batch_wait_max_tokens_ratio",
            0.0,
            "share of max_num_tokens",
            "tokens of a step at which prompts wait no longer",
            0.0,
            1.0,
        ),
        Setting(
            "attention_dp_enable_balance",
            False,
            "",
            "with attention data parallelism, prompts wait until every rank has one (attention_dp_config)",
        ),
        Setting("attention_dp_timeout_iters", 50, "steps", "for which they wait so, at most", 1),
        Setting(
            "attention_dp_batching_wait_iters", 0, "steps", "for which they go on waiting once every rank has one", 0
        ),
        Setting(
            "moe_backend",
            "AUTO",
            "",
            "kernels of routed experts (moe_config.backend); AUTO takes those of the profile",
            choices=("AUTO", "CUTLASS", "TRTLLM", "DEEPGEMM", "TRITON", "WIDEEP"),
        ),
        Setting("max_tokens", FROM_MEMORY, "tokens", "KV tokens; 0 fills the memory", 0),
        Setting("stream_interval", 1, "tokens", "tokens gathered before they are sent to the client", 1),
        Setting(
            "stream_first_token",
            False,
            "",
            "send the first token at once, not with its group (measured runs show it waiting)",
        ),
        *SPECULATION,
        *EXPERTS,
    ),
    step_tokens="max_num_tokens",
    sequences="max_batch_size",
    context="max_seq_len",
    block="tokens_per_block",
    memory_fraction="free_gpu_memory_fraction",
    blocks="max_tokens",
)

DISTSERVE = Family(
    "distserve",
    (
        Setting("max_batch_size", 128, "requests", "prompts of one prefill batch", 1),
        Setting("max_tokens_per_batch", 8192, "tokens", "prompt tokens of one prefill batch", 1),
        Setting("max_decode_batch_size", 1024, "requests", "sequences that may decode at once", 1),
        Setting("max_decode_tokens", 65536, "tokens", "new tokens of one decode step, one a sequence", 1),
        Setting(
            "accept_block_fraction",
            0.05,
            "share of KV blocks",
            "a decode engine takes the next prompt over while those it has taken, but not begun, hold less than this",
            0.0,
            1.0,
        ),
        BLOCK,
        Setting(
            "max_model_len", FROM_MODEL, "tokens", "longest prompt plus output; 0 takes the model's own maximum", 0
        ),
        Setting("gpu_memory_utilization", 0.95, "share of GPU memory", "what the engine may use in all", 0.01, 1.0),
        STREAM,
    ),
    step_tokens="max_tokens_per_batch",
    sequences="max_decode_batch_size",
    context="max_model_len",
    block="block_size",
    memory_fraction="gpu_memory_utilization",
)

SPLITWISE = Family(
    "splitwise",
    (
        Setting("max_prompt_tokens", 2048, "tokens", "prompt tokens of one prompt batch", 1),
        Setting("max_batch_size", 256, "requests", "sequences that may decode at once", 1),
        Setting("max_preemptions", 4, "times", "how often a mixed machine may pass over a decoding batch", 0),
        BLOCK,
        Setting(
            "max_model_len", FROM_MODEL, "tokens", "longest prompt plus output; 0 takes the model's own maximum", 0
        ),
        Setting("gpu_memory_utilization", 0.9, "share of GPU memory", "what the engine may use in all", 0.01, 1.0),
        STREAM,
    ),
    step_tokens="max_prompt_tokens",
    sequences="max_batch_size",
    context="max_model_len",
    block="block_size",
    memory_fraction="gpu_memory_utilization",
)

FAMILIES = {family.name: family for family in (VLLM, SGLANG, TENSORRT_LLM, DISTSERVE, SPLITWISE)}


def markdown_table(family: Family) -> str:
    """The family's settings as a table for the documentation."""
    lines = ["| setting | default | allowed | meaning |", "|---|---|---|---|"]
    for entry in family.settings:
        default = str(entry.default).lower() if isinstance(entry.default, bool) else str(entry.default)
        unit = f" ({entry.unit})" if entry.unit else ""
        also = f"; also written {', '.join(f'`{alias}`' for alias in entry.aliases)}" if entry.aliases else ""
        lines.append(f"| `{entry.name}` | {default} | {entry.allowed}{unit} | {entry.doc}{also} |")
    return "\n".join(lines)
