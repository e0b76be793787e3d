"""Compiled code: how hot functions and their column records are declared, once for the whole package.

Functions marked ``@compiled`` run as machine code through numba, and as plain Python with ``NUMBA_DISABLE_JIT=1``
(for coverage, debugging and mutation tests). A *record* is a mutable object whose fields are arrays and numbers;
handing one to a compiled function costs one pointer, however many columns it has.
"""

from __future__ import annotations

import getpass
import hashlib
import re
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

from numba import config, njit, types
from numba.experimental import structref
from numba.typed import List

#: A compiled function: numba finds the types of its arguments when it is called.
Compiled = Callable[..., Any]

_IMPORT = re.compile(r"^from (simulator[\w.]*) import (.*)$", re.MULTILINE)


def compiled(function: Compiled) -> Compiled:
    """Compile ``function`` on its first call; the machine code is kept on disk for the next process."""
    if config.DISABLE_JIT:
        return function
    try:
        dispatcher = njit(cache=True, error_model="numpy")(function)
    except RuntimeError:  # neither beside the source nor at home may anything be written
        config.CACHE_DIR = str(Path(tempfile.gettempdir()) / f"pd-simulator-{getpass.getuser()}")
        dispatcher = njit(cache=True, error_model="numpy")(function)
    kept = dispatcher._cache
    # numba drops kept code when the function's own file changes; ours holds code from the files it imports too
    kept._cache_file._source_stamp = source_stamp(function.__module__)
    kept.save_overload = _unless_full(kept.save_overload)
    return dispatcher  # type: ignore[no-any-return]


def _unless_full(save: Callable[..., None]) -> Callable[..., None]:
    """Code that cannot be kept, because the disk is full, is compiled again in the next process."""

    def attempt(*given: Any) -> None:
        with suppress(OSError):
            save(*given)

    return attempt


def is_compiled(function: Compiled) -> bool:
    """Whether machine code for ``function`` is at hand, in this process or on disk, so that its first call is quick."""
    if config.DISABLE_JIT:
        return True
    dispatcher: Any = function
    return bool(dispatcher.signatures) or bool(dispatcher._cache._cache_file._load_index())


def source_stamp(module: str) -> str:
    """Digest of the source of ``module`` and of all modules of this package that it imports, however far away."""
    digest, seen, todo = hashlib.sha256(), set(), [module]
    while todo:
        name = todo.pop()
        if name not in seen:
            seen.add(name)
            text, imported = _source(name)
            digest.update(text)
            todo.extend(imported)
    return digest.hexdigest()


@cache
def _source(module: str) -> tuple[bytes, tuple[str, ...]]:
    """A loaded module's source, and the modules of this package that it imports."""
    path = getattr(sys.modules[module], "__file__", None)
    text = Path(path).read_bytes() if path else b""
    names = [
        name
        for package, tail in _IMPORT.findall(text.decode())
        for name in (package, *(f"{package}.{part.strip()}" for part in tail.split(",")))
    ]
    return text, tuple(name for name in names if name in sys.modules)


def record(name: str, fields: tuple[str, ...], module: str) -> Any:
    """Make a record class with these fields; call it with one value a field, in order, to make an instance.

    ``module`` is the ``__name__`` of the caller, under which the class must be bound to ``name`` (numba's cache
    finds it there again).
    """
    if config.DISABLE_JIT:

        def __init__(self: Any, *values: Any) -> None:
            for field, value in zip(fields, values, strict=True):
                setattr(self, field, value)

        return type(name, (), {"__slots__": fields, "__init__": __init__, "__module__": module})

    def preprocess_fields(_self: Any, given: Any) -> Any:
        return tuple((field, types.unliteral(kind)) for field, kind in given)

    def shorten(self: Any, given: Any) -> None:
        # numba spells a type's name out in the name of every function that takes it: 120 MB of kept code in all
        types.StructRef.__init__(self, given)
        self.name = f"{name}{hashlib.sha256(self.name.encode()).hexdigest()[:12]}"

    parts = {"preprocess_fields": preprocess_fields, "__init__": shorten, "__module__": module}
    kind = structref.register(type(name + "Type", (types.StructRef,), parts))
    # the cache on disk refers to the type by module and name
    setattr(sys.modules[module], name + "Type", kind)

    def __new__(cls: Any, *values: Any) -> Any:
        return structref.StructRefProxy.__new__(cls, *values)

    proxy = type(name, (structref.StructRefProxy,), {"__new__": __new__, "__module__": module})
    structref.define_proxy(proxy, kind, list(fields))
    return proxy


@compiled
def gather(first):  # type: ignore[no-untyped-def]
    """A list of records that compiled code can walk, with ``first`` in it."""
    group = List()
    group.append(first)
    return group


@compiled
def join(group, following):  # type: ignore[no-untyped-def]
    """Put one more record at the end."""
    group.append(following)


def group_of(records: Sequence[Any]) -> Any:
    """Records of one kind as a list that compiled code can walk; a plain list in plain Python."""
    if config.DISABLE_JIT:
        return list(records)
    group = gather(records[0])
    for following in records[1:]:
        join(group, following)
    return group
