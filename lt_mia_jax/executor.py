"""How one step runs on many devices: `jit` over a mesh, `pmap`, or a single device.

A step sees the whole batch under `jit`, where the compiler inserts the collectives.
Under `pmap` it sees one device's rows, and adds over devices itself: it gets the name
of the device axis, `Executor.axis`, and passes it to `psum` and `gather`, which leave
a whole batch as it is. State and parameters look alike under both, so a run may change
its executor between two starts.

Several processes run the same program on the devices of all; each gives its own share
of every batch.
"""

import dataclasses
import socket
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from lt_mia_jax.errors import InputError, Unavailable
from lt_mia_jax.files import fingerprint
from lt_mia_jax.outputs import SHARED
from lt_mia_jax.sharding import (
    batch_sharding,
    make_mesh,
    parameter_shardings,
    replicated,
)

Kind = Literal["jit", "pmap", "single"]

SHOWS_WITHIN = 10.0
"""Seconds in which a new file is seen by all machines of a shared folder."""

JOINS_WITHIN = 300.0
"""Seconds in which the processes of a run find each other."""

AXIS = "devices"
"""Name of the device axis under `pmap`."""


@dataclasses.dataclass(frozen=True)
class Executor:
    """The devices and the way to use them; hashable. Made by `make_executor`."""

    kind: Kind
    mesh: Mesh

    @property
    def axis(self) -> str | None:
        """The device axis that a step adds over; None when it sees whole batches."""
        return AXIS if self.kind == "pmap" else None

    def round_up(self, rows: int) -> int:
        """The smallest batch of at least `rows` rows that all devices divide."""
        devices = self.mesh.size
        return -(-rows // devices) * devices

    def share(self, rows: np.ndarray) -> np.ndarray:
        """This process's part of host rows that all processes know.

        Those of its own devices in the mesh's order, in which a process's devices need
        not stand together: on TPUs JAX orders them along rings of chips.

        Args:
          rows: `"B ..."`, B a multiple of the number of devices.
        """
        owners = [device.process_index for device in self.mesh.devices.flat]
        mine = np.flatnonzero(np.array(owners) == jax.process_index())
        parts = rows.reshape(len(owners), -1, *rows.shape[1:])
        return parts[mine].reshape(-1, *rows.shape[1:])

    def place(self, tree: Any) -> Any:
        """Host or device arrays on the devices, large leaves split over `fsdp`."""
        if jax.process_count() > 1:
            return jax.tree.map(self._place_shared, tree)
        return jax.device_put(tree, parameter_shardings(tree, self.mesh))

    def _place_shared(self, x: Any) -> jax.Array:
        """An array that every process holds; one on the device comes by the host."""
        if isinstance(x, jax.Array) and x.is_fully_addressable:
            if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
                data = self._place_shared(jax.random.key_data(x))
                return jax.random.wrap_key_data(data, impl=jax.random.key_impl(x))
            x = np.asarray(x)
        return jax.device_put(x, parameter_shardings(x, self.mesh))

    def copy(self, tree: Any) -> Any:
        """The same in buffers of their own: a step may be given them to consume."""
        return _copied(self.place(tree), mesh=self.mesh)

    def init_sharded(self, make: Callable[..., Any], *arguments: Any) -> Any:
        """`make(*arguments)` with every result made where it will live.

        No device ever holds the whole of a leaf that is split.
        """
        shapes = jax.eval_shape(make, *arguments)
        shardings = parameter_shardings(shapes, self.mesh)
        if jax.process_count() > 1:
            arguments = jax.tree.map(self._place_shared, arguments)
        return jax.jit(make, out_shardings=shardings)(*arguments)

    def place_rows(self, rows: Any) -> Any:
        """This process's host rows as arrays of the whole batch, split over devices.

        For programs under `jit`, whatever the executor.
        """
        return _assemble(rows, self.mesh)

    def place_batch(self, rows: Any) -> Any:
        """The same for a step: under `pmap` with a leading axis of devices."""
        if self.kind != "pmap":
            return self.place_rows(rows)
        local = self.mesh.size // jax.process_count()
        grouped = jax.tree.map(
            lambda x: np.reshape(x, (local, -1, *np.shape(x)[1:])), rows
        )
        return _assemble(grouped, self.mesh)

    def fetch_rows(self, tree: Any) -> Any:
        """This process's rows of results, on the host; the inverse of `place_batch`."""

        def fetch(x: jax.Array) -> np.ndarray:
            if x.is_fully_addressable:
                host = np.asarray(x)
            else:
                shards = {s.index[0].start or 0: s.data for s in x.addressable_shards}
                host = np.concatenate([np.asarray(shards[i]) for i in sorted(shards)])
            return host.reshape(-1, *host.shape[2:]) if self.kind == "pmap" else host

        return jax.tree.map(fetch, tree)


def make_executor(
    kind: Kind = "jit", *, data: int | None = None, fsdp: int = 1
) -> Executor:
    """An executor on all devices, of all processes; `single` takes the first.

    Args:
      kind: `jit`, `pmap` or `single`.
      data: groups of devices that see rows of their own; None makes it all devices.
      fsdp: devices of a group, which share one copy of the parameters; `jit` only.

    Raises:
      InputError: `fsdp` does not divide the devices, or the kind knows no sharing.
    """
    if kind != "jit" and fsdp != 1:
        raise InputError(
            f"executor {kind} keeps all parameters on every device, found fsdp = "
            f"{fsdp}; use --executor jit or fsdp 1"
        )
    if kind == "single" and jax.process_count() > 1:
        raise InputError(
            f"executor single uses one device, found {jax.process_count()} processes; "
            "use jit or pmap"
        )
    return Executor(kind, make_mesh(1 if kind == "single" else data, fsdp))


def psum(x: Any, axis: str | None) -> Any:
    """Sums over devices of a tree; the tree itself when `axis` is None."""
    return x if axis is None else jax.lax.psum(x, axis)


def gather(x: jax.Array, axis: str | None) -> jax.Array:
    """Rows of all devices `"B ..."`; `x` itself when `axis` is None."""
    return x if axis is None else jax.lax.all_gather(x, axis, tiled=True)


def per_device_key(key: jax.Array, axis: str | None) -> jax.Array:
    """A key that differs between devices which see different rows."""
    return key if axis is None else jax.random.fold_in(key, jax.lax.axis_index(axis))


@partial(jax.jit, static_argnames="mesh")
def _copied(tree: Any, *, mesh: Mesh) -> Any:
    # `device_put` may share buffers with its argument, whatever `may_alias` says.
    fresh = jax.tree.map(jnp.copy, tree)
    return jax.lax.with_sharding_constraint(fresh, parameter_shardings(tree, mesh))


def fetch(tree: Any) -> Any:
    """Whole arrays on the host of every process, leaf by leaf."""

    def whole(x: Any) -> np.ndarray:
        if isinstance(x, jax.Array) and not x.is_fully_addressable:
            mesh = getattr(x.sharding, "mesh", None)
            assert isinstance(mesh, Mesh), x.sharding
            everywhere = replicated(mesh)
            x = jax.jit(lambda y: y, out_shardings=everywhere)(x).addressable_data(0)
        return np.asarray(x)

    return jax.tree.map(whole, tree)


def digest(tree: Any, values: int = 4096) -> str:
    """A hash of names, shapes and about `values` numbers of each leaf.

    Enough to tell models apart, whose training changes every matrix, and it costs
    nothing for large ones.
    """
    parts: list[Any] = []
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        # Strides along each axis, for a flattened leaf would be gathered whole.
        each = max(1, round(values ** (1 / max(1, leaf.ndim))))
        sample = leaf[tuple(slice(None, None, -(-n // each)) for n in leaf.shape)]
        parts.append(f"{jax.tree_util.keystr(path)}{leaf.shape}")
        parts.append(np.asarray(fetch(sample), np.float32))
    return fingerprint(*parts)


def is_primary() -> bool:
    """Whether this process is the one that writes what all share."""
    return jax.process_index() == 0


def wait_for_all(name: str) -> None:
    """Return when every process has come to the place called `name`."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


def broadcast_from_primary(value: Any) -> np.ndarray:
    """What the first process says of a number or an array, in every process.

    For what each has read from shared files, which may show late to some.
    """
    if jax.process_count() == 1:
        return np.asarray(value)
    return np.asarray(multihost_utils.broadcast_one_to_all(np.asarray(value)))


def check_shared(directory: Path) -> None:
    """Make sure that all processes see one and the same folder.

    Raises:
      InputError: in every process, when some do not.
    """
    if jax.process_count() == 1:
        return
    token = directory / SHARED
    if is_primary():
        directory.mkdir(parents=True, exist_ok=True)
        token.touch()
    wait_for_all("folder marked")
    end = time.monotonic() + SHOWS_WITHIN
    while not (seen := token.exists()) and time.monotonic() < end:
        time.sleep(0.1)
    found = multihost_utils.process_allgather(np.asarray(seen))
    if is_primary():
        token.unlink(missing_ok=True)
    if not found.all():
        raise InputError(
            f"{directory}: {int((~found).sum())} of {found.size} processes do not see "
            "what the first one writes there; give a folder that all machines share, "
            "such as NFS or a mounted bucket"
        )


def initialize(where: str) -> None:
    """Join the other processes of a run; to be called before any use of a device.

    `where` has the values of `Devices.distributed`.

    Raises:
      InputError: neither of the three, or not what the environment can tell.
      Unavailable: the others did not come within `JOINS_WITHIN`. A thread of JAX goes
        on to wait for them, so the process should end.
    """
    if where == "off":
        return
    given: dict[str, Any] = {}
    if where != "auto":
        try:
            address, number, count = where.split(",")
            given = {"num_processes": int(count), "process_id": int(number)}
            if ":" not in address or not 0 <= int(number) < int(count):
                raise ValueError
        except ValueError:
            raise InputError(
                f"distributed {where!r}: expected auto, off or HOST:PORT,ID,COUNT with "
                "0 <= ID < COUNT, such as 10.0.0.2:8476,0,4"
            ) from None
        given["coordinator_address"] = address
    outcome = _joined(given)
    if outcome is None:
        return
    if not isinstance(outcome, RuntimeError | ValueError | TimeoutError):
        raise outcome
    line = (str(outcome).strip() or type(outcome).__name__).splitlines()[0]
    message = (
        f"distributed {where}: the processes of this run did not find each other "
        f"({line}); start all of them, or name them as HOST:PORT,ID,COUNT"
    )
    kind = InputError if isinstance(outcome, ValueError) else Unavailable
    raise kind(message) from outcome


def _joined(given: dict[str, Any]) -> BaseException | None:
    """Join with the arguments of `jax.distributed.initialize`; what went wrong.

    JAX ends the whole process at a timeout of its own, so ours comes first, and it
    waits in another thread.
    """
    outcome: list[BaseException | None] = []
    longer = int(JOINS_WITHIN) + 60

    def join() -> None:
        try:
            jax.distributed.initialize(**given, initialization_timeout=longer)
        except BaseException as error:
            outcome.append(error)
        else:
            outcome.append(None)

    thread = threading.Thread(target=join, daemon=True)
    thread.start()
    thread.join(JOINS_WITHIN)
    if outcome:
        return outcome[0]
    return TimeoutError(f"{_silence(given)} within {JOINS_WITHIN:g} s")


def _silence(given: dict[str, Any]) -> str:
    """Who did not come, as far as this process can tell."""
    address, count = given.get("coordinator_address"), given.get("num_processes")
    if address is None:
        return "not all came"
    if given["process_id"]:
        host, _, port = address.rpartition(":")
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()
        except (OSError, ValueError):
            return f"process 0 does not answer at {address}"
    return f"not all {count} came to {address}"


def _assemble(rows: Any, mesh: Mesh) -> Any:
    sharding = batch_sharding(mesh)
    if jax.process_count() == 1:
        return jax.device_put(rows, sharding)
    return jax.tree.map(
        lambda x: jax.make_array_from_process_local_data(sharding, np.asarray(x)), rows
    )
