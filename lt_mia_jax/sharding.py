"""The device mesh and where arrays live on it.

One mesh with axes `("data", "fsdp")`: batches are split over both, parameters over
`fsdp` along their largest divisible axis. Axis types are `Auto`: the compiler
inserts the collectives, so a step is written once for any number of devices.
"""

from collections.abc import Sequence
from typing import Any

import jax
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from lt_mia_jax.errors import InputError

SMALLEST_SHARDED = 2**14
"""Leaves with fewer elements are replicated: a collective would cost more."""


def make_mesh(
    data: int | None = None, fsdp: int = 1, devices: Sequence[Any] | None = None
) -> Mesh:
    """A mesh of all devices (or the first `data * fsdp`) with axes data and fsdp.

    Parameters are split over `fsdp`; `devices` are those present by default.

    Raises:
      InputError: the sizes do not fit the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    if data is None:
        if len(devices) % fsdp:
            raise InputError(
                f"fsdp = {fsdp} does not divide the {len(devices)} devices"
            )
        data = len(devices) // fsdp
    if data * fsdp > len(devices) or data < 1 or fsdp < 1:
        raise InputError(
            f"a {data} x {fsdp} mesh needs {data * fsdp} devices, found {len(devices)}"
        )
    return jax.make_mesh(
        (data, fsdp),
        ("data", "fsdp"),
        axis_types=(AxisType.Auto, AxisType.Auto),
        devices=devices[: data * fsdp],
    )


def traced_for_cpu() -> bool:
    """Whether a program is being traced for CPUs.

    The mesh in context (`jax.set_mesh`) says so, else the devices present. A mesh may
    hold devices that are only described, to compile for them ahead of time; JAX keeps
    programs that were traced under different meshes apart.
    """
    device = jax.sharding.get_abstract_mesh().abstract_device
    if device is None:
        return jax.default_backend() == "cpu"
    return device.device_kind == "cpu"


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Leading axis split over every device; it must be divisible by their number."""
    return NamedSharding(mesh, P(("data", "fsdp")))


def replicated(mesh: Mesh) -> NamedSharding:
    """A full copy on every device."""
    return NamedSharding(mesh, P())


def parameter_shardings(tree: Any, mesh: Mesh) -> Any:
    """One `NamedSharding` a leaf: the largest axis that `fsdp` divides, or a copy.

    Works on arrays and on `jax.ShapeDtypeStruct`, so also for optimizer states,
    whose moments mirror the parameters.
    """
    size = mesh.shape["fsdp"]

    def place(leaf: Any) -> NamedSharding:
        axes = [axis for axis, n in enumerate(leaf.shape) if n % size == 0]
        if size == 1 or leaf.size < SMALLEST_SHARDED or not axes:
            return replicated(mesh)
        chosen = max(axes, key=lambda axis: leaf.shape[axis])
        # Without None behind it, as programs return it: layouts are compared.
        return NamedSharding(mesh, P(*[None] * chosen, "fsdp"))

    return jax.tree.map(place, tree)
