"""Models read one stored tensor at a time, against models that are loaded whole."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from adapter_files import modules_of, write_adapter
from model_zoo import configs, random_params
from safetensors.numpy import load_file, save_file

from lt_mia_jax.checkpoints import load_model, save_pretrained
from lt_mia_jax.checkpoints.pretrained import write_model
from lt_mia_jax.checkpoints.rules import Place, part_name
from lt_mia_jax.checkpoints.safetensors import SINGLE
from lt_mia_jax.checkpoints.streaming import stored
from lt_mia_jax.errors import InputError
from lt_mia_jax.models import llama_like
from lt_mia_jax.sharding import make_mesh
from lt_mia_jax.transfer.weightspace.roles import is_matrix, role
from lt_mia_jax.trees import flatten


def written(folder, config):
    save_pretrained(folder, config, random_params(config))
    return folder


def places_of(model):
    return {part_name(place): place for place in model._filled}


@pytest.mark.parametrize("name", configs())
def test_parts_are_those_of_the_whole_model_in_its_order(tmp_path, name):
    folder = written(tmp_path, configs()[name])
    whole = flatten(load_model(folder)[1])
    with stored(folder) as model:
        places = places_of(model)
        assert list(model.shapes) == list(whole)
        for path, leaf in flatten(model.params).items():
            assert leaf.shape == whole[path].shape
            assert leaf.dtype == whole[path].dtype
            np.testing.assert_array_equal(np.asarray(leaf), whole[path])
        joined = {path: [] for path in whole}
        for name, part in model.parts.items():
            place = places[name]
            assert (role(name), is_matrix(name)) == (
                role(place.path),
                is_matrix(place.path),
            )
            expected = whole[place.path][place.part]
            assert part.shape == expected.shape
            assert jnp.asarray(part).dtype == expected.dtype
            np.testing.assert_array_equal(np.asarray(part), expected)
            joined[place.path].append(np.asarray(part).reshape(-1))
        # One after another they are the leaves: ties are broken by position.
        for path, parts in joined.items():
            np.testing.assert_array_equal(np.concatenate(parts), whole[path].ravel())


def test_what_is_written_part_by_part_is_the_model(tmp_path):
    config = configs()["griffin-preset"]
    folder = written(tmp_path / "one", config)
    with stored(folder, dtype="bfloat16") as model:
        parts = model.parts
        write_model(
            tmp_path / "two", config, "bfloat16", lambda place: parts[part_name(place)]
        )
    expected = load_model(folder, dtype="bfloat16")[1]
    found = load_model(tmp_path / "two", dtype="bfloat16")[1]
    jax.tree.map(np.testing.assert_array_equal, found, expected)


def test_an_adapter_and_a_mesh(tmp_path):
    config = llama_like(257, width=64, layers=2, heads=2, context=8)
    base = written(tmp_path / "base", config)
    write_adapter(tmp_path / "adapter", base, modules_of(base))
    whole = flatten(load_model(tmp_path / "adapter", base=base)[1])
    with stored(tmp_path / "adapter", base=base, mesh=make_mesh(fsdp=4)) as model:
        part = jnp.asarray(model.parts["embedding/tokens"])
        assert len(part.sharding.device_set) == jax.device_count()
        for name, place in places_of(model).items():
            expected = whole[place.path][place.part]
            np.testing.assert_array_equal(np.asarray(model.parts[name]), expected)


def test_broken_numbers_are_refused_by_name(tmp_path):
    folder = written(tmp_path, llama_like(257, width=16, layers=2, heads=2, context=8))
    tensors = load_file(folder / SINGLE)
    name = "model.layers.1.self_attn.o_proj.weight"
    tensors[name][3, 3] = np.nan
    save_file(tensors, folder / SINGLE, metadata={"format": "pt"})
    with stored(folder) as model:
        np.asarray(model.parts["periods[0]/slot_0/mixer/output/kernel"])
        with pytest.raises(InputError, match=f"NaN .*{name}.*the checkpoint is broken"):
            np.asarray(model.parts["periods[1]/slot_0/mixer/output/kernel"])


def test_names_of_parts_are_told_apart():
    places = [
        Place("embedding/tokens", ()),
        Place("periods/slot_0/mixer/gate/blocks", (1, 2)),
        Place("periods/slot_0/mixer/gate/blocks", (12, 0)),
        Place("tail_0/mixer/gate/blocks", (2,)),
    ]
    assert [part_name(place) for place in places] == [
        "embedding/tokens",
        "periods[1,2]/slot_0/mixer/gate/blocks",
        "periods[12,0]/slot_0/mixer/gate/blocks",
        "tail_0[2]/mixer/gate/blocks",
    ]
