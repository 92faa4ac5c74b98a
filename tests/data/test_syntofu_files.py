"""SynTOFU's language, its tokenizer, settings and files."""

import json

import numpy as np
import pytest

from lt_mia_jax.checkpoints.tokenizer import load_tokenizer
from lt_mia_jax.configs import from_dict
from lt_mia_jax.data.answers import encode_answers
from lt_mia_jax.data.questions import read_questions
from lt_mia_jax.data.syntofu import (
    MAX_LENGTH,
    SPECIAL_TOKENS,
    TEMPLATE,
    SynTofuConfig,
    build,
    make_tokenizer,
    write,
)
from lt_mia_jax.data.syntofu_pools import (
    ATTRIBUTES,
    FIRST_NAMES,
    LAST_NAMES,
    REFUSALS,
    words,
)
from lt_mia_jax.errors import InputError
from lt_mia_jax.files import verify_manifest

SMALL = SynTofuConfig(
    background=4, fictitious=20, forget_percent=(5, 20), retain_evaluated=3
)


@pytest.fixture(scope="module")
def tokenizer():
    return make_tokenizer()


def test_the_language_has_no_word_in_two_parts():
    pools = [attribute.pool for attribute in ATTRIBUTES]
    sentences = [s for a in ATTRIBUTES for s in (*a.questions, *a.answers)] + [
        *REFUSALS
    ]
    grammar = {w for s in sentences for w in s.split() if w[0] != "{"}
    parts = [*pools, FIRST_NAMES, LAST_NAMES, tuple(grammar)]
    assert all(len(set(part)) == len(part) for part in parts)
    assert len(set().union(*parts)) == sum(map(len, parts)) == len(words())
    assert len(ATTRIBUTES) == 8
    assert all(14 <= len(pool) <= 30 for pool in pools)
    assert len(FIRST_NAMES) == len(LAST_NAMES) == 40
    assert len(set(REFUSALS)) == 20


def test_templates():
    before = 0
    for attribute in ATTRIBUTES:
        for sentence in (*attribute.questions, *attribute.answers):
            assert sentence.split().count("{name}") == 1
        for sentence in attribute.answers:
            assert sentence.split().count("{value}") == 1
        canonical, paraphrase = (answer.split() for answer in attribute.answers)
        assert canonical.index("{name}") < canonical.index("{value}")
        before += paraphrase.index("{value}") < paraphrase.index("{name}")
    assert 0 < before < len(ATTRIBUTES)


def test_tokenizer_knows_every_word(splits, tokenizer):
    texts = {text for rows in splits.values() for row in rows for text in said_in(row)}
    vocabulary = tokenizer.get_vocab()
    assert {word for text in texts for word in text.split()} <= set(vocabulary)
    assert len(vocabulary) == len(words()) + len(SPECIAL_TOKENS) == 324
    assert [vocabulary[token] for token in SPECIAL_TOKENS] == [0, 1, 2, 3]
    for text in sorted(texts)[::50]:
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert ids == [vocabulary[word] for word in text.split()]
        assert tokenizer.decode(ids) == text


def said_in(row):
    """Every text that a row holds."""
    one = (row.question, row.answer, row.paraphrased_question, row.paraphrased_answer)
    several = (*row.wrong_answers, *row.inverted, row.refusal)
    return [text for text in (*one, *several) if text is not None]


def test_every_row_fits_and_is_marked(splits, tokenizer):
    longest = 0
    for name, rows in splits.items():
        encoded = encode_answers(
            rows, tokenizer, max_length=MAX_LENGTH, template=TEMPLATE
        )
        assert not encoded.truncated.any()
        lengths = encoded.attention_mask.sum(1)
        longest = max(longest, int(lengths.max()))
        assert (encoded.input_ids[:, 0] == tokenizer.bos_token_id).all()
        for row, ids, labels, value in zip(
            rows, encoded.input_ids, encoded.label_mask, encoded.value_mask, strict=True
        ):
            said = [*row.answer.split(), "<eos>"]
            assert tokenizer.convert_ids_to_tokens(ids[labels == 1]) == said, name
            marked = [] if row.value is None else [row.value]
            assert tokenizer.convert_ids_to_tokens(ids[value == 1]) == marked, name
    assert longest <= MAX_LENGTH


def test_every_other_answer_fits(splits, tokenizer):
    for row in splits["forget10_perturbed"] + splits["world_facts_perturbed"]:
        others = [
            row.paraphrased_answer,
            *row.wrong_answers,
            *row.inverted,
            row.refusal,
        ]
        rows = [
            row._replace(question=question, answer=answer, value=None)
            for question in (row.question, row.paraphrased_question)
            for answer in others
            if question and answer
        ]
        encoded = encode_answers(
            rows, tokenizer, max_length=MAX_LENGTH, template=TEMPLATE
        )
        assert not encoded.truncated.any()


def test_written_files_read_back_and_are_vouched_for(tmp_path, tokenizer):
    paths = write(tmp_path / "data", SMALL)
    splits = build(SMALL)
    assert set(paths) == {*splits, "tokenizer", "manifest"}
    for name, rows in splits.items():
        read = read_questions(paths[name])
        assert tuple(row._replace(line=0) for row in read) == rows
    manifest = verify_manifest(tmp_path / "data")
    assert manifest["rows"]["forget20"] == 32
    assert from_dict(SynTofuConfig, manifest["config"]) == SMALL
    loaded = load_tokenizer(paths["tokenizer"])
    assert loaded.get_vocab() == tokenizer.get_vocab()
    special = (loaded.pad_token_id, loaded.bos_token_id, loaded.eos_token_id)
    assert special == (0, 1, 2)
    ours, theirs = (
        encode_answers(splits["full"], one, max_length=MAX_LENGTH, template=TEMPLATE)
        for one in (tokenizer, loaded)
    )
    assert all(np.array_equal(a, b) for a, b in zip(ours, theirs, strict=True))


def test_writing_twice_gives_the_same_bytes(tmp_path):
    one, two = (write(tmp_path / name, SMALL)["manifest"] for name in "ab")
    assert json.loads(one.read_text()) == json.loads(two.read_text())


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"background": 1}, "background = 1 (expected at least 2)"),
        ({"fictitious": 0}, "fictitious = 0"),
        ({"forget_percent": ()}, "forget_percent = ()"),
        ({"forget_percent": (5, 1)}, "ascending"),
        ({"forget_percent": (1, 1)}, "ascending"),
        ({"forget_percent": (100,)}, "forget_percent = (100,)"),
        ({"fictitious": 40}, "whole numbers of 40 authors"),
        ({"wrong_answers": 14}, "wrong_answers = 14 (expected 1 to 13)"),
        ({"inverted": 0}, "inverted = 0"),
        ({"skewed": "color"}, "expected one of city, genre"),
        ({"zipf": -1.0}, "zipf = -1.0"),
        ({"zipf": float("nan")}, "zipf = nan"),
        ({"retain_evaluated": 91}, "expected 1 to 90"),
        ({"background": 1_500}, "1610 people (expected at most 1600"),
    ],
)
def test_bad_settings_name_what_is_wrong(settings, words):
    with pytest.raises(InputError) as caught:
        SynTofuConfig(**settings)
    assert str(caught.value).startswith("syntofu: ")
    assert words in str(caught.value)


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot write"):
        write(tmp_path / "file" / "data", SMALL)
