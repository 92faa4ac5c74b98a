"""A walk over the header of a GGUF file, before the `gguf` package reads it.

That package loops as often as the file's own counts say, past the end of the file too.
"""

import mmap
import struct
from pathlib import Path

LONGEST_ARRAY = 2**22
"""Entries of one array; vocabularies have fewer."""

_SIZES = dict(enumerate((1, 1, 2, 2, 4, 4, 4, 1))) | {10: 8, 11: 8, 12: 8}
"""Bytes of the types of numbers, from uint8 to float64."""
_STRING, _ARRAY = 8, 9


def check_header(path: Path) -> None:
    """Check that every metadata value ends inside the file.

    Raises:
      ValueError: one does not, has an unknown type, or is an array of arrays or of
        more than `LONGEST_ARRAY` entries.

    Source: the GGUF specification (ggml, docs/gguf.md), versions 2 and 3.
    """
    with open(path, "rb") as file:
        if not path.stat().st_size:
            raise ValueError("the file is empty")
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            _Walk(data).metadata()


class _Walk:
    def __init__(self, data: mmap.mmap):
        self.data, self.at = data, 0

    def metadata(self) -> None:
        magic, version, _, count = self._read("<4sIQQ")
        if magic != b"GGUF":
            raise ValueError(f"magic {magic!r}, expected b'GGUF'")
        if not version & 0xFFFF:
            raise ValueError("the byte order is not this machine's")
        if version not in (2, 3):
            raise ValueError(f"version {version}, expected 2 or 3")
        for _ in range(count):
            self._skip(self._read("<Q")[0])  # the key
            self._value(self._read("<I")[0])

    def _value(self, kind: int) -> None:
        if kind == _STRING:
            self._skip(self._read("<Q")[0])
        elif kind == _ARRAY:
            inner, count = self._read("<IQ")
            if inner == _ARRAY or count > LONGEST_ARRAY:
                what = "arrays" if inner == _ARRAY else f"{count} entries"
                raise ValueError(f"an array of {what} at byte {self.at}")
            if inner in _SIZES:
                self._skip(count * _SIZES[inner])
            else:
                for _ in range(count):
                    self._value(inner)
        elif kind in _SIZES:
            self._skip(_SIZES[kind])
        else:
            raise ValueError(f"type {kind} of a value at byte {self.at}")

    def _read(self, layout: str) -> tuple:
        begin = self.at
        self._skip(struct.calcsize(layout))
        return struct.unpack_from(layout, self.data, begin)

    def _skip(self, size: int) -> None:
        self.at += size
        if self.at > len(self.data):
            raise ValueError(f"the header ends after byte {len(self.data)}")
