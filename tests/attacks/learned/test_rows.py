import numpy as np
import pytest
from attack_stores import COLUMNS, STEPS, MemoryStore, stores

from lt_mia_jax.attacks.learned.rows import Rows
from lt_mia_jax.errors import InputError


def test_rows_are_those_of_the_role_in_store_order():
    both = stores()
    rows = Rows(both, "validation")
    expected = [
        (name, label)
        for store in both
        for name, label, role in zip(store.ids, store.labels, store.split, strict=True)
        if role == "validation"
    ]
    assert list(zip(rows.ids, rows.labels, strict=True)) == expected
    assert (rows.length, rows.columns) == (STEPS, COLUMNS)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_reading_is_the_same_cached_or_not(dtype):
    both = stores()
    kept = Rows(both, "train", cache_bytes=1e9, dtype=dtype)
    fresh = Rows(both, "train", dtype=dtype)
    assert (kept.cached, fresh.cached) == (True, False)
    numbers = np.random.default_rng(0).integers(len(kept), size=50)
    for a, b in zip(kept.read(numbers), fresh.read(numbers), strict=True):
        np.testing.assert_array_equal(a, b)
    for number, row in zip(numbers, kept.read(numbers).features, strict=True):
        store, at = fresh.stores[fresh.store[number]], fresh.row[number]
        np.testing.assert_array_equal(row, store.values[at].astype(dtype))


def test_moments_equal_those_of_all_valid_steps(monkeypatch):
    monkeypatch.setattr("lt_mia_jax.attacks.learned.rows._BLOCK", 7)
    both = stores()
    for store in both:
        store.values[..., 5] = np.where(store.mask, 1000.25, 0)
        store.values[..., 6] = np.where(store.mask, 1000 + store.values[..., 6], 0)
    mean, deviation = Rows(both, "train").moments()
    steps = np.concatenate(
        [
            store.values[i][store.mask[i]]
            for store in both
            for i in range(store.n)
            if store.split[i] == "train"
        ]
    ).astype(np.float64)
    np.testing.assert_allclose(mean, steps.mean(axis=0), rtol=1e-10)
    varied = np.arange(COLUMNS) != 5
    np.testing.assert_allclose(deviation[varied], steps.std(axis=0)[varied], rtol=1e-8)
    assert deviation[5] == 1


def test_fingerprint_sees_labels_and_texts():
    first = Rows(stores(), "train").fingerprint()
    assert first == Rows(stores(), "train", cache_bytes=1e9).fingerprint()
    changed = stores()
    changed[1].labels = (1, *changed[1].labels[1:])
    assert Rows(changed, "train").fingerprint() != first
    assert Rows(stores()[:1], "train").fingerprint() != first


def test_unlabeled_training_rows_are_refused():
    store = MemoryStore("c")
    store.labels = (0, None, *store.labels[2:])
    with pytest.raises(InputError, match=r"c: 1 rows have no label .*row 1"):
        Rows([store], "train")


def test_missing_role_and_unequal_shapes_are_refused():
    store = MemoryStore("c")
    store.split = ("test",) * store.n
    with pytest.raises(InputError, match="no row with split 'train'"):
        Rows([store], "train")
    with pytest.raises(InputError, match="differ"):
        Rows([MemoryStore("c"), MemoryStore("d", columns=28)], "train")


@pytest.mark.parametrize(("value", "dtype"), [(np.nan, "float32"), (7e4, "float16")])
def test_features_that_are_not_finite_name_the_text(value, dtype):
    store = MemoryStore("c")
    store.values[9, 0, 2] = value
    with pytest.raises(InputError, match=r"c: 1 texts .* id c-9"):
        Rows([store], "train", cache_bytes=1e9, dtype=dtype)


def test_junk_at_masked_steps_is_no_error():
    store = MemoryStore("c")
    store.values[~store.mask] = np.inf
    assert Rows([store], "train", cache_bytes=1e9).cached


@pytest.mark.parametrize(
    ("one", "other", "words"),
    [
        ({"score": "response"}, {}, "differ in score .*response.*none"),
        ({"score": "response"}, {"score": "all"}, "differ in score"),
        ({"bos": "<s>"}, {}, "differ in bos .*<s>"),
        ({"bos": "<s>"}, {"reference": "other"}, None),
        ({"score": "all", "bos": "<s>"}, {"score": "all", "bos": "<s>"}, None),
    ],
)
def test_stores_agree_on_what_is_scored_and_how_texts_begin(one, other, words):
    both = stores()
    for store, more in zip(both, (one, other), strict=True):
        store.meta |= more
    if words is None:
        assert len(Rows(both, "train"))
        return
    with pytest.raises(InputError, match=words):
        Rows(both, "train")
