"""Save and resume any pytree; damage is noticed and the step before it is used.

Orbax writes and restores the arrays. It restores some flipped bits silently, so
every committed step also gets our own manifest with the SHA-256 of each file,
which is checked before anything is restored. A marker file names the step that is
being saved: a step without a manifest is "interrupted" when the marker names it,
and "damaged" otherwise.

Saving goes on in the background: Orbax writes and commits a copy of the arrays, and a
thread of ours then hashes the files, writes the manifest and removes the marker. It
waits and reads files only; processes meet where the main thread calls `save`, `wait`
or `restore`, never inside that thread.

The directory must be on a file system that all processes share.
"""

import contextlib
import json
import logging
import os
import re
import shutil
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import jax
import orbax.checkpoint as ocp

from lt_mia_jax.errors import InputError
from lt_mia_jax.executor import broadcast_from_primary, is_primary, wait_for_all
from lt_mia_jax.files import (
    MANIFEST,
    read_json,
    verify_manifest,
    write_json,
    write_manifest,
)
from lt_mia_jax.training.leaves import abstract, check_leaves, own, shapes
from lt_mia_jax.trees import named_leaves

logger = logging.getLogger(__name__)

MARKER = "saving.json"
KEPT = 2
"""Newest steps that stay, so that one may turn out damaged."""


class Restored(NamedTuple):
    """A checkpoint as it was saved."""

    step: int
    tree: Any
    meta: dict[str, Any]


