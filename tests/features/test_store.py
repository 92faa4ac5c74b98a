"""Feature stores: round trip, size, interruption at any moment, damage."""

import dataclasses
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from damage import flipped_bit

from lt_mia_jax.errors import InputError
from lt_mia_jax.features import FeatureLayout, assemble
from lt_mia_jax.features.statistics import TokenStatistics
from lt_mia_jax.features.store import FeatureStore
from lt_mia_jax.features.writer import StoreWriter, TextTable
from lt_mia_jax.files import write_manifest

N, LENGTH, K, BLOCK = 23, 12, 3, 5


def draw(rows, length=LENGTH, k=K, full=False):
    """Statistics of made-up texts; row 2 has no valid step."""
    rng = np.random.default_rng(0)
    n = 64
    steps = rng.integers(1, length, n)
    steps[0], steps[2] = length - 1, 0
    if full:
        steps[:] = length - 1
    valid = np.arange(length)[None, :] < steps[:, None]
    layout = FeatureLayout(k)

    def real(*shape):
        values = 4 * rng.standard_normal((n, length, *shape))
        keep = valid.reshape(valid.shape + (1,) * len(shape))
        return np.where(keep, values, 0).astype(np.float32)

    def rank():
        return np.where(valid, rng.integers(1, 60000, (n, length)), 0).astype(np.int32)

    attention = np.pad(valid[:, :-1], ((0, 0), (1, 0)), constant_values=True)
    ids = np.where(attention, rng.integers(0, 60000, (n, length)), 0)
    stats = TokenStatistics(
        input_ids=ids.astype(np.int32),
        valid=valid,
        target_log_prob=real(),
        target_mean=real(),
        target_var=real(),
        target_rank=rank(),
        target_top1=valid & (rng.random((n, length)) < 0.5),
        reference_log_prob=real(),
        reference_mean=real(),
        cross_mean=real(),
        cross_var=real(),
        reference_rank=rank(),
        columns=real(layout.packed_width),
    )
    return jax.tree.map(lambda x: x[list(rows)], stats)


