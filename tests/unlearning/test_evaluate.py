"""The report card: against hand calculation, and what must hold at its corners."""

import jax
import numpy as np
import pytest

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
