"""Compiled code: how hot functions and their column records are declared, once for the whole package.

Functions marked ``@compiled`` run as machine code through numba, and as plain Python with ``NUMBA_DISABLE_JIT=1``
(for coverage, debugging and mutation tests). A *record* is a mutable object whose fields are arrays and numbers;
handing one to a compiled function costs one pointer, however many columns it has.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from numba import config, njit, types
from numba.experimental import structref

#: A compiled function: numba finds the types of its arguments when it is called.
Compiled = Callable[..., Any]


def compiled(function: Compiled) -> Compiled:
    """Compile ``function`` on its first call; the machine code is kept on disk for the next process."""
    return njit(cache=True, error_model="numpy")(function)  # type: ignore[no-any-return]


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

    kind = structref.register(
        type(name + "Type", (types.StructRef,), {"preprocess_fields": preprocess_fields, "__module__": module})
    )
    # the cache on disk refers to the type by module and name
    setattr(sys.modules[module], name + "Type", kind)

    def __new__(cls: Any, *values: Any) -> Any:
        return structref.StructRefProxy.__new__(cls, *values)

    proxy = type(name, (structref.StructRefProxy,), {"__new__": __new__, "__module__": module})
    structref.define_proxy(proxy, kind, list(fields))
    return proxy
