"""Leaves of a pytree by name: what a checkpoint holds and what is expected of it."""

from pathlib import Path
from typing import Any

import jax
import numpy as np

from lt_mia_jax.errors import InputError, capped


def shapes(leaves: dict[str, Any]) -> dict[str, Any]:
    """Shape and dtype of each leaf, as JSON values."""
    return {
        name: {"shape": list(leaf.shape), "dtype": str(leaf.dtype)}
        for name, leaf in leaves.items()
    }


def abstract(leaf: Any) -> jax.ShapeDtypeStruct:
    """Shape, dtype and place of a leaf; without a place, the first local device."""
    sharding = getattr(leaf, "sharding", None)
    if sharding is None:
        sharding = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def check_leaves(folder: Path, found: dict[str, Any], expected: dict[str, Any]) -> None:
    """Refuse leaves that differ; Orbax would cast dtypes silently."""

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
            f"checkpoint {folder} does not fit this run: {capped(wrong, '; ')}. Choose "
            "another --out, or delete that folder by hand"
        )


def own(leaf: jax.Array) -> jax.Array:
    """An array that stays as it is when the caller donates the original.

    From an accelerator Orbax copies to the host before `save` returns. On CPU it
    would keep a view of the buffers, which the next training step overwrites.
    """
    if all(device.platform != "cpu" for device in leaf.devices()):
        return leaf
    # Through NumPy, because a compiled copy takes seconds the first time.
    shards = [
        jax.device_put(np.array(shard.data), shard.device)
        for shard in leaf.addressable_shards
    ]
    return jax.make_array_from_single_device_arrays(leaf.shape, leaf.sharding, shards)
