"""Files that are either whole or absent: atomic writes, hashes, manifests."""

import contextlib
import fnmatch
import functools
import hashlib
import json
import os
import re
import stat
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from lt_mia_jax.errors import InputError, capped

MANIFEST = "manifest.json"
ADAPTER_CONFIG = "adapter_config.json"
"""Of a PEFT adapter, in whose folder no whole model is."""
_TEMPORARY = re.compile(r"\.(.+)\.[a-z0-9_]{8}\.tmp")
"""What `tempfile` makes of the prefix and suffix of `write_atomic`."""

LARGEST_JSON = 2**30
"""Bytes of a JSON file that is read."""
DEEPEST_JSON = 100
"""Objects and lists inside each other; deeper ones exhaust the stack of a reader."""


def sha256_file(path: Path | str) -> str:
    """SHA-256 of a file's bytes, as lower-case hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def content_sha256(path: Path | str) -> str | None:
    """SHA-256 of a file, or of the names and contents of the files of a folder.

    Records of runs say with it what was read. Of folders inside of a folder only `.txt`
    files count, which are texts; hidden files do not count, nor the record of the run
    that made it. A file is read again only if its size or its time has changed. None
    where there is nothing to read.
    """
    path = Path(path)
    # What cannot be read is reported by who reads it.
    with contextlib.suppress(OSError):
        if path.is_file():
            found = path.stat()
            return _sha256(str(path.resolve()), found.st_size, found.st_mtime_ns)
        if path.is_dir():
            texts = (
                entry
                for entry in path.rglob("*")
                if entry.suffix.lower() == ".txt"
                and not any(x.startswith(".") for x in entry.relative_to(path).parts)
            )
            entries = {*path.iterdir(), *texts}
            parts = [
                f"{entry.relative_to(path)}\0{content_sha256(entry)}\n"
                for entry in sorted(entries)
                if entry.is_file() and entry.name[0] != "." and entry.name != "run.json"
            ]
            return fingerprint(*parts) if parts else None
    return None


@functools.lru_cache(maxsize=4096)
def _sha256(path: str, size: int, time: int) -> str:
    return sha256_file(path)


def with_base(path: Path) -> list[Path]:
    """A path; if it is the folder of an adapter, also that of its base, if on disk."""
    with contextlib.suppress(InputError):
        if (path / ADAPTER_CONFIG).is_file():
            found = read_json(path / ADAPTER_CONFIG)
            name = isinstance(found, dict) and found.get("base_model_name_or_path")
            if isinstance(name, str) and name and Path(name).exists():
                return [path, Path(name)]
    return [path]


def file_record(path: Path | str) -> dict[str, Any]:
    """Size and SHA-256 of a file, as manifests hold them."""
    return {"bytes": Path(path).stat().st_size, "sha256": sha256_file(path)}


def fingerprint(*parts: Any) -> str:
    """SHA-256 of values, one after the other, as lower-case hexadecimal.

    Args:
      *parts: bytes and arrays count as their bytes (an array's shape and dtype do not
        count), strings as UTF-8, everything else as JSON with sorted keys; configs go
        through `configs.to_dict` first.

    Raises:
      TypeError: a value that JSON does not know.
    """
    found = hashlib.sha256()
    for part in parts:
        if hasattr(part, "tobytes"):
            found.update(part.tobytes())
        elif isinstance(part, bytes):
            found.update(part)
        else:
            text = part if isinstance(part, str) else json.dumps(part, sort_keys=True)
            found.update(text.encode("utf-8", "surrogatepass"))
    return found.hexdigest()


def write_atomic(path: Path | str, data: bytes | str, *, private: bool = False) -> None:
    """Write a file so that readers see the old content or all of the new one.

    The bytes go to a temporary file in the same folder, are flushed to disk, and
    take the name in one rename. An interrupted write leaves the old file. A `private`
    file can be read by its owner alone: texts are.

    Raises:
      InputError: the disk is full or the folder cannot be written.
    """
    path = Path(path)
    payload = data.encode() if isinstance(data, str) else data
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(
            dir=path.parent, prefix=f".{path.name}.", suffix=".tmp", delete=False
        ) as file:
            temporary = file.name
            file.write(payload)
            file.flush()
            os.fsync(file.fileno())
        if not private:
            # mkstemp makes the file private; give it the mode `open` would have given.
            mask = os.umask(0)
            os.umask(mask)
            os.chmod(temporary, 0o666 & ~mask)
        os.replace(temporary, path)
    except OSError as error:
        if temporary is not None:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(temporary)
        raise InputError(
            f"cannot write {path}: {error.strerror or error}; free space or choose "
            "another --out"
        ) from error


def is_temporary(name: str, of: str = "*") -> bool:
    """Whether `write_atomic` names its temporary files so, for files like the glob."""
    found = _TEMPORARY.fullmatch(name)
    return found is not None and fnmatch.fnmatchcase(found[1], of)


def write_json(path: Path | str, value: Any, *, private: bool = False) -> None:
    """Write `value` as indented JSON, atomically; NaN and infinity are refused."""
    text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False)
    write_atomic(path, text + "\n", private=private)


@contextlib.contextmanager
def open_regular(path: Path | str) -> Iterator[BinaryIO]:
    """Open a file for reading; a pipe would block, and a device may never end.

    Raises:
      InputError: no such file, a folder, pipe or device, or it cannot be read.
    """
    try:
        mode = os.stat(path).st_mode
        if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
            raise InputError(
                f"{path}: found a pipe or device, expected a regular file; save its "
                "content in one"
            )
        with open(path, "rb") as file:
            yield file
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error


def parse_json(text: bytes | str) -> Any:
    """`json.loads` of what has one reading only.

    Raises:
      ValueError: no JSON (`json.JSONDecodeError`), an object with one key twice, more
        than `DEEPEST_JSON` levels, or an integer that Python does not convert.
    """
    if isinstance(text, bytes):
        text = text.decode(json.detect_encoding(text), "surrogatepass")
    try:
        value = _DECODER.decode(text)
        # Counting is quick; few values have so many brackets.
        deep = text.count("{") + text.count("[") > DEEPEST_JSON and _is_deep(value)
    except RecursionError:
        deep, value = True, None
    if deep:
        raise ValueError(f"nested more than {DEEPEST_JSON} levels deep")
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        counts = Counter(name for name, _ in pairs)
        twice = next(name for name, count in counts.items() if count > 1)
        raise ValueError(f"the key {json.dumps(twice)[:60]} stands there twice")
    return found


_DECODER = json.JSONDecoder(object_pairs_hook=_unique)


def _is_deep(value: Any) -> bool:
    level: list[Any] = [[value]]
    for _ in range(DEEPEST_JSON + 1):
        level = [
            inner
            for each in level
            for inner in (each.values() if isinstance(each, dict) else each)
            if isinstance(inner, dict | list)
        ]
        if not level:
            return False
    return True


def read_json(path: Path | str) -> Any:
    """Read a JSON file.

    Raises:
      InputError: the file is missing, no regular file, larger than `LARGEST_JSON`, not
        UTF-8 or not what `parse_json` takes.
    """
    with open_regular(path) as file:
        data = file.read(LARGEST_JSON + 1)
    if len(data) > LARGEST_JSON:
        raise InputError(f"{path}: more than {LARGEST_JSON} bytes of JSON")
    try:
        return parse_json(data)
    except ValueError as error:
        raise InputError(f"{path}: not valid JSON ({error})") from error


def write_manifest(
    directory: Path | str, names: Sequence[str], **extra: Any
) -> dict[str, Any]:
    """Write `manifest.json` with size and SHA-256 of each named file, and its own.

    Write it last: a folder without a manifest is unfinished. `names` are relative to
    `directory`, `extra` are further entries (JSON values). Returns what was written.
    """
    directory = Path(directory)
    files = {name: file_record(directory / name) for name in sorted(names)}
    manifest = {"files": files, **extra}
    manifest["digest"] = _digest(manifest)
    write_json(directory / MANIFEST, manifest)
    return manifest


def verify_manifest(directory: Path | str) -> dict[str, Any]:
    """Check every file that a manifest vouches for and return the manifest.

    Raises:
      InputError: no manifest, one that was changed, or files that are missing,
        truncated or changed; all of them are listed.
    """
    directory = Path(directory)
    if not directory.is_dir():
        raise InputError(f"{directory}: no such directory")
    if not (directory / MANIFEST).exists():
        raise InputError(
            f"{directory}: no {MANIFEST}, so it is unfinished or not a folder that "
            "lt-mia wrote; run the command that makes it again (it resumes)"
        )
    manifest = read_json(directory / MANIFEST)
    if not isinstance(manifest, dict) or not isinstance(manifest.get("files"), dict):
        raise InputError(f"{directory / MANIFEST}: no 'files' table; write it again")
    if manifest.get("digest") != _digest(manifest):
        raise InputError(
            f"{directory / MANIFEST}: its content does not have the SHA-256 under "
            "'digest', so it has changed or an earlier version wrote it. Restore the "
            "folder from a copy or make it again"
        )
    wrong = []
    for name, expected in manifest["files"].items():
        path = directory / name
        if not path.is_file():
            wrong.append(f"{name} is missing")
        elif path.stat().st_size != expected["bytes"]:
            wrong.append(
                f"{name} has {path.stat().st_size} bytes instead of {expected['bytes']}"
            )
        elif sha256_file(path) != expected["sha256"]:
            wrong.append(f"{name} has changed content (SHA-256 differs)")
    if wrong:
        raise InputError(
            f"{directory}: {capped(wrong, '; ')}. Restore the folder from a copy or "
            "make it again"
        )
    return manifest


def _digest(manifest: dict[str, Any]) -> str:
    """SHA-256 of a manifest's values, however they are laid out in the file."""
    rest = {name: value for name, value in manifest.items() if name != "digest"}
    canonical = json.dumps(rest, sort_keys=True, separators=(",", ":"))
    return fingerprint(canonical)
