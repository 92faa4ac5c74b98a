"""The report card: against hand calculation, and what must hold at its corners."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import quick_compile

from lt_mia_jax.data.answers import encode_answers
from lt_mia_jax.data.syntofu import (
    MAX_LENGTH,
    TEMPLATE,
    SynTofuConfig,
    build,
    make_tokenizer,
)
from lt_mia_jax.errors import InputError
from lt_mia_jax.models import LanguageModel, gpt2_like
from lt_mia_jax.unlearning.evaluate import (
    Measured,
    Subject,
    examine,
    membership,
    report_card,
)
from lt_mia_jax.unlearning.gated import GatedRotation
from lt_mia_jax.unlearning.interventions import Rotation, at_layers, compose

DATA = SynTofuConfig(
    background=2, fictitious=4, forget_percent=(25,), retain_evaluated=2
)


@pytest.fixture(scope="module")
def splits():
    return build(DATA)


@pytest.fixture(scope="module")
def subjects():
    tokenizer = make_tokenizer()
    model = LanguageModel(gpt2_like(len(tokenizer), 16, 1, 2, 32))
    return [
        Subject(model, model.init(jax.random.key(i)), tokenizer, TEMPLATE, MAX_LENGTH)
        for i in range(2)
    ]


def answer_loss(subject, rows):
    """Mean over the answer's tokens, one text at a time, in float64."""
    encoded = encode_answers(
        rows, subject.tokenizer, max_length=MAX_LENGTH, template=TEMPLATE
    )
    found = []
    for ids, labels in zip(encoded.input_ids, encoded.label_mask, strict=True):
        logits = subject.model.apply(subject.params, ids[None])
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
    np.testing.assert_allclose(items.normalised_probability, share, rtol=1e-4)
    assert len(items.generated) == len(rows)
    assert not np.isnan(items.slot_accuracy).any()


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

    @quick_compile.jit
    def run(ids, edit):
        return subject.model.apply(subject.params, ids, intervention=edit, capture=(0,))

    lengths = encoded.label_mask.argmax(axis=1)
    streams = np.asarray(run(encoded.input_ids, None)[1][0], np.float64)
    prompts = np.array(
        [x[:n].mean(axis=0) for x, n in zip(streams, lengths, strict=True)]
    )
    vectors = 0.05 * rng.normal(size=(1, width)).astype(np.float32)
    # The first prompt is the topic; the threshold lies between those of all four.
    centre = prompts[:1].astype(np.float32)
    near = prompts @ centre[0] / np.linalg.norm(prompts, axis=1)
    near /= np.linalg.norm(centre)
    threshold = float(np.sort(near)[:2].mean())
    gate = at_layers(GatedRotation(vectors, centre, threshold), [0])
    found = membership(subject._replace(intervention=gate), None, rows)["loss"]
    items = examine(subject._replace(intervention=gate), rows)
    assert (near > threshold).sum() == 3
    for n, row in enumerate(encoded.input_ids):
        weights = jnp.full((1, 1), float(near[n] > threshold))
        logits, _ = run(row[None], at_layers(Rotation(vectors, weights), [0]))
        logits = np.asarray(logits, np.float64)[0, :-1]
        log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        nll = -log_p[np.arange(len(log_p)), row[1:]]
        real = encoded.attention_mask[n, 1:] == 1
        assert found[n] == pytest.approx(-nll[real].mean(), rel=1e-4)
        answer = encoded.label_mask[n, 1:] == 1
        expected = np.exp(-nll[answer].mean())
        assert items.probability[n] == pytest.approx(expected, rel=1e-4)
