"""The study of false accusations on texts and scores without a model."""

import numpy as np
import pytest
from tiny_world import sentences

from experiments.calibration.__main__ import Scored, audit_once, row
from experiments.calibration.conditions import CONDITIONS, pools
from lt_mia_jax.audit.scoring import ScoredTexts

CONDITION = {each.name: each for each in CONDITIONS}


@pytest.fixture(scope="module")
def texts():
    """Sentences without the numbers that tell draws apart."""
    drawn = [text.rsplit(" ", 1)[0] for text in sentences(1, 3000)]
    code = [f"def f_{text.replace(' ', '_')}():" for text in drawn[2400:]]
    return pools(drawn[:200], drawn[200:2400], code, drawn[2400:])


def scored(texts, seed):
    """Scores that are noise, but for members, who score higher."""
    every = list(dict.fromkeys(text for pool in texts.values() for text in pool))
    members = set(texts["members"])
    rng = np.random.default_rng(seed)
    higher = np.array([1.5 * (text in members) for text in every])
    values = {name: rng.normal(size=len(every)) + higher for name in ("lt_mia", "loss")}
    found = ScoredTexts(
        name="texts",
        target="t",
        reference="r",
        corpus="c",
        ids=every,
        n_tokens=np.full(len(every), 30),
        scores=values,
        flags=[[]] * len(every),
        words=every,
    )
    return Scored(found, {text: n for n, text in enumerate(every)})


def test_thirteen_conditions_without_members():
    names = [each.name for each in CONDITIONS if not each.members]
    assert len(set(names)) == 13
    assert len(CONDITION) == 16


@pytest.mark.parametrize("name", ["length", "language", "domain", "layout"])
def test_other_kinds_of_texts_get_no_verdict(name, texts):
    found = audit_once(CONDITION[name], texts, scored(texts, 0), (0, 0))
    assert found["decision"] == "different"
    assert not found["member"]
    assert found["accused"] == 0


def test_near_copies_and_repeats_count_once(texts):
    for name in ("near copies", "repeats"):
        found = audit_once(CONDITION[name], texts, scored(texts, 0), (0, 1))
        assert found["decision"] in ("alike", "doubtful", "different"), name
        assert not found["member"]


def test_members_are_found(texts):
    found = audit_once(CONDITION["members"], texts, scored(texts, 0), (0, 0))
    assert found["member"]
    assert found["accused"] > 0


def test_a_row_counts_audits():
    condition = CONDITION["alike"]
    drawn = [
        {"decision": "alike", "auc": 0.4, "member": True, "accused": 3, "texts": 10},
        {
            "decision": "different",
            "auc": 0.6,
            "member": False,
            "accused": 0,
            "texts": 5,
        },
        {"decision": "refused"},
        {"decision": "doubtful", "auc": 0.5, "member": False, "accused": 0, "texts": 5},
    ]
    cells = [cell.strip() for cell in row(condition, drawn).split("|")[3:-1]]
    assert cells == ["4", "0.50", "50.0 %", "25.0 %", "25.0 %", "25.0 %", "15.00 %"]
