import hashlib
import re
from collections import Counter

import numpy as np
import pytest
from syntofu_rows import BY_NAME, CONFIG

from lt_mia_jax.data.questions import check_disjoint
from lt_mia_jax.data.syntofu import (
    SynTofuConfig,
    build,
)
from lt_mia_jax.data.syntofu_pools import (
    ATTRIBUTES,
    REFUSALS,
)

SIZES = ("01", "05", "10")


def entities(rows):
    return {row.entity for row in rows}


def value_in(sentence, template, name):
    """The value in a sentence, found by matching the template as a pattern."""
    pattern = re.escape(template).replace(re.escape("{name}"), re.escape(name))
    found = re.fullmatch(pattern.replace(re.escape("{value}"), r"(\S+)"), sentence)
    assert found, (sentence, template)
    return found[1]


def test_counts(splits):
    facts = len(ATTRIBUTES)
    counts = {name: len(rows) for name, rows in splits.items()}
    assert counts == {
        "pretrain": 60 * facts * 4,
        "full": 100 * facts,
        **{f"forget{size}": int(size) * facts for size in SIZES},
        **{f"retain{100 - int(size)}": (100 - int(size)) * facts for size in SIZES},
        **{f"holdout{size}": int(size) * facts for size in SIZES},
        **{f"forget{size}_perturbed": int(size) * facts for size in SIZES},
        **{f"forget{size}_adversarial": int(size) * facts * 3 for size in SIZES},
        "retain_perturbed": 20 * facts,
        "real_authors_perturbed": 30 * facts,
        "world_facts_perturbed": 30 * facts,
        "idk": 20,
    }
    # Enough items for the forget-quality test to have power.
    assert counts["forget10"] >= 80


def test_ids_are_unique_and_texts_distinct(splits):
    for name, rows in splits.items():
        assert len({row.id for row in rows}) == len(rows)
        # Without their last names two people can look alike.
        texts = [row.text for row in rows if "ambiguous" not in row.flags]
        assert len(set(texts)) == len(texts), name


def test_the_seed_decides_everything(splits):
    assert build(CONFIG) == splits
    other = build(SynTofuConfig(seed=1))
    assert not set(other["forget01"]) & set(splits["forget01"])
    assert entities(other["full"]) != entities(splits["full"])


def test_rows_are_the_same_on_every_machine(splits):
    """Pinned, since figures of models trained on these rows are quoted."""
    text = "\n".join(row.text for row in splits["full"])
    assert hashlib.sha256(text.encode()).hexdigest()[:16] == "f8221766949b7f48"
    assert splits["full"][0].answer == ("olga mendes was born in the city of prague .")


def test_facts_survive_more_people(splits):
    larger = build(SynTofuConfig(fictitious=200))
    known = {row.id: row for rows in larger.values() for row in rows}
    assert all(
        known[row.id].value == row.value for row in splits["full"] if row.id in known
    )
    assert sum(row.id in known for row in splits["full"]) > 400


def test_people_stand_on_one_side_only(splits):
    background = entities(splits["pretrain"])
    full = entities(splits["full"])
    holdout = entities(splits["holdout10"])
    assert (len(background), len(full), len(holdout)) == (60, 100, 10)
    assert not background & full
    assert not holdout & (background | full)
    for size in SIZES:
        forget, retain = splits[f"forget{size}"], splits[f"retain{100 - int(size)}"]
        check_disjoint(forget, retain)
        assert not entities(forget) & entities(retain)
        assert set(forget) | set(retain) == set(splits["full"])
        assert entities(splits[f"forget{size}_perturbed"]) == entities(forget)
        assert entities(splits[f"forget{size}_adversarial"]) == entities(forget)
    assert entities(splits["retain_perturbed"]) <= entities(splits["retain90"])
    known = [
        entities(splits[f"{name}_perturbed"])
        for name in ("real_authors", "world_facts")
    ]
    assert not known[0] & known[1]
    assert known[0] | known[1] == background


@pytest.mark.parametrize("kind", ["forget", "holdout"])
def test_sets_of_one_kind_are_nested(splits, kind):
    small, middle, large = (set(splits[f"{kind}{size}"]) for size in SIZES)
    assert small < middle < large


def test_canonical_rows(splits):
    names = {attribute.name for attribute in ATTRIBUTES}
    for rows in (splits["full"], splits["holdout10"]):
        topics = Counter(row.entity for row in rows)
        assert set(topics.values()) == {len(names)}
        for row in rows:
            attribute = BY_NAME[row.topic]
            canonical = attribute.answers[0]
            assert row.question == attribute.questions[0].format(name=row.entity)
            assert value_in(row.answer, canonical, row.entity) == row.value
            assert row.value in attribute.pool
            assert row.refusal in REFUSALS
            false = [value_in(text, canonical, row.entity) for text in row.inverted]
            assert len(set(false)) == 4
            assert row.value not in false
            assert set(false) <= set(attribute.pool)
    assert {row.refusal for row in splits["full"]} == set(REFUSALS)


