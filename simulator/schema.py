"""Files people write: YAML read strictly, and checked against a pydantic schema with one-line errors."""

from __future__ import annotations

import re
from collections.abc import Hashable, Iterable
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from simulator.errors import InputError, unknown

S = TypeVar("S", bound=BaseModel)


class Schema(BaseModel):
    """Base of all file schemas: unknown keys are errors, values do not change after reading."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


_Base: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the C parser is some six times as fast


class _Loader(_Base):  # type: ignore[misc]
    """Safe YAML that refuses a key written twice and reads ``3.35e12`` as the number it is (YAML 1.2)."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if isinstance(key, Hashable) and key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"key '{key}' is written twice", key_node.start_mark
                )
            seen.add(key)
        pairs: dict[Hashable, Any] = super().construct_mapping(node, deep)
        return pairs


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?(?:\d[\d_]*\.?[\d_]*|\.\d[\d_]*)[eE][-+]?\d+$"), list("-+.0123456789")
)


def read_text(path: Path, error: type[InputError] = InputError) -> str:
    """Text of a small file a user names, or a one-line error."""
    try:
        return path.read_text(encoding="utf-8")
    except OSError as e:
        raise error(f"{path}: cannot be read ({e.strerror or e})") from e
    except UnicodeDecodeError as e:
        raise error(f"{path}: not a text file (byte {e.start} is not UTF-8)") from e


def parse_yaml(text: str, place: str, error: type[InputError] = InputError) -> dict[str, Any]:
    """A YAML mapping with text keys, or a one-line error with the line number."""
    try:
        data = yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as e:
        mark = getattr(e, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark is not None else ""
        raise error(f"{place}{line}: not valid YAML: {getattr(e, 'problem', None) or 'cannot be parsed'}") from e
    except RecursionError as e:
        raise error(f"{place}: nested too deeply") from e
    if not isinstance(data, dict):
        raise error(f"{place}: found {type(data).__name__}, expected 'key: value' lines")
    for key in data:
        if not isinstance(key, str):
            raise error(f"{place}: key {key!r} is not text")
    return data


def read_yaml(path: Path, error: type[InputError] = InputError) -> dict[str, Any]:
    """``parse_yaml`` of a file."""
    return parse_yaml(read_text(path, error), str(path), error)


def check(schema: type[S], data: Any, place: str, error: type[InputError] = InputError) -> S:
    """``data`` as ``schema``, or an error of one line: the place, the key, what was found and what is allowed."""
    try:
        return schema.model_validate(data)
    except ValidationError as e:
        raise error(_one_line(schema, e, place)) from None


def _one_line(schema: type[BaseModel], e: ValidationError, place: str) -> str:
    details = sorted(
        e.errors(), key=lambda d: d["type"] != "extra_forbidden"
    )  # a misspelt key explains the missing one
    first = details[0]
    key = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        inner = _schema_at(schema, first["loc"][:-1])
        owner = ".".join(str(part) for part in first["loc"][:-1])
        where = f"{place}: {owner}" if owner else place
        return unknown(where, "key", first["loc"][-1], inner.model_fields if inner else ())
    if first["type"] == "missing":
        return f"{place}: key '{key}' is missing"
    found = repr(first["input"])
    message = first["msg"].removeprefix("Value error, ")
    return f"{place}: {key}: found {found if len(found) < 80 else found[:77] + '...'}; {message}"


def _schema_at(schema: type[BaseModel] | None, location: Iterable[int | str]) -> type[BaseModel] | None:
    """The schema a key path leads to, through optional and container types."""
    for part in location:
        if schema is None:
            return None
        field = schema.model_fields.get(str(part))
        if field is None:
            continue  # an index or a free key of a container already entered
        schema = next(
            (t for t in _types_in(field.annotation) if isinstance(t, type) and issubclass(t, BaseModel)), None
        )
    return schema


def _types_in(annotation: Any) -> list[Any]:
    inner = getattr(annotation, "__args__", ())
    return [annotation] if not inner else [t for a in inner for t in _types_in(a)]
