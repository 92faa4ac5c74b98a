"""What commands write: whose a folder is, who writes to it now, what a kill left.

A folder belongs to the command that its `run.json` names. While a command writes, it
holds an operating system's lock on a file, which ends with the process, however that
ends.
"""

import contextlib
import dataclasses
import errno
import fcntl
import fnmatch
import logging
import os
import re
import shutil
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import tyro

from lt_mia_jax.configs import INPUT, to_dict
from lt_mia_jax.configs import Source as Source
from lt_mia_jax.errors import InputError, Unavailable
from lt_mia_jax.files import content_sha256, is_temporary, read_json, with_base

log = logging.getLogger(__name__)

LOCK = ".lt-mia.lock"
SHARED = ".shared"
"""Of `executor.check_shared`."""
_NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL)
_ORBAX = re.compile(r"\d+\.orbax-checkpoint-tmp.*")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Writing:
    """How the command treats what is there already."""

    overwrite: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Write even where something else is: files of the same names are replaced, others
    stay. Without it, such an --out is refused. Inputs are never replaced."""


WritingFlags = Annotated[Writing, tyro.conf.arg(name="")]
"""As a field of a command: its flags have no prefix."""


class Output(NamedTuple):
    """What a command writes into the folder --out."""

    names: tuple[str, ...]
    """Globs of its files and folders at the top; all in such a folder is its own."""
    record: str = "."
    """Subfolder of `run.json` and `config.json`, where --out is a model."""
    fixed: tuple[str, ...] = ()
    """Flags that a folder cannot change, for its files belong together."""
    resumes: bool = True
    """Whether a run goes on where an earlier one was: with the same inputs only."""


RESULT = Output(
    ("scores.jsonl", "summary.json", "report.html", "run.json", "config.json"),
    resumes=False,
)
"""Of audits and evaluations."""
MODEL = (
    *("config.json", "model*.safetensors", "model.safetensors.index.json"),
    *("token*.json", "special_tokens_map.json", "added_tokens.json", "vocab.json"),
    *("merges.txt", "*.model", "chat_template.jinja", "generation_config.json"),
    *("intervention.json", "intervention.safetensors", "training", "adapter"),
)
"""Names in the folder of a model with its training."""


@contextlib.contextmanager
def writing(
    out: Path, output: Output, command: str, config: Any, *, overwrite: bool = False
) -> Iterator[None]:
    """Write to the folder `out` inside of this block; the record of the run is kept.

    A new folder gets its record at the beginning, which marks it as the command's own;
    that of an earlier run stays until the new one has succeeded. A block that fails
    before it has made anything leaves nothing. Of several processes the first one
    decides for all.

    Args:
      out: the folder, which need not exist.
      output: what the command writes there.
      command: its name, as `run.json` has it.
      config: its flags; those that name paths are its inputs.
      overwrite: go on although the folder is somebody else's.

    Raises:
      InputError: an input would be replaced, or the folder holds something else.
      Unavailable: another process writes to the folder.
    """
    from lt_mia_jax.executor import broadcast_from_primary, is_primary

    problem = None
    with contextlib.ExitStack() as stack:
        if is_primary():
            claim = claimed(out, output, command, config, overwrite=overwrite)
            try:
                stack.enter_context(claim)
            except (InputError, Unavailable) as error:
                problem = error
        refused = bool(broadcast_from_primary(int(problem is not None)))
        if refused:
            raise problem or InputError(f"{out}: the first process says what is wrong")
        yield


@contextlib.contextmanager
def replacing(
    path: Path,
    reads: Iterable[Path],
    ours: Callable[[Path], bool],
    *,
    overwrite: bool = False,
) -> Iterator[None]:
    """Write one file inside of this block; an old one must be `ours`.

    Raises InputError if it is read, a folder, or somebody else's, or Unavailable.
    """
    alien = path.exists() and not ours(path)
    inside = Path(os.path.realpath(path)).parents if alien and overwrite else ()
    for each in reads:
        if _same(each, path) or Path(os.path.realpath(each)) in inside:
            raise InputError(f"--out {path}: is also read; choose another name")
    if path.is_dir():
        raise InputError(f"--out {path}: found a folder, expected the name of a file")
    if alien and not overwrite:
        raise InputError(
            f"--out {path}: is there, and no page that lt-mia wrote; choose another "
            "name, or --overwrite replaces it"
        )
    with _locked(path.with_name(f".{path.name}.lock"), path):
        for entry in path.parent.iterdir():
            if is_temporary(entry.name, path.name):
                entry.unlink()
        yield


def inputs(config: Any) -> Iterator[tuple[str, Path]]:
    """The paths that a command reads, by name of the flag."""
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        hints = (field.type, *typing.get_args(field.type))
        marked = any(INPUT in getattr(hint, "__metadata__", ()) for hint in hints)
        if dataclasses.is_dataclass(value):
            yield from inputs(value)
        for each in value if isinstance(value, tuple) else (value,):
            if isinstance(each, Path) or (marked and isinstance(each, str)):
                if field.name != "out":
                    for path in with_base(Path(each)):  # of an adapter
                        yield field.name.replace("_", "-"), path


@contextlib.contextmanager
def claimed(
    out: Path, output: Output, command: str, config: Any, *, overwrite: bool = False
) -> Iterator[None]:
    """`writing` of a single process, which leaves the devices to others."""
    from lt_mia_jax.provenance import write_run_record

    def state() -> Literal["own", "empty", "foreign"]:
        return _state(out, output, command, config, overwrite)

    _check_inputs(out, output, config)
    began = datetime.now(UTC)
    state()  # a foreign folder is not touched
    with _locked(out / LOCK, out):
        found = state()  # which may be another one by now
        home = out / output.record
        reads = _contents(config)
        resumed = found == "own" and output.resumes
        before = _continued(home, out, reads) if resumed else []
        if found != "foreign":
            _remove_temporaries(out, output)
        record = partial(
            write_run_record, home, command, config, reads=reads, before=before
        )
        try:
            if found == "empty":
                record(started=began)
            yield
            record(started=began)
        except BaseException:
            if found == "empty":
                _remove_record(out, output)
            raise


def _check_inputs(out: Path, output: Output, config: Any) -> None:
    """Refuse inputs that are the folder, or among what is written there."""
    folder = out.resolve()
    for flag, path in inputs(config):
        if _same(path, out):
            raise InputError(
                f"--out {out}: is also --{flag}, which would be overwritten; choose "
                "another --out"
            )
        inside = path.resolve()
        if inside.is_relative_to(folder):
            first = inside.relative_to(folder).parts[0]
            if _matches(first, output.names):
                raise InputError(
                    f"--{flag} {path}: stands where --out {out} writes; choose another "
                    "--out"
                )


def _state(
    out: Path, output: Output, command: str, config: Any, overwrite: bool
) -> Literal["own", "empty", "foreign"]:
    """Whose folder it is; a foreign one is refused unless it may be overwritten."""
    if out.exists() and not out.is_dir():
        raise InputError(f"--out {out}: is a file, expected a folder")
    owner, earlier = _record(out / output.record)
    changed = [
        name
        for name in (output.fixed if owner == command and earlier else ())
        if earlier.get(name) != to_dict(config).get(name)
    ]
    if owner == command and not changed:
        return "own"
    present = _present(out, output) if out.is_dir() else []
    if not present:
        return "empty"
    if overwrite:
        return "foreign"
    if changed:
        what = f"a run of {command} with another {', '.join(changed)}"
    elif owner is not None:
        what = f"a run of {owner}"
    else:
        more = ", ..." if len(present) > 3 else ""
        what = f"{', '.join(present[:3])}{more}, not written by {command}"
    raise InputError(
        f"--out {out}: holds {what}; choose another folder, or --overwrite replaces "
        "files of the same names"
    )


def _contents(config: Any) -> dict[str, str]:
    """SHA-256 of everything on disk that a command reads, by path."""
    found = {str(path): content_sha256(path) for _, path in inputs(config)}
    return {path: sha256 for path, sha256 in found.items() if sha256 is not None}


def _continued(home: Path, out: Path, reads: Mapping[str, str]) -> list[dict[str, Any]]:
    """The runs that the next one continues, the last one at the end.

    Raises:
      InputError: what they read has changed.
    """
    from lt_mia_jax.provenance import versions

    run = read_json(home / "run.json")
    earlier = run.get("reads", {})
    changed = [path for path in reads if earlier.get(path, reads[path]) != reads[path]]
    if changed:
        raise InputError(
            f"--out {out}: its run has read another {', '.join(changed)}, which has "
            "changed since (SHA-256); choose another --out, or remove the folder"
        )
    now = versions()
    other = [
        f"{name} {version} (now {now.get(name, 'absent')})"
        for name, version in run["versions"].items()
        if now.get(name) != version
    ]
    if other:
        log.warning("%s began with %s; its record names both", out, ", ".join(other))
    last = {name: run.get(name) for name in ("started", "commit", "versions")}
    return [*run.get("continues", []), last]


def _record(home: Path) -> tuple[str | None, dict[str, Any]]:
    """Command and flags of the run that a folder says it holds."""
    try:
        run, config = read_json(home / "run.json"), {}
        with contextlib.suppress(InputError):
            config = read_json(home / "config.json")
        known = "lt_mia_jax" in run["versions"]
        earlier = config if isinstance(config, dict) else {}
        return (run["command"], earlier) if known else (None, {})
    except (InputError, KeyError, TypeError):
        return None, {}


def _present(out: Path, output: Output) -> list[str]:
    """Names in a folder, without what a kill leaves before the first record."""

    def remains(entry: Path) -> bool:
        if entry.is_dir() and not entry.is_symlink():
            return any(map(remains, entry.iterdir()))
        return not _is_leftover(entry.name, (*output.names, "run.json", "config.json"))

    return sorted(entry.name for entry in out.iterdir() if remains(entry))


def _is_leftover(name: str, names: Iterable[str]) -> bool:
    return name in (LOCK, SHARED) or any(is_temporary(name, each) for each in names)


def _remove_temporaries(out: Path, output: Output) -> None:
    """Remove what killed runs of this command left; the lock is held."""
    for entry in list(out.iterdir()):
        if entry.name == SHARED or any(
            is_temporary(entry.name, name) for name in output.names
        ):
            entry.unlink()
        elif entry.is_dir() and _matches(entry.name, output.names):
            for folder, folders, files in os.walk(entry):
                if LOCK in files:  # a run of its own
                    folders.clear()
                    continue
                for name in filter(is_temporary, files):
                    (Path(folder) / name).unlink()
                for name in filter(_ORBAX.fullmatch, list(folders)):
                    shutil.rmtree(Path(folder) / name)
                    folders.remove(name)


def _remove_record(out: Path, output: Output) -> None:
    """Remove the record of a run that has made nothing else, and empty folders."""
    home = out / output.record
    own = {home / "run.json", home / "config.json", out / LOCK, out / SHARED}
    entries = sorted(out.rglob("*"), reverse=True)
    if all(entry in own or entry.is_dir() for entry in entries):
        for entry in entries:
            if entry.is_dir():
                entry.rmdir()
            elif entry.name != LOCK:
                entry.unlink()


@contextlib.contextmanager
def _locked(path: Path, subject: Path) -> Iterator[None]:
    """Hold a lock on a file that is there meanwhile; folders left empty are removed."""
    made = [each for each in path.parents if not each.exists()]
    handle = None
    try:
        handle = _lock(path, subject)
        yield
    finally:
        if handle is not None:
            # While it is locked: who has opened it too sees that it is gone.
            path.unlink(missing_ok=True)
            os.close(handle)
        with contextlib.suppress(OSError):
            for each in made:
                each.rmdir()


def _lock(path: Path, subject: Path) -> int:
    while True:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        except FileNotFoundError:  # another process has just removed the folder
            continue
        except OSError as error:
            raise InputError(
                f"cannot write {path.parent}: {error.strerror}; choose another --out"
            ) from error
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(handle)
            raise Unavailable(
                f"another command is writing to {subject}; wait until it has ended, or "
                "choose another --out"
            ) from None
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
            log.warning("%s: no locks here; give it to one command at a time", subject)
            return handle
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(handle), os.stat(path)):
                return handle
        os.close(handle)


def _matches(name: str, names: Iterable[str]) -> bool:
    return any(fnmatch.fnmatchcase(name, each) for each in names)


def _same(one: Path, two: Path) -> bool:
    if one.exists() and two.exists():
        return one.samefile(two)
    # Not `resolve`, which raises for a link to itself.
    return os.path.realpath(one) == os.path.realpath(two)
