"""What a result was made with: versions, commit, command, configuration."""

import contextlib
import platform
import subprocess
import sys
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from lt_mia_jax.configs import to_dict
from lt_mia_jax.errors import InputError
from lt_mia_jax.executor import is_primary
from lt_mia_jax.files import write_atomic, write_json
from lt_mia_jax.process import cores
from lt_mia_jax.version import __version__

RECORD = ("config.json", "run.json")
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


@contextlib.contextmanager
def recorded(
    directory: Path, command: str, config: Any, *, files: Sequence[str] = ()
) -> Iterator[None]:
    """`write_run_record`, taken back when the run is refused.

    A folder of another run keeps that run's record, and its `files`, which the block
    may write.
    """
    paths = [directory / name for name in (*RECORD, *files)]
    earlier = {path: path.read_bytes() for path in paths if path.is_file()}
    write_run_record(directory, command, config)
    try:
        yield
    except InputError:
        for path, content in earlier.items() if is_primary() else ():
            write_atomic(path, content)
        raise


def write_run_record(directory: Path, command: str, config: Any) -> dict[str, Any]:
    """Write `config.json` (resolved configuration) and `run.json` (how it was run).

    Of several processes the first one writes.

    Returns:
      The content of `run.json`.
    """
    record = {
        "command": command,
        "arguments": sys.argv[1:],
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": git_commit(),
        "versions": versions(),
        "platform": platform.platform(),
        "cores": cores(),
    }
    if is_primary():
        for name, content in zip(RECORD, (to_dict(config), record), strict=True):
            write_json(directory / name, content)
    return record
