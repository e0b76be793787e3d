"""Turns plain values into a Topology, and pydantic's findings into one line each."""

from __future__ import annotations

import types
import typing
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ValidationError

from simulator.cluster.schema import Topology
from simulator.errors import TopologyError, nearest, unknown

Path = tuple[str | int, ...]

#: Keys of a pool or topology that may also be written among the engine's settings.
_LIFTED = ("step_time", "kv_blocks")

_TYPES = {
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "string_type": "text",
    "bool_type": "true or false",
    "list_type": "a list",
    "dict_type": "a mapping",
    "model_type": "a mapping",
    "model_attributes_type": "a mapping",
}


def build(values: Mapping[str, Any], source: str) -> Topology:
    """The topology that ``values`` describe; ``source`` is the file or name they came from."""
    values = _lifted(values)
    try:
        return Topology.model_validate({**values, "source": source})
    except ValidationError as error:
        raise TopologyError(_first_line(error, values, source)) from None


def _lifted(values: Mapping[str, Any]) -> dict[str, Any]:
    """``values`` with ``step_time`` and ``kv_blocks`` that stand among an engine's settings moved beside them."""
    lifted = dict(values)
    engine = lifted.get("engine")
    if isinstance(engine, Mapping):
        lifted["engine"] = {key: value for key, value in engine.items() if key not in _LIFTED}
        lifted |= {key: value for key, value in engine.items() if key in _LIFTED}
    if isinstance(lifted.get("pools"), list):
        lifted["pools"] = [_lifted(pool) if isinstance(pool, Mapping) else pool for pool in lifted["pools"]]
    return lifted


def _first_line(error: ValidationError, values: Mapping[str, Any], source: str) -> str:
    """The finding a user should mend first: an unknown key explains a missing one, so it comes before."""
    findings = [f for f in error.errors(include_url=False) if not _other_branch(f["loc"], f["input"])]
    findings.sort(key=lambda finding: finding["type"] != "extra_forbidden")
    line = _line(findings[0], values, source)
    more = len({tuple(f["loc"]) for f in findings}) - 1
    return line + (f" (and {more} more)" if more else "")


def _other_branch(location: Path, found: object) -> bool:
    """Whether a finding is about the branch of a union the user did not mean (text, where a mapping was given)."""
    return location[-1] == "str" and isinstance(found, Mapping)


def _line(finding: Any, values: Mapping[str, Any], source: str) -> str:
    kind, found, message = finding["type"], finding.get("input"), finding["msg"].removeprefix("Input should be ")
    path = _real_path(finding["loc"], values)
    place = f"{source}: {key_path(path, values)}"
    parent = f"{source}: {key_path(path[:-1], values)}" if len(path) > 1 else source
    if kind == "extra_forbidden":
        return unknown(parent, "key", path[-1], allowed_keys(path[:-1]))
    if kind == "missing":
        return f"{parent}: key '{path[-1]}' is missing"
    if kind == "literal_error":
        choices = message.replace("'", "").replace(" or ", ", ")
        return f"{place}: {_shown(found)} is not allowed{nearest(found, choices.split(', '))}; allowed: {choices}"
    return f"{place}: {_shown(found)} is not allowed; needed: {_TYPES.get(kind) or message[:1].lower() + message[1:]}"


def _shown(found: object) -> str:
    if isinstance(found, Mapping):
        return "a mapping"
    if isinstance(found, (list, tuple)):
        return "an empty list" if not found else "a list"
    return "nothing" if found is None else repr(found)


def _real_path(location: Path, values: Mapping[str, Any]) -> Path:
    """``location`` without the names pydantic adds for the branches of a union."""
    at: Any = Topology
    path: list[str | int] = []
    for part in location:
        inner = _field_type(at, part)
        if inner is None and not isinstance(part, int) and (part in ("str",) or _is_branch(part, at)):
            continue
        path.append(part)
        at = inner
    return tuple(path)


def _is_branch(part: str, at: Any) -> bool:
    return any(part == getattr(kind, "__name__", "") for kind in _branches(at)) or "[" in part


def _branches(kind: Any) -> list[Any]:
    """The types a field may take, without None and annotations."""
    if kind is None:
        return []
    if typing.get_origin(kind) is typing.Annotated:
        return _branches(typing.get_args(kind)[0])
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        return [one for arg in typing.get_args(kind) for one in _branches(arg)]
    return [] if kind is type(None) else [kind]


def _field_type(kind: Any, part: str | int) -> Any:
    """Type of ``part`` inside a value of type ``kind``; None where the schema does not say."""
    for branch in _branches(kind):
        if typing.get_origin(branch) is list and isinstance(part, int):
            return typing.get_args(branch)[0]
        if typing.get_origin(branch) is dict:
            return typing.get_args(branch)[1]
        if isinstance(branch, type) and issubclass(branch, BaseModel) and part in branch.model_fields:
            return branch.model_fields[str(part)].annotation
    return None


def type_at(path: Path) -> list[Any]:
    """The types the schema allows at ``path``."""
    at: Any = Topology
    for part in path:
        at = _field_type(at, part)
    return _branches(at)


def allowed_keys(path: Path) -> list[str]:
    """Keys the schema allows inside the mapping at ``path``."""
    keys = [
        key
        for branch in type_at(path)
        if isinstance(branch, type) and issubclass(branch, BaseModel)
        for key in branch.model_fields
    ]
    return [key for key in keys if key != "source"]


def key_path(path: Path, values: Mapping[str, Any]) -> str:
    """``pools.prefill.parallel.tp`` for ``("pools", 0, "parallel", "tp")``: pools are called by name."""
    shown: list[str] = []
    at: Any = values
    for part in path:
        try:
            at = at[part]
        except (KeyError, IndexError, TypeError):
            at = None
        name = at.get("name") if isinstance(part, int) and isinstance(at, Mapping) else None
        shown.append(name if isinstance(name, str) and name else str(part))
    return ".".join(shown)
