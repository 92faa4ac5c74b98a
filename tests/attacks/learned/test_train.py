import dataclasses
import json
import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import attack_stores
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from attack_stores import SMALL, MemoryStore, recipe, stores

from lt_mia_jax.attacks.learned import classifier
from lt_mia_jax.attacks.learned.attack import score_features, score_store
from lt_mia_jax.attacks.learned.optimizer import make_optimizer
from lt_mia_jax.attacks.learned.packing import read_batch
from lt_mia_jax.attacks.learned.rows import Rows
from lt_mia_jax.attacks.learned.storage import load_attack
from lt_mia_jax.attacks.learned.train import TrainStep, _batches, train_attack
from lt_mia_jax.attacks.metrics import auc
from lt_mia_jax.errors import InputError
from lt_mia_jax.executor import make_executor
from lt_mia_jax.features.layout import FeatureLayout
from lt_mia_jax.training.state import init_state


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    directory = tmp_path_factory.mktemp("attack")
    return directory, train_attack(
        stores(), SMALL, recipe(save_seconds=60.0), directory
    )


def test_it_learns_and_keeps_the_best_epoch(finished):
    directory, result = finished
    history = [row["validation_auc"] for row in result.history]
    assert len(history) == 6
    assert result.best_auc == max(history)
    assert result.best_epoch == 1 + int(np.argmax(history))
    attack = load_attack(directory)
    labels, logits = [], []
    for store in stores():
        rows = np.flatnonzero(np.array(store.split) == "validation")
        labels.append(np.array(store.labels)[rows])
        logits.append(score_store(attack, store, rows))
    labels, logits = np.concatenate(labels), np.concatenate(logits)
    np.testing.assert_allclose(auc(labels, logits), result.best_auc, atol=1e-12)
    fresh = MemoryStore("new", 200, seed=9)
    assert auc(np.array(fresh.labels), score_store(attack, fresh)) > 0.8


def test_card_says_what_was_used(finished):
    directory, result = finished
    card = load_attack(directory).card
    assert card == json.loads(json.dumps(result.attack.card))
    used = {
        i
        for store in stores()
        for i, role in zip(store.ids, store.split, strict=True)
        if role != "test"
    }
    assert load_attack(directory).text_ids == used
    assert [c["name"] for c in card["combinations"]] == ["a", "b"]
    assert card["combinations"][1]["target"] == "b-target"
    if hasattr(os, "sched_getaffinity"):
        assert card["cores"] == len(os.sched_getaffinity(0))


def test_scores_do_not_depend_on_the_batch(finished, monkeypatch):
    attack = finished[1].attack
    store = stores()[0]
    store.mask[5] = False
    whole = score_store(attack, store)
    monkeypatch.setattr("lt_mia_jax.attacks.learned.attack.BATCH", 7)
    one = score_store(attack, store)
    np.testing.assert_allclose(one, whole, atol=1e-6)
    assert np.isnan(one[5])
    assert np.isfinite(np.delete(one, 5)).all()
    direct = classifier.apply(attack.config, attack.params, store.values, store.mask)
    np.testing.assert_allclose(one, direct, atol=1e-6)
    assert one.dtype == np.float64
    np.testing.assert_array_equal(
        score_features(attack, store.values[:0], store.mask[:0]), np.zeros(0)
    )


def test_killed_run_ends_like_an_uninterrupted_one(finished, tmp_path, caplog):
    program = [sys.executable, attack_stores.__file__, str(tmp_path)]
    with open(tmp_path / "log", "w") as output:
        process = subprocess.Popen(program, stdout=output, stderr=output)
        steps = tmp_path / "state"
        end = time.monotonic() + 120
        while not any(
            (steps / str(n) / "manifest.json").exists() for n in range(7, 20)
        ):
            assert process.poll() is None, (tmp_path / "log").read_text()
            assert time.monotonic() < end, "no checkpoint in two minutes"
            time.sleep(0.002)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    assert not (tmp_path / "classifier.safetensors").exists()
    with caplog.at_level(logging.INFO):
        resumed = train_attack(stores(), SMALL, recipe(save_seconds=60.0), tmp_path)
    assert resumed.resumed_from >= 7
    assert f"resumed from step {resumed.resumed_from}" in caplog.text
    expected = finished[1]
    assert resumed.history == expected.history
    assert resumed.best_epoch == expected.best_epoch
    jax.tree.map(
        np.testing.assert_array_equal, resumed.attack.params, expected.attack.params
    )
    rows = [json.loads(x) for x in Path(tmp_path / "metrics.jsonl").open()]
    losses = [row["step"] for row in rows if "loss" in row]
    assert losses == list(range(1, losses[-1] + 1))


def test_another_recipe_does_not_continue_it(finished, tmp_path):
    directory, _ = finished
    with pytest.raises(InputError, match="another configuration"):
        train_attack(stores(), SMALL, recipe(seed=5), directory)


PLAIN = classifier.ClassifierConfig(**{**vars(SMALL), "dropout": 0.0})


def _rows_with_empty_texts():
    store = MemoryStore("c", 64)
    store.mask[:9] = False
    return Rows([store], "train")


def _update(rows, params, **changes):
    settings = recipe(schedule="none", balance="plain", **changes)
    state = init_state(params, make_optimizer(settings, 4))
    batch = read_batch(
        rows,
        _batches(rows, 64, settings)(0),
        make_executor(),
        slices=settings.slices,
        packed=False,
    )
    step = jax.jit(TrainStep.of(PLAIN, settings, 4))
    state, metrics = step({}, state, batch, jax.random.key(0))
    # Adam's first moment: linear in the gradient, unlike its update.
    return optax.tree.get(state.opt_state, "mu"), metrics


