import json
import shutil
import weakref
from functools import partial

import ml_dtypes
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save_file

from lt_mia_jax.checkpoints.safetensors import (
    INDEX,
    SINGLE,
    Tensor,
    TensorReader,
    write_tensors,
)
from lt_mia_jax.errors import InputError


def arrays(dtype=np.float32):
    rng = np.random.default_rng(0)
    return {f"t{i}": rng.normal(size=(4, i + 1)).astype(dtype) for i in range(5)}


def write(directory, named, **options):
    tensors = [
        Tensor(name, x.shape, x.dtype, lambda x=x: x) for name, x in named.items()
    ]
    write_tensors(directory, tensors, **options)


@pytest.mark.parametrize("shard_bytes", [10**9, 100, 1])
@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
def test_round_trip_in_one_file_or_shards(tmp_path, shard_bytes, dtype):
    named = arrays(dtype)
    write(tmp_path, named, shard_bytes=shard_bytes)
    assert (tmp_path / SINGLE).exists() == (shard_bytes > 1000)
    with TensorReader(tmp_path) as reader:
        assert reader.names == sorted(named)
        for name, expected in named.items():
            assert reader.shape(name) == expected.shape
            found = reader.read(name)
            assert found.dtype == dtype
            assert found.tobytes() == expected.tobytes()


def test_index_names_every_tensor_and_the_total(tmp_path):
    named = arrays()
    write(tmp_path, named, shard_bytes=100)
    index = json.loads((tmp_path / INDEX).read_text())
    assert index["metadata"]["total_size"] == sum(x.nbytes for x in named.values())
    for name, file in index["weight_map"].items():
        with safe_open(tmp_path / file, "np") as shard:
            assert name in shard.keys()
            assert shard.metadata() == {"format": "pt"}


def test_no_temporary_files_remain(tmp_path):
    write(tmp_path, arrays())
    assert [path.name for path in tmp_path.iterdir()] == [SINGLE]


@pytest.mark.parametrize("keep", [0, 4, 30, 200, -1])
def test_truncated_file_is_named(tmp_path, keep):
    write(tmp_path, arrays())
    path = tmp_path / SINGLE
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(InputError, match=r"model\.safetensors.*truncated or corrupt"):
        TensorReader(tmp_path)


def test_garbage_is_refused(tmp_path):
    (tmp_path / SINGLE).write_bytes(b"\x80\x04not a tensor file" * 9)
    with pytest.raises(InputError, match="not a complete safetensors file"):
        TensorReader(tmp_path)


def test_missing_shards_are_all_listed(tmp_path):
    write(tmp_path, arrays(), shard_bytes=100)
    gone = sorted(tmp_path.glob("model-*"))[:2]
    for path in gone:
        path.unlink()
    with pytest.raises(InputError) as caught:
        TensorReader(tmp_path)
    assert all(path.name in str(caught.value) for path in gone)


def test_index_may_not_leave_its_folder(tmp_path):
    write(tmp_path / ".." / tmp_path.name, arrays())
    (tmp_path / SINGLE).unlink()
    text = json.dumps({"weight_map": {"t0": "../other/model.safetensors"}})
    (tmp_path / INDEX).write_text(text)
    with pytest.raises(InputError, match="not a plain file name"):
        TensorReader(tmp_path)


@pytest.mark.parametrize("content", ["[]", "{}", '{"weight_map": {}}', "{"])
def test_broken_index_is_refused(tmp_path, content):
    (tmp_path / INDEX).write_text(content)
    with pytest.raises(InputError, match=INDEX):
        TensorReader(tmp_path)


def test_tensor_of_the_index_that_its_shard_lacks(tmp_path):
    write(tmp_path, arrays(), shard_bytes=100)
    index = json.loads((tmp_path / INDEX).read_text())
    index["weight_map"]["ghost"] = index["weight_map"]["t0"]
    (tmp_path / INDEX).write_text(json.dumps(index))
    with pytest.raises(InputError, match="ghost"):
        TensorReader(tmp_path)


def test_pickled_weights_are_never_opened(tmp_path):
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(
        InputError, match=r"pytorch_model\.bin.*pickle.*save_pretrained"
    ):
        TensorReader(tmp_path)


def test_other_layout_in_the_folder_is_refused(tmp_path):
    """A stale index would be read instead of the new single file."""
    write(tmp_path, arrays(), shard_bytes=100)
    with pytest.raises(InputError, match="holds another checkpoint"):
        write(tmp_path, arrays())


