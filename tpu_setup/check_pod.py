"""Check that the devices of a slice work together, before a long run does.

On all workers: tpu_setup/run.sh check .venv/bin/python tpu_setup/check_pod.py
    --distributed --devices 16 --folder /mnt/lt-mia/check
On one machine: python tpu_setup/check_pod.py --folder /tmp/check

Prints one line a check and exits 1 when one fails.
"""

import dataclasses
import sys
import uuid
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import tyro
from etils import epath
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding, PartitionSpec


@dataclasses.dataclass(frozen=True)
class CheckPod:
    """Count devices, add over all of them, write to the folder, save and restore."""

    folder: str
    """A folder that all workers share, or a bucket (gs://...); cleaned afterwards."""

    devices: int | None = None
    """Expected number over all workers; None accepts any."""

    distributed: bool = False
    """Join the other workers of the slice first; a single machine does not need it."""


def sharded(mesh: Any) -> jax.Array:
    """0, 1, ... with one number a device."""
    sharding = NamedSharding(mesh, PartitionSpec("all"))
    values = np.arange(mesh.size, dtype=np.float32)
    return jax.make_array_from_callback(
        values.shape, sharding, lambda index: values[index]
    )


def count(config: CheckPod) -> str:
    """The number of devices."""
    found = jax.device_count()
    if config.devices is not None and found != config.devices:
        raise ValueError(f"{found} devices, expected {config.devices}")
    kind = jax.devices()[0].device_kind
    return f"{found} of kind {kind}, {jax.process_count()} processes"


def add(config: CheckPod) -> str:
    """A sum that every device takes part in."""
    mesh = jax.make_mesh((jax.device_count(),), ("all",))
    total = float(jax.jit(jnp.sum)(sharded(mesh)))
    expected = mesh.size * (mesh.size - 1) / 2
    if total != expected:
        raise ValueError(f"the sum is {total}, expected {expected}")
    return f"0 + 1 + ... + {mesh.size - 1} = {total:.0f}"


def write(config: CheckPod) -> str:
    """A file from each process, read back."""
    path = epath.Path(config.folder) / f"process_{jax.process_index()}"
    path.parent.mkdir(parents=True, exist_ok=True)
    token = uuid.uuid4().hex
    path.write_text(token)
    found = path.read_text()
    path.unlink()
    if found != token:
        raise ValueError(f"{path} holds {found!r}, expected {token!r}")
    return str(path)


def restore(config: CheckPod) -> str:
    """A sharded array through a checkpoint."""
    mesh = jax.make_mesh((jax.device_count(),), ("all",))
    tree = {"x": sharded(mesh)}
    path = epath.Path(config.folder).absolute() / "checkpoint"
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(path, tree, force=True)
        checkpointer.wait_until_finished()
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, tree)
        restored = checkpointer.restore(path, abstract)
    same = jax.jit(lambda a, b: jnp.all(a == b))(tree["x"], restored["x"])
    multihost_utils.sync_global_devices("restored")
    if jax.process_index() == 0:
        path.rmtree()
    if not bool(same):
        raise ValueError(f"{path}: the array that came back differs")
    return str(path)


CHECKS: dict[str, Callable[[CheckPod], str]] = {
    "devices": count,
    "sum over devices": add,
    "folder": write,
    "checkpoint": restore,
}


def main() -> int:
    """Run all checks; the first failure ends them, since workers must keep step."""
    config = tyro.cli(CheckPod, description=__doc__)
    if config.distributed:
        jax.distributed.initialize()
    for name, check in CHECKS.items():
        try:
            message = check(config)
        except (ValueError, OSError, RuntimeError) as error:
            sys.stdout.write(f"{name}: FAILED: {error}\n")
            return 1
        except ImportError as error:
            if not config.folder.startswith("gs://"):
                raise
            sys.stdout.write(
                f"{name}: FAILED: {config.folder} needs gcsfs; pip install gcsfs, or "
                f"give a mounted folder ({str(error).splitlines()[0]})\n"
            )
            return 1
        sys.stdout.write(f"{name}: good: {message}\n")
        sys.stdout.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main())
