"""The report card: against hand calculation, and what must hold at its corners."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from quick_compile import jit
from scipy.special import softmax

from lt_mia_jax.attacks.learned.attack import Attack
from lt_mia_jax.attacks.learned.classifier import init
from lt_mia_jax.attacks.learned.classifier_config import ClassifierConfig
from lt_mia_jax.data.answers import encode_answers
from lt_mia_jax.data.syntofu import (
    MAX_LENGTH,
    TEMPLATE,
)
from lt_mia_jax.errors import InputError
from lt_mia_jax.models.placement import at_layers, compose
from lt_mia_jax.unlearning.interventions.edits import Rotation, Steering
from lt_mia_jax.unlearning.interventions.gates import GatedRotation
from lt_mia_jax.verification.card import report_card as make_card
from lt_mia_jax.verification.evaluate import (
    examine,
    measure_memo,
    membership,
    retrain_distances,
)
from lt_mia_jax.verification.items import Measured
from lt_mia_jax.verification.storage import card_to_json

apply = jit(lambda model, params, ids: model.apply(params, ids), static_argnums=0)


def answer_loss(subject, rows):
    """Mean over the answer's tokens, one text at a time, in float64."""
    encoded = encode_answers(
        rows, subject.tokenizer, max_length=MAX_LENGTH, template=TEMPLATE
    )
    found = []
    for ids, labels in zip(encoded.input_ids, encoded.label_mask, strict=True):
        logits = apply(subject.model, subject.params, ids[None])
        logits = np.asarray(logits, np.float64)[0]
        log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        places = np.flatnonzero(labels)
        found.append(-log_p[places - 1, ids[places]].mean())
    return np.array(found)


def test_items_against_single_texts(subjects, splits):
    rows = splits["forget25_perturbed"]
    items = examine(subjects[0], rows)
    right = [row._replace(answer=row.paraphrased_answer, value=None) for row in rows]
    wrong = [
        [row._replace(answer=row.wrong_answers[k], value=None) for row in rows]
        for k in range(5)
    ]
    losses = np.stack([answer_loss(subjects[0], w) for w in wrong], axis=1)
    truth = answer_loss(subjects[0], right)
    np.testing.assert_allclose(
        items.truth_ratio, np.exp(truth - losses.mean(axis=1)), rtol=1e-4
    )
    plain = np.exp(-answer_loss(subjects[0], rows))
    np.testing.assert_allclose(items.probability, plain, rtol=1e-4)
    share = plain / (plain + np.exp(-losses).sum(axis=1))
    np.testing.assert_allclose(items.normalized_probability, share, rtol=1e-4)
    assert len(items.generated) == len(rows)
    assert not np.isnan(items.slot_accuracy).any()


def test_attacks_score_answers_alone(subjects, splits):
    rows = splits["holdout25"]
    found = membership(subjects[0], subjects[1], rows)
    mine, theirs = (answer_loss(subject, rows) for subject in subjects)
    np.testing.assert_allclose(found["loss"], -mine, rtol=1e-4)
    np.testing.assert_allclose(found["ratio"], -mine / theirs, rtol=1e-4)


PEER = {
    (MAX_LENGTH, "loss"): (
        *(6.719394, 6.456328, 5.714935, 6.615104),
        *(6.206806, 6.213953, 6.858957, 6.595475),
    ),
    (MAX_LENGTH, "zlib"): (
        *(0.129219, 0.12416, 0.119061, 0.120275),
        *(0.103447, 0.129457, 0.131903, 0.126836),
    ),
    (MAX_LENGTH, "min_k"): (
        *(7.745372, 7.872523, 6.872504, 7.977372),
        *(7.531436, 7.896975, 8.10631, 8.291921),
    ),
    (MAX_LENGTH, "min_k_plus_plus"): (
        *(3.138527, 3.299322, 2.11947, 3.421477),
        *(2.898923, 3.327968, 3.628716, 3.855588),
    ),
    (16, "min_k"): (
        *(7.916381, 7.89672, 6.872504, 6.990249),
        *(6.03062, 7.909055, 8.10631, 8.291921),
    ),
    (16, "min_k_plus_plus"): (
        *(3.34543, 3.321595, 2.11947, 2.155245),
        *(0.909407, 3.336422, 3.628716, 3.855588),
    ),
}
"""Scores of open-unlearning (locuslab/open-unlearning, commit d3d7cf9; there higher
means less likely a member), by `--length` and attack: its classes in
`evals.metrics.mia`, run on the logits of `fixed` for six questions and two plain texts.
At 16 tokens the six are cut, and there its loss also counts an end token that it puts
where the text was cut."""
CUT_BYTES = (41, 46, 48, 27, 22, 41, 52, 52)
"""What its zlib attack divides by at 16 tokens."""


def fixed(subject):
    """The subject with weights that no random generator decides."""
    flat, tree = jax.tree.flatten(subject.params)
    waves = [
        0.6 * np.sin(np.arange(x.size, dtype=np.float64) * (1.7 + i) + i)
        for i, x in enumerate(flat)
    ]
    leaves = [
        w.reshape(x.shape).astype(np.float32) for w, x in zip(waves, flat, strict=True)
    ]
    return subject._replace(params=jax.tree.unflatten(tree, leaves))