class Checkpointer:
    """Numbered checkpoints in a directory of their own; a context manager.

    Call `restore` once before the first `save`. A process killed at any moment
    leaves at least the previous checkpoint intact. Every process calls the same
    methods in the same order, from its main thread. What fails in the background, as on
    a full disk, is an `InputError` of the next method that waits for it.
    """

    def __init__(self, directory: Path | str, *, signature: str = ""):
        """Use `directory`, which is created and must hold nothing else.

        The signature says what the run computes (for example a hash of its config and
        data); checkpoints of another signature are refused.
        """
        self.directory = Path(directory).absolute()
        self.signature = signature
        self._manager: _Manager | None = None
        self._pending: tuple[int, Future[None]] | None = None
        self._inspected = False
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(
                f"cannot make the folder {self.directory}: {_system_error(error)}; "
                "choose another --out"
            ) from error

    def steps(self) -> tuple[int, ...]:
        """Steps present on disk, oldest first, whether good or not."""
        names = (p.name for p in self.directory.iterdir() if p.is_dir())
        return tuple(sorted(int(name) for name in names if name.isdecimal()))

    def restore(self, template: Any) -> Restored | None:
        """The newest good checkpoint, or None when there is none yet.

        Steps newer than it that turned out damaged are logged and renamed to
        `damaged-<step>`; one whose saving was interrupted is removed. `template` is the
        expected tree, of arrays or of `jax.ShapeDtypeStruct`; its shardings decide
        where the restored arrays live.

        Raises:
          InputError: steps are present but all are damaged; the checkpoint has
            another signature; or paths, shapes or dtypes differ from the template
            (all of them are listed); or the save before it failed.
        """
        self.wait()
        interrupted, damaged = [], []
        found = -1
        for step in reversed(self.steps()):
            try:
                verify_manifest(self._folder(step))
            except InputError as error:
                if self._was_being_saved(step):
                    interrupted.append(step)
                    unfinished = "was being saved when the run stopped; it is not used"
                    logger.info(f"step {step} {unfinished}")
                else:
                    damaged.append(step)
                    logger.warning("checkpoint %d is not used: %s", step, error)
            else:
                found = step
                break
        if found < 0 and damaged:
            raise InputError(
                f"{self.directory}: no usable checkpoint; steps {sorted(damaged)} are "
                "damaged. Restore the folder from a copy, or delete it by hand to "
                "start again"
            )
        wait_for_all("checkpoint inspected")
        # Files may show late to another process, which must not go its own way.
        found = int(broadcast_from_primary(found))
        if is_primary():
            for step in interrupted:
                shutil.rmtree(self._folder(step))
            for step in damaged:
                self._set_aside(step)
            (self.directory / MARKER).unlink(missing_ok=True)
        wait_for_all("checkpoint cleaned")
        self._inspected = True
        if found < 0:
            return None
        if damaged:
            logger.warning("continuing from the earlier checkpoint %d", found)
        return self._load(found, template)

    def save(self, step: int, tree: Any, meta: dict[str, Any]) -> None:
        """Start to write a checkpoint; `wait` and `close` wait until it is there.

        The tree is any pytree of JAX arrays, which are copied before this returns and
        may be donated then; `meta` are JSON values. Steps only grow. A save that is
        still going on is waited for first.

        Raises:
          InputError: the disk is full or not writable (earlier checkpoints stay as
            they are), or earlier checkpoints exist that were not restored.
        """
        self.wait()
        if not self._inspected and self.steps():
            raise InputError(
                f"{self.directory} holds checkpoints of an earlier run; restore them "
                "first, choose another --out, or delete that folder by hand"
            )
        self._inspected = True
        leaves = named_leaves(tree, ".")
        record = {"signature": self.signature, "leaves": shapes(leaves), "meta": meta}
        # Fails before anything is written, and is a copy: the caller may go on
        # changing `meta`.
        record = json.loads(json.dumps(record, allow_nan=False))
        logging.getLogger("absl").addFilter(_drop)
        try:
            if is_primary():
                write_json(self.directory / MARKER, {"step": step})
            manager = self._open()
            written = manager.save(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardSave(jax.tree.map(own, leaves)),
                    meta=ocp.args.JsonSave(record),
                ),
            )
            assert written, f"step {step} is not after the steps {self.steps()}"
        except Exception as error:
            self._fail(step, error)
        executor = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._pending = step, executor.submit(self._finish, manager, step)
        executor.shutdown(wait=False)

    def wait(self) -> None:
        """Return when the last save is complete and vouched for, on all processes."""
        if self._pending is not None:
            self._settle()
            wait_for_all("checkpoint saved")

    def close(self) -> None:
        """Finish the last save and release the files; may be used again afterwards.

        Unlike `wait` it does not wait for other processes, which may have stopped.
        """
        self._settle()
        if self._manager is not None:
            self._manager.close()
            self._manager = None

    def __enter__(self) -> "Checkpointer":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            self.close()
        except InputError as error:
            if kind is None:
                raise
            # What is already on its way to the caller came first.
            logger.warning("%s", error)

    def _folder(self, step: int) -> Path:
        return self.directory / str(step)

    def _open(self) -> "_Manager":
        if self._manager is None:
            self._manager = _Manager(
                self.directory,
                item_names=("state", "meta"),
                options=ocp.CheckpointManagerOptions(
                    max_to_keep=KEPT,
                    cleanup_tmp_directories=True,
                    enable_async_checkpointing=True,
                ),
            )
        return self._manager

    def _finish(self, manager: "_Manager", step: int) -> None:
        """Vouch for a step once Orbax has committed it; runs in the background."""
        manager.wait_until_finished()
        if is_primary():
            folder = self._folder(step)
            files = (path for path in folder.rglob("*") if path.is_file())
            names = [str(path.relative_to(folder)) for path in files]
            write_manifest(folder, names, step=step)
            (self.directory / MARKER).unlink()

    def _settle(self) -> None:
        """Wait for this process's part of the last save."""
        if self._pending is None:
            return
        step, saving = self._pending
        try:
            saving.result()
        except Exception as error:
            self._fail(step, error)
        finally:
            # An interrupt ends the waiting, not the saving.
            if saving.done():
                self._pending = None
                logging.getLogger("absl").removeFilter(_drop)

    def _fail(self, step: int, error: Exception) -> NoReturn:
        """Clean up after a failed save and raise what the user should know."""
        self._abandon(step)
        logging.getLogger("absl").removeFilter(_drop)
        reason = _system_error(error)
        if reason is None and not isinstance(error, InputError):
            raise error
        raise InputError(
            f"cannot save a checkpoint in {self.directory}: {reason or error}; "
            "earlier checkpoints are kept. Free space or choose another --out, "
            "then run again"
        ) from error

    def _abandon(self, step: int) -> None:
        """Remove what a failed save left, which may be what fills the disk."""
        manager, self._manager = self._manager, None
        if manager is not None:
            # Each thread that waits is told of the error once.
            with contextlib.suppress(Exception):
                manager.wait_until_finished()
            manager.close()
        if is_primary():
            for folder in self.directory.glob(f"{step}.orbax-checkpoint-tmp*"):
                shutil.rmtree(folder)
            if not (self._folder(step) / MANIFEST).exists():
                shutil.rmtree(self._folder(step), ignore_errors=True)

    def _was_being_saved(self, step: int) -> bool:
        marker = self.directory / MARKER
        if not marker.exists() or (self._folder(step) / MANIFEST).exists():
            return False
        return read_json(marker) == {"step": step}

    def _set_aside(self, step: int) -> None:
        number, target = 1, self.directory / f"damaged-{step}"
        while target.exists():
            number += 1
            target = self.directory / f"damaged-{step}-{number}"
        self._folder(step).rename(target)

    def _load(self, step: int, template: Any) -> Restored:
        manager = self._open()
        record = manager.restore(
            step, args=ocp.args.Composite(meta=ocp.args.JsonRestore())
        )["meta"]
        if record["signature"] != self.signature:
            raise InputError(
                f"{self.directory} holds checkpoints of another configuration or of "
                "other data; choose another --out, or delete that folder by hand"
            )
        expected = named_leaves(template, ".")
        check_leaves(self._folder(step), record["leaves"], shapes(expected))
        state = manager.restore(
            step,
            args=ocp.args.Composite(
                state=ocp.args.StandardRestore(
                    {name: abstract(leaf) for name, leaf in expected.items()}
                )
            ),
        )["state"]
        leaves = [state[name] for name in expected]
        tree = jax.tree.unflatten(jax.tree.structure(template), leaves)
        return Restored(step, tree, record["meta"])


def _system_error(error: Exception) -> str | None:
    """What the operating system said, or None when it is not to blame."""
    if isinstance(error, OSError):
        return error.strerror or str(error)
    # TensorStore reports a full disk as a ValueError with the number in its text.
    found = re.search(r"os_error_code='(\d+)'", str(error))
    return os.strerror(int(found[1])) if found else None


def _drop(record: logging.LogRecord) -> bool:
    """Silences Orbax, which logs the traceback of every error that it also raises."""
    return record.levelno >= logging.CRITICAL


class _Manager(ocp.CheckpointManager):
    def reached_preemption(self, step: int) -> bool:
        """Leave this to `fit`: a thread that asks late would report an old step."""
        del step
        return False