def table(n=N):
    return TextTable(
        ids=[f"{row:016x}" for row in range(n)],
        labels=[row % 2 for row in range(n)],
        split=["train", "validation", "test"] * (n // 3) + ["train"] * (n % 3),
        n_bytes=np.arange(n) + 500,
        zlib_bytes=np.arange(n) + 300,
        flags=[["truncated"] if row % 4 == 0 else [] for row in range(n)],
    )


def open_writer(path, **changes):
    options = {"k": K, "length": LENGTH, "block_texts": BLOCK} | changes
    return StoreWriter(path, {"name": "combination", "seed": 3}, table(), **options)


def lower_loss(rows):
    return np.where(np.array(rows) == 2, np.nan, np.array(rows) + 0.5)


def write_missing(path, stop_after=None):
    writer = open_writer(path)
    todo = sorted(set(range(writer.n_blocks)) - writer.completed_blocks)
    for block in todo[:stop_after]:
        rows = writer.rows(block)
        writer.append_block(block, draw(rows), lower_loss(rows))
    if stop_after is None:
        writer.finish()
    return todo


def content(path):
    return {p.name: p.read_bytes() for p in Path(path).iterdir()}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    path = tmp_path_factory.mktemp("store") / "whole"
    write_missing(path)
    return path


def test_a_flipped_bit_anywhere_is_refused(finished, tmp_path):
    path = shutil.copytree(finished, tmp_path / "store")
    rng = np.random.default_rng(0)
    flipped = set()
    for _ in range(100):
        with flipped_bit(path, rng) as file, pytest.raises(InputError):
            FeatureStore.open(path)
        flipped.add(file.name)
    assert flipped == set(content(path))
    assert FeatureStore.open(path).n == N


def test_round_trip(finished):
    store = FeatureStore.open(finished)
    truth = draw(range(N))
    stats = store.statistics()
    for name in TokenStatistics._fields:
        if name == "columns":
            assert stats.columns is None
        else:
            np.testing.assert_array_equal(
                getattr(stats, name), getattr(truth, name), err_msg=name
            )
            assert getattr(stats, name).dtype == getattr(truth, name).dtype
    np.testing.assert_array_equal(store.n_steps, truth.valid.sum(1))
    np.testing.assert_array_equal(store.lower_loss, lower_loss(range(N)))
    assert (store.n, store.k, store.length, store.name) == (N, K, LENGTH, "combination")
    assert store.labels[:4] == (0, 1, 0, 1)
    assert store.split[:3] == ("train", "validation", "test")
    assert store.flags[4] == ["truncated"]
    assert store.ids[10] == f"{10:016x}"
    assert store.zlib_bytes[5] == 305


def test_sixteen_bits_are_enough(finished):
    store = FeatureStore.open(finished)
    truth, mask = assemble(draw(range(N)))
    features, found_mask = store.features()
    np.testing.assert_array_equal(mask, found_mask)
    assert features.dtype == np.float32
    end = store.layout.loss.start
    # Ten columns are recomputed from 32-bit statistics, the others have 11 bits.
    np.testing.assert_array_equal(features[..., end:], truth[..., end:])
    error = np.abs(features[..., :end] - truth[..., :end])
    assert (error <= np.abs(truth[..., :end]) * 2.0**-11 + 2.0**-25).all()
    assert error.max() > 0


@pytest.mark.parametrize(
    "rows",
    [
        [0],
        [22, 3, 3, 17, 2, 4],
        np.arange(4, 16),
        slice(7, 20, 3),
        np.array([2]),
        np.zeros(0, np.int64),
    ],
)
def test_rows_in_any_order(finished, rows):
    store = FeatureStore.open(finished, verify=False)
    features, mask = store.features()
    some, some_mask = store.features(rows)
    np.testing.assert_array_equal(features[rows], some)
    np.testing.assert_array_equal(mask[rows], some_mask)
    np.testing.assert_array_equal(
        store.statistics().reference_rank[rows], store.statistics(rows).reference_rank
    )


def test_values_beyond_sixteen_bits_are_clipped(tmp_path):
    stats = draw(range(1))
    stats.columns[0, 0, :2] = [1e6, -1e30]
    text = TextTable(
        ids=["a"],
        labels=[None],
        split=["test"],
        n_bytes=[1],
        zlib_bytes=[9],
        flags=[[]],
    )
    writer = StoreWriter(tmp_path, {}, text, k=K, length=LENGTH, block_texts=1)
    writer.append_block(0, stats)
    writer.finish()
    store = FeatureStore.open(tmp_path)
    features, _ = store.features()
    assert features[0, 0, 1] == -65504
    assert np.isfinite(features).all()
    assert store.labels == (None,)
    assert np.isnan(store.lower_loss).all()
    stats.columns[0, 1, 0] = np.nan
    with pytest.raises(InputError, match="NaN"):
        writer.append_block(0, stats)


def test_size_budget(tmp_path):
    n, length = 64, 128
    writer = StoreWriter(
        tmp_path, {"name": "x"}, table(n), k=20, length=length, block_texts=32
    )
    for block in range(2):
        rows = writer.rows(block)
        stats = draw(rows, length=length, k=20, full=True)
        assert stats.valid.sum(1).min() == 127
        writer.append_block(block, stats, np.zeros(len(rows)))
    writer.finish()
    total = sum(len(data) for data in content(tmp_path).values())
    assert total / n <= 0.4 * 128 * 154 * 4


@pytest.mark.parametrize("stop_after", [0, 1, 3, 5])
def test_resume_gives_the_same_bytes(tmp_path, finished, stop_after):
    write_missing(tmp_path, stop_after=stop_after)
    with pytest.raises(InputError, match="no manifest"):
        FeatureStore.open(tmp_path)
    with pytest.raises(InputError, match="not a finished feature store"):
        FeatureStore.open(tmp_path, verify=False)
    assert write_missing(tmp_path) == list(range(stop_after, 5))
    assert content(tmp_path) == content(finished)
    assert write_missing(tmp_path) == []
    assert content(tmp_path) == content(finished)


def truncate(path):
    path.write_bytes(path.read_bytes()[:-9])


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("damage", [Path.unlink, truncate, flip])
@pytest.mark.parametrize("complete", [False, True])
def test_damaged_blocks_are_made_again(tmp_path, finished, damage, complete):
    write_missing(tmp_path, stop_after=None if complete else 4)
    damage(tmp_path / "block-00001.safetensors")
    # What a kill inside an atomic write leaves behind.
    (tmp_path / ".block-00004.safetensors.abc.tmp").write_bytes(b"half")
    (tmp_path / ".progress-00000.json.abc.tmp").write_bytes(b"half")
    if complete:
        with pytest.raises(InputError, match=r"block-00001\.safetensors"):
            FeatureStore.open(tmp_path)
    assert write_missing(tmp_path) == ([1] if complete else [1, 4])
    assert content(tmp_path) == content(finished)


def test_kill_before_the_progress_file_is_written(tmp_path, finished):
    write_missing(tmp_path, stop_after=2)
    progress = (tmp_path / "progress-00000.json").read_bytes()
    write_missing(tmp_path, stop_after=1)
    (tmp_path / "progress-00000.json").write_bytes(progress)
    assert write_missing(tmp_path) == [2, 3, 4]
    assert content(tmp_path) == content(finished)


def test_kill_between_manifest_and_cleaning(tmp_path, finished):
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    files = json.loads((finished / "manifest.json").read_text())["files"]
    blocks = {name: entry for name, entry in files.items() if "block" in name}
    (tmp_path / "progress-00000.json").write_text(json.dumps({"blocks": blocks}))
    assert write_missing(tmp_path) == []
    assert content(tmp_path) == content(finished)


def test_all_damage_is_named(tmp_path, finished):
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    truncate(tmp_path / "block-00000.safetensors")
    flip(tmp_path / "block-00003.safetensors")
    (tmp_path / "texts.json").unlink()
    with pytest.raises(InputError) as caught:
        FeatureStore.open(tmp_path)
    for name in ("block-00000", "block-00003", "texts.json"):
        assert name in str(caught.value)
    assert "\n" not in str(caught.value)
    shutil.copy(finished / "texts.json", tmp_path)
    store = FeatureStore.open(tmp_path, verify=False)
    with pytest.raises(InputError, match=r"block-00000\.safetensors: .*truncated"):
        store.features([0])
    (tmp_path / "block-00004.safetensors").unlink()
    with pytest.raises(InputError, match="missing block-00004"):
        FeatureStore.open(tmp_path, verify=False)


ENTRIES = [
    ("store.json", "n", 0),
    ("store.json", "n", N + 1),
    ("store.json", "k", "5"),
    ("store.json", "length", math.inf),
    ("store.json", "block_texts", BLOCK + 1),
    ("store.json", "meta", None),
    ("store.json", "meta", {"corpus": -math.inf}),
    ("texts.json", "ids", [["a"]] * N),
    ("texts.json", "labels", [True] * N),
    ("texts.json", "split", ["train"] * (N - 1)),
    ("texts.json", "n_bytes", [2**63] * N),
    ("texts.json", "flags", [[7]] * N),
    ("texts.json", "more", []),
]


@pytest.mark.parametrize(("name", "key", "value"), ENTRIES)
def test_entries_of_the_wrong_type_are_refused(tmp_path, finished, name, key, value):
    """With a manifest that vouches for them."""
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    entries = json.loads((tmp_path / name).read_text())
    (tmp_path / name).write_text(json.dumps(entries | {key: value}))
    files = json.loads((tmp_path / "manifest.json").read_text())["files"]
    write_manifest(tmp_path, [*files])
    with pytest.raises(InputError, match=r"(store|texts)\.json"):
        FeatureStore.open(tmp_path).features()


@pytest.mark.parametrize("text", ["[]", "3", '{"blocks": 3}', "{", "[" * 9999])
def test_a_broken_list_of_blocks_is_one_line(tmp_path, text):
    write_missing(tmp_path, stop_after=2)
    (tmp_path / "progress-00000.json").write_text(text)
    with pytest.raises(InputError, match=r"progress-00000\.json: "):
        open_writer(tmp_path)


def test_another_extraction_is_refused(finished):
    before = content(finished)
    with pytest.raises(InputError, match=r"another extraction .*block_texts"):
        open_writer(finished, block_texts=7)
    with pytest.raises(InputError, match=r"different: meta\.seed"):
        StoreWriter(
            finished,
            {"name": "combination", "seed": 4},
            table(),
            k=K,
            length=LENGTH,
            block_texts=BLOCK,
        )
    assert content(finished) == before


def test_writer_refuses_what_it_cannot_store(tmp_path):
    writer = open_writer(tmp_path)
    with pytest.raises(InputError, match="shape"):
        writer.append_block(0, draw(range(4)))
    with pytest.raises(InputError, match="packed columns"):
        writer.append_block(0, draw(range(5), k=4))
    holes = draw(range(5))
    holes.valid[0, 3] = False
    with pytest.raises(InputError, match="right"):
        writer.append_block(0, holes)
    with pytest.raises(InputError, match=r"blocks \[0, 1, 2, 3, 4\]"):
        writer.finish()
    with pytest.raises(InputError, match="differ in length"):
        dataclasses.replace(table(), labels=[1])
    with pytest.raises(InputError, match="labels other than"):
        dataclasses.replace(table(), labels=[2] * N)


def test_sigkill(tmp_path, finished):
    """A real process, killed at a moment that it does not choose."""
    script = textwrap.dedent("""
        import sys, time
        import test_store as t
        writer = t.open_writer(sys.argv[1])
        for block in sorted(set(range(writer.n_blocks)) - writer.completed_blocks):
            rows = writer.rows(block)
            writer.append_block(block, t.draw(rows), t.lower_loss(rows))
            time.sleep(0.05)
        writer.finish()
    """)
    here = Path(__file__).parent
    environment = os.environ | {"PYTHONPATH": f"{here}{os.pathsep}{here.parent}"}
    process = subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path)], env=environment
    )
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob("block-*")) and time.monotonic() < deadline:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "manifest.json").exists()
    redone = write_missing(tmp_path)
    assert 0 < len(redone) <= 5
    assert content(tmp_path) == content(finished)
