"""Damage to files, undone afterwards."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np


@contextlib.contextmanager
def flipped_bit(folder: Path, rng: np.random.Generator) -> Iterator[Path]:
    """A random bit of a random byte of a random file under `folder`, flipped.

    The file may have moved with a renamed folder; it is mended under its old name.
    """
    files = sorted(p for p in folder.rglob("*") if p.is_file() and p.stat().st_size)
    file = files[rng.integers(len(files))]
    content = file.read_bytes()
    broken = bytearray(content)
    broken[rng.integers(len(broken))] ^= 1 << int(rng.integers(8))
    file.write_bytes(broken)
    try:
        yield file
    finally:
        file.write_bytes(content)
