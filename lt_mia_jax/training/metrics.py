"""Numbers of a run as JSON lines, safe to continue after a crash."""

import contextlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from lt_mia_jax.errors import InputError
from lt_mia_jax.files import parse_json, write_atomic


class MetricsWriter:
    """Appends one JSON object a line to a file; every row has a `step`.

    Rows reach the file in order. After a crash the file may hold rows beyond the
    checkpoint that the run resumes from, and a torn last line: `rewind` drops both.

    Every method raises `InputError` when the file cannot be written, for example on a
    full disk.
    """

    def __init__(self, path: Path | str):
        self.path = Path(path)
        self._file = None

    def rewind(self, step: int) -> None:
        """Keep complete rows up to and including `step` and drop the rest."""
        self.close()
        try:
            lines = self.path.read_bytes().splitlines(keepends=True)
        except FileNotFoundError:
            return
        except OSError as error:
            raise InputError(
                f"{self.path}: cannot be read ({error.strerror})"
            ) from error
        kept = [line for line in lines if _is_kept(line, step)]
        if len(kept) < len(lines):
            write_atomic(self.path, b"".join(kept))

    def write(self, row: Mapping[str, Any]) -> None:
        """Append a row; it is on its way to disk after the next `flush`."""
        line = json.dumps(row, allow_nan=False) + "\n"
        with self._explained():
            if self._file is None:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                self._file = open(self.path, "a", encoding="utf-8")
            self._file.write(line)

    def flush(self) -> None:
        """Hand all rows to the operating system: a killed process keeps them."""
        if self._file is not None:
            with self._explained():
                self._file.flush()

    def close(self) -> None:
        """Flush and close; writing again reopens the file."""
        file, self._file = self._file, None
        if file is not None:
            with self._explained():
                file.close()

    def __enter__(self) -> "MetricsWriter":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise InputError(
                f"cannot write {self.path}: {error.strerror or error}; free space or "
                "choose another --out"
            ) from error


def _is_kept(line: bytes, step: int) -> bool:
    if not line.endswith(b"\n"):
        return False
    try:
        row = parse_json(line)
    except ValueError:
        return False
    return isinstance(row, dict) and row.get("step", step + 1) <= step
