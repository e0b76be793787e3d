"""Bytes of trace files: opened, unpacked and cut into blocks of whole lines, in bounded memory."""

from __future__ import annotations

import gzip
import os
import stat
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import zstandard

from simulator.errors import TraceError, nearest
from simulator.resources import shipped

GZIP_MAGIC = b"\x1f\x8b"
ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
PARQUET_MAGIC = b"PAR1"
#: Other containers, by their first bytes, to name them in the error.
FOREIGN_MAGIC = {
    b"PK\x03\x04": "a zip archive",
    b"BZh": "bzip2",
    b"\xfd7zXZ": "xz",
    b"7z\xbc\xaf": "a 7z archive",
    b"\x89HDF": "HDF5",
    b"ARROW1": "an Arrow file",
    b"SQLite format 3": "an SQLite database",
}

#: A block of lines is read, parsed and forgotten before the next: this bounds the memory of a reader.
BLOCK_BYTES = 4 << 20
#: zstd can blow 4 bytes up to 128 KiB, so it is fed in small bites.
_ZSTD_BITE_BYTES = 4 << 10
#: No line of a trace is longer: 10^9 prompt tokens in blocks of 512 are 2 million ids.
MAX_LINE_BYTES = 64 << 20
#: Reading stops here: 50 million requests of 160 bytes.
MAX_UNPACKED_BYTES = 8 << 30
#: Past this size a file that unpacks to more than MAX_RATIO times its own size is taken for a decompression bomb.
RATIO_FROM_BYTES = 256 << 20
MAX_RATIO = 1000

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_SUFFIXES = (".jsonl", ".json", ".csv", ".parquet", ".tar", ".gz", ".zst", ".tgz")


@dataclass(frozen=True)
class LineBlock:
    """Whole lines of a text file: ``data`` (UTF-8, ends with a newline) begins at line ``first_line`` (from 1)."""

    first_line: int
    data: bytes

    @property
    def lines(self) -> int:
        return self.data.count(b"\n")


def display_name(path: Path) -> str:
    """A file's name without the endings of its format: ``conv.csv.gz`` -> ``conv``."""
    name = path.name
    while True:
        stem = next((name[: -len(s)] for s in _SUFFIXES if name.lower().endswith(s) and len(name) > len(s)), None)
        if stem is None:
            return name
        name = stem


def find_trace(path: str | os.PathLike[str]) -> Path:
    """The file or folder meant by ``path``: as it stands, or a shipped trace by its short name (``chat``)."""
    if not isinstance(path, str | os.PathLike) or not str(path) or "\0" in str(path):
        raise TraceError(f"trace path is {path!r}; give the path of a file")
    found = Path(path)
    try:
        if found.exists():
            return found
    except OSError as error:
        raise TraceError(f"{path}: cannot be read: {error.strerror}") from None
    names = {display_name(p): p for p in sorted(shipped("traces").glob("*.jsonl.gz"))}
    if str(path) in names:
        return names[str(path)]
    beside = [p.name for p in found.parent.iterdir()] if found.parent.is_dir() else []
    known = f"; shipped traces: {', '.join(names)}" if names else ""
    raise TraceError(f"{path}: no such file{nearest(found.name, [*beside, *names])}{known}")


def first_bytes(path: Path, count: int = 1024) -> bytes:
    """The first bytes of a file as stored; folders, devices and unreadable files are errors."""
    try:
        mode = path.stat().st_mode
        if stat.S_ISDIR(mode):
            raise TraceError(f"{path}: is a directory; give a file, or a ServeGen folder with chunk-N-trace.csv files")
        if not stat.S_ISREG(mode):
            raise TraceError(f"{path}: is not a regular file")
        with path.open("rb") as file:
            return file.read(count)
    except OSError as error:
        raise TraceError(f"{path}: cannot be read: {error.strerror}") from None


