"""Reads files of clients (plain, .gz or .zst) and tells by content which client wrote one."""

from __future__ import annotations

import gzip
import io
import json
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import zstandard

from simulator.errors import InputError
from simulator.validation.clients import aiperf, engine_log, guidellm, sglang_bench, vllm_bench
from simulator.validation.clients.measured import Measured

_LIMIT_BYTES = 2 * 2**30
#: What a folder of results is searched for.
_IN_FOLDERS = ("profile_export.jsonl", "benchmarks.json")

Document = list[dict[str, Any]]
_READERS: tuple[tuple[Callable[[dict[str, Any]], bool], Callable[[str, Document, Path], Measured]], ...] = (
    (vllm_bench.recognises, vllm_bench.read),
    (sglang_bench.recognises, sglang_bench.read),
    (aiperf.recognises, aiperf.read),
    (guidellm.recognises, guidellm.read),
    (engine_log.recognises, engine_log.read),
)
KNOWN = (
    "vllm bench serve --save-result --save-detailed, AIPerf profile_export.jsonl, GuideLLM benchmarks.json, "
    "SGLang bench_serving --output-details, or one JSON line a request with input_toks, output_toks, queued_ts, "
    "first_token_ts, last_token_ts"
)


def read_measured(path: str | Path) -> Measured:
    """The run in a client's result file (or a folder that holds one). Raises InputError with one clear line."""
    file = _file(Path(path))
    rows = json_rows(file)
    for recognises, read in _READERS:
        if recognises(rows[0]):
            return read(str(file), rows, file)
    raise InputError(f"{file}: no result file of a known client; known are {KNOWN}")


def _file(path: Path) -> Path:
    if path.is_dir():
        for name in _IN_FOLDERS:
            for ending in ("", ".gz", ".zst"):
                if (path / f"{name}{ending}").is_file():
                    return path / f"{name}{ending}"
        raise InputError(f"{path}: a folder without {' or '.join(_IN_FOLDERS)}; name the result file itself")
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    return path


def _text(file: Path) -> str:
    data = file.read_bytes()
    try:
        if data[:2] == b"\x1f\x8b":
            with gzip.open(io.BytesIO(data)) as stream:
                data = stream.read(_LIMIT_BYTES + 1)
        elif data[:4] == b"\x28\xb5\x2f\xfd":
            with zstandard.ZstdDecompressor().stream_reader(io.BytesIO(data)) as stream:
                data = stream.read(_LIMIT_BYTES + 1)
        if len(data) > _LIMIT_BYTES:
            raise InputError(f"{file}: more than {_LIMIT_BYTES:,} bytes")
        return data.decode("utf-8")
    except (OSError, EOFError, zlib.error, zstandard.ZstdError, UnicodeDecodeError) as problem:
        raise InputError(f"{file}: cannot be read: {problem}") from None


def json_rows(file: Path) -> Document:
    """One JSON object, or one a line; compressed or not. Raises InputError."""
    text = _text(file).lstrip("\ufeff")
    if not text.strip():
        raise InputError(f"{file}: is empty")
    try:
        found = json.loads(text)
        rows = found if isinstance(found, list) else [found]
    except (json.JSONDecodeError, RecursionError):
        rows = [_line(file, number, line) for number, line in enumerate(text.splitlines(), 1) if line.strip()]
    for row in rows:
        if not isinstance(row, dict):
            raise InputError(f"{file}: JSON objects are expected, found {type(row).__name__}")
    if not rows:
        raise InputError(f"{file}: holds no object")
    return rows


def _line(file: Path, number: int, line: str) -> Any:
    try:
        return json.loads(line)
    except (json.JSONDecodeError, RecursionError):
        raise InputError(f"{file}:{number}: not JSON: {line[:40]!r}; known are {KNOWN}") from None
