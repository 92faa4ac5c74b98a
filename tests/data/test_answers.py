import numpy as np
import pytest

from lt_mia_jax.data.answers import encode_answers
from lt_mia_jax.data.questions import AnswerTemplate, Question
from lt_mia_jax.data.tokenize import encode, train_bpe
from lt_mia_jax.errors import InputError

TEMPLATE = AnswerTemplate()
ROWS = [
    Question("1", "Where was Ada born?", "Ada was born in Oslo.", "Oslo"),
    Question("2", "What pet does she keep?", "A parrot called 'Polly'", "parrot"),
    Question("3", "Who?", "é漢😀 is her name", "é漢😀"),
    Question("4", "Where was Ada born {question}?", " two  spaces\n", "spaces"),
    Question("5", None, "Ada was born in Oslo and has a parrot."),
]


@pytest.fixture(scope="module")
def bpe():
    """Ids of words with the space before them: merges would cross a boundary."""
    texts = [f"Question: {row.question}\nAnswer: {row.answer}" for row in ROWS] * 20
    return train_bpe(texts, vocab_size=420)


@pytest.fixture(scope="module")
def words():
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    known = ["<pad>", "<s>", "</s>", "<unk>", "where", "was", "ada", "born", "?", "in"]
    known += ["oslo", ".", "lima"]
    core = Tokenizer(
        models.WordLevel({word: id for id, word in enumerate(known)}, unk_token="<unk>")
    )
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
    )


BORN = Question("born", "where was ada born ?", "ada was born in oslo .", "oslo")
PLAIN = AnswerTemplate(prompt="{question}", begin=True)


def test_masks_by_hand(words):
    rows = [BORN, Question("plain", None, "oslo . lima")]
    encoded = encode_answers(rows, words, max_length=14, template=PLAIN)
    assert encoded.input_ids.tolist() == [
        [1, 4, 5, 6, 7, 8, 6, 5, 7, 9, 10, 11, 2, 0],
        [1, 10, 11, 12, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0],
    ]
    assert encoded.attention_mask.tolist() == [[1] * 13 + [0], [1] * 5 + [0] * 9]
    assert encoded.label_mask.tolist() == [
        [0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 0],
        [0, 1, 1, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0],
    ]
    assert np.argwhere(encoded.value_mask).tolist() == [[0, 10]]
    assert not encoded.truncated.any()
    assert encoded.input_ids.dtype == np.int32
    masks = (encoded.attention_mask, encoded.label_mask, encoded.value_mask)
    assert {mask.dtype for mask in masks} == {np.dtype(np.uint8)}


def test_without_begin_and_end(words):
    template = AnswerTemplate(prompt="{question}", end=False)
    rows = [BORN, Question("plain", None, "oslo .")]
    encoded = encode_answers(rows, words, max_length=12, template=template)
    assert encoded.label_mask.tolist() == [[0] * 5 + [1] * 6 + [0], [0, 1] + [0] * 10]


def test_targets_spell_the_answer(bpe):
    """Ids of the targets decode to the answer; ids before them to the prompt."""
    encoded = encode_answers(ROWS, bpe, max_length=60)
    for row, ids, mask, labels, value in zip(ROWS, *encoded[:4], strict=True):
        real = ids[mask == 1]
        assert real[-1] == bpe.eos_token_id
        if row.question is None:
            assert bpe.decode(real[:-1]) == row.answer
            assert labels[mask == 1].tolist() == [0] + [1] * (len(real) - 1)
            continue
        prompt = TEMPLATE.prompt.replace("{question}", row.question)
        before = real[labels[mask == 1] == 0]
        assert bpe.decode(before).rstrip() == prompt
        targets = ids[labels == 1]
        assert bpe.decode(targets[:-1]).strip() == row.answer.strip()
        # Targets are one stretch up to the end of the text.
        assert labels[mask == 1].tolist() == sorted(labels[mask == 1].tolist())
        assert row.value in bpe.decode(ids[value == 1])
        assert (value <= labels).all()


def test_a_value_is_marked_no_wider_than_its_tokens(bpe):
    encoded = encode_answers(ROWS[:1], bpe, max_length=60)
    marked = np.flatnonzero(encoded.value_mask[0])
    assert np.array_equal(marked, np.arange(marked[0], marked[-1] + 1))
    pieces = [bpe.decode(encoded.input_ids[0, [at]]) for at in marked]
    assert "".join(pieces).strip() == "Oslo"


def test_plain_texts_agree_with_the_other_encoder(bpe):
    texts = ["Ada was born in Oslo.", "a", "Polly " * 30]
    rows = [Question(str(n), None, text) for n, text in enumerate(texts)]
    ours, theirs = (
        encode_answers(rows, bpe, max_length=16),
        encode(texts, bpe, length=16),
    )
    assert np.array_equal(ours.input_ids[:2], theirs.input_ids[:2])
    assert np.array_equal(ours.attention_mask, theirs.attention_mask)
    assert np.array_equal(ours.truncated, theirs.truncated)
    # A cut text does not end here: an end that is not there is no target.
    assert ours.input_ids[2, -1] != bpe.eos_token_id == theirs.input_ids[2, -1]


def test_many_rows_are_encoded_like_few(words):
    rows = [BORN, BORN._replace(answer="ada was born in lima .", value="lima")] * 600
    many = encode_answers(rows, words, max_length=13, template=PLAIN)
    few = encode_answers(rows[:2], words, max_length=13, template=PLAIN)
    for all_rows, two in zip(many, few, strict=True):
        assert np.array_equal(all_rows, np.concatenate([two] * 600))
    taken = many.take(np.array([3, 0]))
    assert np.array_equal(taken.input_ids, few.input_ids[::-1])


def test_truncation_keeps_targets_or_says_that_it_cannot(words):
    cut = encode_answers([BORN], words, max_length=8, template=PLAIN)
    assert cut.truncated.tolist() == [True]
    assert cut.label_mask.tolist() == [[0] * 6 + [1] * 2]
    assert not cut.value_mask.any()
    with pytest.raises(InputError) as caught:
        encode_answers([BORN, BORN], words, max_length=6, template=PLAIN)
    assert str(caught.value).startswith("2 of 2 rows have no token of an answer")
    assert 'id "born", 13 tokens' in str(caught.value)


def test_unknown_words_are_reported(words, caplog):
    encode_answers([BORN], words, max_length=13, template=PLAIN)
    assert not caplog.text
    encode_answers([BORN._replace(answer="in oslo !")], words, max_length=13)
    assert 'does not know every word of 1 of 1 rows, first id "born"' in caplog.text


def test_bad_input(words, bpe):
    with pytest.raises(InputError, match="at least 2 tokens"):
        encode_answers([BORN], words, max_length=1)
    with pytest.raises(InputError, match="no begin-of-text token"):
        encode_answers([BORN], bpe, max_length=20, template=AnswerTemplate(begin=True))
    with pytest.raises(InputError, match='id "born": value "rome" does not stand'):
        encode_answers([BORN._replace(value="rome")], words, max_length=20)
    with pytest.raises(InputError, match="no token of an answer"):
        encode_answers([BORN._replace(answer=" ", value=None)], words, max_length=20)
    with pytest.raises(InputError, match="in it, once"):
        AnswerTemplate(prompt="Q: {query}")


def test_slow_tokenizers_are_refused():
    class Slow:
        is_fast = False

    with pytest.raises(InputError, match=r"\(Slow\) is not a fast one"):
        encode_answers([BORN], Slow(), max_length=20)