def unpacked(path: Path) -> Iterator[bytes]:
    """Contents of a plain, gzip or zstd file in pieces; a cut or damaged file and a bomb are errors."""
    head = first_bytes(path, 16)
    for magic, what in FOREIGN_MAGIC.items():
        if head.startswith(magic):
            raise TraceError(
                f"{path}: is {what}; allowed: plain text, gzip (.gz), zstd (.zst), Parquet, tar.gz (ServeGen)"
            )
    packed, total = path.stat().st_size, 0
    try:
        with path.open("rb") as file:
            for piece in _pieces(file, head):
                total += len(piece)
                if total > MAX_UNPACKED_BYTES:
                    raise TraceError(f"{path}: holds more than {MAX_UNPACKED_BYTES:,} bytes unpacked; reading stopped")
                if total > RATIO_FROM_BYTES and total > MAX_RATIO * packed:
                    raise TraceError(f"{path}: unpacks to more than {MAX_RATIO} times its size; reading stopped")
                yield piece
    except EOFError:
        raise TraceError(
            f"{path}: compressed data ends early after {total:,} unpacked bytes; the file is cut"
        ) from None
    except (gzip.BadGzipFile, zlib.error, zstandard.ZstdError) as error:
        raise TraceError(f"{path}: compressed data is damaged after {total:,} unpacked bytes: {error}") from None
    except OSError as error:
        raise TraceError(f"{path}: cannot be read: {error.strerror or error}") from None


def _pieces(file: IO[bytes], head: bytes) -> Iterator[bytes]:
    if head.startswith(ZSTD_MAGIC):
        yield from _zstd_pieces(file)
        return
    stream: IO[bytes] = gzip.GzipFile(fileobj=file) if head.startswith(GZIP_MAGIC) else file  # type: ignore[assignment]
    while piece := stream.read(BLOCK_BYTES):
        yield piece


def _zstd_pieces(file: IO[bytes]) -> Iterator[bytes]:
    """Frames one after the other; a frame that does not end is an EOFError, as with gzip."""
    unpacker = None
    while bite := file.read(_ZSTD_BITE_BYTES):
        while bite:
            if unpacker is None:
                unpacker = zstandard.ZstdDecompressor(max_window_size=1 << 27).decompressobj()
            yield unpacker.decompress(bite)
            bite = unpacker.unused_data if unpacker.eof else b""
            unpacker = None if unpacker.eof else unpacker
    if unpacker is not None:
        raise EOFError


def line_blocks(path: Path) -> Iterator[LineBlock]:
    """A text file in blocks of about ``BLOCK_BYTES`` of whole lines; not UTF-8, or an endless line, is an error."""
    held: list[bytes] = []
    line, size, start = 1, 0, True
    for read in unpacked(path):
        piece = read.removeprefix(_BYTE_ORDER_MARK) if start else read
        start = start and not read
        cut = piece.rfind(b"\n") + 1
        if size + len(piece) < BLOCK_BYTES or cut == 0:
            held.append(piece)
            size += len(piece)
            if cut == 0 and size > MAX_LINE_BYTES + BLOCK_BYTES:
                raise TraceError(f"{path}:{line}: a line of more than {MAX_LINE_BYTES:,} bytes; reading stopped")
            continue
        block = _block(path, line, b"".join([*held, piece[:cut]]))
        held, size = [piece[cut:]], len(piece) - cut
        yield block
        line += block.lines
    rest = b"".join(held)
    if rest.strip():
        yield _block(path, line, rest if rest.endswith(b"\n") else rest + b"\n")


def _block(path: Path, line: int, data: bytes) -> LineBlock:
    if not data.isascii():
        try:
            data.decode("utf-8")
        except UnicodeDecodeError as error:
            at = line + data[: error.start].count(b"\n")
            raise TraceError(f"{path}:{at}: is not UTF-8 text (byte 0x{data[error.start]:02x})") from None
    if b"\0" in data:
        at = line + data[: data.index(b"\0")].count(b"\n")
        raise TraceError(f"{path}:{at}: holds a zero byte; is it text in UTF-8?")
    return LineBlock(line, data)