def test_loss_is_the_mean_over_texts_with_steps_sliced_or_not(key):
    rows = _rows_with_empty_texts()
    params = classifier.init(PLAIN, key)
    moment, metrics = _update(rows, params)
    logits = classifier.apply(PLAIN, params, *rows.read(np.arange(len(rows))))
    scored = np.isfinite(logits)
    assert 0 < scored.sum() < len(rows)
    z, y = np.asarray(logits)[scored].astype(np.float64), rows.labels[scored]
    targets = 0.98 * y + 0.01
    expected = np.mean(np.log1p(np.exp(z)) - targets * z)
    np.testing.assert_allclose(metrics["loss"], expected, rtol=1e-5)
    assert np.isfinite(metrics["gradient_norm"])
    sliced, again = _update(rows, params, slices=4)
    np.testing.assert_allclose(again["loss"], expected, rtol=1e-5)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-7), moment, sliced
    )


@pytest.mark.parametrize("loss", ["bce", "focal"])
def test_pairwise_hinge_is_added(loss, key):
    rows = _rows_with_empty_texts()
    params = classifier.init(PLAIN, key)
    plain = _batches(rows, 64, recipe(balance="plain"))(0)
    batch = read_batch(rows, plain, make_executor(), packed=False)
    values = [
        TrainStep.of(PLAIN, recipe(loss=loss, pairwise_weight=weight), 4)._loss(
            params, {}, jax.tree.map(jnp.asarray, batch), None
        )
        for weight in (0.0, 0.1)
    ]
    logits = np.asarray(classifier.apply(PLAIN, params, batch.features, batch.mask))
    z, y = logits[batch.weight > 0], batch.labels[batch.weight > 0]
    gaps = np.maximum(0, 1 - (z[y == 1][:, None] - z[y == 0][None]))
    np.testing.assert_allclose(values[1] - values[0], 0.1 * gaps.mean(), rtol=1e-4)


def test_plain_batches_visit_every_row_once_an_epoch():
    rows = Rows(stores(), "train")
    batch_at = _batches(rows, 20, recipe(balance="plain"))
    per_epoch = -(-len(rows) // 20)
    for epoch in range(2):
        batches = [batch_at(epoch * per_epoch + i) for i in range(per_epoch)]
        seen = np.concatenate([b.rows[b.weight > 0] for b in batches])
        np.testing.assert_array_equal(np.sort(seen), np.arange(len(rows)))


def test_uniform_batches_draw_combinations_equally():
    rows = Rows(stores(), "train")
    batch_at = _batches(rows, 20, recipe(epochs=300))
    steps = 300 * -(-len(rows) // 20)
    batches = [batch_at(i) for i in range(steps)]
    drawn = np.concatenate([b.rows[b.weight > 0] for b in batches])
    assert len(drawn) == 300 * len(rows)
    share = (rows.store[drawn] == 0).mean()
    assert abs(share - 0.5) < 5 * 0.5 / np.sqrt(len(drawn))
    # Inside a combination every row is equally likely.
    for store in range(2):
        counts = np.bincount(drawn, minlength=len(rows))[rows.store == store]
        mean = counts.mean()
        assert (np.abs(counts - mean) < 5 * np.sqrt(mean)).all()
    np.testing.assert_array_equal(batches[7].rows, batch_at(7).rows)


def test_mean_selection_and_reading_from_disk(finished, tmp_path):
    settings = recipe(selection="mean", save_seconds=60.0)
    kept = train_attack(stores(), SMALL, settings, tmp_path / "kept")
    settings = recipe(selection="mean", save_seconds=60.0, cache_gib=0.0)
    read = train_attack(stores(), SMALL, settings, tmp_path / "read")
    assert kept.history == read.history
    for row in kept.history:
        assert row["validation_auc"] == row["mean_auc"]


@pytest.mark.parametrize("logs", [False, True])
def test_standardized_training_stores_measured_constants(tmp_path, logs):
    changes = {
        "standardise": True,
        "blocks": ("truth", "loss", "text"),
        "log_probabilities": logs,
    }
    config = dataclasses.replace(SMALL, **changes)
    settings = recipe(epochs=2, save_seconds=60.0)
    result = train_attack(stores(), config, settings, tmp_path)
    layout = FeatureLayout(result.attack.k)
    seen = np.r_[layout.truth, layout.loss, layout.text]
    changed = stores()
    for store in changed if logs else ():
        excess = store.values[..., layout.loss][..., 2]
        store.values[..., 0] = np.where(excess > 0, -excess, 0)
        store.values[..., 1] = np.where(excess < 0, excess, 0)
    mean, scale = (m[seen] for m in Rows(changed, "train").moments())
    params = load_attack(tmp_path).params
    np.testing.assert_allclose(params["input_mean"], mean, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(params["input_scale"], scale, rtol=1e-5)
    assert load_attack(tmp_path).config == result.attack.config
    assert result.attack.config.blocks == changes["blocks"]


def test_a_text_in_training_and_validation_is_refused(tmp_path):
    other = MemoryStore("a", 96, seed=4)
    other.name = "again"
    other.split = tuple(reversed(other.split))
    with pytest.raises(InputError, match="both in training and in validation"):
        train_attack([stores()[0], other], SMALL, recipe(), tmp_path)


def test_one_class_is_refused(tmp_path):
    store = MemoryStore("c")
    store.labels = (1,) * store.n
    with pytest.raises(InputError, match="0 non-members"):
        train_attack([store], SMALL, recipe(), tmp_path)
