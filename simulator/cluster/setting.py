"""What one setting of an engine is, and the settings that several engine families share."""

from __future__ import annotations

import math
from dataclasses import dataclass

from simulator.errors import TopologyError

Value = int | float | bool | str

#: ``max_model_len`` and its like: take the model's own maximum.
FROM_MODEL = 0
#: Kernels and placements of experts: take the engine profile's.
FROM_PROFILE = "profile"
#: Sizes that are worked out from the memory that is left.
FROM_MEMORY = 0

#: No setting is larger; what is, was written by mistake.
LARGEST = 10**9


@dataclass(frozen=True)
class Setting:
    """One setting of one engine family."""

    name: str
    default: Value
    unit: str
    doc: str
    minimum: float = -math.inf
    maximum: float = LARGEST
    choices: tuple[str, ...] = ()
    aliases: tuple[str, ...] = ()
    also: tuple[Value, ...] = ()
    """Values allowed outside the range (as -1 for "none")."""

    @property
    def kind(self) -> str:
        """``whole number``, ``number``, ``true or false`` or ``name``."""
        if isinstance(self.default, bool):
            return "true or false"
        if isinstance(self.default, int):
            return "whole number"
        return "number" if isinstance(self.default, float) else "name"

    @property
    def allowed(self) -> str:
        """What values are allowed, in words."""
        if self.choices:
            return "one of " + ", ".join(self.choices)
        if self.kind in ("true or false", "name"):
            return self.kind
        ends = [f"at least {self.minimum:g}"] if self.minimum > -math.inf else []
        ends += [f"at most {self.maximum:g}"] if self.maximum < LARGEST or not ends else []
        text = f"a {self.kind} {' and '.join(ends)}".rstrip()
        return text + "".join(f", or {value}" for value in self.also)

    def checked(self, value: object, place: str) -> Value:
        """``value`` in this setting's type, or a TopologyError that says what is allowed."""
        if isinstance(self.default, float) and isinstance(value, int) and not isinstance(value, bool):
            value = float(value)
        right_type = isinstance(value, type(self.default)) and isinstance(value, bool) == isinstance(self.default, bool)
        if right_type and self._in_range(value):  # type: ignore[arg-type]
            return value  # type: ignore[return-value]
        raise TopologyError(f"{place}: {value!r} is not allowed; {self.name} is {self.allowed}")

    def _in_range(self, value: Value) -> bool:
        if value in self.also:
            return True
        if self.choices:
            return value in self.choices
        return isinstance(value, (bool, str)) or self.minimum <= value <= self.maximum


STREAM = Setting(
    "stream_interval", 1, "tokens", "tokens gathered before they are sent to the client; the first is sent at once", 1
)
SPECULATION = (
    Setting(
        "num_speculative_tokens",
        0,
        "tokens",
        "draft tokens that a decode step verifies for each sequence; 0 turns speculative decoding off",
        0,
        64,
        aliases=("max_draft_len",),
    ),
    Setting("speculative_acceptance", 0.7, "probability", "that the first draft token is right", 0.0, 1.0),
    Setting(
        "speculative_acceptance_decay",
        1.0,
        "factor",
        "by which the chance to be right falls with each further draft token, if those before it were",
        0.0,
        1.0,
    ),
    Setting(
        "speculative_draft_cost", 0.0, "share of a decode step", "time to make one draft token for all sequences", 0.0
    ),
    Setting("speculative_seed", 0, "", "seed of which drafts are right", 0),
)
#: What of an engine's spreading of experts may be changed; the profile says the rest.
EXPERTS = (
    Setting(
        "expert_all_to_all",
        FROM_PROFILE,
        "",
        "how tokens reach experts of other data-parallel ranks",
        choices=(FROM_PROFILE, "all_gather", "deepep"),
        aliases=("moe_a2a_backend", "all2all_backend"),
    ),
    Setting(
        "expert_placement",
        FROM_PROFILE,
        "",
        "whether every GPU gets the same rows, has experts in order, or busy experts are copied and dealt out (EPLB)",
        choices=(FROM_PROFILE, "even", "static", "balanced"),
    ),
    Setting(
        "redundant_experts",
        -1,
        "experts",
        "copies of busy experts beside the model's own; -1 takes the profile's",
        0,
        4096,
        aliases=("ep_num_redundant_experts", "num_redundant_experts"),
        also=(-1,),
    ),
    Setting(
        "micro_batches",
        0,
        "batches",
        "2 computes one half of a batch while the other is on its way to experts; 0 takes the profile's",
        1,
        2,
        also=(0,),
    ),
)
BLOCK = Setting("block_size", 16, "tokens", "tokens of one KV block", 1)
