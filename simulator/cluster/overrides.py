"""``--set path.to.key=value``: changes to a topology's plain values before they are checked."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from typing import Any

from simulator.cluster.validate import allowed_keys, type_at
from simulator.errors import TopologyError, unknown
from simulator.schema import parse_yaml


def apply_overrides(values: Mapping[str, Any], overrides: Iterable[str]) -> dict[str, Any]:
    """``values`` with each ``path=value`` put in; pools are named or numbered, ``*`` means every pool."""
    changed: dict[str, Any] = copy.deepcopy(dict(values))
    for override in overrides:
        path, equals, text = override.partition("=")
        if not equals or not path.strip():
            raise TopologyError(f"--set {override}: write path.to.key=value, as pools.prefill.workers=3")
        _put(changed, path.strip().split("."), text.strip(), f"--set {override}")
    return changed


def _put(values: dict[str, Any], keys: list[str], text: str, place: str) -> None:
    if keys[0] not in allowed_keys(()):
        raise TopologyError(unknown(place, "key", keys[0], allowed_keys(())))
    if keys[0] == "pools":
        for index in _pools(values, keys, place):
            _put_inside(values["pools"][index], ("pools", index), keys[2:], text, place)
        return
    if keys[0] == "engine" and len(keys) > 1 and isinstance(values.get("engine", "vllm"), str):
        values["engine"] = {"profile": values.get("engine", "vllm")}
    if keys[0] == "routing" and len(keys) > 2 and isinstance(values.get("routing"), dict):
        router = values["routing"].get(keys[1])
        if isinstance(router, str):
            values["routing"][keys[1]] = {"kind": router}
    _put_inside(values, (), keys, text, place)


def _pools(values: Mapping[str, Any], keys: list[str], place: str) -> list[int]:
    pools = values.get("pools")
    if not isinstance(pools, list) or not all(isinstance(pool, dict) for pool in pools):
        raise TopologyError(f"{place}: this topology has no list of pools")
    names = [str(pool.get("name")) for pool in pools]
    if len(keys) < 3:
        raise TopologyError(f"{place}: name a pool and a key of it, as pools.{names[0]}.workers=3")
    if keys[1] == "*":
        return list(range(len(pools)))
    if keys[1] in names:
        return [names.index(keys[1])]
    if keys[1].isdigit() and int(keys[1]) < len(pools):
        return [int(keys[1])]
    raise TopologyError(unknown(place, "pool", keys[1], names))


def _put_inside(inside: dict[str, Any], path: tuple[str | int, ...], keys: list[str], text: str, place: str) -> None:
    for position, key in enumerate(keys):
        allowed = allowed_keys(path)
        if allowed and key not in allowed:
            raise TopologyError(unknown(place, "key", ".".join([*map(str, path[1:] if path else ()), key]), allowed))
        if position + 1 == len(keys):
            inside[key] = _value((*path, key), text, place)
            return
        deeper = inside.get(key)
        if deeper is not None and not isinstance(deeper, dict):
            deeper = None
        inside[key] = deeper = {} if deeper is None else deeper
        path, inside = (*path, key), deeper


def _value(path: tuple[str | int, ...], text: str, place: str) -> Any:
    """``text`` as YAML, or as it is where the schema wants text."""
    kinds = type_at(path)
    if kinds == [str]:
        return text
    return parse_yaml(f"value: {text}", place, TopologyError)["value"]
