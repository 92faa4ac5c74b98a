"""What a result was made with: versions, commit, command, configuration."""

import contextlib
import platform
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

from lt_mia_jax.configs import to_dict
from lt_mia_jax.files import write_json
from lt_mia_jax.process import cores
from lt_mia_jax.version import __version__

PACKAGES = (
    "jax",
    "jaxlib",
    "flax",
    "optax",
    "orbax-checkpoint",
    "grain",
    "numpy",
    "scipy",
    "scikit-learn",
    "transformers",
    "datasets",
    "tokenizers",
)


def versions() -> dict[str, str]:
    """Versions of the package, Python and the libraries that decide numbers."""
    found = {"lt_mia_jax": __version__, "python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def git_commit() -> str | None:
    """Commit of the checkout that holds this package; `-dirty` when it has edits.

    Code that was sent without its history has a note instead (`tpu_setup/sync.sh`).
    """
    folder = Path(__file__).resolve().parent

    def git(*words: str) -> str | None:
        try:
            answer = subprocess.run(
                ["git", "-C", str(folder), *words],
                capture_output=True,
                text=True,
                timeout=10,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired):
            return None
        return answer.stdout.strip() if answer.returncode == 0 else None

    # Only a checkout of this project counts, not a repository that happens to
    # contain the installed package.
    if git("ls-files", "--error-unmatch", "provenance.py") is None:
        return _noted_commit(folder.parent)
    commit = git("rev-parse", "HEAD")
    if commit is None:
        return None
    return f"{commit}-dirty" if git("status", "--porcelain", "-uno") else commit


def _noted_commit(root: Path) -> str | None:
    try:
        project = (root / "pyproject.toml").read_text()
        note = (root / "COMMIT").read_text().strip()
    except OSError:
        return None
    # Not the note of another project, which has a copy of this package.
    return note if note and 'name = "lt-mia-jax"' in project else None


def write_run_record(
    directory: Path,
    command: str,
    config: Any,
    *,
    started: datetime | None = None,
    reads: Mapping[str, str] | None = None,
    before: Sequence[Mapping[str, Any]] = (),
) -> dict[str, Any]:
    """Write `run.json` (how it was run) and `config.json` (resolved configuration).

    Of several processes only the first one calls it.

    Args:
      directory: of both files.
      command: name of the command.
      config: its flags.
      started: now by default.
      reads: SHA-256 of the files and folders that it reads, by path.
      before: start, versions and commit of runs that it continues.

    Returns:
      The content of `run.json`.
    """
    record = _run_record(command, started=started, reads=reads, before=before)
    # The first one marks the folder; the two of different runs never meet.
    (directory / "config.json").unlink(missing_ok=True)
    write_json(directory / "run.json", record)
    write_json(directory / "config.json", to_dict(config))
    return record


@contextlib.contextmanager
def recorded(
    path: Path, command: str, config: Any, *, reads: Mapping[str, str] | None = None
) -> Iterator[None]:
    """Write `NAME.run.json` beside a file that is written inside of this block.

    It holds what `write_run_record` writes into a folder. That of an earlier run stays
    until the block has succeeded; without the file there is none.
    """
    beside = path.with_name(f"{path.name}.run.json")
    record = _run_record(command, reads=reads)
    write = partial(write_json, beside, {**record, "config": to_dict(config)})
    is_new = not path.exists()
    try:
        if is_new:
            write()
        yield
        write()
    finally:
        if is_new and not path.exists():
            beside.unlink(missing_ok=True)


def _run_record(
    command: str,
    *,
    started: datetime | None = None,
    reads: Mapping[str, str] | None = None,
    before: Sequence[Mapping[str, Any]] = (),
) -> dict[str, Any]:
    record = {
        "command": command,
        "arguments": sys.argv[1:],
        "started": (started or datetime.now(UTC)).isoformat(timespec="seconds"),
        "commit": git_commit(),
        "versions": versions(),
        "platform": platform.platform(),
        "cores": cores(),
        "reads": dict(reads or {}),
    }
    if before:
        record["continues"] = [dict(each) for each in before]
    return record
