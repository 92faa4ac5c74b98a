import json
import logging
from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from oracle_finetune import Toy, loss_oracle, random_texts

from lt_mia_jax.data.batches import batch_indices
from lt_mia_jax.errors import InputError
from lt_mia_jax.executor import make_executor
from lt_mia_jax.finetune import FinetuneConfig, LoraConfig, finetune, next_token_loss
from lt_mia_jax.finetune.step import batches
from lt_mia_jax.models import LanguageModel
from lt_mia_jax.models.presets import gpt2_like
from lt_mia_jax.trees import flatten

TRAIN, VALIDATION = random_texts(21, seed=1), random_texts(9, seed=2)
CONFIG = FinetuneConfig(learning_rate=0.02, batch_size=4, epochs=3, seed=5)
LORA = LoraConfig(rank=2, targets=("*/mixer/kernel",))
ONE = make_executor("single")
traces = []


@dataclass(frozen=True)
class Counted(Toy):
    """A toy that records every trace of its forward pass."""

    def apply(self, params, input_ids, *, dropout_key=None, **options):
        traces.append(dropout_key is not None)
        return super().apply(params, input_ids, dropout_key=dropout_key, **options)


MODEL = Counted()


@pytest.fixture(scope="module")
def base():
    return MODEL.init(jax.random.key(8))


def run(base, directory, *, config=CONFIG, model=MODEL, executor=ONE, **changes):
    return finetune(
        model,
        base,
        TRAIN,
        VALIDATION,
        config,
        directory=directory,
        executor=executor,
        **changes,
    )


@pytest.fixture(scope="module")
def whole(base, tmp_path_factory):
    return run(base, tmp_path_factory.mktemp("whole"))


def same(a, b):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_array_equal(x, y)


def test_equals_a_loop_written_out(base, tmp_path):
    """Without dropout: AdamW on the token mean of each batch, epoch after epoch."""
    model = Toy(dropout=0.0)
    result = run(base, tmp_path, model=model)
    optimizer = optax.adamw(0.02, weight_decay=0.01)
    params, losses, kept = base, [], []
    state = optimizer.init(params)
    order = batch_indices(21, 4, seed=5, epochs=3)
    gradient = jax.jit(
        jax.grad(lambda p, i, m: next_token_loss(model.apply(p, i), i, m)[0])
    )
    for step in range(len(order)):
        rows, weight = order[step]
        rows = rows[weight > 0]  # the last batch of an epoch has one text
        grads = gradient(params, TRAIN.input_ids[rows], TRAIN.attention_mask[rows])
        updates, state = optimizer.update(grads, state, params)
        params = optax.apply_updates(params, updates)
        if (step + 1) % order.steps_per_epoch == 0:
            logits = model.apply(params, VALIDATION.input_ids)
            total, count = loss_oracle(np.asarray(logits), *VALIDATION[:2])
            losses.append(total / count)
            kept.append(params)
    found = [row["validation_loss"] for row in result.history]
    np.testing.assert_allclose(found, losses, rtol=1e-4)
    assert result.best_epoch == 1 + int(np.argmin(losses))
    for a, b in zip(
        jax.tree.leaves(result.params),
        jax.tree.leaves(kept[result.best_epoch - 1]),
        strict=True,
    ):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4)


def test_the_best_epoch_is_returned(base, tmp_path):
    # A rate at which the loss rises after some epoch.
    config = replace(CONFIG, learning_rate=0.1, epochs=4)
    result = run(base, tmp_path / "all", config=config)
    losses = [row["validation_loss"] for row in result.history]
    assert result.best_epoch == 1 + int(np.argmin(losses))
    assert result.best_epoch < 4
    until = replace(config, epochs=result.best_epoch)
    same(run(base, tmp_path / "until", config=until).params, result.params)


def test_history_is_written(whole, tmp_path, base):
    run(base, tmp_path)
    rows = [json.loads(line) for line in (tmp_path / "history.jsonl").open()]
    assert [r["step"] for r in rows if "loss" in r] == list(range(1, 19))
    evaluations = [r["validation_loss"] for r in rows if "validation_loss" in r]
    assert evaluations == [r["validation_loss"] for r in whole.history]
    assert [r["epoch"] for r in whole.history] == [1, 2, 3]
    assert (tmp_path / "state").is_dir()


def test_compiled_once(whole, base, tmp_path):
    traces.clear()
    again = run(base, tmp_path)
    assert traces == []
    same(again.params, whole.params)
    run(base, tmp_path / "new", config=replace(CONFIG, batch_size=5))
    # A new batch size, and batches of one text at the ends of epochs: one training
    # program and one evaluation program for every width that batches are cut to.
    widths = []
    for encoded, shuffle, epochs in ((TRAIN, True, 3), (VALIDATION, False, 1)):
        order, batch_at = batches(
            encoded, 5, seed=5, epochs=epochs, executor=ONE, shuffle=shuffle
        )
        found = {batch_at(i).input_ids.shape[1] for i in range(len(order))}
        assert found <= {8, 12}
        widths.append(len(found))
    assert sorted(traces) == [False] * widths[1] + [True] * widths[0]


def test_dropout_is_active_in_training_only(base, tmp_path, whole):
    without = run(base, tmp_path, model=Counted(dropout=0.0))
    assert whole.history != without.history


def test_seed_decides(base, tmp_path, whole):
    other = run(base, tmp_path, config=replace(CONFIG, seed=6))
    assert other.history != whole.history


