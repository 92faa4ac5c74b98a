"""Save and resume any pytree; damage is noticed and the step before it is used.

Orbax writes and restores the arrays. It restores some flipped bits silently, so
every committed step also gets our own manifest with the SHA-256 of each file,
which is checked before anything is restored. A marker file names the step that is
being saved: a step without a manifest is "interrupted" when the marker names it,
and "damaged" otherwise.

The directory must be on a file system that all processes share.
"""

import contextlib
import json
import logging
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

from lt_mia_jax.errors import InputError
from lt_mia_jax.files import (
    MANIFEST,
    read_json,
    verify_manifest,
    write_json,
    write_manifest,
)

logger = logging.getLogger(__name__)

MARKER = "saving.json"


class Restored(NamedTuple):
    """A checkpoint as it was saved."""

    step: int
    tree: Any
    meta: dict[str, Any]


class Checkpointer:
    """Numbered checkpoints in a directory of their own; a context manager.

    Call `restore` once before the first `save`. A process killed at any moment
    leaves at least the previous checkpoint intact.
    """

    def __init__(self, directory: Path | str, *, keep: int = 2, signature: str = ""):
        """Use `directory`, which is created and must hold nothing else.

        Args:
          directory: where the steps go, one folder each.
          keep: newest steps to keep, at least 2, so that one may turn out damaged.
          signature: says what the run computes (for example a hash of its config and
            data); checkpoints of another signature are refused.

        Raises:
          InputError: `keep` is less than 2, or the directory cannot be made.
        """
        if keep < 2:
            raise InputError(
                f"keep = {keep}: expected at least 2, so that a damaged step can be "
                "replaced by the one before it"
            )
        self.directory = Path(directory).absolute()
        self.keep = keep
        self.signature = signature
        self._manager: ocp.CheckpointManager | None = None
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
        `damaged-<step>`; one whose saving was interrupted is removed.

        Args:
          template: the expected tree, of arrays or of `jax.ShapeDtypeStruct`; its
            shardings decide where the restored arrays live.

        Raises:
          InputError: steps are present but all are damaged; the checkpoint has
            another signature; or paths, shapes or dtypes differ from the template
            (all of them are listed).
        """
        interrupted, damaged = [], []
        found = None
        for step in reversed(self.steps()):
            try:
                verify_manifest(self._folder(step))
            except InputError as error:
                if self._was_being_saved(step):
                    interrupted.append(step)
                    logger.info(
                        "step %d was being saved when the run stopped; it is not used",
                        step,
                    )
                else:
                    damaged.append(step)
                    logger.warning("checkpoint %d is not used: %s", step, error)
                continue
            found = step
            break
        if found is None and damaged:
            raise InputError(
                f"{self.directory}: no usable checkpoint; steps {sorted(damaged)} are "
                "damaged. Restore the folder from a copy, or delete it by hand to "
                "start again"
            )
        _barrier("checkpoint inspected")
        if jax.process_index() == 0:
            for step in interrupted:
                shutil.rmtree(self._folder(step))
            for step in damaged:
                self._set_aside(step)
            (self.directory / MARKER).unlink(missing_ok=True)
        _barrier("checkpoint cleaned")
        self._inspected = True
        if found is None:
            return None
        if damaged:
            logger.warning("continuing from the earlier checkpoint %d", found)
        return self._load(found, template)

    def save(self, step: int, tree: Any, meta: dict[str, Any]) -> None:
        """Write a checkpoint; on return it is complete and vouched for.

        Args:
          step: larger than that of any earlier checkpoint.
          tree: any pytree of JAX arrays.
          meta: JSON values to keep with it.

        Raises:
          InputError: the disk is full or not writable (earlier checkpoints stay as
            they are), or earlier checkpoints exist that were not restored.
        """
        if not self._inspected and self.steps():
            raise InputError(
                f"{self.directory} holds checkpoints of an earlier run; restore them "
                "first, choose another --out, or delete that folder by hand"
            )
        self._inspected = True
        leaves = _by_name(tree)
        record = {"signature": self.signature, "leaves": _shapes(leaves), "meta": meta}
        json.dumps(record, allow_nan=False)  # fail before anything is written
        primary = jax.process_index() == 0
        try:
            with _quiet():
                if primary:
                    write_json(self.directory / MARKER, {"step": step})
                written = self._open().save(
                    step,
                    args=ocp.args.Composite(
                        state=ocp.args.StandardSave(leaves),
                        meta=ocp.args.JsonSave(record),
                    ),
                )
                assert written, f"step {step} is not after the steps {self.steps()}"
                if primary:
                    self._vouch_for(step)
                    (self.directory / MARKER).unlink()
        except (OSError, ValueError, RuntimeError) as error:
            reason = _system_error(error)
            if reason is None and not isinstance(error, InputError):
                raise
            self._abandon(step)
            raise InputError(
                f"cannot save a checkpoint in {self.directory}: {reason or error}; "
                "earlier checkpoints are kept. Free space or choose another --out, "
                "then run again"
            ) from error
        _barrier("checkpoint saved")

    def close(self) -> None:
        """Release the files; the checkpointer may be used again."""
        if self._manager is not None:
            self._manager.close()
            self._manager = None

    def __enter__(self) -> "Checkpointer":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _folder(self, step: int) -> Path:
        return self.directory / str(step)

    def _open(self) -> ocp.CheckpointManager:
        if self._manager is None:
            self._manager = ocp.CheckpointManager(
                self.directory,
                item_names=("state", "meta"),
                options=ocp.CheckpointManagerOptions(
                    max_to_keep=self.keep,
                    cleanup_tmp_directories=True,
                    # Donated buffers must not change under a background save, and
                    # the manifest has to follow the commit.
                    enable_async_checkpointing=False,
                ),
            )
        return self._manager

    def _abandon(self, step: int) -> None:
        """Remove what a failed save left, which may be what fills the disk."""
        manager, self._manager = self._manager, None
        if manager is not None:
            manager.close()
        if jax.process_index() == 0:
            for folder in self.directory.glob(f"{step}.orbax-checkpoint-tmp*"):
                shutil.rmtree(folder)
            if not (self._folder(step) / MANIFEST).exists():
                shutil.rmtree(self._folder(step), ignore_errors=True)

    def _vouch_for(self, step: int) -> None:
        folder = self._folder(step)
        names = [str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()]
        write_manifest(folder, names, step=step)

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
        expected = _by_name(template)
        _check_leaves(self._folder(step), record["leaves"], _shapes(expected))
        state = manager.restore(
            step,
            args=ocp.args.Composite(
                state=ocp.args.StandardRestore(
                    {name: _abstract(leaf) for name, leaf in expected.items()}
                )
            ),
        )["state"]
        structure = jax.tree.structure(template)
        tree = jax.tree.unflatten(structure, [state[name] for name in expected])
        return Restored(step, tree, record["meta"])


def _by_name(tree: Any) -> dict[str, Any]:
    """Leaves by path, in the order of `jax.tree.leaves`."""
    pairs = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {
        jax.tree_util.keystr(path, simple=True, separator="."): leaf
        for path, leaf in pairs
    }


def _shapes(leaves: dict[str, Any]) -> dict[str, Any]:
    return {
        name: {"shape": list(leaf.shape), "dtype": str(leaf.dtype)}
        for name, leaf in leaves.items()
    }


def _abstract(leaf: Any) -> jax.ShapeDtypeStruct:
    sharding = getattr(leaf, "sharding", None)
    if sharding is None:
        sharding = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def _check_leaves(
    folder: Path, found: dict[str, Any], expected: dict[str, Any]
) -> None:
    """Orbax casts other dtypes silently, so names, shapes and dtypes are ours."""

    def describe(leaf: dict[str, Any]) -> str:
        return f"{leaf['dtype']}[{','.join(map(str, leaf['shape']))}]"

    wrong = [f"{name} is missing" for name in expected if name not in found]
    wrong += [f"{name} is not expected" for name in found if name not in expected]
    wrong += [
        f"{name} is {describe(found[name])}, expected {describe(leaf)}"
        for name, leaf in expected.items()
        if name in found and found[name] != leaf
    ]
    if wrong:
        raise InputError(
            f"checkpoint {folder} does not fit this run: {'; '.join(wrong)}. Choose "
            "another --out, or delete that folder by hand"
        )


def _system_error(error: Exception) -> str | None:
    """What the operating system said, or None when it is not to blame."""
    if isinstance(error, OSError):
        return error.strerror or str(error)
    # TensorStore reports a full disk as a ValueError with the number in its text.
    found = re.search(r"os_error_code='(\d+)'", str(error))
    return os.strerror(int(found[1])) if found else None


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence Orbax, which logs the traceback of every error that it also raises."""
    absl = logging.getLogger("absl")
    before = absl.level
    absl.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        absl.setLevel(before)


def _barrier(name: str) -> None:
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)
