"""Methods that make an intervention: the weights stay, the model forgets with it."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import quick_compile
import unlearning_world as world
from unlearning_world import answer_loss, start

from lt_mia_jax.errors import InputError
from lt_mia_jax.executor import make_executor
from lt_mia_jax.models import placement
from lt_mia_jax.unlearning.interventions import edits
from lt_mia_jax.unlearning.interventions.directions import forget_rows, token_rows
from lt_mia_jax.unlearning.interventions.gates import GatedRotation
from lt_mia_jax.unlearning.methods import METHODS
from lt_mia_jax.unlearning.recipe import UnlearnConfig
from lt_mia_jax.unlearning.train import unlearn

# Plain gradients of a model of this size are small.
STEEP = UnlearnConfig(learning_rate=10.0, epochs=10, batch_size=6, warmup_epochs=0.0)
B, T, D, K = 3, 6, 16, 2


def run(folder, method, config=STEEP, **options):
    method = METHODS[method] if isinstance(method, str) else method
    return unlearn(
        world.model(),
        start(),
        world.forget_texts(),
        options.pop("retain", world.RETAIN),
        method,
        config,
        directory=folder,
        executor=make_executor("single"),
        **options,
    )


@pytest.fixture(scope="module")
def projected(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mrp")
    return run(folder, "mrp"), folder


@quick_compile.jit
def streams(ids):
    return world.model().apply(start(), ids, capture=(1,))[1]


def same_weights(params):
    jax.tree.map(np.testing.assert_array_equal, params, start())


def test_mrp_forgets_without_touching_a_weight(projected):
    result, folder = projected
    same_weights(result.params)
    forget, edit = world.forget_texts().answers, result.intervention
    history = [json.loads(x) for x in (folder / "history.jsonl").open()]
    assert len(history) == result.steps
    # The first step sees the start, its rows fitted and not yet trained.
    fitted = -history[0]["forget_loss"]
    after = answer_loss(start(), forget, intervention=edit)
    assert after > max(fitted, answer_loss(start(), forget)) + 0.01
    kept = answer_loss(start(), world.RETAIN, intervention=edit)
    assert kept < answer_loss(start(), world.RETAIN)
    (rows,) = np.asarray(edit.stacked.rows, np.float64)
    np.testing.assert_allclose(rows @ rows.T, np.eye(2), atol=1e-5)


def test_mrp_descends_by_plain_gradients(tmp_path):
    """One step, against the fitted start and differences of the loss around it."""
    config = dataclasses.replace(STEEP, epochs=1, learning_rate=1.0)
    method = dataclasses.replace(METHODS["mrp"], retain_weight=0.0, rows=1, layers=(1,))
    moved = run(tmp_path, method, config).intervention.stacked.rows[0, 0]
    forget = world.forget_texts().answers
    rows = [
        token_rows(streams(texts.input_ids)[1], texts.attention_mask)
        for texts in (forget, world.RETAIN)
    ]
    fitted = np.float64(forget_rows(*rows, count=1)[0])

    def loss(row):
        rows = (row / np.linalg.norm(row))[None].astype(np.float32)
        edit = placement.at_layers(edits.Projection(rows), [1])
        return -answer_loss(start(), forget, intervention=edit)

    slope = [(loss(fitted + h) - loss(fitted - h)) / 0.06 for h in 0.03 * np.eye(D)]
    expected = fitted - np.array(slope)
    wanted = expected / np.linalg.norm(expected) - fitted
    step = np.asarray(moved) * np.sign(moved @ expected) - fitted
    cosine = step @ wanted / np.linalg.norm(step) / np.linalg.norm(wanted)
    assert cosine > 0.99
    assert np.linalg.norm(step) == pytest.approx(np.linalg.norm(wanted), rel=0.1)


def test_mrp_extends_an_earlier_projection(projected, tmp_path):
    first = projected[0].intervention
    config = dataclasses.replace(STEEP, epochs=2)
    result = run(tmp_path / "next", "mrp", config, intervention=first)
    (old,), (rows,) = first.stacked.rows, np.asarray(result.intervention.stacked.rows)
    np.testing.assert_allclose(rows @ rows.T, np.eye(4), atol=1e-5)
    # What was taken out before still is.
    np.testing.assert_allclose(old @ rows.T @ rows, old, atol=1e-5)
    with pytest.raises(InputError, match="Npo would lose it"):
        run(tmp_path / "npo", "npo", config, intervention=first)
    elsewhere = dataclasses.replace(METHODS["mrp"], layers=(2,))
    with pytest.raises(InputError, match=r"layers = \[2\].*acts at \[1\]"):
        run(tmp_path / "two", elsewhere, config, intervention=first)
    with pytest.raises(InputError, match="no projection of mrp"):
        run(
            tmp_path / "other",
            "mrp",
            config,
            intervention=edits.Steering(np.ones(D, np.float32)),
        )


def test_guard_it_turns_the_texts_whose_prompt_opens_the_gate(tmp_path):
    result = run(tmp_path, "guard_it")
    same_weights(result.params)
    assert result.steps == 0
    gate = result.intervention.inner

    def logits(ids, edit):
        return np.asarray(world.logits(world.model(), start(), ids, edit))

    opened = {}
    for name, texts in {
        "forget": world.forget_texts().answers,
        "retain": world.RETAIN,
    }.items():
        lengths = texts.label_mask.argmax(axis=1)
        edit = placement.prompted(result.intervention, lengths)
        found, plain = (logits(texts.input_ids, x) for x in (edit, None))
        similarity = np.array(
            [
                [
                    mean @ c / np.linalg.norm(mean) / np.linalg.norm(c)
                    for c in np.float64(gate.centroids)
                ]
                for mean in (
                    np.float64(stream[:n]).mean(axis=0)
                    for stream, n in zip(
                        streams(texts.input_ids)[1], lengths, strict=True
                    )
                )
            ]
        )
        expected = similarity.max(axis=1) > gate.threshold
        changed = (found != plain).any(axis=(1, 2))
        np.testing.assert_array_equal(changed, expected)
        opened[name] = expected.mean()
        # Other answers: the same gate.
        other = np.where(texts.label_mask == 1, 7, texts.input_ids)
        again = logits(other, edit) != logits(other, None)
        np.testing.assert_array_equal(again.any(axis=(1, 2)), expected)
    assert opened["forget"] > opened["retain"]
    assert opened["retain"] < 1


def test_guard_it_says_when_no_gate_can_tell(tmp_path):
    with pytest.raises(InputError, match="no threshold tells the prompts"):
        run(tmp_path, "guard_it", retain=world.forget_texts().answers)


@pytest.mark.parametrize("family", world.MODELS)
def test_a_gate_fits_every_family(family):
    model = world.model(family)
    width = model.config.width
    gate = GatedRotation(np.ones((K, width)), np.ones((K, width)), 0.5)

    def logits(params, ids, lengths):
        edit = placement.prompted(placement.at_layers(gate, [1]), lengths)
        return model.apply(params, ids, intervention=edit)

    ids, lengths = np.zeros((B, T), np.int32), np.ones(B, np.int32)
    found = jax.eval_shape(logits, model.shapes(), ids, lengths)
    assert found.shape == (B, T, world.VOCABULARY)


@pytest.mark.parametrize("weighting", ["mean", "similarity"])
def test_a_gated_rotation_token_by_token(weighting):
    rng = np.random.default_rng(0)
    stream = rng.normal(size=(B, T, D)).astype(np.float32)
    vectors, centroids = rng.normal(size=(2, K, D)).astype(np.float32)
    lengths = np.array([2, 4, 0])
    # Both topics, one, and a prompt without tokens.
    first, second = stream[0, :2].mean(axis=0), stream[1, :4].mean(axis=0)
    stream[1, :4] -= (first @ second) / (first @ first) * first
    second = stream[1, :4].mean(axis=0)
    centroids[:] = first + 0.01 * centroids
    centroids[1] += 2 * second
    gate = GatedRotation(vectors, centroids, 0.2, 0.7, weighting=weighting)
    found = placement.prompted(gate, lengths)(jnp.asarray(stream), jnp.int32(1))
    expected, active = np.float64(stream), []
    for b in range(2):
        mean = np.float64(stream[b, : lengths[b]]).mean(axis=0)
        near = centroids @ mean
        near = near / np.linalg.norm(mean) / np.linalg.norm(centroids, axis=1)
        share = np.where(near > 0.2, near if weighting == "similarity" else 1.0, 0.0)
        active.append((share > 0).sum())
        vector = (share / share.sum()) @ vectors
        for t in range(T):
            moved = expected[b, t] - 0.7 * vector
            expected[b, t] = (
                moved * np.linalg.norm(expected[b, t]) / np.linalg.norm(moved)
            )
    assert active == [2, 1]
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(found[2], stream[2])
    with pytest.raises(ValueError, match="lengths of this batch are missing"):
        gate(jnp.asarray(stream), jnp.int32(1))


def test_layers_are_drawn_and_checked():
    config = world.model("recurrent_gemma").config  # three layers
    drawn = {
        dataclasses.replace(METHODS["mrp"], draw=n).fitted(config).layers
        for n in range(4)
    }
    assert drawn == {(1, 2)}
    one = {
        dataclasses.replace(METHODS["mrp"], draw=n, count=1).fitted(config).layers
        for n in range(8)
    }
    assert one == {(1,), (2,)}
    for name, wrong in {"mrp": {"layers": (4,)}, "guard_it": {"layer": 4}}.items():
        with pytest.raises(InputError, match=r"expected .*0 \(the embedding\) to 3"):
            dataclasses.replace(METHODS[name], **wrong).fitted(config)
    with pytest.raises(InputError, match="layers = "):
        dataclasses.replace(METHODS["mrp"], layers=(1, 1)).fitted(config)
