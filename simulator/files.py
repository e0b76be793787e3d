"""Writing results: strict JSON, and files that are there whole or not at all."""

from __future__ import annotations

import contextlib
import json
import math
import os
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from simulator.errors import InputError


def output_folder(path: str | os.PathLike[str], option: str = "--out") -> Path:
    """``path`` as a folder that exists and can be written to; made where it is missing. Raises InputError."""
    folder = Path(path)
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{option}: {folder} is a file; name a folder (it is made where missing)")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as problem:
        raise InputError(f"{option}: {folder} cannot be made: {problem.strerror}") from problem
    if not os.access(folder, os.W_OK):
        raise InputError(f"{option}: {folder} cannot be written to")
    return folder


def output_file(path: str | os.PathLike[str], option: str) -> Path:
    """``path`` as a file that can be written: its folder exists and it is not a folder itself. Raises InputError."""
    file = Path(path)
    if file.is_dir():
        raise InputError(f"{option}: {file} is a folder; name a file")
    if not file.parent.is_dir():
        raise InputError(f"{option}: there is no folder {file.parent} to write {file.name} to")
    if not os.access(file.parent, os.W_OK):
        raise InputError(f"{option}: {file.parent} cannot be written to")
    return file


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path beside ``path`` that takes its place when the block ends well, and vanishes when it does not."""
    handle, name = tempfile.mkstemp(prefix=f".{path.stem}-", suffix=path.suffix, dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        temporary.chmod(0o666 & ~_umask())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def write_text(path: Path, text: str) -> None:
    """Write ``text`` as UTF-8, whole or not at all; a device or pipe (``/dev/stdout``) is written to directly."""
    if path.exists() and not path.is_file():
        path.write_text(text, encoding="utf-8")
        return
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def dumps(value: object) -> str:
    """Strict JSON with two spaces of indent and a final newline; NaN and infinities become ``null``."""
    return json.dumps(plain(value), indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def plain(value: Any) -> Any:
    """``value`` in JSON's own types: numpy scalars and arrays unpacked, what is not finite as ``None``."""
    if isinstance(value, np.generic | np.ndarray):
        value = value.tolist()
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if value is None or isinstance(value, str | int):
        return value
    raise TypeError(f"{type(value).__name__} has no place in a result")