def peer_rows(splits):
    rows = splits["holdout25"][:6]
    plain = [row._replace(question=None, value=None) for row in rows[:2]]
    return [*rows, *plain]


@pytest.mark.parametrize(("length", "attack"), PEER)
def test_scores_are_those_of_open_unlearning(subjects, splits, length, attack):
    subject = fixed(subjects[0])._replace(length=length)
    found = membership(subject, None, peer_rows(splits))
    np.testing.assert_allclose(
        found[attack], -np.array(PEER[length, attack]), rtol=1e-4
    )


def test_the_end_token_counts_where_it_is_asked_for(subjects, splits):
    subject, rows = fixed(subjects[0]), peer_rows(splits)
    plain, ended = (
        membership(subject, subjects[1], rows, end_token=end) for end in (False, True)
    )
    for name in ("loss", "zlib", "ratio"):
        np.testing.assert_array_equal(plain[name], ended[name])
    encoded = subject.encode(rows)
    logits = np.asarray(apply(subject.model, subject.params, encoded.input_ids))
    log_p = np.log(softmax(logits.astype(np.float64), axis=-1))
    for n, (ids, labels) in enumerate(
        zip(encoded.input_ids, encoded.label_mask, strict=True)
    ):
        places = np.flatnonzero(labels)
        values = np.sort(log_p[n, places - 1, ids[places]])
        lowest = values[: int(0.4 * len(values))].mean()
        assert ended["min_k"][n] == pytest.approx(lowest, rel=1e-4)


def test_no_score_sees_what_was_cut_off(subjects, splits):
    subject = fixed(subjects[0])._replace(length=16)
    rows = peer_rows(splits)
    tails = [f"{row.answer} pilot by trade ." for row in rows]
    longer = [
        row._replace(answer=tail, value=None)
        for row, tail in zip(rows, tails, strict=True)
    ]
    cut = subject.encode(rows).truncated
    assert cut.tolist() == [True] * 6 + [False] * 2
    one, other = (membership(subject, subjects[1], each) for each in (rows, longer))
    for name, values in one.items():
        np.testing.assert_array_equal(values[cut], other[name][cut], err_msg=name)
    np.testing.assert_allclose(one["loss"] / one["zlib"], CUT_BYTES)
    asked, more = ([each[i] for i in range(6)] for each in (rows, longer))
    np.testing.assert_array_equal(
        examine(subject, asked).rouge, examine(subject, more).rouge
    )
    np.testing.assert_array_equal(
        *(measure_memo(subject, x[:2], max_new_tokens=4) for x in (asked, more))
    )


def test_an_intervention_is_part_of_the_model(subjects, splits):
    rows = splits["holdout25"]
    plain = membership(subjects[0], subjects[1], rows)
    still = Steering(np.arange(16, dtype=np.float32), 0.0)
    moved = Steering(np.arange(16, dtype=np.float32), 3.0)
    same = membership(subjects[0]._replace(intervention=still), subjects[1], rows)
    other = membership(subjects[0]._replace(intervention=moved), subjects[1], rows)
    for name, values in plain.items():
        np.testing.assert_allclose(same[name], values, rtol=1e-4)
        assert np.abs(other[name] - values).max() > 1e-3


def test_the_learned_attack_is_one_more_score(subjects, splits):
    config = ClassifierConfig(
        inputs=7 * 2 + 14, length=MAX_LENGTH, architecture="mlp", hidden=(4,)
    )
    attack = Attack(config, init(config, jax.random.key(3)), {})
    rows = splits["holdout25"]
    found = membership(subjects[0], subjects[1], rows, attack=attack)
    # Scores belong to texts, whatever their order.
    turned = membership(subjects[0], subjects[1], rows[::-1], attack=attack)
    np.testing.assert_allclose(found["lt_mia"], turned["lt_mia"][::-1], rtol=1e-4)
    assert len(np.unique(found["lt_mia"])) > 1
    with pytest.raises(InputError, match="compares with a reference"):
        membership(subjects[0], None, rows, attack=attack)


def test_memo_and_plain_texts(subjects, splits):
    rows = splits["forget25"][:2]
    found = measure_memo(subjects[0], rows, step=20, max_new_tokens=4)
    assert found.shape == (2,)
    assert ((found >= 0) & (found <= 1)).all()
    plain = [row._replace(question=None, value=None) for row in rows]
    items = examine(subjects[0], plain)
    assert np.isnan(items.truth_ratio).all()
    assert not np.isnan(items.rouge).any()
    unread = [row._replace(answer="? !", value=None) for row in rows]
    assert np.isnan(examine(subjects[0], unread).rouge).all()


def report_card(*measured):
    """The card as it stands in files."""
    return card_to_json(make_card(*measured))


def measured(subject, reference, splits):
    sets = {"forget": splits["forget25_perturbed"]} | {
        name: splits[f"{name}_perturbed"]
        for name in ("retain", "real_authors", "world_facts")
    }
    return Measured(
        {name: examine(subject, rows) for name, rows in sets.items()},
        membership(subject, reference, splits["forget25"]),
        membership(subject, reference, splits["holdout25"]),
    )


