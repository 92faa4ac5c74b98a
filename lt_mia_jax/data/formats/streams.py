"""Files of lines in UTF-8, compressed or not, in bounded memory."""

import contextlib
import gzip
import io
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from lt_mia_jax.errors import InputError
from lt_mia_jax.files import open_regular

LONGEST_LINE = 2**26
"""Bytes of a line or text, its end included; whole books are shorter."""
RATIO = 100
"""A file may unpack to so many times its size; text does to 3 to 10 times. Files that
unpack to less than `LONGEST_LINE` bytes may be any size."""
BOM = b"\xef\xbb\xbf"
_GZIP, _ZSTD = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"
_MAGIC = {
    _GZIP: ("compressed with gzip", "give it a name that ends in .jsonl.gz"),
    _ZSTD: ("compressed with Zstandard", "give it a name that ends in .jsonl.zst"),
    b"PK\x03\x04": ("a ZIP archive", "unpack it and give the file or folder in it"),
    b"BZh": ("compressed with bzip2", "unpack it first"),
    b"\xfd7zXZ": ("compressed with xz", "unpack it first"),
    b"PAR1": ("a Parquet file", "give it a name that ends in .parquet"),
}
_KIND = {".gz": (_GZIP, "gzip"), ".zst": (_ZSTD, "Zstandard")}


def lines(path: Path) -> Iterator[bytes]:
    """The lines of a file with their ends, without a byte-order mark.

    A name that ends in `.gz` or `.zst` says that the file is compressed.

    Raises:
      InputError: not a regular file of that kind, another encoding than UTF-8, a
        longer line than `LONGEST_LINE`, or more content than `RATIO` allows.
    """
    with open_text(path) as file:
        number = 0
        while chunk := file.readline(LONGEST_LINE + 1):
            number += 1
            if len(chunk) > LONGEST_LINE:
                raise InputError(
                    f"{path}:{number}: a line of more than {LONGEST_LINE} bytes; "
                    "expected one text a line"
                )
            yield chunk


@contextlib.contextmanager
def open_text(path: Path) -> Iterator[Any]:
    """Open a file of text as its unpacked bytes, after a byte-order mark.

    Raises:
      InputError: as `lines`; also from inside the block, when the file is read.
    """
    with open_regular(path) as packed:
        start = packed.read(8)
        packed.seek(0)
        kind = path.suffix.lower()
        if kind not in _KIND:
            _refuse_binary(path, start)
            yield _after_mark(packed, path)
            return
        magic, name = _KIND[kind]
        if not start.startswith(magic):
            raise InputError(
                f"{path}: not compressed with {name}; give it a name without {kind}"
            )
        size = path.stat().st_size
        try:
            raw = _unpacked(packed, kind)
            yield _after_mark(io.BufferedReader(_Bounded(raw, path, size)), path)
        except (EOFError, OSError, zlib.error) as error:
            raise InputError(
                f"{path}: the {name} data cannot be unpacked ({error}); get the file "
                "again"
            ) from error


def decoded(raw: bytes, where: str) -> str:
    """The text of one line, or of a file.

    Raises:
      InputError: it is not UTF-8.
    """
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(
            f"{where}: invalid UTF-8, byte 0x{raw[error.start]:02x} at byte "
            f"{error.start + 1} of the line; save the file as UTF-8"
        ) from error


def is_too_much(unpacked: int, size: int) -> bool:
    """Whether a file of `size` bytes unpacks to more than texts do."""
    return unpacked > max(LONGEST_LINE, RATIO * size)


class _Bounded(io.RawIOBase):
    """The bytes of a stream, refused beyond `RATIO`."""

    def __init__(self, stream: Any, path: Path, size: int):
        self._stream, self._path, self._size, self._count = stream, path, size, 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._stream.read(len(buffer))
        self._count += len(data)
        if is_too_much(self._count, self._size):
            raise InputError(
                f"{self._path}: unpacks to more than {RATIO} times its size, which no "
                "texts do; expected a file of texts"
            )
        buffer[: len(data)] = data
        return len(data)


def _unpacked(packed: BinaryIO, kind: str) -> Any:
    if kind == ".gz":
        return gzip.GzipFile(fileobj=packed)
    import pyarrow

    return pyarrow.CompressedInputStream(pyarrow.PythonFile(packed), "zstd")


def _after_mark(file: Any, path: Path) -> Any:
    start = file.peek(4)[:4]
    if start.startswith(BOM):
        file.read(len(BOM))
    # JSON and CSV begin with a character of ASCII, which the zeros of UTF-16 give away.
    found = json.detect_encoding(start) if any(start) else "utf-8"
    for name in ("UTF-32", "UTF-16"):
        if found.startswith(name.lower()):
            raise InputError(f"{path}: encoded as {name}; save it as UTF-8")
    return file


def _refuse_binary(path: Path, start: bytes) -> None:
    for magic, (what, fix) in _MAGIC.items():
        if start.startswith(magic):
            raise InputError(f"{path}: {what}; {fix}")
