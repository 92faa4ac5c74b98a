"""Configs, files, trees and sharding: the ground everything stands on."""

import dataclasses
import json
import os

import jax
import numpy as np
import pytest

from lt_mia_jax.configs import from_dict, load_json, save_json, to_dict
from lt_mia_jax.errors import InputError
from lt_mia_jax.files import (
    sha256_file,
    verify_manifest,
    write_atomic,
    write_json,
    write_manifest,
)
from lt_mia_jax.sharding import batch_sharding, make_mesh, parameter_shardings
from lt_mia_jax.trees import byte_count, flatten, select, unflatten


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cosine:
    warmup: int = 3


@dataclasses.dataclass(frozen=True, kw_only=True)
class Linear:
    end: float = 0.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe:
    rate: float
    seed: int = 0
    names: tuple[str, ...] = ()
    schedule: Cosine | Linear = Cosine()
    limit: int | None = None


@pytest.mark.parametrize("schedule", [Cosine(warmup=7), Linear(end=0.5)])
def test_config_round_trip(tmp_path, schedule):
    recipe = Recipe(rate=1e-3, names=("a", "b"), schedule=schedule)
    save_json(tmp_path / "c.json", recipe)
    assert load_json(tmp_path / "c.json", Recipe) == recipe
    assert hash(from_dict(Recipe, to_dict(recipe))) == hash(recipe)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ({"rate": 1.0, "sede": 1}, ["sede", "seed"]),
        ({}, ["missing", "rate"]),
        ({"rate": "fast"}, ["Recipe.rate", "fast", "float"]),
        ({"rate": 1.0, "seed": True}, ["Recipe.seed", "int"]),
        ({"rate": 1.0, "schedule": {"type": "Step"}}, ["Step", "Cosine"]),
        ({"rate": 1.0, "names": "a"}, ["Recipe.names", "list"]),
    ],
)
def test_config_refuses(data, words):
    with pytest.raises(InputError) as caught:
        from_dict(Recipe, data)
    assert all(word in str(caught.value) for word in words)
    assert "\n" not in str(caught.value)


def test_atomic_write_keeps_the_old_file_on_failure(tmp_path):
    path = tmp_path / "f"
    write_atomic(path, "old")

    class Broken:
        def decode(self):  # pragma: no cover - never reached
            return ""

    with pytest.raises(TypeError):
        write_atomic(path, Broken())  # type: ignore[arg-type]
    assert path.read_text() == "old"


def test_write_into_a_file_as_folder_is_one_clear_line(tmp_path):
    (tmp_path / "f").write_text("x")
    with pytest.raises(InputError, match="cannot write"):
        write_atomic(tmp_path / "f" / "g", "y")


@pytest.mark.parametrize(
    ("damage", "word"),
    [
        (lambda p: p.unlink(), "missing"),
        (lambda p: p.write_bytes(p.read_bytes()[:-1]), "bytes instead"),
        (lambda p: p.write_bytes(b"\x01" + p.read_bytes()[1:]), "SHA-256"),
    ],
)
def test_manifest_names_what_is_damaged(tmp_path, damage, word):
    for name in ("a.bin", "b.bin"):
        (tmp_path / name).write_bytes(os.urandom(64))
    written = write_manifest(tmp_path, ["a.bin", "b.bin"], kind="test")
    assert verify_manifest(tmp_path) == written
    damage(tmp_path / "b.bin")
    with pytest.raises(InputError) as caught:
        verify_manifest(tmp_path)
    assert word in str(caught.value)
    assert "b.bin" in str(caught.value)
    assert "a.bin" not in str(caught.value)


@pytest.mark.parametrize(
    ("old", "new"),
    [('"step": 3', '"step": 7'), ("a.bin", "b.bin"), ('"digest"', '"x"')],
)
def test_a_manifest_vouches_for_itself(tmp_path, old, new):
    for name in ("a.bin", "b.bin"):
        (tmp_path / name).write_bytes(b"the same")
    write_manifest(tmp_path, ["a.bin"], step=3)
    text = (tmp_path / "manifest.json").read_text()
    assert text.count(old) == 1
    (tmp_path / "manifest.json").write_text(text.replace(old, new))
    with pytest.raises(InputError, match="its content does not have the SHA-256"):
        verify_manifest(tmp_path)


def test_json_refuses_nan(tmp_path):
    with pytest.raises(ValueError, match="JSON compliant"):
        write_json(tmp_path / "x.json", {"a": float("nan")})
    assert not (tmp_path / "x.json").exists()


def test_sha256_is_the_standard_one(tmp_path):
    (tmp_path / "f").write_bytes(b"abc")
    assert sha256_file(tmp_path / "f").startswith("ba7816bf8f01cfea")


def test_tree_paths_invert():
    tree = {"b": {"x": np.zeros(2), "y": {"z": np.ones((2, 3), np.float16)}}, "a": 1}
    flat = flatten(tree)
    assert list(flat) == ["a", "b/x", "b/y/z"]
    assert jax.tree.structure(unflatten(flat)) == jax.tree.structure(tree)
    assert byte_count(tree["b"]) == 2 * 8 + 6 * 2


def test_select_refuses_idle_patterns():
    names = ["layers/q/kernel", "layers/k/kernel"]
    assert select(names, ["*/q/*"]) == ["layers/q/kernel"]
    with pytest.raises(InputError, match="typo"):
        select(names, ["*/q/*", "*typo*"])


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


def test_config_json_is_plain(tmp_path):
    save_json(tmp_path / "c.json", Recipe(rate=1))
    assert json.loads((tmp_path / "c.json").read_text())["schedule"]["type"] == "Cosine"
