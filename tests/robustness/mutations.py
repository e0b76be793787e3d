"""Broken files made from good ones: every key and every value of a document, wronged in every way that is surely wrong."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import yaml

Document = dict[str, Any]
Path = tuple[str | int, ...]

#: What no value of any file may be, whatever the key.
NEVER: dict[str, Any] = {"a mapping": {"x": 1}, "lists in a list": [[[1]]]}
#: What no number may be.
NO_NUMBER: dict[str, Any] = {
    "negative": -7,
    "not a number": float("nan"),
    "infinite": float("inf"),
    "text": "many",
    "beyond 64 bits": 10**40,
}


@dataclass(frozen=True)
class Broken:
    """One broken file: what was done to it, and its bytes."""

    what: str
    content: bytes


def leaves(value: Any, path: Path = ()) -> Iterator[tuple[Path, Any]]:
    """Every value that is neither mapping nor list, with the way to it."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from leaves(inner, (*path, key))
    elif isinstance(value, list):
        for i, inner in enumerate(value):
            yield from leaves(inner, (*path, i))
    else:
        yield path, value


def changed(document: Document, path: Path, value: Any) -> Document:
    """A copy with another value at ``path``."""
    fresh = copy.deepcopy(document)
    inner: Any = fresh
    for part in path[:-1]:
        inner = inner[part]
    inner[path[-1]] = value
    return fresh


def renamed(document: Document, path: Path, key: str) -> Document:
    """A copy in which the key at the end of ``path`` is called ``key``."""
    fresh = copy.deepcopy(document)
    inner: Any = fresh
    for part in path[:-1]:
        inner = inner[part]
    value = inner.pop(path[-1])
    inner[key] = value
    return fresh


def wronged(document: Document, free: frozenset[str] = frozenset()) -> Iterator[tuple[str, Document]]:
    """Documents with one value or key that is surely wrong; nothing under the keys ``free`` is touched."""
    for path, value in leaves(document):
        if free & {str(part) for part in path}:
            continue
        place = ".".join(str(part) for part in path)
        kinds = dict(NEVER)
        if isinstance(value, int | float) and not isinstance(value, bool):
            kinds |= NO_NUMBER
        for what, wrong in kinds.items():
            yield f"{place}: {what}", changed(document, path, wrong)
        if isinstance(path[-1], str):
            yield f"{place}: misspelt", renamed(document, path, path[-1] + "x")


def raw_damage(good: bytes) -> Iterator[Broken]:
    """Files that are damaged as such, whatever they hold."""
    yield Broken("empty", b"")
    yield Broken("zero bytes", b"\0" * 64)
    yield Broken("not UTF-8", good[: len(good) // 2] + b"\xff\xfe" + good[len(good) // 2 :])
    yield Broken("UTF-16", good.decode().encode("utf-16"))
    yield Broken("a list", b"- 1\n- 2\n")
    yield Broken("prose", b"hello world\n")
    yield Broken("open bracket", good + b"\nmore: [1, 2\n")
    yield Broken("open quotation", good + b'\nmore: "a\n')
    yield Broken("tab", b"a:\n\t- 1\n" + good)
    yield Broken("deep nesting", b"a: " + b"[" * 20_000)
    yield Broken("deep mapping", b"{a: " * 5_000)
    yield Broken("python object", b"a: !!python/object/apply:os.system ['true']\n")
    yield Broken("unknown tag", b"a: !thing 3\n")
    yield Broken("dangling alias", b"a: *nothing\n")
    yield Broken("two documents", good + b"\n---\na: 1\n")
    yield Broken("bomb", bomb())


def bomb() -> bytes:
    """Aliases of aliases: nine to the ninth values, if anybody unfolds them."""
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 10)]
    return "\n".join(lines).encode()


def broken_yaml(good: str, free: frozenset[str] = frozenset()) -> list[Broken]:
    """All of these for a YAML file."""
    document = yaml.safe_load(good)
    made = [Broken(what, yaml.safe_dump(d, sort_keys=False).encode()) for what, d in wronged(document, free)]
    return made + list(raw_damage(good.encode()))


def broken_json(good: str, free: frozenset[str] = frozenset()) -> list[Broken]:
    """The same for a JSON object."""
    document = json.loads(good)
    made = [Broken(what, json.dumps(d).encode()) for what, d in wronged(document, free)]
    cut = [Broken(f"cut at {i}", good.encode()[:i]) for i in range(1, len(good) - 1, max(1, len(good) // 12))]
    return made + cut


def broken_lines(good: list[Document]) -> list[Broken]:
    """The same for a trace: one line of many is wrong, each field of it in turn."""
    last = len(good) - 1
    made = []
    for what, wrong in wronged(good[last]):
        lines = [*good[:last], wrong]
        made.append(Broken(f"line {last + 1}: {what}", "".join(json.dumps(line) + "\n" for line in lines).encode()))
    return made