def test_stopped_and_continued(base, whole, tmp_path, caplog):
    run(base, tmp_path, save_every_seconds=0.0)
    state = tmp_path / "state"
    newest = max(int(p.name) for p in state.iterdir() if p.name.isdecimal())
    assert newest == 18
    payload = max((state / "18").rglob("*"), key=lambda p: p.stat().st_size)
    payload.write_bytes(payload.read_bytes()[:-3])
    with caplog.at_level(logging.INFO):
        result = run(base, tmp_path)
    assert "resumed from step 17 of 18" in caplog.text
    assert result.resumed_from == 17
    same(result.params, whole.params)
    assert result.history == whole.history


def test_another_run_in_the_folder_is_refused(base, tmp_path):
    run(base, tmp_path)
    for changed in (
        {"config": replace(CONFIG, learning_rate=0.5)},
        {"base": jax.tree.map(lambda x: x + 1, base)},
    ):
        with pytest.raises(InputError, match="choose another --out"):
            run(**({"base": base, "directory": tmp_path} | changed))


@pytest.mark.parametrize("lora", [None, LORA])
def test_sharded_equals_single_device(base, tmp_path, lora):
    # Four devices and batches of 5: rows are padded to 8.
    config = replace(CONFIG, lora=lora, batch_size=5, epochs=2)
    model = Toy(dropout=0.0)
    if lora is not None:
        config = replace(config, lora=replace(lora, dropout=0.0))
    one = run(base, tmp_path / "one", config=config, model=model)
    four = run(
        base, tmp_path / "4", config=config, model=model, executor=make_executor()
    )
    for a, b in zip(
        jax.tree.leaves(one.params), jax.tree.leaves(four.params), strict=True
    ):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_lora_trains_its_targets_only(base, tmp_path):
    result = run(base, tmp_path, config=replace(CONFIG, lora=LORA))
    before, after = flatten(base), flatten(result.params)
    changed = {n for n in before if not np.array_equal(before[n], after[n])}
    assert changed == {"layers/mixer/kernel"}
    a, b = result.adapters["layers/mixer/kernel"]
    delta = after["layers/mixer/kernel"] - before["layers/mixer/kernel"]
    assert np.linalg.matrix_rank(np.asarray(delta[0]), tol=1e-4) == 2
    np.testing.assert_allclose(
        delta, LORA.scale * np.einsum("lir,lro->lio", a, b), rtol=1e-3, atol=1e-5
    )
    assert result.history[-1]["validation_loss"] < result.history[0]["validation_loss"]


def test_the_base_stays_valid_and_masters_are_float32(tmp_path):
    base = jax.tree.map(lambda x: x.astype(jnp.bfloat16), MODEL.init(jax.random.key(8)))
    before = jax.tree.map(np.array, base)
    result = run(base, tmp_path)
    same(base, before)
    assert {x.dtype for x in jax.tree.leaves(result.params)} == {np.dtype(np.float32)}


def test_a_language_model_learns(tmp_path):
    model = LanguageModel(gpt2_like(32, 16, 2, 2, 12, dropout=0.1))
    base = model.init(jax.random.key(0))
    # At this rate every seed learns; at that of CONFIG it is luck.
    config = replace(CONFIG, epochs=16, learning_rate=0.005)
    result = run(base, tmp_path, model=model, config=config)
    losses = [row["validation_loss"] for row in result.history]
    assert min(losses) < np.log(32) - 0.3
    assert result.best_epoch == 1 + int(np.argmin(losses))


def test_divergence_is_explained(base, tmp_path):
    config = replace(CONFIG, learning_rate=1e30)
    with pytest.raises(InputError, match="fine-tuning diverged at step"):
        run(base, tmp_path, config=config)


def test_nothing_to_learn_from(base, tmp_path):
    empty = random_texts(4)._replace(attention_mask=np.zeros((4, 12), np.uint8))
    with pytest.raises(InputError, match="validation texts: 4 texts"):
        finetune(MODEL, base, TRAIN, empty, CONFIG, directory=tmp_path)
    with pytest.raises(InputError, match="training texts: 4 texts"):
        finetune(MODEL, base, empty, VALIDATION, CONFIG, directory=tmp_path)


def test_bad_settings():
    with pytest.raises(InputError, match="epochs = 0"):
        FinetuneConfig(epochs=0)
    with pytest.raises(InputError, match="learning_rate"):
        FinetuneConfig(learning_rate=-1.0)


def test_only_the_scored_tokens_are_learned(base, tmp_path):
    real = TRAIN.attention_mask != 0
    part = real & (np.random.default_rng(3).random(real.shape) < 0.5)
    chosen = TRAIN._replace(scored=part)
    _, batch_at = batches(chosen, 4, ONE, epochs=1, seed=5)
    batch = batch_at(0)
    order = batch_indices(len(real), 4, seed=5)[0].rows
    width = batch.input_ids.shape[1]
    np.testing.assert_array_equal(batch.input_ids, TRAIN.input_ids[order][:, :width])
    np.testing.assert_array_equal(batch.attention_mask, part[order][:, :width])
    # A step on the whole batch sees every real token as context.
    model = replace(MODEL, dropout=0.0)
    config = replace(CONFIG, epochs=1, batch_size=len(real))
    directory = {"directory": tmp_path, "executor": ONE}
    finetune(model, base, chosen, VALIDATION, config, **directory)
    first = json.loads((tmp_path / "history.jsonl").read_text().splitlines()[0])
    logits = model.apply(base, jnp.asarray(TRAIN.input_ids))
    total, count = loss_oracle(logits, TRAIN.input_ids, part)
    np.testing.assert_allclose(first["loss"], total / count, rtol=1e-5)
    nothing = TRAIN._replace(scored=np.zeros_like(part))
    with pytest.raises(InputError, match="none with a response"):
        finetune(MODEL, base, nothing, VALIDATION, CONFIG, directory=tmp_path / "n")