def test_a_retrained_model_beside_itself(subjects, splits):
    one = measured(subjects[0], subjects[1], splits)
    other = measured(subjects[1], subjects[1], splits)
    card = report_card(one, one)
    assert card["forget_quality"]["value"] == 1
    assert card["priv_leak"]["value"] == 0
    assert all(card[f"leak_{name}"]["value"] == 0 for name in one.forget_scores)
    for name, found in card.items():
        if isinstance(found, dict) and "low" in found:
            assert found["low"] <= found["value"] <= found["high"], name
    assert set(one.forget_scores) == {
        *("loss", "zlib", "min_k", "min_k_plus_plus", "ratio")
    }
    assert report_card(other, one)["forget_quality"]["value"] < 1


def test_known_texts_leak(subjects, splits):
    # Scores that rank every forgotten text above all others: nothing was forgotten.
    one = measured(subjects[0], subjects[1], splits)
    name = "min_k"
    high = {**one.forget_scores, name: np.full(len(one.forget_scores[name]), 100.0)}
    low = {**one.forget_scores, name: np.full(len(one.forget_scores[name]), -100.0)}
    assert report_card(one._replace(forget_scores=high), one)["priv_leak"]["value"] == (
        pytest.approx(-100)
    )
    assert report_card(one._replace(forget_scores=low), one)["priv_leak"]["value"] > 0


def test_distances_to_the_retrained_model(subjects, splits):
    """Each text alone, its distributions in float64."""
    rows = splits["forget25"][:5]
    one, other = subjects
    found = retrain_distances(one, other, rows)
    encoded = encode_answers(
        rows, one.tokenizer, max_length=MAX_LENGTH, template=TEMPLATE
    )
    expected = []
    for ids, labels in zip(encoded.input_ids, encoded.label_mask, strict=True):
        p, q = (
            softmax(
                np.asarray(apply(m.model, m.params, ids[None]), np.float64)[0], axis=-1
            )
            for m in subjects
        )
        places = np.flatnonzero(labels) - 1
        expected.append(((p - q)[places] ** 2).sum(axis=1).mean())
    np.testing.assert_allclose(found, expected, rtol=1e-4)
    assert found.min() > 0
    assert not retrain_distances(one, one, rows).any()
    moved = one._replace(intervention=Steering(np.ones(16, np.float32), 3.0))
    assert (retrain_distances(moved, one, rows) > 0).all()
    np.testing.assert_allclose(
        retrain_distances(moved, one, rows), retrain_distances(one, moved, rows)
    )


def test_no_questions(subjects):
    with pytest.raises(InputError, match="empty"):
        examine(subjects[0], [])


def test_an_intervention_that_does_nothing(subjects, splits):
    rows = splits["forget25"]
    plain = membership(subjects[0], subjects[1], rows)
    edited = subjects[0]._replace(intervention=compose())
    for name, scores in membership(edited, subjects[1], rows).items():
        np.testing.assert_allclose(scores, plain[name], rtol=1e-4, err_msg=name)


def test_the_gate_is_told_where_prompts_end(subjects, splits):
    """Each text alone, its gate worked out by hand from its prompt."""
    rows = splits["forget25_perturbed"][:4]
    subject, rng = subjects[0], np.random.default_rng(0)
    width = subject.model.config.width
    encoded = encode_answers(
        rows, subject.tokenizer, max_length=MAX_LENGTH, template=TEMPLATE
    )

    @jit
    def run(ids, edit):
        return subject.model.apply(subject.params, ids, intervention=edit, capture=(0,))

    lengths = encoded.label_mask.argmax(axis=1)
    streams = np.asarray(run(encoded.input_ids, None)[1][0], np.float64)
    prompts = np.array(
        [x[:n].mean(axis=0) for x, n in zip(streams, lengths, strict=True)]
    )
    vectors = 0.05 * rng.normal(size=(1, width)).astype(np.float32)
    # The first prompt is the topic; the threshold lies between those of all four.
    center = prompts[:1].astype(np.float32)
    near = prompts @ center[0] / np.linalg.norm(prompts, axis=1)
    near /= np.linalg.norm(center)
    threshold = float(np.sort(near)[:2].mean())
    gate = at_layers(GatedRotation(vectors, center, threshold), [0])
    found = membership(subject._replace(intervention=gate), None, rows)["loss"]
    items = examine(subject._replace(intervention=gate), rows)
    assert (near > threshold).sum() == 3
    for n, row in enumerate(encoded.input_ids):
        weights = jnp.full((1, 1), float(near[n] > threshold))
        logits, _ = run(row[None], at_layers(Rotation(vectors, weights), [0]))
        logits = np.asarray(logits, np.float64)[0, :-1]
        log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        nll = -log_p[np.arange(len(log_p)), row[1:]]
        answer = encoded.label_mask[n, 1:] == 1
        assert found[n] == pytest.approx(-nll[answer].mean(), rel=1e-4)
        expected = np.exp(-nll[answer].mean())
        assert items.probability[n] == pytest.approx(expected, rel=1e-4)