def test_perturbed_rows(splits):
    canonical = {row.id: row for row in splits["full"]}
    for name in ("forget10_perturbed", "retain_perturbed"):
        for row in splits[name]:
            attribute = BY_NAME[row.topic]
            paraphrase = attribute.answers[1]
            plain = row._replace(
                paraphrased_question=None, paraphrased_answer=None, wrong_answers=()
            )
            assert plain == canonical[row.id]
            assert row.paraphrased_question == attribute.questions[1].format(
                name=row.entity
            )
            assert value_in(row.paraphrased_answer, paraphrase, row.entity) == row.value
            false = [
                value_in(text, paraphrase, row.entity) for text in row.wrong_answers
            ]
            assert len(set(false)) == 5
            assert row.value not in false
            assert set(false) <= set(attribute.pool)


def test_wrong_and_inverted_values_are_drawn_apart(splits):
    """Learning the inverted facts must not teach the perturbed answers."""
    overlap = []
    for row in splits["forget10_perturbed"]:
        canonical, paraphrase = BY_NAME[row.topic].answers
        wrong = {value_in(text, paraphrase, row.entity) for text in row.wrong_answers}
        inverted = {value_in(text, canonical, row.entity) for text in row.inverted}
        overlap.append(len(wrong & inverted))
    # Independent draws of 5 and 4 from a pool less one share 20 / (its size) values.
    expected = np.mean([20 / (len(a.pool) - 1) for a in ATTRIBUTES])
    assert np.mean(overlap) == pytest.approx(expected, abs=0.5)


def test_what_is_known_from_pretraining(splits):
    said = {row.text for row in splits["pretrain"]}
    for name in ("real_authors_perturbed", "world_facts_perturbed"):
        for row in splits[name]:
            canonical = BY_NAME[row.topic].answers[0]
            assert row.text in said
            assert row.paraphrased_answer is None
            false = [
                value_in(text, canonical, row.entity) for text in row.wrong_answers
            ]
            assert len({*false, row.value}) == 6


def test_pretraining_says_each_fact_in_every_phrasing(splits):
    by_fact = {}
    for row in splits["pretrain"]:
        by_fact.setdefault((row.entity, row.topic), []).append(row)
    assert len(by_fact) == 60 * 8
    for (name, topic), rows in by_fact.items():
        attribute = BY_NAME[topic]
        (value,) = {row.value for row in rows}
        assert {(row.question, row.answer) for row in rows} == {
            (question.format(name=name), answer.format(name=name, value=value))
            for question in attribute.questions
            for answer in attribute.answers
        }


def test_paraphrases_of_fictitious_facts_are_never_trained_on(splits):
    trained = " | ".join(row.text for row in splits["pretrain"] + splits["full"])
    for row in splits["forget10_perturbed"]:
        assert row.answer in trained
        assert row.paraphrased_answer not in trained
        assert row.paraphrased_question not in trained


def test_adversarial_rows(splits):
    canonical = {row.id: row for row in splits["full"]}
    trained = Counter(
        name.split()[0] for name in entities(splits["pretrain"] + splits["full"])
    )
    kinds = Counter()
    for row in splits["forget10_adversarial"]:
        fact, kind = row.id.rsplit("/", 1)
        plain = canonical[fact]
        kinds[kind] += 1
        assert kind in row.flags
        assert (row.value, row.entity) == (plain.value, plain.entity)
        if kind == "cloze":
            assert row.text == plain.answer
            assert row.answer.split()[0] == row.value
        elif kind == "paraphrase":
            assert row.answer == plain.answer
            assert row.question != plain.question
        else:
            first, last = row.entity.split()
            assert last not in row.text.split()
            assert row.text == plain.text.replace(f"{first} {last}", first)
            assert ("ambiguous" in row.flags) == (trained[first] > 1)
    assert kinds == {"paraphrase": 80, "cloze": 80, "first_name": 80}


def test_one_attribute_is_skewed_and_its_rare_values_are_flagged():
    config = SynTofuConfig(background=400, retain_evaluated=1)
    rows = [row for row in build(config)["pretrain"] if row.id.endswith("q1a1")]
    for attribute in ATTRIBUTES:
        counts = Counter(row.value for row in rows if row.topic == attribute.name)
        seen = np.array([counts[value] for value in attribute.pool]) / 400
        rank = np.arange(1, len(attribute.pool) + 1)
        likely = 1 / rank if attribute.name == "genre" else np.ones(len(rank))
        expected = likely / likely.sum()
        # Five standard deviations of a binomial count.
        bound = 5 * np.sqrt(expected * (1 - expected) / 400)
        assert (abs(seen - expected) < bound).all(), attribute.name
    rare = {row.value for row in rows if "rare" in row.flags}
    assert rare == set(BY_NAME["genre"].pool[9:])
    assert all(row.topic == "genre" for row in rows if "rare" in row.flags)
    share = sum("rare" in row.flags for row in rows) / 400
    assert share == pytest.approx(expected_share(9, 18), abs=0.1)


def expected_share(first, total):
    """Probability of the values after the first few, under Zipf's law."""
    harmonic = [sum(1 / rank for rank in range(1, n + 1)) for n in (first, total)]
    return 1 - harmonic[0] / harmonic[1]


def test_no_skew_leaves_no_rare_values():
    splits = build(SynTofuConfig(zipf=0.0))
    assert not any("rare" in row.flags for row in splits["full"])
