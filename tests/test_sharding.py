import jax
import numpy as np
import pytest

from lt_mia_jax.errors import InputError
from lt_mia_jax.sharding import batch_sharding, make_mesh, parameter_shardings


def test_mesh_and_shardings_split_the_largest_axis():
    mesh = make_mesh(2, 2)
    batch = jax.device_put(np.arange(8.0), batch_sharding(mesh))
    assert {s.data.shape for s in batch.addressable_shards} == {(2,)}
    shapes = {
        "w": jax.ShapeDtypeStruct((3, 64, 512), np.float32),
        "b": jax.ShapeDtypeStruct((64,), np.float32),
    }
    placed = parameter_shardings(shapes, mesh)
    assert placed["w"].shard_shape((3, 64, 512)) == (3, 64, 256)
    assert placed["b"].shard_shape((64,)) == (64,)
    with pytest.raises(InputError, match="found 4"):
        make_mesh(3, 2)