def test_overwriting_the_same_layout(tmp_path):
    write(tmp_path, arrays())
    new = {name: x + 1 for name, x in arrays().items()}
    write(tmp_path, new)
    with TensorReader(tmp_path) as reader:
        np.testing.assert_array_equal(reader.read("t3"), new["t3"])


def doubled(directory):
    """Shards, and a single file of the same tensors."""
    directory.mkdir()
    (directory.parent / "single").mkdir()
    write(directory, arrays(), shard_bytes=100)
    write(directory.parent / "single", arrays())
    shutil.copy(directory.parent / "single" / SINGLE, directory / SINGLE)


def test_a_single_file_is_read_before_an_index_without_its_shards(tmp_path, caplog):
    folder = tmp_path / "model"
    doubled(folder)
    next(folder.glob("model-*")).unlink()
    with TensorReader(folder) as reader:
        assert reader.origin.name == SINGLE
        np.testing.assert_array_equal(reader.read("t3"), arrays()["t3"])
    assert "what lies beside it is not" in caplog.text
    assert "is missing" in caplog.text


def test_a_single_file_and_equal_shards_are_one_model(tmp_path, caplog):
    doubled(tmp_path / "model")
    with TensorReader(tmp_path / "model") as reader:
        assert reader.origin.name == SINGLE
    assert not caplog.text


def change_value(named):
    named["t3"] = named["t3"].copy()
    named["t3"][1, 2] += 1e-6


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (change_value, "t3"),
        (lambda named: named.pop("t2"), "t2"),
        (lambda named: named.update(t9=np.zeros(2, np.float32)), "t9"),
        (lambda named: named.update(t4=named["t4"].astype(np.float16)), "t4"),
        (lambda named: named.update(t1=named["t1"].T.copy()), "t1"),
    ],
)
def test_a_single_file_beside_other_shards_is_refused(tmp_path, change, found):
    doubled(tmp_path / "model")
    named = arrays()
    change(named)
    write(tmp_path / "single", named)
    shutil.copy(tmp_path / "single" / SINGLE, tmp_path / "model" / SINGLE)
    with pytest.raises(InputError) as caught:
        TensorReader(tmp_path / "model")
    assert all(word in str(caught.value) for word in (SINGLE, INDEX, found, "remove"))


def test_pickled_weights_beside_a_single_file_are_not_read(tmp_path):
    write(tmp_path, arrays())
    (tmp_path / "pytorch_model.bin").write_bytes(b"not even a pickle")
    with TensorReader(tmp_path) as reader:
        assert reader.names == sorted(arrays())


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
def test_the_file_is_the_one_of_the_library_whatever_the_order(tmp_path, dtype):
    named = arrays(dtype) | {"wide": np.arange(3.0), "é": np.zeros((), dtype)}
    save_file(named, tmp_path / "theirs", metadata={"format": "pt"})
    write(tmp_path, dict(reversed(named.items())))
    assert (tmp_path / SINGLE).read_bytes() == (tmp_path / "theirs").read_bytes()


@pytest.mark.parametrize("shard_bytes", [10**9, 100])
def test_one_tensor_at_a_time_and_what_is_there_stays(tmp_path, shard_bytes):
    write(tmp_path, arrays(), shard_bytes=shard_bytes)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    alive: list[weakref.ref] = []

    def made(name, shape):
        assert not [ref for ref in alive if ref() is not None]
        if name == "t4":
            raise InputError("the tensor is broken")
        array = np.ones(shape, np.float32)
        alive.append(weakref.ref(array))
        return array

    tensors = [
        Tensor(name, x.shape, x.dtype, partial(made, name, x.shape))
        for name, x in arrays().items()
    ]
    with pytest.raises(InputError, match="is broken"):
        write_tensors(tmp_path, tensors, shard_bytes=shard_bytes)
    assert len(alive) == 4
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_tensor_of_another_shape_than_said_is_refused(tmp_path):
    tensor = Tensor("t", (2,), np.dtype(np.float32), lambda: np.zeros(3, np.float32))
    with pytest.raises(ValueError, match=r"t: float32 \[3\], not float32 \(2,\)"):
        write_tensors(tmp_path, [tensor])
    assert not list(tmp_path.iterdir())
