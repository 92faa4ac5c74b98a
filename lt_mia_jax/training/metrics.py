"""Numbers of a run as JSON lines, safe to continue after a crash."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lt_mia_jax.errors import InputError
from lt_mia_jax.files import write_atomic


class MetricsWriter:
    """Appends one JSON object a line to a file; every row has a `step`.

    Rows reach the file in order. After a crash the file may hold rows beyond the
    checkpoint that the run resumes from, and a torn last line: `rewind` drops both.
    """

    def __init__(self, path: Path | str):
        self.path = Path(path)
        self._file = None

    def rewind(self, step: int) -> None:
        """Keep complete rows up to and including `step`; later rows are written anew.

        Raises:
          InputError: the file cannot be read or written.
        """
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
        """Append a row; it is on its way to disk after the next `flush`.

        Raises:
          InputError: the file cannot be written, for example on a full disk.
        """
        line = json.dumps(row, allow_nan=False) + "\n"
        try:
            if self._file is None:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                self._file = open(self.path, "a", encoding="utf-8")
            self._file.write(line)
        except OSError as error:
            raise self._no_space(error) from error

    def flush(self) -> None:
        """Hand all rows to the operating system, so that a killed process keeps them.

        Raises:
          InputError: the file cannot be written, for example on a full disk.
        """
        if self._file is None:
            return
        try:
            self._file.flush()
        except OSError as error:
            raise self._no_space(error) from error

    def close(self) -> None:
        """Flush and close; writing again reopens the file."""
        if self._file is None:
            return
        file, self._file = self._file, None
        try:
            file.close()
        except OSError as error:
            raise self._no_space(error) from error

    def __enter__(self) -> "MetricsWriter":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _no_space(self, error: OSError) -> InputError:
        return InputError(
            f"cannot write {self.path}: {error.strerror or error}; free space or "
            "choose another --out"
        )


def _is_kept(line: bytes, step: int) -> bool:
    if not line.endswith(b"\n"):
        return False
    try:
        row = json.loads(line)
    except (UnicodeDecodeError, json.JSONDecodeError):
        return False
    return isinstance(row, dict) and row.get("step", step + 1) <= step
