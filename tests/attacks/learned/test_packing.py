import dataclasses

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from attack_stores import SMALL, MemoryStore, recipe
from hypothesis import given, settings

from lt_mia_jax.attacks.learned import classifier
from lt_mia_jax.attacks.learned.optimizer import make_optimizer
from lt_mia_jax.attacks.learned.packing import SLOTS, pack, read_batch
from lt_mia_jax.attacks.learned.rows import Rows
from lt_mia_jax.attacks.learned.train import TrainStep
from lt_mia_jax.data.batches import Batch
from lt_mia_jax.errors import InputError
from lt_mia_jax.executor import make_executor
from lt_mia_jax.training.state import init_state

PLAIN = dataclasses.replace(SMALL, dropout=0.0)


@given(st.lists(st.integers(0, 16), max_size=60), st.integers(1, 5))
@settings(deadline=None)
def test_every_text_has_one_place_and_no_row_is_too_full(lengths, slots):
    lengths = np.array(lengths, np.int64)
    packed = pack(lengths, 16, slots)
    placed = packed[packed >= 0]
    assert sorted(placed.tolist()) == np.flatnonzero(lengths).tolist()
    room = np.where(packed >= 0, np.append(lengths, 0)[packed], 0).sum(axis=1)
    assert (room <= 16).all()
    assert packed.shape[1] == slots
    assert not len(packed) or (packed[:, 0] >= 0).all()


@given(st.lists(st.integers(1, 16), min_size=1, max_size=60))
@settings(deadline=None)
def test_rows_are_few(lengths):
    # Any two rows of a best-fit packing hold more than one row's worth.
    rows = len(pack(np.array(lengths), 16, 60))
    least = -(-sum(lengths) // 16)
    assert least <= rows <= max(1, 2 * least - 1)


def _rows(signal=1.0):
    store = MemoryStore("c", 96, signal=signal)
    store.mask[::7] = False  # texts without a step take no part
    store.mask[1, 1] = False  # and some have a hole
    store.values[~store.mask] = np.nan
    return Rows([store], "train")


def _batch(rows, count=40):
    weight = np.ones(count, np.float32)
    weight[-3:] = 0
    return Batch(np.arange(count) % len(rows), weight)


def test_packed_batches_hold_the_same_texts():
    rows, executor = _rows(), make_executor()
    batch = _batch(rows)
    plain = read_batch(rows, batch, executor, packed=False)
    packed = read_batch(rows, batch, executor, packed=True)
    assert len(packed.features) < 0.75 * len(plain.features)
    assert len(packed.features) % executor.mesh.size == 0
    assert packed.labels.shape == (len(packed.features), SLOTS)

    def described(features, mask, label):
        return (float(label), features[mask].tobytes())

    whole = [
        described(plain.features[i], plain.mask[i], plain.labels[i])
        for i in np.flatnonzero(plain.weight)
    ]
    shared = []
    for r, s in zip(*np.nonzero(packed.weight), strict=True):
        own = (packed.segments[r] == s) & packed.mask[r]
        shared.append(described(packed.features[r], own, packed.labels[r, s]))
    assert sorted(shared) == sorted(whole)
    assert len(whole) > 20


def test_full_texts_stay_as_they_are():
    store = MemoryStore("c", 96)
    store.mask[:] = True
    rows, executor = Rows([store], "train"), make_executor()
    batch = read_batch(rows, _batch(rows), executor, packed=True)
    assert batch.segments is None
    assert len(batch.features) == 40


class _Counted(MemoryStore):
    n_steps = None


@pytest.mark.parametrize("cache_bytes", [0.0, 1e9])
@pytest.mark.parametrize("change", [-1, 1, 100])
def test_wrong_numbers_of_steps_are_refused(change, cache_bytes):
    store = _Counted("c", 96)
    store.n_steps = MemoryStore("c", 96).n_steps.astype(np.uint16)
    row = store.split.index("train")
    rows = Rows([store], "train", cache_bytes=cache_bytes)
    batch = Batch(np.arange(40), np.ones(40, np.float32))
    right = read_batch(rows, batch, make_executor(), packed=True)
    assert right.mask.sum() == store.n_steps[rows.row[:40]].sum()
    store.n_steps[row] = int(store.n_steps[row]) + change
    said = f"{store.ids[row]}: {store.n_steps[row]} steps, the last valid one"
    with pytest.raises(InputError, match=said):
        read_batch(
            Rows([store], "train", cache_bytes=cache_bytes),
            batch,
            make_executor(),
            packed=False,
        )


def test_a_batch_without_steps_has_no_weight():
    store = MemoryStore("c", 64)
    store.mask[:] = False
    rows = Rows([store], "train")
    batch = read_batch(rows, _batch(rows), make_executor(), packed=True)
    assert batch.weight.sum() == 0
    assert len(batch.features) >= 1


@pytest.mark.parametrize("standardise", [False, True])
def test_texts_in_one_row_do_not_see_one_another(standardise, key):
    rows = _rows()
    config = dataclasses.replace(PLAIN, standardise=standardise)
    params = classifier.init(config, key)
    batch = _batch(rows)
    packed = read_batch(rows, batch, make_executor(), packed=True)
    logits = classifier.apply_packed(
        config, params, *packed[:2], packed.segments, SLOTS
    )
    assert np.array_equal(np.isnan(logits), packed.weight == 0)
    expected = classifier.apply(config, params, *rows.read(batch.rows))
    expected = np.asarray(expected)[np.isfinite(expected) & (batch.weight > 0)]
    found = np.asarray(logits)[packed.weight > 0]
    np.testing.assert_allclose(np.sort(found), np.sort(expected), atol=2e-6)
    assert np.std(expected) > 0.01


@pytest.mark.parametrize(
    "changes", [{}, {"slices": 2}, {"loss": "focal"}, {"pairwise_weight": 0.1}]
)
def test_the_update_is_the_same(changes, key):
    rows, params = _rows(), classifier.init(PLAIN, key)
    chosen = recipe(schedule="none", **changes)
    found = []
    for packed in (False, True):
        batch = read_batch(
            rows, _batch(rows), make_executor(), slices=chosen.slices, packed=packed
        )
        assert (batch.segments is not None) == packed
        step = jax.jit(TrainStep.of(PLAIN, chosen, 4))
        state = init_state(params, make_optimizer(chosen, 4))
        state, metrics = step(
            {}, state, jax.tree.map(jnp.asarray, batch), jax.random.key(0)
        )
        # Adam's first moment: linear in the gradient, unlike its update.
        found.append((optax.tree.get(state.opt_state, "mu"), metrics))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), *found)
    assert found[0][1]["gradient_norm"] > 0.01


@pytest.mark.parametrize("architecture", ["lr", "mlp", "mean_mlp"])
def test_other_architectures_refuse(architecture, key):
    config = dataclasses.replace(PLAIN, architecture=architecture)
    features, mask = _rows().read(np.arange(4))
    with pytest.raises(InputError, match=f"{architecture} classifier reads a row a"):
        classifier.apply_packed(
            config, classifier.init(config, key), features, mask, mask - 1, 2
        )
