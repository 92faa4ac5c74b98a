import contextlib
import json
import logging
import resource
import shutil
import signal

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from damage import flipped_bit

from lt_mia_jax.errors import InputError
from lt_mia_jax.sharding import make_mesh, parameter_shardings
from lt_mia_jax.training import Checkpointer, init_state


def make_tree(seed):
    rng = np.random.default_rng(seed)
    params = {
        "kernel": jnp.asarray(rng.normal(size=(64, 512)), jnp.float32),
        "half": jnp.asarray(rng.normal(size=7), jnp.bfloat16),
    }
    return {"state": init_state(params, optax.adam(1e-3)), "count": jnp.int32(seed)}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Steps 3 and 8, written once and copied by each test."""
    directory = tmp_path_factory.mktemp("checkpoints") / "state"
    with Checkpointer(directory, signature="run") as checkpointer:
        for step in (3, 8):
            checkpointer.save(step, make_tree(step), {"loss": step / 2})
    return directory


@pytest.fixture
def directory(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "state")


def restore(directory, template=None, signature="run"):
    template = make_tree(0) if template is None else template
    with Checkpointer(directory, signature=signature) as checkpointer:
        return checkpointer.restore(template)


def assert_same(found, expected):
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)


def payload(step_folder):
    """The file that holds most of the arrays."""
    files = [p for p in step_folder.rglob("*") if p.is_file()]
    return max(files, key=lambda p: p.stat().st_size)


def test_what_is_saved_is_restored(directory):
    restored = restore(directory)
    assert restored.step == 8
    assert restored.meta == {"loss": 4.0}
    assert_same(restored.tree, make_tree(8))


def test_nothing_saved_yet(tmp_path):
    assert restore(tmp_path / "new") is None


def test_only_the_newest_are_kept(directory):
    with Checkpointer(directory, signature="run") as checkpointer:
        checkpointer.restore(make_tree(0))
        for step in (9, 11, 14):
            checkpointer.save(step, make_tree(step), {})
        checkpointer.wait()
        assert checkpointer.steps() == (11, 14)
    assert_same(restore(directory).tree, make_tree(14))


def test_a_flipped_bit_anywhere_falls_back(directory, caplog):
    """Orbax alone would restore some of these silently."""
    rng = np.random.default_rng(0)
    expected = {step: make_tree(step) for step in (3, 8)}
    flipped = set()
    for _ in range(100):
        step = int(rng.choice([3, 8]))
        with flipped_bit(directory / str(step), rng) as file:
            caplog.clear()
            restored = restore(directory)
            if step == 8:
                assert restored.step == 3, file
                assert "checkpoint 8 is not used" in caplog.text
                (directory / "damaged-8").rename(directory / "8")
            else:
                # Of no consequence while the newest is good; alone it is refused.
                assert restored.step == 8
                (directory / "8").rename(directory / "away")
                with pytest.raises(InputError, match=r"steps \[3\] are damaged"):
                    restore(directory)
                (directory / "away").rename(directory / "8")
            assert_same(restored.tree, expected[restored.step])
            flipped.add(file.name)
    assert "manifest.json" in flipped
    assert restore(directory).step == 8


def test_bits_flipped_in_every_step_are_an_error(directory):
    rng = np.random.default_rng(1)
    for _ in range(20):
        with flipped_bit(directory / "3", rng), flipped_bit(directory / "8", rng):
            with pytest.raises(InputError, match=r"steps \[3, 8\] are damaged"):
                restore(directory)
    assert restore(directory).step == 8


def test_truncation_names_the_file(directory, caplog):
    path = payload(directory / "8")
    path.write_bytes(path.read_bytes()[:-1])
    assert restore(directory).step == 3
    assert path.name in caplog.text
    assert "bytes instead of" in caplog.text


def test_a_missing_file_and_a_missing_manifest(directory, caplog):
    (directory / "8" / "manifest.json").unlink()
    assert restore(directory).step == 3
    assert "manifest.json" in caplog.text


def test_a_damaged_step_can_be_written_again(directory):
    payload(directory / "8").write_bytes(b"")
    with Checkpointer(directory, signature="run") as checkpointer:
        assert checkpointer.restore(make_tree(0)).step == 3
        checkpointer.save(8, make_tree(21), {})
    assert_same(restore(directory).tree, make_tree(21))


def test_all_damaged_is_an_error_and_nothing_is_touched(directory):
    for step in ("3", "8"):
        payload(directory / step).write_bytes(b"")
    before = sorted(str(p) for p in directory.rglob("*"))
    with pytest.raises(InputError, match=r"steps \[3, 8\] are damaged"):
        restore(directory)
    assert sorted(str(p) for p in directory.rglob("*")) == before


def test_an_interrupted_save_is_not_damage(directory, caplog):
    (directory / "8" / "manifest.json").unlink()
    shutil.rmtree(directory / "3")
    (directory / "saving.json").write_text(json.dumps({"step": 8}))
    with caplog.at_level(logging.WARNING):
        assert restore(directory) is None
    assert not caplog.records
    assert not (directory / "8").exists()


def test_another_signature_is_refused(directory):
    with pytest.raises(InputError, match="choose another --out"):
        restore(directory, signature="other")
    assert restore(directory).step == 8


def test_every_mismatch_is_listed(directory):
    tree = make_tree(0)
    params = tree["state"].params
    params = {"half": params["half"].astype(jnp.float32), "kernel": jnp.zeros((64, 9))}
    template = {"state": tree["state"]._replace(params=params), "extra": jnp.ones(2)}
    with pytest.raises(InputError) as error:
        restore(directory, template)
    for words in (
        "state.params.half is bfloat16[7], expected float32[7]",
        "state.params.kernel is float32[64,512], expected float32[64,9]",
        "extra is missing",
        "count is not expected",
    ):
        assert words in str(error.value)


def test_saving_over_an_earlier_run_is_refused(directory):
    with Checkpointer(directory, signature="run") as checkpointer:
        with pytest.raises(InputError, match="earlier run"):
            checkpointer.save(20, make_tree(0), {})
        assert checkpointer.steps() == (3, 8)


def test_the_layout_follows_the_template(directory):
    mesh = make_mesh(data=1, fsdp=4)
    template = jax.device_put(make_tree(0), parameter_shardings(make_tree(0), mesh))
    restored = restore(directory, template)
    kernel = restored.tree["state"].params["kernel"]
    assert kernel.sharding == template["state"].params["kernel"].sharding
    assert len({str(shard.index) for shard in kernel.addressable_shards}) == 4
    assert_same(restored.tree, make_tree(8))


@contextlib.contextmanager
def small_files_only():
    """A limit on the size of files fails in the same place as a disk without space."""
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, ignored)


def wait(checkpointer):
    checkpointer.wait()


def close(checkpointer):
    checkpointer.close()


def save_again(checkpointer):
    checkpointer.save(10, make_tree(10), {})


# The threads of a failed Orbax save outlive their event loops.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("notice", [wait, close, save_again])
def test_a_full_disk_keeps_the_earlier_steps(directory, notice, caplog):
    with Checkpointer(directory, signature="run") as checkpointer:
        checkpointer.restore(make_tree(0))
        with small_files_only():
            checkpointer.save(9, make_tree(9), {})
            with pytest.raises(InputError, match=r"File too large.*are kept"):
                notice(checkpointer)
        assert checkpointer.steps() == (3, 8)
        assert not list(directory.glob("*tmp*"))
        assert not caplog.records
        checkpointer.save(9, make_tree(9), {})
    assert_same(restore(directory).tree, make_tree(9))


def save_and_stumble(checkpointer, step):
    with checkpointer:
        checkpointer.save(step, make_tree(step), {})
        raise KeyError


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_failed_save_does_not_hide_the_error_before_it(directory, caplog):
    checkpointer = Checkpointer(directory, signature="run")
    checkpointer.restore(make_tree(0))
    with small_files_only(), pytest.raises(KeyError):
        save_and_stumble(checkpointer, 9)
    assert "File too large" in caplog.text
    assert checkpointer.steps() == (3, 8)


def test_what_is_saved_may_be_overwritten_at_once(tmp_path):
    mesh = make_mesh(data=2, fsdp=2)
    tree = jax.device_put(make_tree(4), parameter_shardings(make_tree(4), mesh))
    spoil = jax.jit(lambda tree: jax.tree.map(lambda x: x + 1, tree), donate_argnums=0)
    meta = {"rows": [1]}
    with Checkpointer(tmp_path) as checkpointer:
        checkpointer.save(1, tree, meta)
        meta["rows"].append(2)
        for _ in range(3):
            tree = spoil(tree)
        jax.block_until_ready(tree)
    restored = restore(tmp_path, signature="")
    assert restored.meta == {"rows": [1]}
    assert_same(restored.tree, make_tree(4))


def test_an_error_in_the_run_still_finishes_the_save(tmp_path):
    with pytest.raises(KeyError):
        save_and_stumble(Checkpointer(tmp_path), 1)
    assert_same(restore(tmp_path, signature="").tree, make_tree(1))


@pytest.mark.parametrize(
    ("before", "after"), [((1, 4), (2, 2)), ((2, 2), (1, 1)), ((1, 1), (1, 2))]
)
def test_any_mesh_restores_what_any_other_saved(tmp_path, before, after):
    def on(tree, mesh):
        return jax.device_put(tree, parameter_shardings(tree, mesh))

    with Checkpointer(tmp_path) as checkpointer:
        mesh = make_mesh(data=before[0], fsdp=before[1])
        checkpointer.save(1, on(make_tree(6), mesh), {})
    template = on(make_tree(0), make_mesh(data=after[0], fsdp=after[1]))
    restored = restore(tmp_path, template, signature="")
    assert_same(restored.tree, make_tree(6))
    for found, expected in zip(
        jax.tree.leaves(restored.tree), jax.tree.leaves(template), strict=True
    ):
        assert found.sharding == expected.sharding
    kernel = restored.tree["state"].params["kernel"]
    parts = {str(shard.index) for shard in kernel.addressable_shards}
    assert (len(parts), len(kernel.devices())) == (after[1], after[0] * after[1])
