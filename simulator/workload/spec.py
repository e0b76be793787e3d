"""What a generated trace should look like: the keys of a spec, checked before anything is drawn."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, Field, ValidationError, model_validator

from simulator.errors import TraceError, unknown
from simulator.schema import read_yaml
from simulator.workload.arrivals import MAX_CV, MAX_RATE_PER_S
from simulator.workload.checks import MAX_REQUESTS, MAX_TOKENS
from simulator.workload.distributions import Distribution, Strict

Positive = Annotated[float, Field(gt=0, le=1e9)]
Tokens = Annotated[int, Field(ge=1, le=MAX_TOKENS)]


class Diurnal(Strict):
    """A rate that rises and falls as a cosine: mean x (1 + amplitude cos(2 pi (t - peak_s) / period_s))."""

    period_s: Positive = 86_400.0
    amplitude: Annotated[float, Field(ge=0, lt=1)]
    peak_s: float = 0.0


class ArrivalSpec(Strict):
    """Requests per second with gamma gaps of coefficient of variation ``cv`` (1: Poisson), or gaps by quantiles."""

    rate_per_s: Annotated[float, Field(gt=0, le=MAX_RATE_PER_S)] | None = None
    cv: Annotated[float, Field(gt=0, le=MAX_CV)] = 1.0
    gaps_s: Distribution | None = None
    diurnal: Diurnal | None = None

    @model_validator(mode="after")
    def _one_way(self) -> ArrivalSpec:
        if (self.rate_per_s is None) == (self.gaps_s is None):
            raise ValueError("give rate_per_s (and cv), or gaps_s")
        if self.gaps_s is not None and self.gaps_s.mean() <= 0:
            raise ValueError("gaps_s must have a mean above 0")
        return self

    def mean_rate_per_s(self) -> float:
        """Requests per second."""
        return self.rate_per_s if self.rate_per_s is not None else 1 / self.gaps_s.mean()  # type: ignore[union-attr]


class PrefixSpec(Strict):
    """Prompts that begin alike: ``count`` prefixes whose popularity follows Zipf's law with exponent ``zipf``.

    ``share`` of the requests (or sessions) have one; ``tokens`` are their lengths, of which the first
    ``common_tokens`` are the same in all (a system prompt). Prompts shorter than their prefix hold its beginning.
    """

    count: Annotated[int, Field(ge=1, le=10_000_000)]
    zipf: Annotated[float, Field(ge=0, le=10)] = 1.0
    share: Annotated[float, Field(ge=0, le=1)] = 1.0
    tokens: Distribution
    common_tokens: Annotated[int, Field(ge=0, le=MAX_TOKENS)] = 0
    block_tokens: Tokens = 512


class SessionSpec(Strict):
    """Conversations: each later prompt is the previous prompt, its output, and ``new_tokens`` more.

    The first prompt has ``input_tokens`` of the spec. A turn is sent ``think_s`` after the previous one ends; in the
    nominal arrival times that end is estimated with ``seconds_per_output_token``. A session ends before a prompt
    would pass ``max_input_tokens``.
    """

    turns: Distribution
    think_s: Distribution
    new_tokens: Distribution
    seconds_per_output_token: Annotated[float, Field(ge=0, le=10)] = 0.02
    max_input_tokens: Tokens = 131_072


class TraceSpec(Strict):
    """A trace to generate; ``source`` says where its statistics come from."""

    name: Annotated[str, Field(min_length=1, max_length=80)]
    source: str = ""
    requests: Annotated[int, Field(ge=1, le=MAX_REQUESTS)]
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    arrivals: ArrivalSpec
    input_tokens: Distribution
    output_tokens: Distribution
    rank_correlation: Annotated[float, Field(ge=-1, le=1)] = 0.0
    max_output_tokens: Tokens | None = None
    prefixes: PrefixSpec | None = None
    sessions: SessionSpec | None = None


def read_spec(spec: TraceSpec | Mapping[str, Any] | str | os.PathLike[str]) -> TraceSpec:
    """A checked spec from a mapping or a YAML file; ``TraceError`` of one line names the key."""
    if isinstance(spec, TraceSpec):
        return spec
    if isinstance(spec, Mapping):
        return _checked(dict(spec), "spec")
    path = Path(spec)
    return _checked(read_yaml(path, TraceError), str(path))


def _checked(values: dict[str, Any], place: str) -> TraceSpec:
    try:
        return TraceSpec.model_validate(values)
    except ValidationError as errors:
        raise TraceError(_one_line(errors, place)) from None


def _one_line(errors: ValidationError, place: str) -> str:
    """The first finding, as a line; unknown keys first, as they explain missing ones."""
    found = sorted(errors.errors(), key=lambda e: e["type"] != "extra_forbidden")[0]
    where = [str(part) for part in found["loc"]]
    if found["type"] == "extra_forbidden":
        return unknown(".".join([place, *where[:-1]]), "key", where[-1], _keys(where[:-1]))
    what = found["msg"].removeprefix("Value error, ")
    value = found.get("input")
    shown = f" (found {value!r:.40})" if isinstance(value, str | int | float | bool) else ""
    return f"{place}: {'.'.join(where) or 'spec'}: {what}{shown}".replace("\n", " ")


def _keys(where: Iterable[str]) -> list[str]:
    """Keys allowed at a place in the spec."""
    model: type[BaseModel] = TraceSpec
    for part in where:
        inner = model.model_fields[part].annotation if part in model.model_fields else None
        models = [m for m in (inner, *getattr(inner, "__args__", ())) if isinstance(m, type)]
        model = next((m for m in models if issubclass(m, BaseModel)), model)
    return list(model.model_fields)
